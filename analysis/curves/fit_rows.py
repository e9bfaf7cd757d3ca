"""What tables of fits have in common, whatever their curves' x is: columns, and the rows of one curve."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.curves import fits
from analysis.curves.fits import Curve, Kind

Row = dict[str, Any]
Columns = list[tuple[str, pa.DataType]]

_ESTIMATE: Columns = [("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("share", pa.float64())]
_ESTIMATE += [("note", pa.string())]
_X: Columns = [("method", pa.string()), ("x", pa.string())]

FIT: Columns = [
    *_X,
    ("kind", pa.string()),
    ("n_points", pa.int64()),
    ("seeds", pa.int64()),
    ("rmse", pa.float64()),
    ("parameters", pa.string()),
]
BAND: Columns = [
    *_X,
    ("kind", pa.string()),
    ("at", pa.float64()),
    ("score", pa.float64()),
    ("low", pa.float64()),
    ("high", pa.float64()),
]
CROSSING: Columns = [
    ("method", pa.string()),
    ("baseline", pa.string()),
    ("x", pa.string()),
    ("seeds", pa.int64()),
    *_ESTIMATE,
]
NEED: Columns = [*_X, ("goal", pa.string()), ("target", pa.float64()), ("seeds", pa.int64()), *_ESTIMATE]
AREA: Columns = [*_X, ("from_x", pa.float64()), ("to_x", pa.float64()), ("seeds", pa.int64()), *_ESTIMATE]
"""Columns of the tables after those that say where the curve is."""


def fit_rows(curve: Curve, kinds: Sequence[Kind]) -> Iterator[Row]:
    """The fit of each form; a form with too few points, or that does not settle, has no row."""
    for kind in kinds:
        found = fits.fit(kind, curve.x, curve.mean)
        if found is not None:
            yield {
                "kind": kind,
                "n_points": len(curve.x),
                "seeds": curve.seeds,
                "rmse": found.rmse,
                "parameters": json.dumps(found.parameters),
            }


def band_rows(curve: Curve, kind: Kind, points: int) -> Iterator[Row]:
    """The fitted curve on a logarithmic grid, with its bootstrap band where there are several seeds."""
    found = fits.fit(kind, curve.x, curve.mean)
    if found is None:
        return
    at = np.geomspace(curve.x[0], curve.x[-1], points)
    edges = fits.band(curve, kind, at)
    for i, (x, score) in enumerate(zip(at, found.predict(at), strict=True)):
        ends = {"low": None, "high": None} if edges is None else {"low": edges[0][i], "high": edges[1][i]}
        yield {"kind": kind, "at": float(x), "score": float(score)} | ends
