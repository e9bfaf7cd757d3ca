"""The slots of a cell: learning rates, re-runs of the best ones on further seeds, the choice, then CONFIRM.

A slot's configuration is fixed when it is asked, and its trial id is the hash of that configuration. Everything here
is a function of the plan and of the trials known so far, so the same code serves a first run, a resumed one, and a
sweep whose lists have grown.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sweeps.interfaces import TUNE_SEED, Cell, Row, Spec
from sweeps.order import ordered
from sweeps.search import Tried, propose

CellPhase = Literal["waiting", "tuning", "confirming", "done", "stuck"]
Seeds = tuple[int, int, int]


@dataclass(frozen=True)
class Slot:
    """One trial of a cell. `config` is the trial's configuration as JSON values; `seeds` is (data, init, basis)."""

    cell_id: str
    stage: str
    slot: int
    trial_id: str
    config: Mapping[str, Any] = field(repr=False)
    lr: float | None
    seeds: Seeds

    @classmethod
    def from_config(cls, cell_id: str, stage: str, slot: int, trial_id: str, config: Mapping[str, Any]) -> Slot:
        """Rebuild a slot from a journaled configuration."""
        seeds = (config["data_seed"], config["init_seed"], config["basis_seed"])
        return cls(cell_id, stage, slot, trial_id, config, config["lr"], seeds)


@dataclass(frozen=True)
class Choice:
    """The learning rate that a cell's TUNE trials pick, with the evidence for it.

    Attributes:
        lr: the chosen rate.
        mean_val: its mean validation score over its seeds; None where nothing was tuned.
        n_trials: trials that the choice rests on: the rates tried and the re-runs.
        n_rerun_seeds: further seeds on which the chosen rate was run.
        edge: "low" or "high" when it is the end of the rates tried, which suggests a wider range.
    """

    lr: float
    mean_val: float | None
    n_trials: int
    n_rerun_seeds: int
    edge: Literal["low", "high"] | None


class CellState:
    """What is known of one cell, and what it needs next."""

    def __init__(self, cell: Cell, spec: Spec) -> None:
        self.cell = cell
        self.spec = spec
        self.asked: dict[str, Slot] = {}
        self.rows: dict[str, Row] = {}
        self.running: set[str] = set()
        self.curves: dict[str, dict[int, float]] = {}
        self.choice: Choice | None = None  # the last one journaled
        self._made: dict[tuple[str, int, float | None, Seeds], Slot] = {}

    def seeds(self, seed: int) -> Seeds:
        """(data, init, basis) seeds of a named seed, those that the spec holds fixed put in."""
        hold = self.spec.confirm.hold
        data, init, basis = (int(hold.get(name, seed)) for name in ("data_seed", "init_seed", "basis_seed"))
        return data, init, basis

    def next_slot(self) -> Slot | None:
        """The next trial to run: an asked one that never finished, or a new one; None while waiting, or at the end."""
        if self._tunes:
            wanted = self._next_tune()
            if wanted is not None or not self._tuned:
                return wanted
        for slot in self._confirm_slots():
            if self._open(slot.trial_id):
                return self.asked.get(slot.trial_id, slot)
        return None

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
        """Whether nothing is left to run; a cell none of whose rates finished is over as well."""
        return not self.running and self.next_slot() is None

    @property
    def best(self) -> float | None:
        """Best validation score of the cell's finished trials."""
        scores = [row["val_score"] for row in self.rows.values() if row.get("val_score") is not None]
        return max(scores, default=None)

    def planned(self) -> int:
        """Trials of a complete run of this cell."""
        return self.cell.tune_trials + self.cell.confirm_seeds

    def counted(self) -> int:
        """How many of them are done. Leftovers of a changed choice or a shortened list don't count."""
        wanted = [s.trial_id for s in self._rates() if s is not None]
        wanted += [s.trial_id for s in self._reruns()] if self._rates_done else []
        wanted += [s.trial_id for s in self._confirm_slots()] if self._tuned else []
        return sum(trial_id in self.rows for trial_id in dict.fromkeys(wanted))

    @property
    def _tunes(self) -> bool:
        return self.cell.tune_trials > 0

    @property
    def _rates_done(self) -> bool:
        return all(s is not None and s.trial_id in self.rows for s in self._rates())

    @property
    def _tuned(self) -> bool:
        return not self._tunes or (self._rates_done and all(s.trial_id in self.rows for s in self._reruns()))

    def _open(self, trial_id: str) -> bool:
        return trial_id not in self.rows and trial_id not in self.running

    def _make(self, stage: str, slot: int, lr: float | None, seeds: Seeds) -> Slot:
        key = (stage, slot, lr, seeds)
        if key not in self._made:  # hashing a configuration costs a millisecond, and progress asks often
            trial = self.cell.trial(stage, lr, seeds, self.spec.train)
            config = trial.model_dump(mode="json")
            self._made[key] = Slot(self.cell.cell_id, stage, slot, trial.trial_id, config, lr, seeds)
        return self._made[key]

    def _rates(self) -> list[Slot | None]:
        """Slots 0..R-1 as asked; None where not asked yet."""
        first = self.seeds(TUNE_SEED)
        asked = {s.slot: s for s in self.asked.values() if s.stage == "TUNE" and s.seeds == first}
        return [asked.get(k) for k in range(self.spec.search.rates if self._tunes else 0)]

    def _next_tune(self) -> Slot | None:
        rates = self._rates()
        for k, slot in enumerate(rates):
            if slot is None:
                return self._make("TUNE", k, self._propose(k), self.seeds(TUNE_SEED))
            if self._open(slot.trial_id):
                return slot
        if not self._rates_done:
            return None
        return next((self.asked.get(s.trial_id, s) for s in self._reruns() if self._open(s.trial_id)), None)

    def _propose(self, slot: int) -> float:
        low, high = self.cell.lr_low, self.cell.lr_high
        if low is None or high is None:
            raise AssertionError(f"cell {self.cell.cell_id} has TUNE trials and no learning-rate range")
        first = self.seeds(TUNE_SEED)
        tried = [self._tried(s) for s in self.asked.values() if s.stage == "TUNE" and s.seeds == first]
        search = self.spec.search
        tried.sort(key=lambda t: t.slot)
        return propose(search.sampler, search.seed, self.cell.cell_id, slot, search.rates, low, high, tried)

    def _tried(self, slot: Slot) -> Tried:
        row = self.rows.get(slot.trial_id)
        if slot.lr is None:
            raise AssertionError(f"TUNE trial {slot.trial_id} has no learning rate")
        if row is None:
            return Tried(slot.slot, slot.lr, None, "running")
        score = row["val_score"] if row["status"] == "finished" else None
        if row["status"] == "finished" and score is None:
            return Tried(slot.slot, slot.lr, None, "failed")
        return Tried(slot.slot, slot.lr, score, row["status"])

    def _ranked(self) -> list[Slot]:
        """The rates that finished, best validation score first, the earlier slot where equal."""
        done = [(t, s) for s in self._rates() if s is not None and (t := self._tried(s)).state == "finished"]
        return [s for _, s in sorted(done, key=lambda pair: (-(pair[0].score or 0.0), pair[0].slot))]

    def _reruns(self) -> list[Slot]:
        """The best rates on the seeds after TUNE's first; empty until every rate is done."""
        search = self.spec.search
        if not self._tunes or not self._rates_done:
            return []
        slots = []
        for i, rate in enumerate(self._ranked()[: search.rerun_rates]):
            for j in range(search.rerun_seeds):
                number = search.rates + i * search.rerun_seeds + j
                slots.append(self._make("TUNE", number, rate.lr, self.seeds(TUNE_SEED + 1 + j)))
        return slots

    def _compute_choice(self) -> Choice | None:
        if not self._tunes:
            centre = self.cell.lr_centre
            return None if centre is None else Choice(centre, None, 0, 0, None)
        if not self._tuned:
            return None
        search, reruns = self.spec.search, self._reruns()
        ranked = self._ranked()
        again = search.rerun_rates > 0 and search.rerun_seeds > 0
        candidates = ranked[: search.rerun_rates] if again else ranked[:1]
        if not candidates:
            return None
        best: tuple[int, float, int] | None = None
        chosen = candidates[0]
        for rate in candidates:
            # dict: with every seed held fixed a re-run is its rate's own trial
            trials = dict.fromkeys([rate.trial_id, *(s.trial_id for s in reruns if s.lr == rate.lr)])
            scores = [self.rows[t]["val_score"] for t in trials if self.rows[t]["status"] == "finished"]
            key = (len(scores) - len(trials), statistics.fmean(scores), -rate.slot)  # a rate that fails on a seed loses
            if best is None or key > best:
                best, chosen = key, rate
        tried = sorted(s.lr for s in self._rates() if s is not None and s.lr is not None)
        edge: Literal["low", "high"] | None = None
        if len(tried) > 1 and chosen.lr in {tried[0], tried[-1]}:
            edge = "low" if chosen.lr == tried[0] else "high"
        if best is None or chosen.lr is None:
            raise AssertionError("a candidate was just found")
        n_trials = len({s.trial_id for s in [*self._rates(), *reruns] if s is not None})
        return Choice(chosen.lr, best[1], n_trials, search.rerun_seeds if again else 0, edge)

    def _confirm_slots(self) -> list[Slot]:
        if self.cell.lr_centre is None:  # nothing trains, so nothing varies with the seed
            return [self._make("CONFIRM", 0, None, self.seeds(0))]
        choice = self._compute_choice()
        if choice is None:
            return []
        return [self._make("CONFIRM", k, choice.lr, self.seeds(s)) for k, s in enumerate(self.spec.confirm.seeds)]


class SweepState:
    """All cells of a sweep, and the order in which their slots are served."""

    def __init__(self, cells: Iterable[Cell], spec: Spec) -> None:
        self.spec = spec
        self.cells = {cell.cell_id: CellState(cell, spec) for cell in cells}
        self._order = ordered((state.cell for state in self.cells.values()), spec.resources.order)
        self._resting: set[str] = set()  # cells without an open slot until one of their trials ends
        self.workers = 1  # trials that the lanes run at once

    def next_slot(self) -> Slot | None:
        """The next slot, from the cell with the fewest running trials, earlier cells first.

        So every study runs as nearly one trial after another as the workers allow, which adaptive samplers want, and
        cells finish one by one instead of all at the end.
        """
        awake = [c for c in self._order if c not in self._resting]
        for cell_id in sorted(awake, key=lambda c: len(self.cells[c].running)):
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

    def restore(self, slot: Slot) -> None:
        """Mark a slot as asked by an earlier run; slots of cells that the plan no longer has are left out."""
        if slot.cell_id in self.cells:
            self.cells[slot.cell_id].asked[slot.trial_id] = slot

    def report(self, cell_id: str, trial_id: str, epoch: int, score: float | None) -> bool:
        """Note a validation score; returns whether it is new."""
        curve = self.cells[cell_id].curves.setdefault(trial_id, {}) if cell_id in self.cells else {}
        if epoch in curve or score is None:
            return False
        curve[epoch] = score
        return True

    def finish(self, row: Row) -> None:
        """Note a trial's row."""
        cell = self.cells.get(row["cell_id"])
        if cell is not None:
            cell.rows[row["trial_id"]] = row
            self.release(row["cell_id"], row["trial_id"])

    def release(self, cell_id: str, trial_id: str) -> None:
        """A trial no longer runs; without a row it will be issued again."""
        self.cells[cell_id].running.discard(trial_id)
        self._resting.discard(cell_id)

    @property
    def running(self) -> int:
        """Trials that run now."""
        return sum(len(cell.running) for cell in self.cells.values())
