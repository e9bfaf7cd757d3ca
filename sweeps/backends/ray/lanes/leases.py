"""A lease: one trial on its way through a lane, as the broker knows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

Event = dict[str, Any]
State = Literal["queued", "running", "finished", "failed"]
Verdict = Literal["go", "wait", "stop", "over"]
"""Of a report: train on; ask again; stop, and keep the checkpoint; or stop, as the trial is over."""

MAX_ATTEMPTS = 3
SILENT = "no report"
KILLED_FOR_MEMORY = "Ray ended its worker because the machine's memory was nearly used up"
MAX_SHRINKS = 20
WAIT_S = 5.0
"""After which a report that waits for the driver is asked again: a group's other ranks wait in a collective."""
MAX_LOSSES = 10
"""Losses with a machine or a lane that are no trial's doing; one that goes on losing them counts as dying itself."""
ALONE_AFTER = 2
"""A trial whose lane died this often runs while its lane's other workers idle, so another death is its own fault."""


@dataclass
class Process:
    """A worker's process, by what it said hello with. An empty token: its lane is lost."""

    token: str
    handle: Any
    where: dict[str, Any]
    node: str = ""
    """Ray's id of the node that it runs on."""


@dataclass
class Lease:
    """One trial on its way through a lane."""

    key: str
    order: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)
    """The order as its worker was last given it."""
    state: State = "queued"
    worker: str | None = None
    attempt: int = 0
    window: int | None = None
    step: int = 0
    """Tune's last step that was answered, and the answer: Ray may ask again, where it was lost."""
    answer: dict[str, Any] = field(default_factory=lambda: {"epoch": 0})
    seen: int = 0
    """The last epoch that the driver is done with, since it asked for the next."""
    events: dict[int, Event] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    began: float | None = None
    """When its worker got it, on the monotonic clock; None while it waits for one."""
    spent: float = 0.0
    """Seconds that workers had it which died or gave it back; of a pack its share."""
    where: dict[str, Any] = field(default_factory=dict)
    """Its last worker's machine: `host`, `processor`, `device`."""
    heard: float = 0.0
    """When its worker last said something, on the monotonic clock; infinite while the worker waits for us."""
    death: str | None = None
    """Why its worker is dying or dead, when that is known and is this trial's own doing."""
    shrink: str | None = None
    """Why it is to start with smaller micro-batches the next time."""
    shrinks: int = 0
    left: set[int] = field(default_factory=set)
    """Ranks of a data-parallel group that have left it on an error."""
    spared: bool = False
    """Its worker goes down for another's sake: this attempt does not count."""
    losses: int = 0
    over: bool = False
    """Judged and done with, whatever its worker still does."""
    pack: str | None = None
    """Names the leases that go to one worker together."""
    single: bool = False
    """It goes to a worker by itself, whatever its pack."""
    packed: int = 0
    """Trials that shared the base model when it was last started, this one among them."""
    unpacked: dict[str, Any] | None = None
    """Why its pack was given up, if it was: `reason`, `cause` (memory, storage, uneven, refused or death), `packed`."""

    @property
    def alone(self) -> bool:
        """Whether its lane's other workers stay idle for it. A start that runs is no death yet."""
        return self.attempt - (self.state == "running") >= ALONE_AFTER

    @property
    def lane(self) -> str:
        return lane_of(str(self.worker))

    @property
    def timeout(self) -> float | None:
        """Seconds of silence that are too many; an epoch of a pack lasts as long as its trials' epochs together."""
        seconds: float | None = self.order.get("timeout")
        return None if seconds is None else seconds * max(1, self.packed)

    @property
    def silent(self) -> bool:
        """Whether its worker has said nothing for too long."""
        return self.state == "running" and self.timeout is not None and time.monotonic() - self.heard > self.timeout

    @property
    def attempts(self) -> int:
        return int(self.order.get("attempts", MAX_ATTEMPTS))

    def let_go(self) -> None:
        """No worker has it any more."""
        if self.began is not None:
            self.spent += (time.monotonic() - self.began) / max(1, self.packed)
        self.began = self.worker = None

    @property
    def so_far(self) -> dict[str, Any]:
        """Where the trial ran, until when and how long: what the broker saw, where its worker can't tell.

        `worker`: name and machine, of a group those of its rank 0; its trouble may be another machine's.
        """
        if not self.packed:
            return {}
        running = 0.0 if self.began is None else (time.monotonic() - self.began) / self.packed
        seconds, ended = self.spent + running, time.time()
        known = {**self.where, "worker": (self.worker, self.where.get("host", ""))}
        return {**known, "started": ended - seconds, "ended": ended, "seconds_total": seconds}

    def die(self, why: str, memory: bool) -> None:
        """Its worker died, by this trial's own doing as far as is known. `memory`: the machine had run out of it."""
        self.death = self.death or why
        if memory and self.packed > 1:
            self.apart(KILLED_FOR_MEMORY, "memory")
        elif memory:
            self.shrink = KILLED_FOR_MEMORY

    def give_back(self, reason: str) -> None:
        """Its worker ran out of memory: it starts with less, which up to `MAX_SHRINKS` times is no attempt."""
        self.shrink, self.shrinks = reason, self.shrinks + 1
        self.spared = self.shrinks <= MAX_SHRINKS

    def start_again(self) -> bool:
        """After its worker is gone: whether it is queued anew; else it has failed, and the outcome says why."""
        self.let_go()
        self.attempt -= self.spared
        if not self.spared and not self.single:  # who of a pack is to blame shows when each is by itself
            self.apart(self.death or "its worker process died", "death")
        self.state = "failed" if self.attempt >= self.attempts else "queued"
        if self.state == "failed":
            self.outcome = {"reason": self._gave_up()}
        self.death, self.spared = None, False
        return self.state == "queued"

    def _gave_up(self) -> str:
        """Why it is not started again."""
        if self.death is not None and self.death.startswith(SILENT):
            return f"{self.death}; started {self.attempt} times"
        why = f": {self.death}" if self.death else ""
        return f"its worker process died {self.attempt} times while running it{why}"

    def lose(self) -> None:
        """Its worker was lost with its machine or its lane: the attempt does not count, up to `MAX_LOSSES` times.

        No effect where its death has a reason.
        """
        self.losses += self.death is None
        self.spared = self.death is None and self.losses <= MAX_LOSSES

    def apart(self, reason: str, cause: str) -> None:
        """Its pack is given up: from now on it goes by itself. No effect on a trial that was alone."""
        if self.packed > 1:
            self.single = True
            self.unpacked = {"reason": reason, "cause": cause, "packed": self.packed}


def lane_of(worker: str) -> str:
    """The lane of a worker, by its name "lane0/1"."""
    return worker.partition("/")[0]


def result(epoch: int, event: Event, status: State | Literal["stopped"]) -> dict[str, Any]:
    """What Tune is told of an epoch."""
    seconds = (event.get("seconds") or 0.0) + (event.get("seconds_eval") or 0.0)
    values = {"train_loss": event.get("train_loss"), "score": event.get("val_score"), "seconds": seconds}
    return {"epoch": epoch, **values, "done": bool(event.get("done")), "status": status}
