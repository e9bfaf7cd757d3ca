"""The broker: an actor through which the driver hands trials to lane workers, and their reports come back.

It holds soft state only. When it dies it comes back empty: proxies then see their lease unknown, the driver issues it
again, and the trial goes on from its own checkpoint.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Event = dict[str, Any]
State = Literal["queued", "running", "finished", "failed", "stopped"]
Verdict = Literal["go", "stop"]

MAX_ATTEMPTS = 3
ALONE_AFTER = 2
"""A trial whose lane died this often runs while its lane's other workers idle, so that it alone is to blame next."""


@dataclass
class Lease:
    """One trial on its way through a lane."""

    key: str
    order: dict[str, Any]
    state: State = "queued"
    worker: str | None = None
    attempt: int = 0
    window: int | None = None
    seen: int = 0
    events: dict[int, Event] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        return self.attempt >= ALONE_AFTER


class Broker:
    """Leases by key. Every method is a coroutine of one asyncio actor, so no two of them run at once between awaits."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._queue: deque[str] = deque()
        self._tokens: dict[str, str] = {}
        self._groups: dict[str, str] = {}
        self._pids: dict[str, int] = {}
        self._stopping = False
        self._dead: str | None = None
        self._change = asyncio.Condition()

    async def _wake(self) -> None:
        async with self._change:
            self._change.notify_all()

    async def _wait(self, ready: Callable[[], object], timeout: float) -> None:
        async with self._change:
            try:
                await asyncio.wait_for(self._change.wait_for(lambda: bool(ready())), timeout)
            except TimeoutError:
                return

    # The driver's side

    async def submit(self, key: str, order: dict[str, Any], window: int | None) -> None:
        """Queue a trial. `window`: epochs that a lane may run ahead of what the driver has seen; None: any number."""
        self._leases[key] = Lease(key, order, window=window)
        self._queue.append(key)
        await self._wake()

    async def take(self, key: str) -> dict[str, Any] | None:
        """Remove a lease and return its outcome and reports; a trial that runs is abandoned. None when unknown."""
        lease = self._leases.pop(key, None)
        if lease is None:
            return None
        if key in self._queue:
            self._queue.remove(key)
        await self._wake()
        events = [lease.events[e] for e in sorted(lease.events)]
        return {"state": lease.state, "attempt": max(1, lease.attempt), "events": events, **lease.outcome}

    async def interrupt(self) -> None:
        """Stop what runs and hand out nothing more until `reset`."""
        self._stopping = True
        await self._wake()

    async def reset(self) -> None:
        """Forget all leases: a new sweep begins."""
        self._leases.clear()
        self._queue.clear()
        self._stopping = False
        await self._wake()

    async def shutdown(self) -> None:
        """Tell all lanes to return."""
        self._dead = "shut down"
        await self._wake()

    async def status(self) -> dict[str, Any]:
        """Registered workers' process ids, placement groups of the lanes, and why no lane is left, if so."""
        return {"pids": dict(self._pids), "groups": dict(self._groups), "dead": self._dead}

    # The proxies' side

    async def poll(self, key: str, seen: int, timeout: float) -> tuple[Event | None, str]:
        """The first report after epoch `seen` and the lease's state; waits for news."""
        lease = self._leases.get(key)
        if lease is None:
            return None, "unknown"
        if seen > lease.seen:
            lease.seen = seen
            await self._wake()

        def following() -> int | None:
            return min((e for e in lease.events if e > seen), default=None)

        def news() -> bool:
            over = lease.state not in ("queued", "running") or self._stopping or self._dead is not None
            return following() is not None or over or self._leases.get(key) is not lease

        await self._wait(news, timeout)
        epoch = following()
        if epoch is not None:
            return lease.events[epoch], lease.state
        if self._stopping or self._dead is not None:
            return None, "stopped"
        return None, lease.state if self._leases.get(key) is lease else "unknown"

    # The lanes' side

    async def hello(self, worker: str, token: str, pid: int, group: str | None) -> None:
        """A lane worker starts, or starts again: what it held before is queued anew."""
        self._tokens[worker] = token
        self._pids[worker] = pid
        if group is not None:
            self._groups[worker.partition("/")[0]] = group
        self._requeue(lambda lease: lease.worker == worker)
        await self._wake()

    def _requeue(self, lost: Callable[[Lease], bool]) -> None:
        for lease in self._leases.values():
            if lease.state == "running" and lost(lease):
                lease.worker = None
                if lease.attempt >= MAX_ATTEMPTS:
                    lease.state = "failed"
                    lease.outcome = {"reason": f"its worker process died {lease.attempt} times while running it"}
                else:
                    lease.state = "queued"
                    self._queue.appendleft(lease.key)

    def _next_for(self, worker: str) -> Lease | None:
        lane = worker.partition("/")[0]
        busy = [x for x in self._leases.values() if x.state == "running" and str(x.worker).partition("/")[0] == lane]
        if any(lease.alone for lease in busy):
            return None
        for key in self._queue:
            if not self._leases[key].alone or not busy:
                return self._leases[key]
        return None

    async def next(self, worker: str, token: str, timeout: float) -> dict[str, Any] | Literal["stop"] | None:
        """The next trial for a worker: its order, key and attempt; "stop" at the end; None when there is none yet."""

        def current() -> bool:
            return self._tokens.get(worker) == token and self._dead is None

        if worker not in self._tokens:
            self._tokens[worker] = token  # the broker was restarted
        await self._wait(lambda: not current() or (not self._stopping and self._next_for(worker)), timeout)
        if not current():
            return "stop"
        lease = None if self._stopping else self._next_for(worker)
        if lease is None:
            return None
        self._queue.remove(lease.key)
        lease.state, lease.worker, lease.attempt = "running", worker, lease.attempt + 1
        return {**lease.order, "key": lease.key, "attempt": lease.attempt, "ahead": lease.window is None}

    def _held(self, worker: str, token: str, key: str) -> Lease | None:
        lease = self._leases.get(key)
        mine = lease is not None and lease.state == "running" and lease.worker == worker
        return lease if mine and self._tokens.get(worker) == token and not self._stopping else None

    async def report(self, worker: str, token: str, key: str, event: Event) -> Verdict:
        """Take one epoch's report (a repeated one is ignored); returns whether the trial goes on."""
        lease = self._held(worker, token, key)
        if lease is None:
            return "stop"
        lease.events.setdefault(int(event["epoch"]), event)
        await self._wake()

        def unseen() -> bool:
            return lease.window is not None and event["epoch"] - lease.seen > lease.window

        while self._held(worker, token, key) is lease and unseen():
            await self._wait(lambda: self._held(worker, token, key) is not lease or not unseen(), 5.0)
        return "go" if self._held(worker, token, key) is lease else "stop"

    async def finish(self, worker: str, token: str, key: str, event: Event | None, outcome: dict[str, Any]) -> None:
        """The trial is over: its last report, if any, and its outcome with `status` and, if failed, `reason`."""
        lease = self._held(worker, token, key)
        if lease is not None:
            if event is not None:
                lease.events[int(event["epoch"])] = event
            lease.outcome = outcome
            lease.state = "failed" if outcome["status"] == "failed" else "finished"
        await self._wake()

    async def lane_lost(self, lane: str, reason: str, final: bool) -> str | None:
        """A lane's training run ended by itself; returns its placement group. `final`: it won't come back.

        When no lane is left, proxies hear "stopped" and the driver asks `status` why.
        """
        for worker in [w for w in self._tokens if w.partition("/")[0] == lane]:
            self._tokens[worker] = ""
        self._requeue(lambda lease: str(lease.worker).partition("/")[0] == lane)
        if final:
            self._dead = reason
        await self._wake()
        return self._groups.pop(lane, None)
