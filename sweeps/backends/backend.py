"""What the engine asks of whatever runs its trials, and what it hears back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sweeps.backends.needs import Needs
from sweeps.packing.sizes import Measured
from sweeps.spec.resources import ResourceSection

EXIT_LOST = 4
"""Exit code of the program when nothing can run trials any more."""


class BackendError(RuntimeError):
    """The backend cannot run trials any more. Finished trials are kept, and the same command goes on."""

    exit_code = EXIT_LOST


class BackendLostError(BackendError):
    """What runs the trials died, by no fault of theirs. A new backend can go on from the journal.

    Attributes:
        why: what died, in words.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"{why}; finished trials are kept, and the same command goes on")

    def __reduce__(self) -> tuple[type[BackendLostError], tuple[str]]:
        return type(self), (self.why,)


@dataclass(frozen=True)
class Order:
    """One trial to run.

    Attributes:
        trial_id: the trial's id. A backend holds each id once at a time.
        function: the trial function, "package.module:function".
        together: the function that trains several such trials on one copy of the base model; None if there is none.
        config: the trial's configuration as JSON values, with absolute paths of data and models.
        directory: the trial's own folder. Its checkpoints are there, so a trial that starts again goes on from them.
        keep: where the trained weights are moved to; None if they are not kept.
        judged: whether the engine may stop the trial after any report. The backend then trains at most one epoch
            beyond a report until the engine has seen it.
        timeout: seconds without a report after which the trial is started again; None for no limit.
        attempts: how often the trial is started before it has failed, if its process dies.
    """

    trial_id: str
    function: str
    together: str | None
    config: Mapping[str, Any] = field(repr=False)
    directory: Path
    keep: Path | None
    judged: bool
    timeout: float | None = None
    attempts: int = 3

    def for_worker(self) -> dict[str, Any]:
        """Return the order as a dictionary, as `trials` and `reports` take it in a worker."""
        return {
            "key": self.trial_id,
            "trial": self.function,
            "together": self.together,
            "config": dict(self.config),
            "directory": str(self.directory),
            "keep": None if self.keep is None else str(self.keep),
            "timeout": self.timeout,
            "attempts": self.attempts,
        }


Outcome = dict[str, Any]
"""What is known of a trial that ended: `sweeps.records.rows.trial_row` makes its row from it."""


@dataclass(frozen=True)
class Reported:
    """A trial finished an epoch. `seconds`: of training and evaluation in this epoch."""

    trial_id: str
    epoch: int
    train_loss: float | None
    val_score: float | None
    seconds: float


@dataclass(frozen=True)
class Finished:
    """A trial trained to its end."""

    trial_id: str
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    """A trial raised an error, or its process died too often."""

    trial_id: str
    outcome: Outcome


@dataclass(frozen=True)
class Stopped:
    """A trial that the engine stopped no longer runs."""

    trial_id: str
    outcome: Outcome


@dataclass(frozen=True)
class Lost:
    """A trial no longer runs, by no fault of its own; the engine starts it again.

    Attributes:
        fault: what was wrong with the node's storage, if that was it.
        elsewhere: whether nodes without that fault can run trials.
    """

    trial_id: str
    outcome: Outcome = field(default_factory=dict)
    fault: OSError | None = None
    elsewhere: bool = True


Event = Reported | Finished | Failed | Stopped | Lost
"""Every trial that was started ends with one event that is not `Reported`."""


@dataclass(frozen=True)
class Facts:
    """What a backend has.

    Attributes:
        workers: calls of `start` whose orders it runs at once.
        pack: trials that a worker trains on one copy of the base model, at most.
        accelerators: accelerators that one trial holds.
        provenance: further facts that the journal keeps of this run, as JSON values.
    """

    workers: int
    pack: int
    accelerators: float
    provenance: Mapping[str, Any]


class Backend(Protocol):
    """Runs trials. It decides nothing: the search chooses the next trial, and the ledger writes down what happened."""

    @property
    def facts(self) -> Facts:
        """Return what the backend has. This may change while it runs, such as when nodes join."""

    @property
    def free(self) -> int:
        """Return the number of further calls of `start` that it could take now.

        It may queue one more than it has workers, so that no worker waits for the engine.
        """

    @property
    def busy(self) -> int:
        """Return the number of workers that train now. Their time counts against the sweep's limits."""

    def start(self, orders: Sequence[Order]) -> None:
        """Run an order, or several together on one worker. They are queued if all workers are busy.

        Raises:
            BackendError: nothing can run trials any more.
        """

    def events(self, timeout: float) -> list[Event]:
        """Return what happened since the last call. Wait up to `timeout` seconds if nothing did.

        A call also says that the engine is done with the events that the last call returned: trials whose report was
        returned then, and which were not stopped, go on.

        Raises:
            BackendError: nothing can run trials any more.
        """

    def stop(self, trial_id: str, *, over: bool) -> None:
        """Stop a trial; `Stopped` follows, or `Finished`, `Failed` or `Lost` if it had ended already.

        Args:
            over: the trial never goes on, so its checkpoints may be removed. Otherwise they are kept.
        """

    def close(self) -> None:
        """Stop all trials, keep their checkpoints, and end what the backend has started."""


@dataclass(frozen=True)
class Setup:
    """What a backend is opened with.

    Attributes:
        resources: `[resources]` of the sweep.
        storage: a folder for the backend's own files, inside the results folder.
        address: of the cluster to join; None to use this machine.
        needs: what trials need on every node.
        measure: measures a trial's memory when it is called on a GPU; None if that is not known.
        note: shows a line to the user.
    """

    resources: ResourceSection
    storage: Path
    address: str | None = None
    needs: Needs = field(default_factory=Needs)
    measure: Callable[[], Measured] | None = None
    note: Callable[[str], None] = lambda _: None


OpenBackend = Callable[[Setup], Backend]
"""Opens a backend, and returns when it can take trials.

Raises SpecError if the machine or the cluster cannot hold what is asked; `BackendError` if it does not come up.
"""
