"""Pareto fronts: which cells no other cell beats in both score and cost, and how sure that is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.curves.fits import RESAMPLES, Array
from analysis.curves.measured import axis, costed_runs
from analysis.format import Row
from analysis.statistics.runs import by
from analysis.statistics.scaling import UNTRAINED
from analysis.store.columns import FLAG, INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import size_key, style

FRONT = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "reference", "cell_id", "x"),
        *typed(REAL, "cost", "score"),
        ("n", INT),
        ("on_front", FLAG),
        ("front_share", REAL),  # share of the seed resamples in which it is on the front; null with one seed
        ("beaten_by", TEXT),  # the best-scoring cell that beats it; null on the front
    ]
)


def efficient(cost: Array, score: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(K,) whether no other point has a lower or equal cost and a higher or equal score, one of them strictly."""
    cheaper, better = cost[:, None] <= cost[None, :], score[:, None] >= score[None, :]
    strictly = (cost[:, None] < cost[None, :]) | (score[:, None] > score[None, :])
    return np.asarray(~(cheaper & better & strictly).any(axis=0))


@remembered
def front(store: Store, x: str = "adapter_params") -> pa.Table:
    """Every confirmed cell with its cost and mean score, and whether it is on the front of its place; columns `FRONT`.

    Methods without adapter (full fine-tuning) take part with their own cost; cells without a known cost do not.
    `front_share` resamples each cell's seeds apart; a trained cell with one seed has none.
    Raises StoreError: unknown axis.
    """
    axis(x)
    rows: list[Row] = []
    for mine in by([r for r in costed_runs(store, x) if r["cost"] is not None], *PLACE).values():
        cells = list(by(mine, "cell_id").values())
        cost = np.array([float(np.median([r["cost"] for r in runs])) for runs in cells])
        scores = [np.array([r["test_score"] for r in runs]) for runs in cells]
        mean = np.array([float(s.mean()) for s in scores])
        on, share = efficient(cost, mean), _share(cost, scores)
        for k, runs in enumerate(cells):
            beats = [j for j in range(len(cells)) if j != k and cost[j] <= cost[k] and mean[j] >= mean[k]]
            alone = len(runs) < 2 and runs[0]["method"] != UNTRAINED
            rows.append(
                {name: runs[0][name] for name in (*PLACE, "method", "reference", "cell_id")}
                | {"x": x, "cost": float(cost[k]), "score": float(mean[k]), "n": len(runs), "on_front": bool(on[k])}
                | {"front_share": None if share is None or alone else float(share[k])}
                | {"beaten_by": None if on[k] else cells[max(beats, key=lambda j: mean[j])][0]["cell_id"]}
            )
    return pa.Table.from_pylist(sorted(rows, key=_order), schema=FRONT)


def _order(row: Row) -> tuple[Any, ...]:
    place = row["sweep"], row["model"], row["dataset"], size_key(row["train_size"])
    return *place, row["cost"], style(row["method"]).order


def _share(cost: Array, scores: list[Array]) -> Array | None:
    if max(len(s) for s in scores) < 2:
        return None
    rng = np.random.default_rng(0)
    drawn = []
    for s in scores:
        means = s[rng.integers(0, len(s), size=(RESAMPLES, len(s)))].mean(axis=1)
        # resampling n values shrinks their variance by (n - 1) / n: stretch it back
        drawn.append(s.mean() + (means - s.mean()) * math.sqrt(len(s) / max(len(s) - 1, 1)))
    return np.asarray(np.mean([efficient(cost, one) for one in np.stack(drawn, axis=1)], axis=0), dtype=float)
