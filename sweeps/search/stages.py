"""Decides the next slot of each cell: learning rates, re-runs of the best on further seeds, then CONFIRM seeds.

Everything here is a function of the plan and of the trials known so far. So a first run, a resumed run and an extended
sweep use the same code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from analysis.store.left import Left, Phase, phase_of
from analysis.store.rows import CellRow, TrialRow
from analysis.store.slot_kinds import SlotKind
from sweeps.search.effort import Effort, neighbours, origin_of
from sweeps.search.order import ordered, tiers
from sweeps.search.rules import derived_seed
from sweeps.search.slots import Choice, Seeds, Slot
from sweeps.spec.cell import Cell
from sweeps.spec.search import FIXED_SAMPLERS
from sweeps.spec.sections import TUNE_SEED
from sweeps.spec.space import Point, extra_from, extra_of
from sweeps.spec.spec import SweepSpec
from trainables.config import FULL_METHODS


class Used(Protocol):
    """The resources that a sweep has used so far (`sweeps.engine.limits.Meter`)."""

    seconds: float

    @property
    def accelerator_hours(self) -> float: ...
    @property
    def cost(self) -> float | None: ...


_NOTHING: Mapping[str, Slot] = {}


class CellState:
    """The known trials of one cell. It decides which slot is next, and which learning rate is chosen.

    Attributes:
        asked: all slots that were asked, by trial id.
        rows: rows of the trials that have ended, by trial id.
        running: ids of the trials that run.
        curves: validation scores by epoch, by trial id.
        raised: where failed trials of this run raised their error, by trial id, for the display.
        version: a number that is raised by every change of the counts.
        choice: the last choice in the journal; None if there is none.
        neighbour: the cell of the same method and data at the next smaller budget; None if there is none.
    """

    def __init__(self, cell: Cell, spec: SweepSpec) -> None:
        self.cell = cell
        self.spec = spec
        self.asked: dict[str, Slot] = {}
        self.rows: dict[str, TrialRow] = {}
        self.running: set[str] = set()
        self.curves: dict[str, dict[int, float]] = {}
        self.raised: dict[str, str] = {}
        self.version = 0
        self.choice: Choice | None = None
        self.neighbour: CellState | None = None
        self.effort = Effort(cell, spec.search)
        self._made: dict[tuple[str, int, Point | None, Seeds], Slot] = {}

    def seeds(self, seed: int) -> Seeds:
        """Return the declared (data, init, basis) seeds of one declared seed. `confirm.hold` may fix some of them."""
        hold = self.spec.confirm.hold
        data, init, basis = (int(hold.get(name, seed)) for name in ("data_seed", "init_seed", "basis_seed"))
        return data, init, basis

    def trained_seeds(self, declared: Seeds) -> Seeds:
        """Return the seeds that a trial trains with: derived from the declared ones, except fixed ones."""
        hold, place = self.spec.confirm.hold, (self.cell.dataset, self.cell.train_size)
        pairs = zip(("data_seed", "init_seed", "basis_seed"), declared, strict=True)
        data, init, basis = (seed if name in hold else derived_seed(seed, *place) for name, seed in pairs)
        return data, init, basis

    def next_slot(self, beside: Mapping[str, Slot] = _NOTHING) -> Slot | None:
        """Return the next slot to run: one that was asked and never finished, or a new one.

        Args:
            beside: slots that count as running, by trial id.

        Returns:
            The slot; None if the cell waits for results, or if no slot is left.
        """
        if self._tunes:
            slot = self._next_tune(beside)
            if slot is not None or not self._tuned:
                return slot
        return self._first_open(self._confirm_slots(), beside)

    def peek(self, most: int) -> list[Slot]:
        """Return the next slots to run, at most `most`. None of them depends on the result of another."""
        slots: dict[str, Slot] = {}
        while len(slots) < most and (slot := self.next_slot(slots)) is not None:
            proposed = slot.trial_id not in self.asked and self._is_first(slot)
            if slots and proposed and self.spec.search.sampler not in FIXED_SAMPLERS:
                break  # the sampler proposes it from earlier results
            slots[slot.trial_id] = slot
        return list(slots.values())

    def prunable(self, slot: Slot) -> bool:
        """Return whether the pruner may stop a slot: a first trial of a rate, but not a re-run or a CONFIRM trial."""
        return self.spec.search.pruner != "none" and self._is_first(slot)

    def _is_first(self, slot: Slot) -> bool:
        """Return whether a slot is a TUNE trial on the first seed, and not a re-run."""
        return slot.stage == "TUNE" and slot.seeds == self.seeds(TUNE_SEED)

    def settle(self) -> Choice | None:
        """Return the choice, if the TUNE trials are complete and it is not the last one in the journal; else None."""
        choice = self._compute_choice()
        return choice if choice is not None and choice != self.choice else None

    @property
    def phase(self) -> Phase:
        """Return the phase of the cell. "stuck": all of its learning rates failed."""
        return phase_of(self.left(), begun=bool(self.asked))

    @property
    def finished(self) -> bool:
        """Return whether nothing is left to run. This is also true if all of the cell's rates failed."""
        return not self.running and self.next_slot() is None

    def planned(self) -> int:
        """Return the number of trials of a complete run of this cell, as far as it is known now."""
        return self._planned_tune() + self.cell.confirm_seeds

    def left(self) -> Left:
        """Return the numbers of TUNE and CONFIRM trials that are still to run; None if no learning rate finished."""
        if self._tuned:
            if self._tunes and self._compute_choice() is None:
                return None
            return 0, len(self._missing(self._confirm_slots()))
        if self._points_done:
            return len(self._missing(self._reruns())), self.cell.confirm_seeds
        return self._planned_tune() - self.counted(), self.cell.confirm_seeds

    def _missing(self, slots: Iterable[Slot]) -> set[str]:
        """Return the ids of the slots' trials that have no row. With fixed seeds, several slots are one trial."""
        return {slot.trial_id for slot in slots} - self.rows.keys()

    def _planned_tune(self) -> int:
        if not self._tunes:
            return 0
        points = self._points()
        tune = len(points) + self.effort.refined_left(points, self.rows)
        if self.spec.confirm.seeds_are_fixed:  # all seeds are fixed, so a re-run would be the same trial
            return tune
        late = sum(SlotKind.of(number) is SlotKind.WIDENED_LATE for number in points)
        return tune + self.spec.search.reruns + self.spec.search.rerun_seeds * late

    def counted(self) -> int:
        """Return how many of the planned trials have ended."""
        return len(self.counting())

    def counting(self) -> list[TrialRow]:
        """Return the rows of the planned trials that have ended.

        Trials of an earlier choice, or of a longer list of seeds, are not planned any more.
        """
        planned = [s.trial_id for s in self._points().values() if s is not None]
        planned += [s.trial_id for s in self._reruns()] if self._points_done else []
        planned += [s.trial_id for s in self._confirm_slots()] if self._tuned else []
        return [self.rows[trial_id] for trial_id in dict.fromkeys(planned) if trial_id in self.rows]

    @property
    def asked_refined(self) -> int:
        """Return the number of points of the local fit that were asked."""
        return sum(SlotKind.of(k) is SlotKind.REFINED for k in self._first_seeds())

    @property
    def asked_points(self) -> int:
        """Return the number of planned points that were asked, counted from the first up to a gap."""
        asked = self._first_seeds()
        return next(k for k in itertools.count() if k not in asked)

    def as_asked(self, slot: Slot, *, guess_origin: bool) -> Slot:
        """Return a slot of the journal with its searched values, which the journal does not have.

        Args:
            slot: the slot.
            guess_origin: whether to take the origin from the slot's number. Journals of 0.1.0 do not have it.
        """
        extra = slot.extra
        space = self.cell.space
        if slot.config and space is not None and space.dimensions:
            values = {**slot.config["train"], **dict(slot.config["options"])}
            own_decay = "full_weight_decay" if self.cell.method in FULL_METHODS else "weight_decay"
            values["weight_decay"] = values.get(own_decay)
            extra = extra_of({d.name: d.listed(values[d.name]) for d in space.dimensions})
        named = self._is_first(slot) or SlotKind.of(slot.slot) is not SlotKind.PLANNED
        origin = (origin_of(slot.slot, self.spec.search) if named else None) if guess_origin else slot.origin
        return replace(slot, extra=extra, origin=origin)

    def row(self) -> CellRow:
        """Return the cell's row of the `cells` table, with the seeds that count now."""
        seeds = self.spec.confirm.seeds if self.cell.lr_centre is not None else (0,)
        listed = " ".join("/".join(map(str, self.seeds(seed))) for seed in seeds)
        points, refined = (self.effort.planned_points, self.effort.refined) if self._tunes else (None, None)
        return replace(self.cell.row(), tune_points=points, tune_refined=refined, seeds=listed)

    def recall(self, row: TrialRow) -> Slot | None:
        """Return the slot of a sealed row, if the journal is lost; None if the row is not a trial of this cell."""
        if row.data_seed is None or row.init_seed is None or row.basis_seed is None:
            return None
        point = None if row.lr is None else Point(row.lr, extra_from(row.hyperparameters))
        slot = self._make(row.stage, row.slot, point, (row.data_seed, row.init_seed, row.basis_seed))
        return replace(slot, origin=row.origin) if slot.trial_id == row.trial_id else None

    @property
    def _tunes(self) -> bool:
        return self.cell.tune_trials > 0

    @property
    def _points_done(self) -> bool:
        return self._over(self._points().values())

    @property
    def _tuned(self) -> bool:
        return not self._tunes or (self._points_done and self._over(self._reruns()))

    def _open(self, slot: Slot, beside: Mapping[str, Slot]) -> bool:
        return not any(slot.trial_id in started for started in (self.rows, self.running, beside))

    def _first_open(self, slots: Iterable[Slot], beside: Mapping[str, Slot]) -> Slot | None:
        return next((self.asked.get(s.trial_id, s) for s in slots if self._open(s, beside)), None)

    def _make(self, stage: str, slot: int, point: Point | None, seeds: Seeds, origin: str | None = None) -> Slot:
        key = (stage, slot, point, seeds)
        if key not in self._made:  # hashing a configuration takes a millisecond, and the display asks often
            lr, extra = (None, ()) if point is None else point
            trial = self.cell.trial(stage, lr, self.trained_seeds(seeds), self.spec.train, extra)
            config = trial.model_dump(mode="json")
            self._made[key] = Slot(self.cell.cell_id, stage, slot, trial.trial_id, config, lr, seeds, extra, origin)
        return self._made[key]

    def _points(self, beside: Mapping[str, Slot] = _NOTHING) -> dict[int, Slot | None]:
        """Return the points of stage TUNE by slot number. A point that is not asked yet is None."""
        if not self._tunes:
            return {}
        points = self.effort.points(self._first_seeds(beside), self.rows)
        if self._over(points.values()) and self._over(reruns := self._reruns_of(points)):
            late = self.effort.late(points, reruns, self.rows)
            points |= {} if late is None else {late: None}
        return points

    def _over(self, slots: Iterable[Slot | None]) -> bool:
        return all(s is not None and s.trial_id in self.rows for s in slots)

    def _first_seeds(self, beside: Mapping[str, Slot] = _NOTHING) -> dict[int, Slot]:
        """Return the asked slots on the first seeds, by slot number. Re-runs have other seeds."""
        return {s.slot: s for s in (self.asked | dict(beside)).values() if self._is_first(s)}

    def _next_tune(self, beside: Mapping[str, Slot]) -> Slot | None:
        points = self._points(beside)
        for number, slot in points.items():
            if slot is None:
                new_slot = self._propose(number, points)
                if new_slot is not None:
                    return new_slot
            elif self._open(slot, beside):
                return slot
        return self._first_open(self._reruns(), beside) if self._points_done else None

    def _propose(self, number: int, points: Mapping[int, Slot | None]) -> Slot | None:
        """Return a new slot; None as long as it waits for the choice of the cell at the next smaller budget."""
        origin = origin_of(number, self.spec.search)
        start: Point | None = None
        if origin == "neighbour" and self.neighbour is not None:
            if not self.neighbour._tuned:
                return None
            choice = self.neighbour._compute_choice()
            start = None if choice is None else choice.point
        elif SlotKind.of(number) is SlotKind.WIDENED_LATE:
            choice = self.effort.choose(points, self._reruns_of(points), self.rows)
            start = None if choice is None else choice.point
        elif SlotKind.of(number) in (SlotKind.WIDENED, SlotKind.REFINED):
            start = self.effort.ranked(points.values(), self.rows)[0].point
        tried = [self.effort.tried(s, self.rows.get(s.trial_id)) for _, s in sorted(points.items()) if s is not None]
        point, origin = self.effort.propose(number, tried, start)
        return self._make("TUNE", number, point, self.seeds(TUNE_SEED), origin)

    def _reruns(self) -> list[Slot]:
        """Return the re-runs of the best points on further seeds; [] until the trials of all points have ended."""
        points = self._points()
        return self._reruns_of(points) if self._over(points.values()) else []

    def _reruns_of(self, points: Mapping[int, Slot | None]) -> list[Slot]:
        """Return the re-runs of the best points among those whose trials have ended."""
        base = sum(SlotKind.of(number) is SlotKind.PLANNED for number in points)
        seeds = self.spec.search.rerun_seeds
        slots = []
        for i, rate in enumerate(self.effort.candidates(points, self.rows)):
            late = SlotKind.of(rate.slot) is SlotKind.WIDENED_LATE
            number = rate.slot + 1 if late else base + i * seeds
            for j in range(seeds):
                declared = self.seeds(TUNE_SEED + 1 + j)
                slots.append(self._make("TUNE", number + j, rate.point, declared, "widened" if late else None))
        return slots

    def _compute_choice(self) -> Choice | None:
        if not self._tunes:
            centre = self.cell.lr_centre
            return None if centre is None else Choice(centre, None, 0, 0, None)
        return self.effort.choose(self._points(), self._reruns(), self.rows) if self._tuned else None

    @property
    def confirming(self) -> set[str]:
        """Return the ids of the CONFIRM trials of the present choice and seeds."""
        return {slot.trial_id for slot in self._confirm_slots()}

    def _confirm_slots(self) -> list[Slot]:
        if self.cell.lr_centre is None:  # nothing is trained, so nothing depends on the seed
            return [self._make("CONFIRM", 0, None, self.seeds(0))]
        choice = self._compute_choice()
        if choice is None:
            return []
        return [self._make("CONFIRM", k, choice.point, self.seeds(s)) for k, s in enumerate(self.spec.confirm.seeds)]


class SweepState:
    """The state of all cells of a sweep, and the order in which their slots are served.

    Attributes:
        cells: the cells' states, by cell id.
        workers: number of trials that the backend runs at once.
        used: the resources used so far; None if no run measures them.
    """

    def __init__(self, cells: Iterable[Cell], spec: SweepSpec) -> None:
        self.spec = spec
        self.cells = {cell.cell_id: CellState(cell, spec) for cell in cells}
        listed = [state.cell for state in self.cells.values()]
        self._tier = tiers(listed, spec.resources.priority)
        self._order = sorted(ordered(listed, spec.resources.order), key=self._tier.__getitem__)
        self._dependents: dict[str, str] = {}  # by cell, the cell that starts from its choice
        for smaller, larger in neighbours(cell.cell for cell in self.cells.values()):
            self.cells[larger].neighbour = self.cells[smaller]
            self._dependents[smaller] = larger
        self._resting: set[str] = set()  # cells without an open slot until one of their trials ends
        self.workers = 1
        self.used: Used | None = None

    def awake(self) -> list[str]:
        """Return the ids of the cells that may have a slot to run, in the order to serve them."""
        return [c for c in self._order if c not in self._resting]

    def next_slot(self) -> Slot | None:
        """Return the next slot to run; None if all cells wait for results or are finished.

        Cells with priority come first, then cells with the fewest running trials, then earlier cells. So the trials of
        one cell run one after another as far as possible, as adaptive samplers want. Also cells finish one by one
        instead of all at the end.
        """
        for cell_id in sorted(self.awake(), key=lambda c: (self._tier[c], len(self.cells[c].running))):
            slot = self.cells[cell_id].next_slot()
            if slot is not None:
                return slot
            self._resting.add(cell_id)
        return None

    def start(self, slot: Slot) -> None:
        """Mark a slot as asked and running."""
        cell = self.cells[slot.cell_id]
        cell.asked[slot.trial_id] = slot
        cell.running.add(slot.trial_id)
        cell.version += 1

    def restore(self, slot: Slot, *, guess_origin: bool = True) -> Slot:
        """Note that an earlier run asked a slot, and return the slot with its searched values.

        A slot of a cell that is no longer in the plan is returned as it is.
        """
        cell = self.cells.get(slot.cell_id)
        if cell is None:
            return slot
        cell.version += 1
        return cell.asked.setdefault(slot.trial_id, cell.as_asked(slot, guess_origin=guess_origin))

    def keep_known(self) -> None:
        """Let points count that every tuned cell was asked for, even if the allowance was lowered since.

        To be called after all slots are restored. So no result is thrown away, and no method's choice is based on more
        points than another's.
        """
        tuned = [cell for cell in self.cells.values() if cell.cell.tune_trials]
        for cell in tuned:
            cell.effort.least = min(c.asked_points for c in tuned)
            cell.effort.least_refined = min(c.asked_refined for c in tuned)

    def report(self, cell_id: str, trial_id: str, epoch: int, score: float | None) -> bool:
        """Note a validation score. Return whether it is new."""
        curve = self.cells[cell_id].curves.setdefault(trial_id, {}) if cell_id in self.cells else {}
        if epoch in curve or score is None:
            return False
        curve[epoch] = score
        return True

    def finish(self, row: TrialRow) -> None:
        """Note a trial's row."""
        cell = self.cells.get(row.cell_id)
        if cell is not None:
            cell.rows[row.trial_id] = row
            self.release(row.cell_id, row.trial_id)

    def release(self, cell_id: str, trial_id: str) -> None:
        """Note that a trial no longer runs. If it has no row, it will run again."""
        self.cells[cell_id].running.discard(trial_id)
        self.cells[cell_id].version += 1
        self._resting.discard(cell_id)
        self._resting.discard(self._dependents.get(cell_id, ""))

    @property
    def running(self) -> int:
        """Return the number of trials that run now."""
        return sum(len(cell.running) for cell in self.cells.values())
