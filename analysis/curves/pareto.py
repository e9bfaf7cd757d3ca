"""Pareto fronts: which cells no other cell beats in both score and cost, and how sure that is."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.curves.budgets import AXES, Place, axis, confirmed_runs, place_of
from analysis.curves.fits import RESAMPLES, Array
from analysis.statistics.scaling import UNTRAINED
from analysis.store.store import Store
from analysis.styles import size_key, style

Row = dict[str, Any]

FRONT = pa.schema(
    [
        ("sweep", pa.string()),
        ("model", pa.string()),
        ("dataset", pa.string()),
        ("train_size", pa.string()),
        ("method", pa.string()),
        ("reference", pa.string()),
        ("cell_id", pa.string()),
        ("x", pa.string()),
        ("cost", pa.float64()),
        ("score", pa.float64()),
        ("n", pa.int64()),
        ("on_front", pa.bool_()),
        ("front_share", pa.float64()),  # share of the seed resamples in which it is on the front; null with one seed
        ("beaten_by", pa.string()),  # the best-scoring cell that beats it; null on the front
    ]
)


def efficient(cost: Array, score: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(K,) whether no other point has a lower or equal cost and a higher or equal score, one of them strictly."""
    cheaper, better = cost[:, None] <= cost[None, :], score[:, None] >= score[None, :]
    strictly = (cost[:, None] < cost[None, :]) | (score[:, None] > score[None, :])
    return np.asarray(~(cheaper & better & strictly).any(axis=0))


def front(store: Store, x: str = "adapter_params", *, seed: int = 0, resamples: int = RESAMPLES) -> pa.Table:
    """Every confirmed cell with its cost and mean score, and whether it is on the front of its place; columns `FRONT`.

    Methods without adapter (full fine-tuning) take part with their own cost; one whose cost is null does not.
    `front_share` resamples each cell's seeds by itself; of a trained cell with one seed there is none.

    Raises:
        StoreError: unknown axis.
    """
    axis(x)
    return store.remember(("front", x, seed, resamples), lambda: _front(store, x, seed, resamples))


def _front(store: Store, x: str, seed: int, resamples: int) -> pa.Table:
    references = {(c["sweep"], c["cell_id"]): c["reference"] for c in store.table("cells").to_pylist()}
    cells: dict[Place, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for run in confirmed_runs(store, x):
        if run["cost"] is not None:
            cells[place_of(run)][run["cell_id"]].append(run)
    rows: list[Row] = []
    for place, groups in cells.items():
        ids = list(groups)
        cost = np.array([float(np.median([r["cost"] for r in groups[i]])) for i in ids])
        scores = [np.array([r["test_score"] for r in groups[i]]) for i in ids]
        mean = np.array([float(s.mean()) for s in scores])
        on = efficient(cost, mean)
        alone = [len(s) < 2 and groups[i][0]["method"] != UNTRAINED for s, i in zip(scores, ids, strict=True)]
        share = _share(cost, scores, seed, resamples)
        for k, cell in enumerate(ids):
            beats = [j for j in range(len(ids)) if j != k and cost[j] <= cost[k] and mean[j] >= mean[k]]
            rows.append(
                dict(zip(("sweep", "model", "dataset", "train_size"), place, strict=True))
                | {"method": groups[cell][0]["method"], "reference": references.get((place[0], cell))}
                | {"cell_id": cell, "x": x, "cost": float(cost[k]), "score": float(mean[k]), "n": len(scores[k])}
                | {"on_front": bool(on[k]), "front_share": None if share is None or alone[k] else float(share[k])}
                | {"beaten_by": None if on[k] else ids[max(beats, key=lambda j: mean[j])]}
            )
    rows.sort(
        key=lambda r: (
            r["sweep"],
            r["model"],
            r["dataset"],
            size_key(r["train_size"]),
            r["cost"],
            style(r["method"]).order,
        )
    )
    return pa.Table.from_pylist(rows, schema=FRONT)


def _share(cost: Array, scores: list[Array], seed: int, resamples: int) -> Array | None:
    if max(len(s) for s in scores) < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = []
    for s in scores:
        means = s[rng.integers(0, len(s), size=(resamples, len(s)))].mean(axis=1)
        # resampling n values shrinks their variance by (n - 1) / n: stretch it back
        drawn.append(s.mean() + (means - s.mean()) * math.sqrt(len(s) / max(len(s) - 1, 1)))
    return np.asarray(np.mean([efficient(cost, one) for one in np.stack(drawn, axis=1)], axis=0), dtype=float)


def front_sentence(table: pa.Table) -> str:
    """The front of a table of one place in words."""
    rows = [r for r in table.to_pylist() if r["on_front"]]
    if not rows:
        return "No confirmed cell has this cost."
    names = [f"{style(r['method']).name}{' at ' + r['reference'] if r['reference'] else ''}" for r in rows]
    return f"On the front of score against {AXES[rows[0]['x']].label}: {', '.join(names)}."
