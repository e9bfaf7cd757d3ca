"""What a sweep's cells need next: learning rates, re-runs of the best on further seeds, the choice, then CONFIRM.

Everything here is a function of the plan and of the trials known so far, so the same code serves a first run, a resumed
one, and a sweep whose lists have grown.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, Protocol

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

CellPhase = Literal["waiting", "tuning", "confirming", "done", "stuck"]


class Used(Protocol):
    """What a sweep has taken so far (`sweeps.engine.limits.Meter`)."""

    seconds: float

    @property
    def accelerator_hours(self) -> float: ...
    @property
    def cost(self) -> float | None: ...


_NOTHING: Mapping[str, Slot] = {}


class CellState:
    """What is known of one cell, and what it needs next."""

    def __init__(self, cell: Cell, spec: SweepSpec) -> None:
        self.cell = cell
        self.spec = spec
        self.asked: dict[str, Slot] = {}
        self.rows: dict[str, TrialRow] = {}
        self.running: set[str] = set()
        self.curves: dict[str, dict[int, float]] = {}
        self.raised: dict[str, str] = {}  # where failed trials of this run failed, for the display
        self.version = 0  # raised by every change of what is counted
        self.choice: Choice | None = None  # the last one journaled
        self.neighbour: CellState | None = None  # of the same method and data, at the next smaller budget
        self.effort = Effort(cell, spec.search)
        self._made: dict[tuple[str, int, Point | None, Seeds], Slot] = {}

    def seeds(self, seed: int) -> Seeds:
        """Declared (data, init, basis) seeds of a named seed, those that the spec holds fixed put in."""
        hold = self.spec.confirm.hold
        data, init, basis = (int(hold.get(name, seed)) for name in ("data_seed", "init_seed", "basis_seed"))
        return data, init, basis

    def trained_seeds(self, declared: Seeds) -> Seeds:
        """The seeds that a trial trains with; those held fixed are used as they are."""
        hold, place = self.spec.confirm.hold, (self.cell.dataset, self.cell.train_size)
        pairs = zip(("data_seed", "init_seed", "basis_seed"), declared, strict=True)
        data, init, basis = (seed if name in hold else derived_seed(seed, *place) for name, seed in pairs)
        return data, init, basis

    def next_slot(self, beside: Mapping[str, Slot] = _NOTHING) -> Slot | None:
        """The next trial to run: an asked one that never finished, or a new one; None while waiting, or at the end.

        Args:
            beside: trials that count as running, by id.
        """
        if self._tunes:
            wanted = self._next_tune(beside)
            if wanted is not None or not self._tuned:
                return wanted
        return self._first_open(self._confirm_slots(), beside)

    def peek(self, most: int) -> list[Slot]:
        """The next trials to run, up to `most`, none of which waits for a result of another."""
        found: dict[str, Slot] = {}
        while len(found) < most and (slot := self.next_slot(found)) is not None:
            proposed = slot.trial_id not in self.asked and self._is_first(slot)
            if found and proposed and self.spec.search.sampler not in FIXED_SAMPLERS:
                break  # the sampler proposes it from the results before it
            found[slot.trial_id] = slot
        return list(found.values())

    def prunable(self, slot: Slot) -> bool:
        """Whether the pruner may stop it: the first trials of rates compare, re-runs and CONFIRM run to the end."""
        return self.spec.search.pruner != "none" and self._is_first(slot)

    def _is_first(self, slot: Slot) -> bool:
        """Whether it is a point of the search, and no re-run."""
        return slot.stage == "TUNE" and slot.seeds == self.seeds(TUNE_SEED)

    def settle(self) -> Choice | None:
        """The choice, when the TUNE trials are complete and it differs from the last one journaled."""
        choice = self._compute_choice()
        return choice if choice is not None and choice != self.choice else None

    @property
    def phase(self) -> CellPhase:
        """Where the cell stands."""
        if not self.asked:
            return "waiting"
        if self._tunes and not self._tuned:
            return "tuning"
        if self._tunes and self._compute_choice() is None:
            return "stuck"
        return "done" if all(s.trial_id in self.rows for s in self._confirm_slots()) else "confirming"

    @property
    def finished(self) -> bool:
        """Whether nothing is left to run. A cell all of whose rates failed is finished too."""
        return not self.running and self.next_slot() is None

    @property
    def best(self) -> float | None:
        """Best validation score of the cell's finished trials."""
        scores = [row.val_score for row in self.rows.values() if row.val_score is not None]
        return max(scores, default=None)

    def planned(self) -> int:
        """Trials of a complete run of this cell."""
        return self._planned_tune() + self.cell.confirm_seeds

    def left(self) -> tuple[int, int]:
        """The number of TUNE and of CONFIRM trials still to run; none if no learning rate finished."""
        if self.phase in ("done", "stuck"):
            return 0, 0
        done = Counter(row.stage for row in self.counting())
        return max(0, self._planned_tune() - done["TUNE"]), max(0, self.cell.confirm_seeds - done["CONFIRM"])

    def _planned_tune(self) -> int:
        if not self._tunes:
            return 0
        points = self._points()
        tune = len(points) + self.effort.refined_left(points, self.rows)
        if self.spec.confirm.held:  # a re-run would be its rate's own trial
            return tune
        late = sum(SlotKind.of(number) is SlotKind.WIDENED_LATE for number in points)
        return tune + self.spec.search.reruns + self.spec.search.rerun_seeds * late

    def counted(self) -> int:
        """How many of the planned trials are done."""
        return len(self.counting())

    def counting(self) -> list[TrialRow]:
        """Rows of the planned trials that are done. Leftovers of a changed choice or a shortened list don't count."""
        wanted = [s.trial_id for s in self._points().values() if s is not None]
        wanted += [s.trial_id for s in self._reruns()] if self._points_done else []
        wanted += [s.trial_id for s in self._confirm_slots()] if self._tuned else []
        return [self.rows[trial_id] for trial_id in dict.fromkeys(wanted) if trial_id in self.rows]

    @property
    def asked_refined(self) -> int:
        """Points of the local fit that were asked."""
        return sum(SlotKind.of(k) is SlotKind.REFINED for k in self._first_seeds())

    @property
    def asked_points(self) -> int:
        """Points asked without a gap from the first; those past an edge and of the local fit are counted apart."""
        asked = self._first_seeds()
        return next(k for k in itertools.count() if k not in asked)

    def known(self, slot: Slot) -> Slot:
        """A slot from the journal, completed by what its number and its configuration say."""
        extra = slot.extra
        space = self.cell.space
        if slot.config and space is not None and space.dimensions:
            have = {**slot.config["train"], **dict(slot.config["options"])}
            full = have.get("full_weight_decay") if self.cell.method in FULL_METHODS else have.get("weight_decay")
            have["weight_decay"] = full
            extra = extra_of({d.name: d.listed(have[d.name]) for d in space.dimensions})
        named = self._is_first(slot) or SlotKind.of(slot.slot) is not SlotKind.PLANNED
        origin = origin_of(slot.slot, self.spec.search) if named else None
        return replace(slot, extra=extra, origin=origin)

    def row(self) -> CellRow:
        """Return the cell's row of the `cells` table, with the seeds that count now."""
        seeds = self.spec.confirm.seeds if self.cell.lr_centre is not None else (0,)
        listed = " ".join("/".join(map(str, self.seeds(seed))) for seed in seeds)
        points, refined = (self.effort.planned_points, self.effort.refined) if self._tunes else (None, None)
        return replace(self.cell.row(), tune_points=points, tune_refined=refined, seeds=listed)

    def recall(self, row: TrialRow) -> Slot | None:
        """The slot of a row whose journal is lost, made anew; None where the row is of no trial of this cell."""
        if row.data_seed is None or row.init_seed is None or row.basis_seed is None:
            return None
        point = None if row.lr is None else Point(row.lr, extra_from(row.hyperparameters))
        made = self._make(row.stage, row.slot, point, (row.data_seed, row.init_seed, row.basis_seed))
        return made if made.trial_id == row.trial_id else None

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
        return not any(slot.trial_id in known for known in (self.rows, self.running, beside))

    def _first_open(self, slots: Iterable[Slot], beside: Mapping[str, Slot]) -> Slot | None:
        return next((self.asked.get(s.trial_id, s) for s in slots if self._open(s, beside)), None)

    def _make(self, stage: str, slot: int, point: Point | None, seeds: Seeds, origin: str | None = None) -> Slot:
        key = (stage, slot, point, seeds)
        if key not in self._made:  # hashing a configuration costs a millisecond, and progress asks often
            lr, extra = (None, ()) if point is None else point
            trial = self.cell.trial(stage, lr, self.trained_seeds(seeds), self.spec.train, extra)
            config = trial.model_dump(mode="json")
            self._made[key] = Slot(self.cell.cell_id, stage, slot, trial.trial_id, config, lr, seeds, extra, origin)
        return self._made[key]

    def _points(self, beside: Mapping[str, Slot] = _NOTHING) -> dict[int, Slot | None]:
        """The points that the allowance holds, by slot number, and those past an edge; None where not asked yet."""
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
        """The points asked, by slot number; re-runs have other seeds."""
        return {s.slot: s for s in (self.asked | dict(beside)).values() if self._is_first(s)}

    def _next_tune(self, beside: Mapping[str, Slot]) -> Slot | None:
        points = self._points(beside)
        for number, slot in points.items():
            if slot is None:
                made = self._propose(number, points)
                if made is not None:
                    return made
            elif self._open(slot, beside):
                return slot
        return self._first_open(self._reruns(), beside) if self._points_done else None

    def _propose(self, number: int, points: Mapping[int, Slot | None]) -> Slot | None:
        """A new slot; None while it waits for the neighbouring budget."""
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
        """The best points on the seeds after TUNE's first; empty until every point is done."""
        points = self._points()
        return self._reruns_of(points) if self._over(points.values()) else []

    def _reruns_of(self, points: Mapping[int, Slot | None]) -> list[Slot]:
        """Re-runs of points that are over, or of those of them that are."""
        base, seeds = sum(SlotKind.of(number) is SlotKind.PLANNED for number in points), self.spec.search.rerun_seeds
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
        """Trials of stage CONFIRM at the present choice and seeds."""
        return {slot.trial_id for slot in self._confirm_slots()}

    def _confirm_slots(self) -> list[Slot]:
        if self.cell.lr_centre is None:  # nothing trains, so nothing varies with the seed
            return [self._make("CONFIRM", 0, None, self.seeds(0))]
        choice = self._compute_choice()
        if choice is None:
            return []
        return [self._make("CONFIRM", k, choice.point, self.seeds(s)) for k, s in enumerate(self.spec.confirm.seeds)]


class SweepState:
    """All cells of a sweep, and the order in which their slots are served."""

    def __init__(self, cells: Iterable[Cell], spec: SweepSpec) -> None:
        self.spec = spec
        self.cells = {cell.cell_id: CellState(cell, spec) for cell in cells}
        listed = [state.cell for state in self.cells.values()]
        self._tier = tiers(listed, spec.resources.priority)
        self._order = sorted(ordered(listed, spec.resources.order), key=self._tier.__getitem__)
        self._dependents: dict[str, str] = {}  # the cell that starts from this one's choice
        for smaller, larger in neighbours(cell.cell for cell in self.cells.values()):
            self.cells[larger].neighbour = self.cells[smaller]
            self._dependents[smaller] = larger
        self._resting: set[str] = set()  # cells without an open slot until one of their trials ends
        self.workers = 1  # trials that the lanes run at once
        self.used: Used | None = None  # measured while it runs

    def awake(self) -> list[str]:
        """Ids of the cells that may have an open slot, in the order to serve them."""
        return [c for c in self._order if c not in self._resting]

    def next_slot(self) -> Slot | None:
        """The next slot, from the cell with the fewest running trials, earlier cells first, after those with priority.

        So every study runs as nearly one trial after another as the workers allow, which adaptive samplers want, and
        cells finish one by one instead of all at the end.
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

    def restore(self, slot: Slot) -> Slot:
        """Mark a slot as asked by an earlier run, and return it with what its cell knows of it.

        Slots of cells that the plan no longer has are left out.
        """
        cell = self.cells.get(slot.cell_id)
        if cell is None:
            return slot
        cell.version += 1
        return cell.asked.setdefault(slot.trial_id, cell.known(slot))

    def keep_known(self) -> None:
        """After all is restored: points that every tuned cell has count, although the allowance was lowered since.

        So nothing known is thrown away, and no method's choice rests on more points than another's.
        """
        tuned = [cell for cell in self.cells.values() if cell.cell.tune_trials]
        for cell in tuned:
            cell.effort.least = min(c.asked_points for c in tuned)
            cell.effort.least_refined = min(c.asked_refined for c in tuned)

    def report(self, cell_id: str, trial_id: str, epoch: int, score: float | None) -> bool:
        """Note a validation score; returns whether it is new."""
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
        """A trial no longer runs; without a row it will be issued again."""
        self.cells[cell_id].running.discard(trial_id)
        self.cells[cell_id].version += 1
        self._resting.discard(cell_id)
        self._resting.discard(self._dependents.get(cell_id, ""))

    @property
    def running(self) -> int:
        """Trials that run now."""
        return sum(len(cell.running) for cell in self.cells.values())
