"""The numbers that the figures of the diagnostics show, as tables: means over weights, cells and data sets."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.styles import in_order

Row = dict[str, Any]

CORNERS = ("lora", "randlora", "full")
PLACES = ((0.0, 0.0), (1.0, 0.0), (0.5, 1.0))
"""Where the models of the loss plane stand, in order."""

LEAST = 1e-6
"""What a logarithm begins at."""
SHARES = 101
"""Points of a mean spectrum, from the largest singular value to the last."""

SPECTRA = pa.schema([("method", pa.string()), ("share", pa.float64()), ("relative", pa.float64())])
ERRORS = pa.schema([("method", pa.string()), ("lora_rank", pa.int64()), ("error", pa.float64()), ("n", pa.int64())])
ALIGNMENT = pa.schema([("method", pa.string()), ("depth", pa.int64()), ("cka", pa.float64()), ("n", pa.int64())])


def spectra(spectrum: pa.Table) -> pa.Table:
    """Singular values over the largest, `relative`, at shares (0 to 1) of their number: means over updates.

    Args:
        spectrum: rows of the table `spectrum`; updates that are zero have none.
    """
    rows, found = spectrum.to_pylist(), []
    at = np.linspace(0, 1, SHARES)
    for method in in_order({r["method"] for r in rows}):
        curves = [np.asarray(r["singular_values"]) for r in rows if r["method"] == method and r["spectral"] > 0]
        if curves:
            mean = np.mean([np.interp(at, np.linspace(0, 1, len(c)), c / c.max()) for c in curves], axis=0)
            found += [{"method": method, "share": s, "relative": v} for s, v in zip(at, mean, strict=True)]
    return pa.Table.from_pylist(found, schema=SPECTRA)


def errors(approximation: pa.Table) -> pa.Table:
    """Relative error by form and parameters (as LoRA rank), the mean over `n` weights.

    Args:
        approximation: rows of the table of that name.
    """
    points: dict[tuple[str, int], list[float]] = defaultdict(list)
    for r in approximation.to_pylist():
        points[r["form"], r["lora_rank"]].append(r["error"])
    keys = [
        (form, rank) for form in in_order({f for f, _ in points}) for rank in sorted(r for f, r in points if f == form)
    ]
    found = [
        {"method": form, "lora_rank": rank, "error": float(np.mean(points[form, rank])), "n": len(points[form, rank])}
        for form, rank in keys
    ]
    return pa.Table.from_pylist(found, schema=ERRORS)


def alignment(cka: pa.Table) -> pa.Table:
    """CKA by block, each method at its largest budget: the mean over `n` cells.

    Args:
        cka: rows of the table of that name; those without a number are left out.
    """
    rows, found = [r for r in cka.to_pylist() if r["cka"] is not None], []
    for method in in_order({r["method"] for r in rows}):
        mine = [r for r in rows if r["method"] == method]
        most = max(r["adapter_params"] or 0 for r in mine)
        depth: dict[int, list[float]] = defaultdict(list)
        for r in mine:
            if (r["adapter_params"] or 0) == most:
                depth[r["depth"]].append(r["cka"])
        found += [
            {"method": method, "depth": d, "cka": float(np.mean(v)), "n": len(v)} for d, v in sorted(depth.items())
        ]
    return pa.Table.from_pylist(found, schema=ALIGNMENT)
