"""The score and the held-out loss of the same runs, and which of the two separates methods better.

A task stores the loss as a further measure beside its score. With `evaluate.metric = "loss"` it is the other way round:
the score is exp(-loss), and the task's own metric is the further measure.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.format import percent
from analysis.store.columns import PLACE
from analysis.store.store import Store, remembered
from analysis.verdict.noise import run_noise
from analysis.verdict.runs import CellKey, Seed, group_by, seed_of, shared_seeds

LOSS, LIKELIHOOD = "loss", "likelihood"
"""The further measure of every task; and the start of the score's name if the score is exp(-loss): 'likelihood (bleu)'.
"""

_CONFIRMED = "select sweep, cell_id, metric, further from confirmed where further is not null"
_RERUN = """
select t.sweep, t.model, t.dataset, t.train_size, t.reference, t.method, t.metric, t.further, t.val_score as score,
       t.data_seed, t.init_seed, t.basis_seed
from last_attempts t join chosen c using (sweep, cell_id)
where t.stage = 'TUNE' and t.status = 'finished' and t.val_score is not null and t.reference is not null
  and abs(t.lr - c.lr) <= 1e-9 * c.lr and t.hyperparameters is not distinct from c.hyperparameters
"""


@dataclass(frozen=True)
class FurtherMeasure:
    """A second measure of the confirmed runs, beside their score.

    Attributes:
        name: 'loss', or the task's own metric if the score is exp(-loss).
        means: (sweep, cell) -> mean of the measure over the confirmed runs, on the test split.
    """

    name: str
    means: dict[CellKey, float]


@dataclass(frozen=True)
class Separation:
    """How well a measure separates methods on TUNE's validation examples.

    Attributes:
        name: name of the measure.
        ratio: standard deviation between methods, divided by that of a run's noise; pooled over places and budgets.
    """

    name: str
    ratio: float


@remembered
def further_measure(store: Store) -> FurtherMeasure | None:
    """Return the further measure of the confirmed runs, or None if they have none, or not all the same one."""
    values_by_cell: dict[CellKey, list[float]] = defaultdict(list)
    names = set()
    for run in store.sql(_CONFIRMED).to_pylist():
        name, value = _further_value(run, "test")
        if value is not None:
            names.add(name)
            values_by_cell[run["sweep"], run["cell_id"]].append(value)
    if len(names) != 1:
        return None
    return FurtherMeasure(names.pop(), {key: sum(values) / len(values) for key, values in values_by_cell.items()})


@remembered
def separations(store: Store) -> tuple[Separation, Separation] | None:
    """Return how well the score and the further measure separate methods, or None if TUNE has too few re-runs.

    The runs are those of TUNE at each cell's chosen rate, on the seeds that all methods of a budget have.
    """
    sums = np.zeros((2, 2))  # by measure: squares of the spread between methods, and of a run's noise
    counts = np.zeros(2)
    names = set()
    for rows in group_by(store.sql(_RERUN).to_pylist(), *PLACE, "reference").values():
        cells: dict[str, dict[Seed, tuple[float, float]]] = defaultdict(dict)
        for run in rows:
            name, value = _further_value(run, "val")
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
    ((score, further),) = names
    ratios = [math.sqrt(between / noise) for between, noise in sums]
    return Separation(score, ratios[0]), Separation(further, ratios[1])


def _further_value(run: dict[str, Any], which: str) -> tuple[str, float | None]:
    """Return the name and the value of a run's further measure on the split `which` ('val' or 'test')."""
    values = json.loads(run["further"] or "{}").get(which) or {}
    kind, _, task_metric = (run["metric"] or "").partition(" (")
    name = task_metric.removesuffix(")") if kind == LIKELIHOOD else LOSS
    return name, values.get(name)


MUCH = 2.0
"""`measures_text` advises to use the loss if it separates methods this many times better than the score."""


def further_head(name: str) -> str:
    """Return the heading of the column of the further measure: 'loss', or for example 'accuracy %'."""
    return name if name == LOSS else f"{name.partition(' (')[0]} %"


def further_text(value: float | None, name: str) -> str:
    """Return a value of the further measure: a loss with three decimals, any other measure in percent."""
    return percent(value) if name != LOSS else "" if value is None else f"{value:.3f}"


def measures_text(score: Separation, further: Separation) -> str:
    """Return a sentence on how well the score and the further measure separate methods, with advice if it is clear."""
    text = (
        f"On the validation examples of stage TUNE, the spread between methods is {score.ratio:.1f} times the noise of "
        f"a run by {score.name}, and {further.ratio:.1f} times by {further.name}."
    )
    if further.name == LOSS and further.ratio >= MUCH * score.ratio:
        text += ' So the loss can decide more here. A new sweep with metric = "loss" under [evaluate] goes by it.'
    return text
