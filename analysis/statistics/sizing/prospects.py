"""The smallest difference that a sweep will detect, before it runs, from the results of one like it.

Two variances decide it: that of a paired difference between seeds, and what the choice of learning rates adds. Both are
taken from the like sweep. More seeds lessen the first. More validation examples, more re-runs of the best rates and
more rates lessen the second. No variance is assumed: if the like sweep does not tell one, nothing is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from analysis.format import Row
from analysis.statistics.choice import CellKey, choice_variance, missed, run_noises, smoothed
from analysis.statistics.examples import unpacked
from analysis.statistics.inference import OVER_DATASETS, Difference
from analysis.statistics.looks import Looks
from analysis.statistics.power import detectable
from analysis.statistics.runs import group_by
from analysis.statistics.scaling import question, rows_with_differences
from analysis.statistics.tuning import rates
from analysis.store.store import Store
from analysis.styles import Place, place_of

Reruns = tuple[int, int]
"""How many of the best rates are run again, and on how many further seeds each."""


@dataclass(frozen=True)
class Design:
    """What of a sweep decides which differences it can detect.

    Attributes:
        seeds: number of CONFIRM seeds. maximum: the most that are declared; None: none is.
        rows: number of comparisons of the family that is tested: budgets, data sets and methods.
        means: number of means over these rows that are tested with them, one for each training size.
        reruns: of the best rates. rates: number of rates tried. examples: number of validation examples. None: as the
            like sweep has it.
    """

    seeds: int
    maximum: int | None
    rows: int
    means: int
    reruns: Reruns | None = None
    rates: int | None = None
    examples: int | None = None


@dataclass(frozen=True)
class Detectable:
    """The smallest true differences that are found four times in five; None where that is not known.

    Attributes:
        each: at one budget and data set, the median over those of the like sweep.
        mean: in the mean over budgets and data sets.
    """

    each: float | None
    mean: float | None


@dataclass(frozen=True)
class _Tuned:
    """One tuned cell of the like sweep: its expected scores by rate, and what is known of its runs.

    Attributes:
        expected: (K,) by rate. missed: how far the best of these lies below the best rate.
        noise: variance of one run's validation score. examples: that it was measured on.
        flips: variance of the answer to one example between seeds; None where answers are not stored.
    """

    expected: NDArray[np.float64]
    missed: float
    noise: float
    examples: int | None
    flips: float | None

    def noise_at(self, examples: int | None) -> float:
        """The variance of one run's score on so many examples: the part that is the examples' own shrinks with them."""
        if examples is None or not self.examples or self.flips is None:
            return self.noise
        rest = max(0.0, self.noise - self.flips / self.examples)
        return self.noise * (rest + self.flips / examples) / (rest + self.flips / self.examples)

    def added(self, design: Design, reruns: Reruns) -> float:
        """What the choice of the rate adds to the variance of the cell's score.

        What the rates miss of a parabola's top falls with the square of the step between them.
        """
        finer = 1.0 if design.rates is None else len(self.expected) / design.rates
        noise = self.noise_at(design.examples)
        return float(choice_variance(self.expected, noise, design.reruns or reruns)) + (self.missed * finer**2) ** 2


class Pilot:
    """The results of a sweep, as a pilot of another one.

    Attributes:
        examples: number of validation examples of its cells, the fewest; None if not known.
        seeds: number of its paired seeds, the fewest; 0 if nothing is compared.
        tells_examples: whether it tells what more validation examples would change.
        tunes: whether rates were chosen in it.
    """

    def __init__(self, store: Store) -> None:
        asked = question(store)
        found = [
            (row, tested)
            for row, tested in rows_with_differences(store)
            if asked.focus in (None, row["method"])
            and row["test"] != OVER_DATASETS
            and tested.testable
            and min(tested.pairs) > 1
            and row["choice_sd"] is not None
        ]
        self._each = [pair for pair in found if pair[0]["reference"] is not None and pair[0]["dataset"] is not None]
        self._mean = [pair for pair in found if pair[0]["reference"] is None]
        search = store.stored().get("search") or {}
        self._reruns: Reruns = (search.get("rerun_rates") or 0, search.get("rerun_seeds") or 0)
        self._tuned = _tuned(store)
        self._added: dict[Design, dict[tuple[Place, str], list[float]]] = {}
        pairs = {row["method"] for row, _ in found} | {row["baseline"] for row, _ in found}
        mine = [cell for (_, method), cells in self._tuned.items() if method in pairs for cell in cells]
        self.examples = min((cell.examples for cell in mine if cell.examples), default=None)
        self.seeds = min((min(tested.pairs) for _, tested in self._each), default=0)
        self.tunes = bool(mine)
        self.tells_examples = bool(mine) and all(cell.flips is not None and cell.examples for cell in mine)

    def detectable(self, design: Design) -> Detectable:
        """What a sweep of a design would detect, if its variances are those of this one."""
        level = Looks((design.seeds,), design.maximum).level
        share = level / 2 if design.means else level
        each = [self._least(row, tested, design, share / design.rows) for row, tested in self._each]
        mean = [self._least(row, tested, design, share / design.means) for row, tested in self._mean if design.means]
        return Detectable(_median(each), _median(mean))

    def _least(self, row: Row, tested: Difference, design: Design, alpha: float) -> float | None:
        if design.seeds < 2:
            return None
        one = [v * n for v, n in zip(tested.variances, tested.pairs, strict=True)]  # of a mean of one seed
        then = replace(
            tested,
            variances=tuple(v / design.seeds for v in one),
            freedoms=(design.seeds - 1.0,) * len(one),
            added=row["choice_sd"] ** 2 * self._ratio(row, design),
        )
        return detectable(then, alpha)

    def _ratio(self, row: Row, design: Design) -> float:
        """What the choice adds under a design, as a multiple of what it added here."""
        mine = [key for key in self._tuned if _is_of(key, row)]
        as_here = Design(0, None, 0, 0)
        here, then = (sum(sum(self._all_added(each)[key]) for key in mine) for each in (as_here, design))
        return then / here if here > 0 else 1.0

    def _all_added(self, design: Design) -> Mapping[tuple[Place, str], list[float]]:
        key = replace(design, seeds=0, maximum=None, rows=0, means=0)  # which have no part in it
        if key not in self._added:
            self._added[key] = {
                place: [cell.added(key, self._reruns) for cell in cells] for place, cells in self._tuned.items()
            }
        return self._added[key]


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _is_of(key: tuple[Place, str], row: Row) -> bool:
    """Whether cells of a place and method are in a row of `comparisons`; one over data sets has those of all."""
    (sweep, model, dataset, size), method = key
    same = (sweep, model, size) == (row["sweep"], row["model"], row["train_size"])
    return same and row["dataset"] in (None, dataset) and method in (row["method"], row["baseline"])


def _tuned(store: Store) -> dict[tuple[Place, str], list[_Tuned]]:
    """The tuned cells whose noise is known, by place and method."""
    noises, flips = run_noises(store), _flips(store)
    cells = {(c["sweep"], c["cell_id"]): c for c in store.table("cells").to_pylist()}
    found: dict[tuple[Place, str], list[_Tuned]] = defaultdict(list)
    tried = [row for row in rates(store).to_pylist() if row["mean_val"] is not None]
    for (sweep, cell_id), points in group_by(tried, "sweep", "cell_id").items():
        key = (sweep, cell_id)
        if key not in noises or len(points) < 2 or key not in cells:
            continue
        level = np.array([p["mean_val"] for p in points])
        chosen = next((i for i, p in enumerate(points) if p["chosen"]), int(level.argmax()))
        lost = 0.0  # by the rates, of the best one
        if all(p["hyperparameters"] is None for p in points) and len(points) > 2:
            log_rates = np.log10([p["lr"] for p in points])
            lost = float(missed(log_rates, level))
            level = smoothed(log_rates, level, np.array([float(p["n"]) for p in points]), np.array(chosen))
        examples = cells[key]["val_examples"]
        tuned = _Tuned(level, lost, noises[key], examples, flips.get(key))
        found[place_of(cells[key]), cells[key]["method"]].append(tuned)
    return dict(found)


def _flips(store: Store) -> dict[CellKey, float]:
    """Cell -> variance between seeds of whether one test example is answered right, the mean over examples."""
    confirmed = {(r["sweep"], r["trial_id"]) for r in store.table("confirmed").to_pylist()}
    answers: dict[CellKey, list[NDArray[np.bool_]]] = defaultdict(list)
    for r in store.table("predictions").to_pylist():
        if (r["sweep"], r["trial_id"]) in confirmed and r["correct"] is not None:
            answers[r["sweep"], r["cell_id"]].append(unpacked(r["correct"], r["n_examples"]))
    return {key: _between(bits) for key, bits in answers.items() if len(bits) > 1 and len({b.size for b in bits}) == 1}


def _between(answers: Iterable[NDArray[np.bool_]] | NDArray[np.uint8]) -> float:
    return float(np.stack(list(answers)).astype(float).var(axis=0, ddof=1).mean())
