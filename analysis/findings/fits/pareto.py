"""Pareto fronts: which cells no other cell beats in both score and cost, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.findings.fits.measured import axis, costed_runs
from analysis.format import Row
from analysis.store.columns import FLAG, INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import size_key, style
from analysis.verdict.inference import DRAWS, Array, t_weights
from analysis.verdict.runs import UNTRAINED, Seed, by_seed, group_by

FRONT = pa.schema(
    [
        *typed(TEXT, *PLACE, "method", "reference", "cell_id", "x"),
        *typed(REAL, "cost", "score"),
        ("n", INT),
        ("on_front", FLAG),
        ("front_share", REAL),  # share of the draws over seeds in which it is on the front; null with one seed
        ("beaten_by", TEXT),  # the best-scoring cell that beats it; null on the front
    ]
)


def efficient(cost: Array, score: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return (K,) whether a point is on the front: no other costs at most as much and scores at least as much.

    An equal point does not count as better: one of the two must differ.
    """
    cheaper, better = cost[:, None] <= cost[None, :], score[:, None] >= score[None, :]
    strictly = (cost[:, None] < cost[None, :]) | (score[:, None] > score[None, :])
    return np.asarray(~(cheaper & better & strictly).any(axis=0))


@remembered
def pareto_front(store: Store, x: str = "adapter_params") -> pa.Table:
    """Return each confirmed cell with cost and mean score, and whether it is on the Pareto front; columns `FRONT`.

    Methods without an adapter (full fine-tuning) take part with their own cost. Cells without a known cost are left
    out. For `front_share` the means of all cells are drawn together, so that cells with the same seed vary together. A
    trained cell with one seed has no `front_share`. Raises StoreError if the cost `x` is unknown.
    """
    axis(x)
    rows: list[Row] = []
    for place_runs in group_by([r for r in costed_runs(store, x) if r["cost"] is not None], *PLACE).values():
        cells = list(group_by(place_runs, "cell_id").values())
        cost = np.array([float(np.median([r["cost"] for r in runs])) for runs in cells])
        scores = [by_seed(runs) for runs in cells]
        mean = np.array([float(np.mean(list(s.values()))) for s in scores])
        on, share = efficient(cost, mean), front_share(cost, scores)
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


def front_share(cost: Array, scores: Sequence[Mapping[Seed, float]]) -> Array | None:
    """Return (K,) the share of joint draws in which each cell is on the front, or None if no cell has two seeds."""
    if max(len(s) for s in scores) < 2:
        return None
    number = {seed: i for i, seed in enumerate(dict.fromkeys(seed for s in scores for seed in s))}
    drawn = []
    for s in scores:
        values = np.array(list(s.values()))
        shift = t_weights([number[seed] for seed in s]) @ (values - values.mean()) if len(s) > 1 else np.zeros(DRAWS)
        drawn.append(values.mean() + shift)
    return np.asarray(
        np.mean([efficient(cost, drawn_scores) for drawn_scores in np.stack(drawn, axis=1)], axis=0), dtype=float
    )
