"""Intervals of an accuracy over seeds and test examples, which also hold for other test examples like these.

A t interval over seeds says something about this test set only. The table `predictions` says which examples each seed
got right. From it the variance of an accuracy over seeds and examples is V = (MS_seed + MS_example - MS_both) / (S N),
with the mean squares of a two-way table of S seeds and N examples without replication (Owen, Ann. Appl. Stat. 1, 2007,
has the general case).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import special

from analysis.format import Row
from analysis.store.columns import INT, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import place_of
from analysis.verdict.choice import choice_variances
from analysis.verdict.inference import CHOICE_FREEDOM, LEVEL, NO_SPREAD
from analysis.verdict.question import question
from analysis.verdict.runs import Seed, group_by, seed_of

NONE_KEPT, ONE_SEED = "no predictions", "one seed"
DIFFERENT, OTHER_SCORE = "seeds tested on different examples", "the score is no accuracy over examples"
"""Reasons why a cell has no such interval."""

EXAMPLES = pa.schema(
    [
        *typed(TEXT, "sweep", "cell_id"),
        *typed(INT, "seeds", "n_examples"),
        *typed(REAL, "low_examples", "high_examples"),  # of the accuracy, over seeds and test examples
        # of that less the baseline's, the choice of rates included; null where that is not known
        *typed(REAL, "difference_low_examples", "difference_high_examples"),
        ("examples_note", TEXT),  # why there is no interval of the accuracy; null where there is
    ]
)

_KEPT = """
select t.*, p.n_examples, p.correct, p.examples_hash
from confirmed t left join predictions p using (sweep, trial_id) where t.test_score is not null
order by t.sweep, t.cell_id, t.data_seed
"""


@dataclass(frozen=True)
class _Tested:
    """Which test examples the seeds of a cell got right.

    Attributes:
        right: (examples,) whether each example was right, by seed; empty if that is not known.
        examples: hash of the test examples; empty if `right` is.
        note: why there is no interval; None if there is one.
    """

    right: dict[Seed, NDArray[np.bool_]]
    examples: str
    note: str | None

    @classmethod
    def of(cls, runs: list[Row]) -> _Tested:
        if any(r["correct"] is None for r in runs):
            return cls({}, "", NONE_KEPT)
        if len({(r["examples_hash"], r["n_examples"]) for r in runs}) > 1:
            return cls({}, "", DIFFERENT)
        right = {seed_of(r): unpacked(r["correct"], r["n_examples"]) for r in runs}
        if any(abs(right[seed_of(r)].mean() - r["test_score"]) > 0.5 / r["n_examples"] for r in runs):
            return cls({}, "", OTHER_SCORE)
        return cls(right, runs[0]["examples_hash"], ONE_SEED if len(right) < 2 else None)


def unpacked(correct: bytes, n_examples: int) -> NDArray[np.bool_]:
    """Return (n_examples,): which test examples a trial got right, from the bits of the table `predictions`.

    Raises:
        ValueError: the number of bits does not match the number of examples.
    """
    if len(correct) != (n_examples + 7) // 8:
        raise ValueError(f"{n_examples} examples need {(n_examples + 7) // 8} bytes of bits, got {len(correct)}")
    return np.unpackbits(np.frombuffer(correct, np.uint8), count=n_examples).astype(bool)


def crossed_interval(scores: NDArray[np.float64], added: float = 0.0) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean over seeds and examples like these, or None without spread.

    It has Satterthwaite's degrees of freedom, and is never narrower than the interval over the seeds alone.

    Args:
        scores: (S, N) score of every seed on every example: 0 or 1, or differences of these.
        added: variance that the choice of rates adds to the mean.

    Raises:
        ValueError: there are fewer than two seeds or examples.
    """
    seeds, examples = scores.shape
    if min(scores.shape) < 2:
        raise ValueError(f"seeds and examples must be two or more, got {seeds} and {examples}")
    mean = float(scores.mean())
    of_seed = examples * float(((scores.mean(axis=1) - mean) ** 2).sum())
    of_example = seeds * float(((scores.mean(axis=0) - mean) ** 2).sum())
    interaction = max(0.0, float(((scores - mean) ** 2).sum()) - of_seed - of_example)
    freedom = np.array([seeds - 1, CHOICE_FREEDOM, examples - 1, (seeds - 1) * (examples - 1)], dtype=float)
    parts = np.array([of_seed, 0.0, of_example, interaction]) / freedom / (seeds * examples) + [0.0, added, 0.0, 0.0]
    halves = [0.0]
    crossed = [[1, 0, 1, -1], [1, 1, 1, -1]] if parts[2] > parts[3] else []  # else the estimate is below zero
    for used in ([1, 0, 0, 0], [1, 1, 0, 0], *crossed):
        variance = float(parts @ used)
        if variance > NO_SPREAD**2:
            nu = variance**2 / float(((parts * used) ** 2 / freedom).sum())
            halves.append(float(-special.stdtrit(nu, (1 - LEVEL) / 2)) * math.sqrt(variance))
    return (mean - max(halves), mean + max(halves)) if max(halves) > 0.0 else None


@remembered
def example_intervals(store: Store) -> pa.Table:
    """Return intervals of each confirmed cell's accuracy, and of its difference to the baseline; columns `EXAMPLES`.

    The baseline is the one of the sweep's question, at the same budget.
    """
    baseline = question(store).baseline
    cells = group_by(store.sql(_KEPT).to_pylist(), "sweep", "cell_id")
    choice = choice_variances(store)
    tested = {key: _Tested.of(runs) for key, runs in cells.items()}
    bases = {(place_of(r[0]), r[0]["reference"]): key for key, r in cells.items() if r[0]["method"] == baseline}
    rows: list[Row] = []
    for key, runs in cells.items():
        cell = tested[key]
        row: Row = {"sweep": key[0], "cell_id": key[1], "seeds": len(runs), "n_examples": runs[0]["n_examples"]}
        row["examples_note"] = cell.note
        interval = None if cell.note else crossed_interval(np.stack(list(cell.right.values())).astype(float))
        if interval:
            row |= dict(zip(("low_examples", "high_examples"), interval, strict=True))
        base_key = bases.get((place_of(runs[0]), runs[0]["reference"]))
        choice_known = base_key is not None and base_key != key and key in choice and base_key in choice
        interval = (
            _difference(cell, tested[base_key], choice[key] + choice[base_key]) if base_key and choice_known else None
        )
        if interval:
            row |= dict(zip(("difference_low_examples", "difference_high_examples"), interval, strict=True))
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def _difference(one: _Tested, base: _Tested, added: float) -> tuple[float, float] | None:
    """Return the interval of a difference, or None if the cells share fewer than two seeds or saw other examples."""
    shared = [seed for seed in one.right if seed in base.right]
    if len(shared) < 2 or one.examples != base.examples:
        return None
    return crossed_interval(np.stack([one.right[s].astype(float) - base.right[s] for s in shared]), added)
