"""The score and the held-out loss of the same runs, and which of the two tells methods apart better.

Tasks store the loss beside their score. With `evaluate.metric = "loss"` it is the other way round: the score is e to
the minus loss, and the task's own metric stands beside it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.statistics.choice import CellKey, run_noise
from analysis.statistics.runs import Seed, by, seed_of, shared_seeds
from analysis.store.columns import PLACE
from analysis.store.store import Store, remembered

LOSS, LIKELIHOOD = "loss", "likelihood"
"""The further metric of every task, and how the name of the score begins that stands for it: 'likelihood (bleu)'."""

_CONFIRMED = "select sweep, cell_id, metric, further from confirmed where further is not null"
_RERUN = """
select t.sweep, t.model, t.dataset, t.train_size, t.reference, t.method, t.metric, t.further, t.val_score as score,
       t.data_seed, t.init_seed, t.basis_seed
from last_attempts t join chosen c using (sweep, cell_id)
where t.stage = 'TUNE' and t.status = 'finished' and t.val_score is not null and t.reference is not null
  and abs(t.lr - c.lr) <= 1e-9 * c.lr and t.hyperparameters is not distinct from c.hyperparameters
"""


@dataclass(frozen=True)
class Beside:
    """The measure beside the score.

    Attributes:
        name: 'loss', or the task's own metric where scores stand for the loss.
        means: (sweep, cell) -> its mean over confirmed runs, on the test split.
    """

    name: str
    means: dict[CellKey, float]


@dataclass(frozen=True)
class Told:
    """How well a measure tells methods apart on TUNE's validation examples.

    Attributes:
        name: of the measure.
        ratio: the spread between methods over a run's own noise: standard deviations, pooled over places and budgets.
    """

    name: str
    ratio: float


@remembered
def beside(store: Store) -> Beside | None:
    """The measure beside the score; None where the runs have none, or not the same one."""
    found: dict[CellKey, list[float]] = defaultdict(list)
    names = set()
    for run in store.sql(_CONFIRMED).to_pylist():
        name, value = _other(run, "test")
        if value is not None:
            names.add(name)
            found[run["sweep"], run["cell_id"]].append(value)
    if len(names) != 1:
        return None
    return Beside(names.pop(), {key: sum(values) / len(values) for key, values in found.items()})


@remembered
def told(store: Store) -> tuple[Told, Told] | None:
    """What the score tells, and what the measure beside it does; None where TUNE re-ran too little to say.

    The runs are those of TUNE at each cell's chosen rate, on the seeds that all methods of a budget have.
    """
    sums = np.zeros((2, 2))  # by measure: squares of the spread between methods, and of a run's noise
    counts = np.zeros(2)
    names = set()
    for rows in by(store.sql(_RERUN).to_pylist(), *PLACE, "reference").values():
        cells: dict[str, dict[Seed, tuple[float, float]]] = defaultdict(dict)
        for run in rows:
            name, value = _other(run, "val")
            if value is not None:
                names.add(((run["metric"] or "score").partition(" (")[0], name.partition(" (")[0]))
                cells[run["method"]][seed_of(run)] = (run["score"], value)
        seeds = shared_seeds(list(cells.values())) if cells else []
        if len(cells) < 2 or len(seeds) < 2:
            continue
        values = np.array([[cell[seed] for seed in seeds] for cell in cells.values()])  # (methods, seeds, measure)
        for k in range(2):
            squares, freedom = run_noise(values[..., k])
            sums[k] += values[..., k].mean(axis=1).var(ddof=1), float(squares) / freedom
        counts += 1
    if len(names) != 1 or not counts[0] or not (sums[:, 1] > 0).all():
        return None
    ((score, other),) = names
    return Told(score, math.sqrt(sums[0, 0] / sums[0, 1])), Told(other, math.sqrt(sums[1, 0] / sums[1, 1]))


def _other(run: dict[str, Any], which: str) -> tuple[str, float | None]:
    """Name and value of the measure beside a run's score."""
    values = json.loads(run["further"] or "{}").get(which) or {}
    kind, _, own = (run["metric"] or "").partition(" (")
    name = own.removesuffix(")") if kind == LIKELIHOOD else LOSS
    return name, values.get(name)
