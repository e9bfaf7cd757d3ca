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

from analysis.findings.results.examples import unpacked
from analysis.findings.tuning.numbers import rates
from analysis.format import Row
from analysis.store.store import Store
from analysis.styles import Place, place_of
from analysis.verdict.choice import choice_variance, missed, rates_without_score, smoothed, with_rates_without_score
from analysis.verdict.comparisons import rows_with_differences
from analysis.verdict.inference import OVER_DATASETS, Difference
from analysis.verdict.looks import Looks
from analysis.verdict.noise import run_noises
from analysis.verdict.power import detectable
from analysis.verdict.question import question
from analysis.verdict.runs import CellKey, group_by

Reruns = tuple[int, int]
"""How many of the best rates are run again, and on how many further seeds each."""


@dataclass(frozen=True)
class Design:
    """The settings of a sweep that decide which differences it can detect.

    Attributes:
        seeds: number of CONFIRM seeds.
        maximum: declared maximum of seeds; None if none is declared.
        rows: number of comparisons of the family that is tested, over budgets, data sets and methods.
        means: number of means over these rows that are tested with them, one for each training size and method in
            question.
        reruns: number of best rates that are run again, and of seeds for each; None: as in the pilot.
        rates: number of rates tried; None: as in the pilot.
        examples: number of validation examples; None: as in the pilot.
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
    """The smallest true differences that are found four times in five; None if not known.

    Attributes:
        each: at one budget and data set (the median over those of the pilot).
        mean: in the mean over budgets and data sets.
    """

    each: float | None
    mean: float | None


@dataclass(frozen=True)
class _Tuned:
    """One tuned cell of the pilot: its expected scores by rate, and the noise of its runs.

    Attributes:
        expected: (K,) expected score of each rate.
        missed: how far the score at the best possible rate may lie above the best of `expected`.
        noise: variance of one run's validation score.
        examples: number of validation examples on which it was measured; None if not known.
        flips: variance between seeds of the answer to one example; None if answers are not stored.
    """

    expected: NDArray[np.float64]
    missed: float
    noise: float
    examples: int | None
    flips: float | None

    def noise_at(self, examples: int | None) -> float:
        """Return the variance of one run's score on this number of examples.

        The part of the variance that comes from single examples falls as their number grows.
        """
        if examples is None or not self.examples or self.flips is None:
            return self.noise
        other_noise = max(0.0, self.noise - self.flips / self.examples)
        return self.noise * (other_noise + self.flips / examples) / (other_noise + self.flips / self.examples)

    def added(self, design: Design, reruns: Reruns) -> float:
        """Return the variance that the choice of the rate adds to the cell's score.

        What the tried rates miss of a parabola's top falls with the square of the step between them.
        """
        finer = 1.0 if design.rates is None else len(self.expected) / design.rates
        noise = self.noise_at(design.examples)
        return float(choice_variance(self.expected, noise, design.reruns or reruns)) + (self.missed * finer**2) ** 2


class Pilot:
    """The results of one sweep, from which the power of another sweep is predicted.

    Attributes:
        examples: smallest number of validation examples of its cells; None if not known.
        seeds: smallest number of its paired seeds; 0 if nothing is compared.
        tells_examples: whether its results show what more validation examples would change.
        tunes: whether it chose rates.
    """

    def __init__(self, store: Store) -> None:
        asked_question = question(store)
        tested_rows = [
            (row, tested)
            for row, tested in rows_with_differences(store)
            if asked_question.focus in (None, row["method"])
            and row["test"] != OVER_DATASETS
            and tested.testable
            and min(tested.pairs) > 1
            and row["choice_sd"] is not None
        ]
        self._each = [
            pair for pair in tested_rows if pair[0]["reference"] is not None and pair[0]["dataset"] is not None
        ]
        self._mean = [pair for pair in tested_rows if pair[0]["reference"] is None]
        search = store.stored().get("search") or {}
        self._reruns: Reruns = (search.get("rerun_rates") or 0, search.get("rerun_seeds") or 0)
        self._tuned = _tuned(store)
        self._added: dict[Design, dict[tuple[Place, str], list[float]]] = {}
        pairs = {row["method"] for row, _ in tested_rows} | {row["baseline"] for row, _ in tested_rows}
        tuned_cells = [cell for (_, method), cells in self._tuned.items() if method in pairs for cell in cells]
        self.examples = min((cell.examples for cell in tuned_cells if cell.examples), default=None)
        self.seeds = min((min(tested.pairs) for _, tested in self._each), default=0)
        self.tunes = bool(tuned_cells)
        self.tells_examples = bool(tuned_cells) and all(
            cell.flips is not None and cell.examples for cell in tuned_cells
        )

    def detectable(self, design: Design) -> Detectable:
        """Return what a sweep of this design would detect, if its variances were those of the pilot."""
        level = Looks((design.seeds,), design.maximum).level
        share = level / 2 if design.means else level
        each = [self._least(row, tested, design, share / design.rows) for row, tested in self._each]
        mean = [self._least(row, tested, design, share / design.means) for row, tested in self._mean if design.means]
        return Detectable(_median(each), _median(mean))

    def _least(self, row: Row, tested: Difference, design: Design, alpha: float) -> float | None:
        """Return the smallest difference that a row of the pilot would detect under a design; None with one seed."""
        if design.seeds < 2:
            return None
        one_seed_variances = [v * n for v, n in zip(tested.variances, tested.pairs, strict=True)]
        designed = replace(
            tested,
            variances=tuple(v / design.seeds for v in one_seed_variances),
            freedoms=(design.seeds - 1.0,) * len(one_seed_variances),
            added=row["choice_sd"] ** 2 * self._ratio(row, design),
        )
        return detectable(designed, alpha)

    def _ratio(self, row: Row, design: Design) -> float:
        """Return the variance that the choice adds under a design, divided by the one that it added in the pilot."""
        cell_keys = [key for key in self._tuned if _is_of(key, row)]
        as_here = Design(0, None, 0, 0)
        pilot_sum, design_sum = (
            sum(sum(self._all_added(each)[key]) for key in cell_keys) for each in (as_here, design)
        )
        return design_sum / pilot_sum if pilot_sum > 0 else 1.0

    def _all_added(self, design: Design) -> Mapping[tuple[Place, str], list[float]]:
        key = replace(design, seeds=0, maximum=None, rows=0, means=0)  # these do not change it
        if key not in self._added:
            self._added[key] = {
                place: [cell.added(key, self._reruns) for cell in cells] for place, cells in self._tuned.items()
            }
        return self._added[key]


def _median(values: Iterable[float | None]) -> float | None:
    known_values = [value for value in values if value is not None]
    return median(known_values) if known_values else None


def _is_of(key: tuple[Place, str], row: Row) -> bool:
    """Return whether the cells of a place and method are part of a row of `comparisons`."""
    (sweep, model, dataset, size), method = key
    same = (sweep, model, size) == (row["sweep"], row["model"], row["train_size"])
    return same and row["dataset"] in (None, dataset) and method in (row["method"], row["baseline"])


def _tuned(store: Store) -> dict[tuple[Place, str], list[_Tuned]]:
    """Return the tuned cells whose noise is known, by place and method."""
    noises, flips, without_score = run_noises(store), _flips(store), rates_without_score(store)
    cells = {(c["sweep"], c["cell_id"]): c for c in store.table("cells").to_pylist()}
    cells_by_method: dict[tuple[Place, str], list[_Tuned]] = defaultdict(list)
    tried = [row for row in rates(store).to_pylist() if row["mean_val"] is not None]
    for (sweep, cell_id), points in group_by(tried, "sweep", "cell_id").items():
        key = (sweep, cell_id)
        if key not in noises or len(points) < 2 or key not in cells:
            continue
        level = np.array([p["mean_val"] for p in points])
        chosen = next((i for i, p in enumerate(points) if p["chosen"]), int(level.argmax()))
        lost = 0.0  # what the tried rates miss of the best score
        if all(p["hyperparameters"] is None for p in points) and len(points) > 2:
            log_rates = np.log10([p["lr"] for p in points])
            lost = float(missed(*with_rates_without_score(log_rates, level, without_score.get(key, ()))))
            level = smoothed(log_rates, level, np.array([float(p["n"]) for p in points]), np.array(chosen))
        examples = cells[key]["val_examples"]
        tuned = _Tuned(level, lost, noises[key], examples, flips.get(key))
        cells_by_method[place_of(cells[key]), cells[key]["method"]].append(tuned)
    return dict(cells_by_method)


def _flips(store: Store) -> dict[CellKey, float]:
    """Return for each cell the variance between seeds of a test example's answer (right or wrong), over examples."""
    confirmed = {(r["sweep"], r["trial_id"]) for r in store.table("confirmed").to_pylist()}
    answers: dict[CellKey, list[NDArray[np.bool_]]] = defaultdict(list)
    for r in store.table("predictions").to_pylist():
        if (r["sweep"], r["trial_id"]) in confirmed and r["correct"] is not None:
            answers[r["sweep"], r["cell_id"]].append(unpacked(r["correct"], r["n_examples"]))
    return {key: _between(bits) for key, bits in answers.items() if len(bits) > 1 and len({b.size for b in bits}) == 1}


def _between(answers: Iterable[NDArray[np.bool_]] | NDArray[np.uint8]) -> float:
    return float(np.stack(list(answers)).astype(float).var(axis=0, ddof=1).mean())
