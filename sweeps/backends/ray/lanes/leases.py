"""A lease: one trial on its way through a lane, as the broker knows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

Event = dict[str, Any]
State = Literal["queued", "running", "finished", "failed"]
Verdict = Literal["go", "wait", "stop", "over"]
"""The answer to a report: "go" on, ask again ("wait"), "stop" and keep the checkpoint, or stop for good ("over")."""

MAX_ATTEMPTS = 3
SILENT = "no report"
KILLED_FOR_MEMORY = "Ray ended its worker because the machine's memory was nearly used up"
MAX_SHRINKS = 20
WAIT_S = 5.0
"""Seconds after which a report that waits for the driver is answered with "wait": other ranks must not block."""
MAX_LOSSES = 10
"""Losses with a node or a lane that do not count as attempts of a trial. Further losses count."""
ALONE_AFTER = 2
"""A trial whose lane died this often runs alone in its lane, so that another death is its own fault."""


@dataclass
class Process:
    """A worker's process, as it registered itself with `hello`. An empty token means that its lane is lost."""

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
    """The order as it was last given to a worker."""
    state: State = "queued"
    worker: str | None = None
    attempt: int = 0
    window: int | None = None
    step: int = 0
    """Tune's last step that was answered."""
    answer: dict[str, Any] = field(default_factory=lambda: {"epoch": 0})
    """The answer to that step. Ray may ask for it again if it was lost."""
    seen: int = 0
    """The last epoch that the driver has judged: it has asked for the next one."""
    events: dict[int, Event] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    began: float | None = None
    """When its worker got it, on the monotonic clock; None if no worker has it."""
    spent: float = 0.0
    """Worker-seconds of earlier attempts. In a pack, each trial counts for its share."""
    where: dict[str, Any] = field(default_factory=dict)
    """The machine of its last worker: `host`, `processor`, `device`."""
    heard: float = 0.0
    """When its worker last reported, on the monotonic clock; infinite while the worker waits for an answer."""
    death: str | None = None
    """Why its worker died or is dying; None if that is not known, or is not this trial's fault."""
    shrink: str | None = None
    """Why it must start with smaller micro-batches the next time; None if it need not."""
    shrinks: int = 0
    left: set[int] = field(default_factory=set)
    """Ranks of a data-parallel group that have left the trial because of an error."""
    spared: bool = False
    """Whether this attempt does not count, since its worker ends for another trial's sake."""
    losses: int = 0
    """How often it was lost with its node or lane."""
    over: bool = False
    """Whether the trial never goes on, though its worker may still train it."""
    pack: str | None = None
    """The name that it has in common with the leases that go to a worker together with it; None: it goes by itself."""
    packed: int = 0
    """Number of trials that shared the base model when it was last started, with this one."""
    unpacked: dict[str, Any] | None = None
    """Why its pack was given up, if it was: `reason`, `cause` (memory, storage, uneven, refused or death), `packed`."""

    @property
    def alone(self) -> bool:
        """Return whether the other workers of its lane must be idle while it runs."""
        return self.attempt - (self.state == "running") >= ALONE_AFTER

    @property
    def lane(self) -> str:
        return lane_of(str(self.worker))

    @property
    def timeout(self) -> float | None:
        """Return the seconds without a report after which its worker is killed; None for no limit.

        A pack gets the time of all its trials together.
        """
        seconds: float | None = self.order.get("timeout")
        return None if seconds is None else seconds * max(1, self.packed)

    @property
    def silent(self) -> bool:
        """Return whether its worker has not reported for too long."""
        return self.state == "running" and self.timeout is not None and time.monotonic() - self.heard > self.timeout

    @property
    def attempts(self) -> int:
        return int(self.order.get("attempts", MAX_ATTEMPTS))

    def let_go(self) -> None:
        """Note that no worker has it any more, and add the time that its worker spent."""
        if self.began is not None:
            self.spent += (time.monotonic() - self.began) / max(1, self.packed)
        self.began = self.worker = None

    @property
    def so_far(self) -> dict[str, Any]:
        """Return where and when the trial ran, as the broker saw it, for when its worker does not report that.

        `worker`: the worker's name and host; for a group those of its rank 0, even if another rank had the problem.
        """
        if not self.packed:
            return {}
        running = 0.0 if self.began is None else (time.monotonic() - self.began) / self.packed
        seconds, ended = self.spent + running, time.time()
        machine = {**self.where, "worker": (self.worker, self.where.get("host", ""))}
        return {**machine, "started": ended - seconds, "ended": ended, "seconds_total": seconds}

    def die(self, why: str, memory: bool) -> None:
        """Note that its worker died, probably because of this trial. `memory`: the node had run out of memory."""
        self.death = self.death or why
        if memory and self.packed > 1:
            self.leave_pack(KILLED_FOR_MEMORY, "memory")
        elif memory:
            self.shrink = KILLED_FOR_MEMORY

    def give_back(self, reason: str) -> None:
        """Note that it ran out of memory and starts again with less. Up to `MAX_SHRINKS` times this is no attempt."""
        self.shrink = reason
        self.shrinks += 1
        self.spared = self.shrinks <= MAX_SHRINKS

    def start_again(self) -> bool:
        """Queue it again after its worker is gone, unless it has failed too often. Return whether it is queued."""
        self.let_go()
        if self.spared:
            self.attempt -= 1
        if not self.spared and self.pack is not None:  # which of several is at fault shows when each runs by itself
            self.leave_pack(self.death or "its worker process died", "death")
        in_pack = self.packed > 1  # the last attempt is always by itself
        self.state = "failed" if self.attempt >= self.attempts and not in_pack else "queued"
        if self.state == "failed":
            self.outcome = {"reason": self._gave_up()}
        self.death, self.spared = None, False
        return self.state == "queued"

    def _gave_up(self) -> str:
        """Return the reason why it is not started again."""
        if self.death is not None and self.death.startswith(SILENT):
            return f"{self.death}; started {self.attempt} times"
        why = f": {self.death}" if self.death else ""
        return f"its worker process died {self.attempt} times while running it{why}"

    def lose(self) -> None:
        """Note that its worker was lost with its node or lane. Up to `MAX_LOSSES` times the attempt does not count.

        A lease whose `death` is set stays as it is: its attempt counts.
        """
        if self.death is None:
            self.losses += 1
        self.spared = self.death is None and self.losses <= MAX_LOSSES

    def leave_pack(self, reason: str, cause: str) -> None:
        """Note that its pack was given up, so that it runs by itself from now on. No effect if it was not packed."""
        if self.packed > 1:
            self.pack = None
            self.unpacked = {"reason": reason, "cause": cause, "packed": self.packed}


def lane_of(worker: str) -> str:
    """Return the lane of a worker that is named "lane0/1"."""
    return worker.partition("/")[0]


def result(epoch: int, event: Event, status: State | Literal["stopped"]) -> dict[str, Any]:
    """Return the result of an epoch as Tune gets it."""
    seconds = (event.get("seconds") or 0.0) + (event.get("seconds_eval") or 0.0)
    values = {"train_loss": event.get("train_loss"), "score": event.get("val_score"), "seconds": seconds}
    return {"epoch": epoch, **values, "done": bool(event.get("done")), "status": status}
