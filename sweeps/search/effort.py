"""Proposes the learning rates of a cell's stage TUNE, and counts how many its allowance lets it try.

The rates come from warm starts, from the sampler, from a local fit, and from beyond an edge of the range.

A slot's number says where its point comes from (`SlotKind`). The planned points are first the warm starts, then the
sampler's. Then points past the edge of the range, and then those of the local fit, are proposed one at a time: each
waits until the trials of all earlier points have ended. So it does not depend on the order in which trials end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from analysis.store.rows import TrialRow
from analysis.store.slot_kinds import SlotKind
from sweeps.search.points import beyond, propose, refine
from sweeps.search.samplers import State, Tried
from sweeps.search.slots import Choice, Edge, Slot
from sweeps.spec.cell import Cell
from sweeps.spec.search import SearchSection
from sweeps.spec.space import Point, Space, round_to_six_digits


def origin_of(number: int, search: SearchSection) -> str | None:
    """Return what proposed the learning rate of a TUNE slot: a warm start, whose name is returned, or a rule.

    The rules are "refined" (a local fit) and "widened" (a rate beyond the edge of the range). None: the sampler did.
    """
    kind = SlotKind.of(number)
    if kind is not SlotKind.PLANNED:
        return "refined" if kind is SlotKind.REFINED else "widened"
    return search.warm_start[number] if number < len(search.warm_start) else None


def neighbours(cells: Iterable[Cell]) -> Iterator[tuple[str, str]]:
    """Yield pairs of cells that differ only in their budget: the id at a budget, and the id at the next larger one."""
    families: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        if cell.budget is not None and cell.space is not None:
            key = (cell.model, cell.adapt, cell.dataset, cell.train_size, cell.method)
            families.setdefault(key, []).append(cell)
    for family in families.values():
        family.sort(key=lambda cell: cell.budget or 0)
        for smaller, larger in pairwise(family):
            yield smaller.cell_id, larger.cell_id


class Effort:
    """Counts and proposes the points of one cell. It knows only the plan: slots and rows are passed to its methods.

    Args:
        cell: the cell.
        search: `[search]`.

    Attributes:
        least: the least number of points that count. It is larger than the allowance if every cell of the sweep was
            asked for this many points under an earlier, larger allowance.
        least_refined: the same number for points of the local fit.
    """

    def __init__(self, cell: Cell, search: SearchSection) -> None:
        self._cell, self._search = cell, search
        self.least = self.least_refined = 0

    @property
    def _space(self) -> Space:
        space = self._cell.space
        if space is None:
            raise AssertionError(f"cell {self._cell.cell_id} has TUNE trials and no learning-rate range")
        return space

    def points(self, asked: Mapping[int, Slot], rows: Mapping[str, TrialRow]) -> dict[int, Slot | None]:
        """Return all points of the cell that are known now, by slot number. A point that is not asked yet is None.

        Args:
            asked: TUNE slots on the first seeds, by number.
            rows: rows of the cell's ended trials, by trial id.
        """
        points: dict[int, Slot | None] = {k: asked.get(k) for k in range(self._planned_count(asked, rows))}
        points |= {k: asked[k] for k in sorted(asked) if self._counts(k)}
        if any(s is None or s.trial_id not in rows for s in points.values()):
            return points
        ranked = self.ranked(points.values(), rows)
        if not ranked:
            return points
        past, late, refined = (len(self._of_kind(points, kind)) for kind in _PROPOSED)
        if past < self._search.widen and not late and _edge(ranked[0], _asked(points)) is not None:
            points[SlotKind.WIDENED.slot(past)] = None
        elif refined < self.refined:
            points[SlotKind.REFINED.slot(refined)] = None
        return points

    def _counts(self, number: int) -> bool:
        """Return whether an asked point that is not planned counts. The local fit's must be in the allowance."""
        kind = SlotKind.of(number)
        if kind is SlotKind.REFINED:
            return number < kind.slot(self.refined)
        return kind is not SlotKind.PLANNED

    @property
    def refined(self) -> int:
        """Return the number of points that the local fit proposes.

        It is 0 if more than the learning rate is searched: then the sampler proposes all points. If more of the
        sampler's points count than the allowance has (`least`), they take the place of the local fit's. So all cells
        have equally many points.
        """
        if not self._rate_alone:
            return 0
        refined = self._search.refined(self._cell.tune_trials)
        if self._search.allowance is None:
            refined = min(refined, self._search.rates - self._spread)
        return max(refined, self.least_refined)

    def refined_left(self, points: Mapping[int, Slot | None], rows: Mapping[str, TrialRow]) -> int:
        """Return how many points of the local fit are still to be proposed; 0 if all points have failed."""
        over = all(s is not None and s.trial_id in rows for s in points.values())
        if over and not self.ranked(points.values(), rows):
            return 0
        return self.refined - len(self._of_kind(points, SlotKind.REFINED))

    def late(
        self, points: Mapping[int, Slot | None], reruns: Sequence[Slot], rows: Mapping[str, TrialRow]
    ) -> int | None:
        """Return the slot number of the next point past an edge that the re-runs chose; None if there is none."""
        choice = self.choose(points, reruns, rows)
        past, late = (len(self._of_kind(points, kind)) for kind in (SlotKind.WIDENED, SlotKind.WIDENED_LATE))
        if choice is None or choice.edge is None or past + late >= self._search.widen:
            return None
        return SlotKind.WIDENED_LATE.slot(late * (1 + self._search.rerun_seeds))

    @staticmethod
    def _of_kind(points: Iterable[int], kind: SlotKind) -> list[int]:
        """Return the slot numbers in `points` that are of a kind."""
        return [number for number in points if SlotKind.of(number) is kind]

    def candidates(self, points: Mapping[int, Slot | None], rows: Mapping[str, TrialRow]) -> list[Slot]:
        """Return the points to re-run: the best ones, and besides them those past an edge that the re-runs chose."""
        ranked = self.ranked(points.values(), rows)
        late = [s for s in ranked if SlotKind.of(s.slot) is SlotKind.WIDENED_LATE]
        return [s for s in ranked if s not in late][: self._search.rerun_rates] + late

    def choose(
        self, points: Mapping[int, Slot | None], reruns: Sequence[Slot], rows: Mapping[str, TrialRow]
    ) -> Choice | None:
        """Return the choice, once all points and re-runs have ended; None if no point finished.

        Args:
            points: the points on the first seed, by slot number.
            reruns: the re-runs of the best points.
            rows: rows of the cell's ended trials, by trial id.
        """
        has_reruns = self._search.reruns > 0
        results = []
        for rate in self.candidates(points, rows) if has_reruns else self.ranked(points.values(), rows)[:1]:
            # without duplicates: if every seed is held fixed, a re-run is the same trial as the first run
            trials = dict.fromkeys([rate.trial_id, *(s.trial_id for s in reruns if s.point == rate.point)])
            done = [rows[t] for t in trials if rows[t].score is not None]
            mean = statistics.fmean(row.score for row in done if row.score is not None)
            key = self.rank_key(rate, mean, [row.train_loss for row in done])
            results.append(((len(trials) - len(done), *key), mean, rate))  # a rate that failed on a seed ranks lower
        if not results:
            return None
        _, mean, chosen = min(results, key=lambda each: each[0])
        tried = [s for s in points.values() if s is not None]
        n_trials = len({s.trial_id for s in [*tried, *reruns]})
        seeds = self._search.rerun_seeds if has_reruns else 0
        return Choice(chosen.point.lr, mean, n_trials, seeds, _edge(chosen, tried), chosen.extra)

    @property
    def planned_points(self) -> int | None:
        """Return the number of points of a complete run.

        None if the allowance is in samples: then the number depends on how the trials end.
        """
        return None if self._search.allowance is not None else self._spread + self.refined

    @property
    def _rate_alone(self) -> bool:
        """Return whether only the learning rate is searched. A list of one value fixes its hyperparameter."""
        return all(len(d.values) == 1 for d in self._space.dimensions)

    @property
    def _spread(self) -> int:
        """Return the number of warm starts and sampler's points, if the allowance is in trials."""
        refined = self._search.refined(self._cell.tune_trials) if self._rate_alone else 0
        return max(self._search.rates - refined, self.least)

    def _planned_count(self, asked: Mapping[int, Slot], rows: Mapping[str, TrialRow]) -> int:
        """Return the number of points in the allowance, without those of the local fit.

        If the allowance is in samples, a finished trial counts the samples that it trained on, and a running or failed
        trial counts as a whole one. The re-runs and the points of the local fit are reserved as whole trials.
        """
        search = self._search
        if search.allowance is None:
            return self._spread
        longest = self._samples(self._space.epochs)
        used = (search.reruns + self.refined) * longest
        count = 0
        while (slot := asked.get(count)) is not None:
            used += self._used(slot, rows.get(slot.trial_id))
            if used > search.allowance.samples and count >= self.least:
                return count
            count += 1
        return count + max(0, search.allowance.samples - used) // longest

    def _samples(self, epochs: int | None) -> int:
        """Return the number of samples of a whole trial. `epochs`: None for the cell's own."""
        if self._cell.epoch_samples is None or self._cell.epochs is None:
            raise AssertionError(f"cell {self._cell.cell_id} has an allowance in samples and no samples per epoch")
        return self._cell.epoch_samples * (self._cell.epochs if epochs is None else epochs)

    def _used(self, slot: Slot, row: TrialRow | None) -> int:
        """Return the samples of the allowance that a trial used."""
        whole_trial = self._samples(slot.config["train"]["epochs"] if slot.config else None)
        if row is None or row.status == "failed":
            return whole_trial
        if row.samples is not None:
            return row.samples
        return self._samples(row.epochs) if row.epochs else whole_trial

    def propose(self, number: int, tried: Sequence[Tried], start: Point | None) -> tuple[Point, str | None]:
        """Return the point of a slot, and its origin (None for the sampler).

        If a warm start was tried already or does not exist, the sampler proposes the point of its slot.

        Args:
            number: the slot's number.
            tried: the cell's points so far, by slot.
            start: the point from which the slot starts: the choice of the neighbouring cell, or for a slot past the
                edge or of the local fit the best point. None if there is no such point.
        """
        search, cell = self._search, self._cell
        origin = origin_of(number, search)
        if origin == "widened":
            edge = None if start is None else _end(start.lr, [t.lr for t in tried])
            if start is None or edge is None:
                raise AssertionError(f"cell {cell.cell_id} widens, and its best rate is not at an edge")
            return beyond(self._space, tried, start, edge), origin
        if origin == "refined":
            if start is None:
                raise AssertionError(f"cell {cell.cell_id} refines, and none of its rates finished")
            return refine(self._space, tried, start), origin
        if origin == "published" and cell.lr_centre is not None:
            start = Point(round_to_six_digits(cell.lr_centre), cell.published)
        if origin is not None and start is not None and start not in {t.point for t in tried}:
            return start, origin
        warm = len(search.warm_start)
        # a warm start that leaves its slot to the sampler gets a position after all others
        last = cell.tune_trials - search.reruns - self.refined - warm
        position = number - warm if number >= warm else last + number
        return propose(search.sampler, search.seed, cell.cell_id, position, self._space, tried), None

    def tried(self, slot: Slot, row: TrialRow | None) -> Tried:
        """Return a slot in the form that the samplers take. `row`: None if it has not ended."""
        warm = origin_of(slot.slot, self._search) is not None
        number = slot.slot if warm else slot.slot - len(self._search.warm_start)
        lr, extra = slot.point
        if row is None:
            return Tried(number, lr, None, "running", extra, warm)
        status: State = "pruned" if row.status == "pruned" else "failed" if row.score is None else "finished"
        return Tried(number, lr, row.score, status, extra, warm)

    def ranked(self, points: Iterable[Slot | None], rows: Mapping[str, TrialRow]) -> list[Slot]:
        """Return the points that finished, the best first (`rank_key`)."""
        done = []
        for s in points:
            row = None if s is None else rows.get(s.trial_id)
            if s is not None and row is not None and row.score is not None:
                done.append((self.rank_key(s, row.score, [row.train_loss]), s))
        return [s for _, s in sorted(done, key=lambda pair: pair[0])]

    def rank_key(self, slot: Slot, score: float, losses: Sequence[float | None]) -> tuple[float, float, float, int]:
        """Return the sort key of a point. The best point has the smallest key.

        Points are sorted by their validation score, and equal ones by the `tie_rule` of `RULES`.

        Args:
            slot: the point's trial on the first seed.
            score: mean validation score of its runs.
            losses: last training losses of its runs; None for a run without one.
        """
        score = round(score, 12)  # so that the rounding of a mean breaks no tie
        numbers = [loss for loss in losses if loss is not None]
        loss = statistics.fmean(numbers) if numbers and len(numbers) == len(losses) else math.inf
        centre = math.log10(self._space.low * self._space.high) / 2
        return -score, loss, round(abs(math.log10(slot.point.lr) - centre), 9), slot.slot


_PROPOSED = (SlotKind.WIDENED, SlotKind.WIDENED_LATE, SlotKind.REFINED)


def _asked(points: Mapping[int, Slot | None]) -> list[Slot]:
    return [s for s in points.values() if s is not None]


def _edge(slot: Slot, points: Iterable[Slot]) -> Edge | None:
    """Return the edge of the tried rates at which a slot's rate is; None if it is between others."""
    return _end(slot.point.lr, [s.point.lr for s in points])


def _end(lr: float, rates: Sequence[float]) -> Edge | None:
    """Return "low" or "high" if `lr` is the lowest or the highest of several rates; else None."""
    low, high = min(rates), max(rates)
    if low == high or lr not in (low, high):
        return None
    return "low" if lr == low else "high"
