"""`sweeps analyze`: run one diagnostic on a results folder, draw it, and say in a sentence what it shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis import cka, diagnostic_plots, landscape, spectrum
from analysis.errors import StoreError, nearest
from analysis.methods import in_order, style
from analysis.store import Store

Row = dict[str, Any]

KINDS = ("spectrum", "cka", "landscape")


def analyze(store: Store, kind: str) -> tuple[pa.Table, dict[str, Path], str]:
    """Compute (only what is not there yet), write tables and figures into `diagnostics/`.

    Returns:
        The table, the files by name, and the sentence.

    Raises:
        StoreError: unknown kind, no trained weights kept, or no full fine-tuning where one is needed.
    """
    if kind == "spectrum":
        table = spectrum.spectrum(store)
        approximation = spectrum.approximation(store)
        says = spectrum_sentence(table, approximation)
        figure = diagnostic_plots.draw_spectrum(table, approximation)
    elif kind == "cka":
        table = cka.layer_cka(store)
        says = cka_sentence(table)
        figure = diagnostic_plots.draw_cka(table)
    elif kind == "landscape":
        table = landscape.landscape(store)
        if table.num_rows == 0:
            raise StoreError("no budget at which LoRA, RandLoRA and full fine-tuning are all kept")
        says = landscape_sentence(table)
        figure = diagnostic_plots.draw_landscape(table)
    else:
        raise StoreError(f"unknown diagnostic {kind!r}; {nearest(kind, KINDS)}")
    return table, diagnostic_plots.write(figure, store.path, kind, says), says


def spectrum_sentence(table: pa.Table, approximation: pa.Table) -> str:
    """Mean effective rank per method, and the two forms' errors at the largest count that was fitted."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for r in table.to_pylist():
        ranks[r["method"]].append(r["effective_rank"])
    parts = [f"{style(m).name} {_mean(ranks[m]):.1f}" for m in in_order(set(ranks))]
    text = f"Effective rank of the updates, mean over target weights and budgets: {', '.join(parts)}."
    rows = approximation.to_pylist()
    if rows:
        top = max(r["lora_rank"] for r in rows)
        errors = {
            f: _mean(r["error"] for r in rows if r["form"] == f and r["lora_rank"] == top) for f in ("lora", "randlora")
        }
        text += (
            f" Approximating full fine-tuning's update with the parameters of LoRA rank {top}: least relative error "
            f"{errors['lora']:.2f} for rank {top} (exact), {errors['randlora']:.2f} for RandLoRA's form (a fit, so an "
            "upper bound). One seed per cell: a description, not a test."
        )
    return text


def cka_sentence(table: pa.Table) -> str:
    """CKA of the last block, per method at its largest budget."""
    rows = table.to_pylist()
    last = max(r["depth"] for r in rows)
    parts = []
    for method in in_order({r["method"] for r in rows}):
        most = max(r["adapter_params"] or 0 for r in rows if r["method"] == method)
        mine = [r["cka"] for r in rows if r["method"] == method and r["depth"] == last]
        mine = [
            r["cka"] for r in rows if (r["method"], r["depth"]) == (method, last) and (r["adapter_params"] or 0) == most
        ] or mine
        parts.append(f"{style(method).name} {_mean(mine):.3f}")
    return (
        f"CKA with full fine-tuning in the last residual block, at each method's largest budget: {', '.join(parts)}. "
        "One seed per cell: a description, not a test."
    )


def landscape_sentence(table: pa.Table) -> str:
    """Barrier heights of the three edges."""
    names = [style(m).name for m in ("lora", "randlora", "full")]
    edges = {(r["a"], r["b"]): r["barrier"] for r in table.to_pylist() if r["kind"] == "edge"}
    parts = [f"{names[a]} to {names[b]} {height:.3f}" for (a, b), height in sorted(edges.items())]
    return (
        f"Loss over the plane through the three models (training images); barrier heights: {', '.join(parts)}. "
        "0 means that the straight path rises nowhere above the line between its ends. One seed: a description."
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
