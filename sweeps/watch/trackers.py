"""Experiment trackers as observers: every trial is a run of TensorBoard, MLflow, Weights & Biases or Trackio.

A run has the trial's hyperparameters, its scores by epoch and its outcome. It carries the trial's id, so a trial that
a later run of the sweep goes on with stays one run. The results folder remains the truth: trackers are written, never
read for a decision. Their own variables say where they write (such as MLFLOW_TRACKING_URI, WANDB_MODE, TRACKIO_DIR).
Without these, TensorBoard and MLflow write into the results folder.

A file in the results folder notes what was sent to each tracker. So a trial that ended while no tracker was on is sent
by the next run that has one, and no epoch is logged twice.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import importlib
import io
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.sheets.markdown import escaped, markdown_table
from analysis.store.rows import TrialRow
from sweeps.errors import Problem, SpecError, unknown
from sweeps.search.slots import Slot
from sweeps.spec.cell import Cell
from sweeps.watch.observers import Observer, Seen, tell

OPTION = "--track"
_OUTCOME = ("val_score", "test_score", "adapter_params", "seconds_total", "samples_per_second", "peak_memory_bytes")
"""The numbers of a trial's row that trackers show."""


class SentLog:
    """A file that notes what was sent to a tracker: the last epoch of each trial, and the attempt that ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._epochs: dict[str, int] = {}
        self._attempts: dict[str, int | None] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a crash may have cut off the last line
                self._take(**json.loads(line))

    def _take(self, trial_id: str, epoch: int, attempt: int | None) -> None:
        self._epochs[trial_id], self._attempts[trial_id] = epoch, attempt

    def __contains__(self, trial_id: str) -> bool:
        return trial_id in self._attempts

    def epoch(self, trial_id: str) -> int:
        """Return the last epoch that was sent; 0 if none was."""
        return self._epochs.get(trial_id, 0)

    def attempt(self, trial_id: str) -> int | None:
        """Return the attempt whose outcome was sent; None if none was, or if the trial has begun again since."""
        return self._attempts.get(trial_id)

    def write(self, trial_id: str, epoch: int, attempt: int | None = None) -> None:
        """Note the last epoch that was sent, and the attempt if its outcome was sent."""
        self._take(trial_id, epoch, attempt)
        # without parents: a results folder that was moved away must not be made again
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"trial_id": trial_id, "epoch": epoch, "attempt": attempt}) + "\n")


class RunTracker:
    """The base class of all trackers, with one run for each trial. Subclasses open, log, end or leave a run."""

    name = ""
    package = ""
    """The package that is imported."""
    places: tuple[str, ...] = ()
    """Environment variables that say where it writes. Each place has its own file of what was sent there."""

    def __init__(self, sweep: str, folder: Path) -> None:
        self.sweep, self.folder = sweep, folder
        try:
            self.tracker: Any = importlib.import_module(self.package)
        except ImportError as error:
            rule = f"needs the package {self.package}: pip install 'randlora-sweeps[{self.name}]'"
            raise SpecError([Problem(OPTION, self.name, rule)]) from error
        self._runs: dict[str, Any] = {}
        where = json.dumps([os.environ.get(name) for name in self.places])
        self.sent = SentLog(folder / "tracked" / f"{self.name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}.jsonl")

    def start(self, seen: Sequence[Seen]) -> None:
        """Send the trials that are over and whose outcome was not sent yet."""
        for one in seen:
            if one.row is not None and self._lacks(one.slot.trial_id, one.row):
                tell(self, one)

    def _lacks(self, trial_id: str, row: TrialRow) -> bool:
        """Return whether the outcome of a trial is still to be sent."""
        has = self.has(trial_id)
        if has is False and trial_id in self.sent:  # the tracker's own files were deleted: send all again
            self.sent.write(trial_id, 0)
        if has is True and trial_id not in self.sent:
            return False  # an earlier version of this package sent it, and kept no file
        return self.sent.attempt(trial_id) != row.attempt

    def asked(self, cell: Cell, slot: Slot) -> None:
        """Open the trial's run, unless it is open."""
        if slot.trial_id not in self._runs:
            self._runs[slot.trial_id] = self.open(cell, slot)
            # its outcome is still to be sent, also if that of an earlier attempt, which failed, was
            if slot.trial_id not in self.sent or self.sent.attempt(slot.trial_id) is not None:
                self.sent.write(slot.trial_id, 0)

    def reported(self, slot: Slot, values: Mapping[str, Any]) -> None:
        """Log one epoch, unless it was sent before."""
        run, epoch = self._runs.get(slot.trial_id), int(values["epoch"])
        if run is not None and epoch > self.sent.epoch(slot.trial_id):
            numbers = {k: float(v) for k, v in values.items() if k != "epoch" and v is not None}
            self.log(run, epoch, numbers)
            self.sent.write(slot.trial_id, epoch)

    def finished(self, slot: Slot, row: TrialRow) -> None:
        """Log the outcome and end the run."""
        run = self._runs.pop(slot.trial_id, None)
        if run is not None:
            values = {name: getattr(row, name) for name in _OUTCOME}
            self.end(run, row, {name: float(value) for name, value in values.items() if value is not None})
            self.sent.write(slot.trial_id, self.sent.epoch(slot.trial_id), row.attempt)

    def close(self) -> None:
        """Leave the runs of unfinished trials to the next run of the sweep."""
        for run in self._runs.values():
            self.leave(run)
        self._runs.clear()

    def has(self, trial_id: str) -> bool | None:
        """Return whether the tracker has a run of the trial; None if it cannot tell."""
        return None

    def open(self, cell: Cell, slot: Slot) -> Any:
        raise NotImplementedError

    def log(self, run: Any, epoch: int, numbers: Mapping[str, float]) -> None:
        run.log(dict(numbers), step=epoch)

    def end(self, run: Any, row: TrialRow, summary: Mapping[str, float]) -> None:
        raise NotImplementedError

    def leave(self, run: Any) -> None:
        run.finish()


class TensorBoard(RunTracker):
    """Writes event files into `FOLDER/tensorboard/CELL/STAGE-SLOT-TRIAL`. Read them: `tensorboard --logdir FOLDER`."""

    name = "tensorboard"
    package = "tensorboardX"
    _stored: frozenset[str] = frozenset()
    """Ids of the trials that had a folder when the run started."""

    def start(self, seen: Sequence[Seen]) -> None:
        folders = (self.folder / "tensorboard").glob("*/*")  # once: a search for each trial would take quadratic time
        self._stored = frozenset(path.name.rpartition("-")[2] for path in folders)
        super().start(seen)

    def has(self, trial_id: str) -> bool | None:
        return trial_id in self._stored

    def open(self, cell: Cell, slot: Slot) -> Any:
        place = self.folder / "tensorboard" / cell.cell_id / f"{slot.stage}-{slot.slot}-{slot.trial_id}"
        # files are named by the second: a trial that is resumed at once would overwrite its own file
        writer = self.tracker.SummaryWriter(str(place), flush_secs=10, filename_suffix=f".{uuid.uuid4().hex[:8]}")
        rows = ((escaped(name), escaped(str(value))) for name, value in config_of(cell, slot).items())
        writer.add_text("configuration", markdown_table(("", ""), rows))
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
    """Writes runs of the experiment SWEEP to MLFLOW_TRACKING_URI; by default to the database `FOLDER/mlflow.db`."""

    name = "mlflow"
    package = "mlflow"
    places = ("MLFLOW_TRACKING_URI",)

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
        experiment = self._client.get_experiment_by_name(self.sweep)
        self._experiment = (
            self._client.create_experiment(self.sweep) if experiment is None else experiment.experiment_id
        )
        super().start(seen)

    def _find(self, trial_id: str) -> Any:
        runs = self._client.search_runs([self._experiment], f"tags.trial_id = '{trial_id}'", max_results=1)
        return runs[0] if runs else None

    def has(self, trial_id: str) -> bool | None:
        return self._find(trial_id) is not None

    def open(self, cell: Cell, slot: Slot) -> Any:
        existing_run = self._find(slot.trial_id)
        if existing_run is not None:
            self._client.update_run(existing_run.info.run_id, status="RUNNING")
            return existing_run.info.run_id
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
        # MLflow's own "KILLED" also marks runs that go on later
        for tag, text in (("status", row.status), ("reason", row.reason)):
            if text:
                self._client.set_tag(run, tag, text)
        status = {"finished": "FINISHED", "pruned": "KILLED"}.get(row.status, "FAILED")
        self._client.set_terminated(run, status)

    def leave(self, run: Any) -> None:
        self._client.set_terminated(run, "KILLED")


class WeightsAndBiases(RunTracker):
    """Sends runs of the project SWEEP, grouped by cell. WANDB_MODE=offline keeps them on this machine."""

    name = "wandb"
    package = "wandb"
    places = ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY")

    def __init__(self, sweep: str, folder: Path) -> None:
        super().__init__(sweep, folder)
        if os.environ.get("WANDB_MODE", "online") != "online":
            return
        try:
            logged_in = bool(self.tracker.login())  # here, on the main thread: it may ask for a key on a terminal
        except self.tracker.Error:
            logged_in = False
        if not logged_in:
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
    """Hide what Trackio prints in the block, because standard output belongs to `--json`."""
    return contextlib.redirect_stdout(io.StringIO())


class Trackio(RunTracker):
    """Writes runs of the project SWEEP, grouped by cell: locally (`trackio show`), or to TRACKIO_SPACE_ID."""

    name = "trackio"
    package = "trackio"
    places = ("TRACKIO_DIR", "TRACKIO_SPACE_ID")

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
        words = {"status": row.status, "reason": row.reason}
        run.log({f"outcome/{k}": v for k, v in summary.items()} | {k: v for k, v in words.items() if v})
        self.leave(run)

    def leave(self, run: Any) -> None:
        with _silence():
            super().leave(run)


TRACKERS: dict[str, type[RunTracker]] = {t.name: t for t in (TensorBoard, MLflow, WeightsAndBiases, Trackio)}


def make_tracker(name: str, sweep: str, folder: Path) -> Observer:
    """Return the tracker of a name.

    Raises:
        SpecError: the name is unknown, its package is not installed, or its account is missing.
    """
    if name not in TRACKERS:
        raise SpecError([unknown(OPTION, name, "tracker", TRACKERS)])
    return TRACKERS[name](sweep, folder)


def title_of(cell: Cell, slot: Slot) -> str:
    """Return the title of a trial: its cell, stage, number and learning rate."""
    rate = "" if slot.lr is None else f" lr {slot.lr:.3g}"
    return f"{cell.label} {slot.stage} {slot.slot}{rate}"


def config_of(cell: Cell, slot: Slot) -> dict[str, Any]:
    """Return the values of a trial's configuration that a tracker shows. Values that are None are left out."""
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
