"""Experiment trackers as observers: every trial is a run of TensorBoard, MLflow, Weights & Biases or Trackio.

A run has the trial's hyperparameters, its scores by epoch and its outcome. It carries the trial's id, so a trial that
a later run of the sweep goes on with stays one run. The results folder remains the truth: trackers are written, never
read for a decision. Where they write is theirs to say (MLFLOW_TRACKING_URI, WANDB_MODE, TRACKIO_DIR, ...); without
that, TensorBoard and MLflow write into the results folder.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import io
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.store.rows import TrialRow
from sweeps.errors import Problem, SpecError, unknown
from sweeps.search.slots import Slot
from sweeps.spec.cell import Cell
from sweeps.watch.observers import Observer, Seen, tell

OPTION = "--track"
_OUTCOME = ("val_score", "test_score", "adapter_params", "seconds_total", "samples_per_second", "peak_memory_bytes")
"""The numbers of a trial's row that trackers show."""


class RunTracker:
    """What all trackers share: one run a trial. Subclasses open a run, log to it, end it, or leave it open."""

    name = ""
    package = ""
    """What is imported."""

    def __init__(self, sweep: str, folder: Path) -> None:
        self.sweep, self.folder = sweep, folder
        try:
            self.tracker: Any = importlib.import_module(self.package)
        except ImportError as error:
            rule = f"needs the package {self.package}: pip install 'randlora-sweeps[{self.name}]'"
            raise SpecError([Problem(OPTION, self.name, rule)]) from error
        self._runs: dict[str, Any] = {}

    def start(self, seen: Sequence[Seen]) -> None:
        """Put in what earlier runs of the sweep finished and the tracker can say that it lacks."""
        for one in seen:
            if one.row is not None and self.lacks(one.slot.trial_id):
                tell(self, one)

    def asked(self, cell: Cell, slot: Slot) -> None:
        """Open the trial's run, unless it is open."""
        if slot.trial_id not in self._runs:
            self._runs[slot.trial_id] = self.open(cell, slot)

    def reported(self, slot: Slot, values: Mapping[str, Any]) -> None:
        """Log one epoch."""
        run = self._runs.get(slot.trial_id)
        if run is not None:
            numbers = {k: float(v) for k, v in values.items() if k != "epoch" and v is not None}
            self.log(run, int(values["epoch"]), numbers)

    def finished(self, slot: Slot, row: TrialRow) -> None:
        """Log the outcome and end the run."""
        run = self._runs.pop(slot.trial_id, None)
        if run is not None:
            values = {name: getattr(row, name) for name in _OUTCOME}
            self.end(run, row, {name: float(value) for name, value in values.items() if value is not None})

    def close(self) -> None:
        """Leave the runs of unfinished trials to the next run of the sweep."""
        for run in self._runs.values():
            self.leave(run)
        self._runs.clear()

    def lacks(self, trial_id: str) -> bool:
        """Whether the tracker is known not to have a trial of an earlier run."""
        return False

    def open(self, cell: Cell, slot: Slot) -> Any:
        raise NotImplementedError

    def log(self, run: Any, epoch: int, numbers: Mapping[str, float]) -> None:
        run.log(dict(numbers), step=epoch)

    def end(self, run: Any, row: TrialRow, summary: Mapping[str, float]) -> None:
        raise NotImplementedError

    def leave(self, run: Any) -> None:
        run.finish()


class TensorBoard(RunTracker):
    """Event files in `FOLDER/tensorboard/CELL/STAGE-SLOT-TRIAL`; read them with `tensorboard --logdir FOLDER`."""

    name = "tensorboard"
    package = "tensorboardX"

    def lacks(self, trial_id: str) -> bool:
        return not any((self.folder / "tensorboard").glob(f"*/*-{trial_id}"))

    def open(self, cell: Cell, slot: Slot) -> Any:
        place = self.folder / "tensorboard" / cell.cell_id / f"{slot.stage}-{slot.slot}-{slot.trial_id}"
        # files are named by the second: a trial gone on with at once would overwrite its own
        writer = self.tracker.SummaryWriter(str(place), flush_secs=10, filename_suffix=f".{uuid.uuid4().hex[:8]}")
        rows = "".join(f"\n| {k} | {v} |" for k, v in config_of(cell, slot).items())
        writer.add_text("configuration", f"| | |\n|---|---|{rows}")
        return writer

    def log(self, run: Any, epoch: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            run.add_scalar(key, value, epoch)

    def end(self, run: Any, row: TrialRow, summary: Mapping[str, float]) -> None:
        for key, value in summary.items():
            run.add_scalar(f"outcome/{key}", value, row.epochs or 0)
        run.add_text("status", " ".join(filter(None, [row.status, row.reason])))
        run.close()

    def leave(self, run: Any) -> None:
        run.close()


class MLflow(RunTracker):
    """Runs of the experiment SWEEP at MLFLOW_TRACKING_URI; without that in the database `FOLDER/mlflow.db`."""

    name = "mlflow"
    package = "mlflow"

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        where = os.environ.get("MLFLOW_TRACKING_URI")
        if not where:
            folder.mkdir(parents=True, exist_ok=True)
            where = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self._where = where
        self._client: Any = None
        self._experiment = ""

    def start(self, seen: Sequence[Seen]) -> None:
        self._client = self.tracker.MlflowClient(tracking_uri=self._where)
        known = self._client.get_experiment_by_name(self.sweep)
        self._experiment = self._client.create_experiment(self.sweep) if known is None else known.experiment_id
        super().start(seen)

    def _find(self, trial_id: str) -> Any:
        found = self._client.search_runs([self._experiment], f"tags.trial_id = '{trial_id}'", max_results=1)
        return found[0] if found else None

    def lacks(self, trial_id: str) -> bool:
        found = self._find(trial_id)
        return found is None or found.info.status == "RUNNING"

    def open(self, cell: Cell, slot: Slot) -> Any:
        known = self._find(slot.trial_id)
        if known is not None:
            self._client.update_run(known.info.run_id, status="RUNNING")
            return known.info.run_id
        tags = {"trial_id": slot.trial_id, "cell_id": cell.cell_id, "stage": slot.stage}
        run = self._client.create_run(self._experiment, run_name=title_of(cell, slot), tags=tags)
        for key, value in config_of(cell, slot).items():
            self._client.log_param(run.info.run_id, key, value)
        return run.info.run_id

    def log(self, run: Any, epoch: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            self._client.log_metric(run, key, value, step=epoch)

    def end(self, run: Any, row: TrialRow, summary: Mapping[str, float]) -> None:
        for key, value in summary.items():
            self._client.log_metric(run, f"outcome_{key}", value)
        if row.reason:
            self._client.set_tag(run, "reason", row.reason)
        status = {"finished": "FINISHED", "pruned": "KILLED"}.get(row.status, "FAILED")
        self._client.set_terminated(run, status)

    def leave(self, run: Any) -> None:
        self._client.set_terminated(run, "KILLED")


class WeightsAndBiases(RunTracker):
    """Runs of the project SWEEP, grouped by cell. WANDB_MODE=offline keeps them on this machine."""

    name = "wandb"
    package = "wandb"

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        if os.environ.get("WANDB_MODE", "online") != "online":
            return
        try:
            known = bool(self.tracker.login())  # here, on the main thread: it may ask for a key on a terminal
        except self.tracker.Error:
            known = False
        if not known:
            rule = "is not logged in: `wandb login`, WANDB_API_KEY, or WANDB_MODE=offline"
            raise SpecError([Problem(OPTION, self.name, rule)])

    def open(self, cell: Cell, slot: Slot) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.tracker.init(
            project=self.sweep,
            id=slot.trial_id,
            name=title_of(cell, slot),
            group=cell.cell_id,
            job_type=slot.stage,
            config=config_of(cell, slot),
            dir=str(self.folder),
            reinit="create_new",  # many runs at once
            resume="allow",
            settings=self.tracker.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def end(self, run: Any, row: TrialRow, summary: Mapping[str, float]) -> None:
        run.summary.update({**summary, "status": row.status, "reason": row.reason})
        run.finish(exit_code=int(row.status == "failed"))


def _silence() -> contextlib.AbstractContextManager[Any]:
    """Trackio prints; standard output belongs to `--json`."""
    return contextlib.redirect_stdout(io.StringIO())


class Trackio(RunTracker):
    """Runs of the project SWEEP, grouped by cell; local (`trackio show`), or where TRACKIO_SPACE_ID says."""

    name = "trackio"
    package = "trackio"

    def open(self, cell: Cell, slot: Slot) -> Any:
        with _silence():  # Trackio ends the context's current run with each new one: every trial has a context
            return contextvars.Context().run(
                self.tracker.init,
                project=self.sweep,
                name=f"{title_of(cell, slot)} {slot.trial_id}",
                group=cell.cell_id,
                config=config_of(cell, slot),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def end(self, run: Any, row: TrialRow, summary: Mapping[str, float]) -> None:
        run.log({f"outcome/{k}": v for k, v in summary.items()} | {"status": row.status})
        self.leave(run)

    def leave(self, run: Any) -> None:
        with _silence():
            super().leave(run)


TRACKERS: dict[str, type[RunTracker]] = {t.name: t for t in (TensorBoard, MLflow, WeightsAndBiases, Trackio)}


def make_tracker(name: str, sweep: str, folder: Path) -> Observer:
    """A tracker by name.

    Raises:
        SpecError: an unknown name, a package that is not installed, an account that is missing.
    """
    if name not in TRACKERS:
        raise SpecError([unknown(OPTION, name, "tracker", TRACKERS)])
    return TRACKERS[name](sweep, folder)


def title_of(cell: Cell, slot: Slot) -> str:
    """A trial in words: its cell, stage, number, and rate."""
    rate = "" if slot.lr is None else f" lr {slot.lr:.3g}"
    return f"{cell.label} {slot.stage} {slot.slot}{rate}"


def config_of(cell: Cell, slot: Slot) -> dict[str, Any]:
    """What a tracker shows of a trial's configuration; what does not apply is left out."""
    data, init, basis = slot.seeds
    values: dict[str, Any] = {
        "model": cell.model,
        "adapt": cell.adapt,
        "dataset": cell.dataset,
        "train_size": cell.train_size,
        "method": cell.method,
        "reference": cell.reference,
        "budget": cell.budget,
    }
    if cell.solved is not None:
        values |= {"allocation": cell.solved.allocation, "capacity": cell.solved.capacity}
    values |= {"stage": slot.stage, "slot": slot.slot, "lr": slot.lr, **dict(slot.extra), "origin": slot.origin}
    values |= {"data_seed": data, "init_seed": init, "basis_seed": basis}
    return {key: value for key, value in values.items() if value is not None}
