"""Copies every cell's study into an Optuna storage, so that optuna-dashboard shows a sweep while it runs.

The copy is never read for a decision: the studies that decide are rebuilt from the journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.store.rows import TrialRow
from sweeps.errors import Problem, SpecError
from sweeps.search.slots import Slot
from sweeps.spec.cell import Cell
from sweeps.spec.space import Space
from sweeps.watch.observers import Seen, tell
from trainables.errors import first_line

if TYPE_CHECKING:
    import optuna


class StudyMirror:
    """An observer that writes a study for each cell, with the TUNE trials, their scores by epoch and their states.

    A study is named `SWEEP/CELL`.

    Args:
        where: a database URL of Optuna, such as "sqlite:///studies.db", or the path of a journal file.
        sweep: name of the sweep.

    Raises:
        SpecError: the storage can't be opened.
    """

    name = "the Optuna mirror"

    def __init__(self, where: str, sweep: str) -> None:
        self._sweep = sweep
        self._storage = open_storage(where)
        self._studies: dict[str, optuna.Study] = {}
        self._trials: dict[str, optuna.Trial] = {}  # that run now, by trial id
        self._reported: dict[str, set[int]] = {}

    def start(self, seen: Sequence[Seen]) -> None:
        """Add the trials of earlier runs that the storage lacks."""
        from optuna.trial import TrialState

        for one in seen:
            if one.slot.stage != "TUNE" or one.row is None:
                continue
            mirrored = self._mirrored(one.cell).get(one.slot.trial_id)
            state = None if mirrored is None else mirrored.state
            retried = state == TrialState.FAIL and one.row.status != "failed"  # by a run without the mirror
            if state is None or not state.is_finished() or retried:
                tell(self, one)

    def asked(self, cell: Cell, slot: Slot) -> None:
        """Show a trial as running."""
        import optuna
        from optuna.trial import TrialState

        if slot.stage != "TUNE" or cell.space is None or slot.trial_id in self._trials:
            return
        study = self._study(cell)
        mirrored = self._mirrored(cell).get(slot.trial_id)
        if mirrored is not None and not mirrored.state.is_finished():  # an earlier run began it
            self._trials[slot.trial_id] = optuna.Trial(study, mirrored._trial_id)
            self._reported[slot.trial_id] = set(mirrored.intermediate_values)
            return
        values = {"lr": slot.lr, **dict(slot.extra)}
        distributions = _distributions(cell.space, slot)
        begun = optuna.trial.create_trial(
            state=TrialState.RUNNING, params=values, distributions=distributions, user_attrs=_attrs(slot)
        )
        # in one step: a trial that waits in the study, such as after a kill, would be taken for another one
        number = self._storage.create_new_trial(study._study_id, template_trial=begun)
        self._trials[slot.trial_id] = optuna.Trial(study, number)
        self._reported[slot.trial_id] = set()

    def reported(self, slot: Slot, values: Mapping[str, Any]) -> None:
        """Add one epoch's validation score."""
        trial = self._trials.get(slot.trial_id)
        epoch, score = int(values["epoch"]), values.get("val_score")
        if trial is not None and score is not None and epoch not in self._reported[slot.trial_id]:
            self._reported[slot.trial_id].add(epoch)
            trial.report(float(score), epoch)

    def finished(self, slot: Slot, row: TrialRow) -> None:
        """Show a trial as complete, pruned or failed."""

        trial = self._trials.pop(slot.trial_id, None)
        self._reported.pop(slot.trial_id, None)
        if trial is None:
            return
        state = _state(row)
        if row.reason:
            trial.set_user_attr("reason", row.reason)
        trial.study.tell(trial, row.score, state=state)

    def close(self) -> None:
        """Close the storage. Trials that still run stay as they are, and the next run goes on with them."""
        close_storage(self._storage)

    def _study(self, cell: Cell) -> optuna.Study:
        import optuna

        if cell.cell_id not in self._studies:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._studies[cell.cell_id] = optuna.create_study(
                storage=self._storage,
                study_name=f"{self._sweep}/{cell.cell_id}",
                sampler=optuna.samplers.RandomSampler(seed=0),  # never asked, because every trial has its parameters
                direction="maximize",
                load_if_exists=True,
            )
        return self._studies[cell.cell_id]

    def _mirrored(self, cell: Cell) -> dict[str, optuna.trial.FrozenTrial]:
        """Return the trials that the storage has of a cell, by trial id."""
        trials = self._study(cell).get_trials(deepcopy=False)
        return {t.user_attrs["trial_id"]: t for t in trials if "trial_id" in t.user_attrs}


def open_storage(where: str) -> optuna.storages.BaseStorage:
    """Open a database by its URL, or a journal file by its path. Make it if it is missing.

    Raises:
        SpecError: it can't be opened.
    """
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if "://" in where:
            return RDBStorage(where)
        path = Path(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except Exception as error:  # SQLAlchemy, its drivers and the file system raise many types of errors
        rule = f"can't be opened as an Optuna storage ({first_line(error)})"
        raise SpecError([Problem("--optuna-storage", where, rule, "sqlite:///studies.db, or a file")]) from error


def close_storage(storage: optuna.storages.BaseStorage) -> None:
    """Close the connections of a storage that is a database. A journal file is not held open."""
    from optuna.storages import RDBStorage

    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def _state(row: TrialRow) -> optuna.trial.TrialState:
    from optuna.trial import TrialState

    if row.status == "pruned":
        return TrialState.PRUNED
    return TrialState.FAIL if row.score is None else TrialState.COMPLETE


def _attrs(slot: Slot) -> dict[str, Any]:
    data, init, basis = slot.seeds
    attrs = {"trial_id": slot.trial_id, "slot": slot.slot, "data_seed": data, "init_seed": init, "basis_seed": basis}
    return attrs | ({"origin": slot.origin} if slot.origin else {})


def _distributions(space: Space, slot: Slot) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return the cell's space as Optuna's distributions. The range of rates includes this trial's rate.

    The ends of a range are rounded like its values: a rounded value may be just outside the ends in the sweep file.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    lr = slot.point.lr
    distributions: dict[str, Any] = {"lr": FloatDistribution(min(space.low, lr), max(space.high, lr), log=True)}
    for d in space.dimensions:
        if d.values:
            distributions[d.name] = CategoricalDistribution(d.values)
        elif d.integer and d.low is not None and d.high is not None:
            distributions[d.name] = IntDistribution(int(d.low), int(d.high), log=d.log)
        else:
            low, high = map(float, d.ends)
            distributions[d.name] = FloatDistribution(low, high, log=d.log)
    return distributions
