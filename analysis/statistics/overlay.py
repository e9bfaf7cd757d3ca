"""A published curve beside ours: which of our panels it belongs to."""

from __future__ import annotations

import pyarrow as pa

from analysis.statistics import scaling
from analysis.statistics.published import published_curve
from analysis.store.scaling_schemas import CURVE
from analysis.store.store import Store
from analysis.styles import places


def overlaid(store: Store, overlay: str) -> tuple[pa.Table, pa.Table, str]:
    """Our first panel (the mean over data sets where there is one), the published curve of that name, its title."""
    curve = scaling.curve(store)
    panels = places(curve)
    rows = [
        r for r in curve.to_pylist() if panels and (r["sweep"], r["model"], r["dataset"], r["train_size"]) == panels[0]
    ]
    model, dataset, size = panels[0][1:] if panels else (None, None, None)
    theirs, title = published_curve(overlay, model, dataset, size)
    return pa.Table.from_pylist(rows, schema=CURVE), theirs, title
