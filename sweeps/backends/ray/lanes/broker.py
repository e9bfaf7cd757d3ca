"""The broker: an actor through which the driver hands trials to lane workers, and their reports come back.

It holds soft state only. When it dies it comes back empty: Tune's trials are then "stopped", the driver issues them
again, and they go on from their own checkpoints.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

import ray

from sweeps.backends.ray.lanes.leases import SILENT, WAIT_S, Event, Lease, Process, Verdict, lane_of, result

ENDED_S = 10.0
"""Ray Train ends the workers of a lane within this after one of them died."""


class Broker:
    """Leases by key. Every method is a coroutine of one asyncio actor, so no two of them run at once between awaits.

    Ray calls again where a reply was lost: each method may be called twice.

    Args:
        kill: ends a worker's process, given the handle that it said hello with. None: Ray's own `kill`.
    """

    def __init__(self, kill: Callable[[Any], None] | None = None) -> None:
        self._kill = ray.kill if kill is None else kill
        self._leases: dict[str, Lease] = {}
        self._queue: deque[str] = deque()
        self._workers: dict[str, Process] = {}
        self._doomed: set[str] = set()  # tokens of processes that are about to be ended
        self._worked: dict[str, float] = {}  # when a worker of a lane last told of its trial, on the monotonic clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching = False
        self._stopping = False
        self._dead: str | None = None
        self._taken: dict[str, dict[str, Any]] = {}  # the driver's last `take`, and its answer
        self._left: dict[str, Lease] = {}  # what a worker had as the driver took it, until it asks for the next
        self._change = asyncio.Condition()

    async def _wake(self) -> None:
        async with self._change:
            self._change.notify_all()

    async def _wait(self, ready: Callable[[], object], timeout: float | None = None) -> None:
        async with self._change:
            try:
                await asyncio.wait_for(self._change.wait_for(lambda: bool(ready())), timeout)
            except TimeoutError:
                return

    # The driver's side

    async def submit(self, key: str, order: dict[str, Any], window: int | None) -> None:
        """Queue a trial.

        Args:
            key: names this lease.
            order: what the worker needs. `timeout`: seconds of silence after which its worker is killed and the trial
                issued again (None: never); `attempts`: how often it is started before it is a failed trial.
            window: epochs that a lane may run ahead of what the driver has seen; None: any number.
        """
        self._add(Lease(key, order, window=window))
        await self._wake()

    async def submit_pack(self, orders: Mapping[str, dict[str, Any]]) -> None:
        """Queue trials, by their keys, that one worker may train together; nobody judges them by epoch."""
        first = next(iter(orders))
        for key, order in orders.items():
            self._add(Lease(key, order, pack=first))
        await self._wake()

    def _add(self, lease: Lease) -> None:
        if lease.key not in self._leases:
            self._leases[lease.key] = lease
            self._queue.append(lease.key)

    async def take(self, key: str, over: bool = False) -> dict[str, Any] | None:
        """Remove a lease and return its outcome and reports; a trial that runs is abandoned. None when unknown.

        `over`: it never goes on, so its worker clears up after it.
        Time and place are what the broker saw where no worker told the trial's end.
        """
        lease = self._leases.pop(key, None)
        if lease is None:
            return self._taken.get(key)
        if key in self._queue:
            self._queue.remove(key)
        if lease.state == "running":
            lease.over, self._left[str(lease.worker)] = over, lease
        events = [lease.events[e] for e in sorted(lease.events)]
        facts = {"attempt": max(1, lease.attempt), "packed": lease.packed or None, "unpacked": lease.unpacked}
        taken = {"state": lease.state, **facts, "events": events, **lease.so_far, **lease.outcome}
        self._taken = {key: taken}
        await self._wake()
        return taken

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
        """Return the state of the workers.

        `workers`: the host of each that is there. `nodes`: the id of the node that each lane was last heard from, in
        the order in which they came.
        `busy`: how many workers have a trial or a pack. `dead`: why no lane is left; None if lanes are.
        """
        workers = {name: worker.where.get("host", "") for name, worker in self._workers.items() if worker.token}
        nodes = {lane_of(name): self._workers[name].node for name in workers}
        busy = {lease.worker for lease in self._leases.values() if lease.state == "running"}
        return {"workers": workers, "nodes": nodes, "busy": len(busy), "dead": self._dead}

    # Tune's side

    async def step(self, key: str, number: int) -> dict[str, Any]:
        """Step `number` (from 1) of a Tune trial: waits for the next epoch's report, or the end without one.

        A result with `status` "stopped" means that the trial did not end: the sweep is being interrupted, or the lease
        is not known. Asked again, a step has the same answer.
        """
        lease = self._leases.get(key)
        if lease is None:
            return result(0, {"done": True}, "stopped")
        if number > lease.step and lease.answer["epoch"] > lease.seen:
            lease.seen = lease.answer["epoch"]
            await self._wake()

        def following() -> int | None:
            return min((e for e in lease.events if e > lease.answer["epoch"]), default=None)

        def given_up() -> bool:
            return self._stopping or self._dead is not None or self._leases.get(key) is not lease

        def over() -> bool:
            return lease.state not in ("queued", "running") and self._leases.get(key) is lease

        def news() -> bool:
            return lease.step >= number or following() is not None or over() or given_up()

        await self._wait(news)
        if lease.step < number:
            if (epoch := following()) is not None:
                lease.answer = result(epoch, lease.events[epoch], lease.state)
            else:
                ended = (
                    lease.state if over() else "stopped"
                )  # an ended trial reports its outcome even if the sweep stops
                lease.answer = result(lease.answer["epoch"], {"done": True}, ended)
            lease.step = number
        return lease.answer

    # The lanes' side

    async def hello(
        self, worker: str, token: str, handle: Any = None, where: dict[str, Any] | None = None, node: str = ""
    ) -> None:
        """A lane worker starts, or starts again: what it held before is queued anew.

        Args:
            handle: what `kill` takes.
            where: its machine (`sweeps.backends.reports.place`).
            node: Ray's id of the node that it runs on.
        """
        self._workers.pop(worker, None)  # so that the last to come is the last in `status`
        self._workers[worker] = Process(token, handle, where or {}, node)
        self._left.pop(worker, None)
        self._requeue(lambda lease: lease.worker == worker)
        await self._wake()

    def _token(self, worker: str | None) -> str | None:
        known = self._workers.get(str(worker))
        return None if known is None else known.token

    async def died(self, lane: str, reasons: Mapping[str, str | None], *, memory: bool = False) -> None:
        """Ray's word on workers that died, by name; None: lost with their machine, no trial's doing (`Lease.lose`).

        Their trials are issued again at once. Ray ends the other workers of the lane as well, to start it as a whole:
        their trials follow when that has happened, and their attempts do not count. `memory`: the machine had run out.
        """
        self._doomed |= {known.token for name, known in self._workers.items() if lane_of(name) == lane}
        self._left = {name: lease for name, lease in self._left.items() if lane_of(name) != lane}
        for lease in self._on(lane):
            if (why := reasons.get(str(lease.worker))) is not None:
                lease.die(why, memory)
            elif str(lease.worker) in reasons:
                lease.lose()
            else:
                lease.spared = lease.death is None
                self._later(self._orphaned(lease, lease.worker, self._token(lease.worker)))
        self._requeue(lambda lease: str(lease.worker) in reasons)
        await self._wake()

    async def _orphaned(self, lease: Lease, worker: str | None, token: str | None) -> None:
        """Issue a trial again once its worker is gone for good, as when its node is lost."""
        await asyncio.sleep(ENDED_S)
        if lease.worker == worker and self._token(worker) == token:
            self._requeue(lambda other: other is lease)
            await self._wake()

    def _later(self, work: Coroutine[Any, Any, None]) -> bool:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return True

    async def again(self, worker: str, token: str, key: str, reason: str) -> None:
        """A group gives a trial back that ran out of memory, to start it with less; the attempt does not count."""
        lease = self._held(worker, token, key)
        if lease is not None:
            lease.give_back(reason)
            self._doomed.add(token)
            self._requeue(lambda other: other is lease)
        await self._wake()

    async def unpack(self, worker: str, token: str, keys: Sequence[str], reason: str, cause: str) -> None:
        """A worker gives trials of its pack back, to be run one by one; the attempt does not count."""
        for key in reversed(keys):
            lease = self._held(worker, token, key)
            if lease is not None:
                lease.apart(reason, cause)
                lease.let_go()
                lease.state, lease.attempt = "queued", lease.attempt - 1
                self._queue.appendleft(key)
        await self._wake()

    async def together(self, worker: str, token: str, key: str, rank: int, world: int, timeout: float) -> bool:
        """One rank of a data-parallel group leaves a trial on an error; whether all do within `timeout` seconds."""
        lease = self._held(worker, token, key)
        if lease is None:
            return False
        lease.left.add(rank)
        await self._wake()
        await self._wait(lambda: len(lease.left) == world, timeout)
        return len(lease.left) == world

    def _on(self, lane: str) -> list[Lease]:
        return [lease for lease in self._leases.values() if lease.state == "running" and lease.lane == lane]

    def _requeue(self, lost: Callable[[Lease], bool]) -> None:
        for lease in self._leases.values():
            if lease.state == "running" and lost(lease) and lease.start_again():
                self._queue.appendleft(lease.key)

    async def _watch(self) -> None:
        """End the workers of trials that have been silent for too long, as long as there are any."""
        while timeouts := [lease.timeout for lease in self._timed() if lease.timeout is not None]:
            begun, pause = time.monotonic(), min(1.0, min(timeouts) / 4)
            await asyncio.sleep(pause)
            deaf = max(0.0, time.monotonic() - begun - pause)  # as this process stood still
            for lease in self._timed():
                lease.heard += deaf
                if lease.silent:
                    await self._end(lease)
        self._watching = False

    def _timed(self) -> list[Lease]:
        return [*self._leases.values(), *self._left.values()]

    async def _end(self, lease: Lease) -> None:
        """Kill the worker of a trial, which takes the other workers of its lane along."""
        worker = str(lease.worker)
        self._left.pop(worker, None)
        await self.died(lease.lane, {worker: f"{SILENT} for {lease.timeout:g} s (resources.trial_timeout)"})
        if worker in self._workers and self._workers[worker].handle is not None:
            self._kill(self._workers[worker].handle)

    def _next_for(self, worker: str) -> list[Lease]:
        """What a worker without a trial gets: what it was given and has not heard of, or else what is queued."""
        on_lane = self._on(lane_of(worker))
        if given := [lease for lease in on_lane if lease.worker == worker]:
            return given
        busy = [lease for lease in on_lane if self._token(lease.worker) not in self._doomed]
        if any(lease.alone for lease in busy):
            return []
        queued = [self._leases[key] for key in self._queue]
        # those that must be alone go first in a lane that has started again: later nobody might be idle with it
        fit = [lease for lease in queued if not (busy and lease.alone)]
        return self._mates(min(fit, key=lambda lease: not lease.alone)) if fit else []

    async def next(
        self, worker: str, token: str, timeout: float
    ) -> dict[str, Any] | list[dict[str, Any]] | Literal["stop", "hello"] | None:
        """The next trial for a worker: its order, key and attempt; several in a list where they go together.

        None when there is none yet, "stop" at the end; "hello" when the broker was restarted and does not know the
        worker.
        """

        def current() -> bool:
            return self._token(worker) == token and self._dead is None

        if worker not in self._workers:
            return "hello"
        self._left.pop(worker, None)

        def found() -> list[Lease]:
            return [] if self._stopping or token in self._doomed else self._next_for(worker)

        await self._wait(lambda: not current() or found(), timeout)
        if not current():
            return "stop"
        leases = found()
        for lease in leases:
            if lease.state == "queued":
                self._start(lease, worker, len(leases))
        orders = [lease.given for lease in leases]
        return orders if len(orders) > 1 else next(iter(orders), None)

    def _mates(self, lease: Lease) -> list[Lease]:
        """The queued leases that a lease goes with, itself among them."""
        if lease.pack is None or lease.single:
            return [lease]
        queued = [self._leases[key] for key in self._queue]
        return [other for other in queued if other.pack == lease.pack and not other.single]

    def _start(self, lease: Lease, worker: str, packed: int) -> None:
        self._queue.remove(lease.key)
        lease.state, lease.worker, lease.attempt = "running", worker, lease.attempt + 1
        lease.heard, lease.left, lease.packed = time.monotonic(), set(), packed
        lease.began, lease.where = lease.heard, self._workers[worker].where
        if lease.timeout is not None:
            self._watching = self._watching or self._later(self._watch())
        shrink, lease.shrink = lease.shrink, None
        now = {"key": lease.key, "attempt": lease.attempt, "ahead": lease.window is None, "shrink": shrink}
        lease.given = {**lease.order, **now}

    def _held(self, worker: str, token: str, key: str) -> Lease | None:
        lease = self._leases.get(key)
        mine = lease is not None and lease.state == "running" and lease.worker == worker
        return lease if mine and self._token(worker) == token and not self._stopping else None

    async def report(self, worker: str, token: str, key: str, event: Event) -> Verdict:
        """Take one epoch's report (a repeated one is ignored); returns whether the trial goes on."""
        lease = self._held(worker, token, key)
        if lease is not None:
            lease.events.setdefault(int(event["epoch"]), event)
            await self._wake()
        return await self.judged(worker, token, key, event["epoch"])

    async def judged(self, worker: str, token: str, key: str, epoch: int) -> Verdict:
        """Whether a trial goes on after an epoch, which may be ahead of what the driver has seen by its window."""
        lease = self._held(worker, token, key)
        if lease is None:
            left = self._left.get(worker)
            return "over" if left is not None and left.key == key and left.over else "stop"

        def seen() -> bool:
            return lease.window is None or epoch - lease.seen <= lease.window

        lease.heard, self._worked[lease.lane] = math.inf, time.monotonic()
        await self._wait(lambda: seen() or self._held(worker, token, key) is not lease, WAIT_S)
        lease.heard = time.monotonic()
        if self._held(worker, token, key) is not lease:
            return await self.judged(worker, token, key, epoch)
        return "go" if seen() else "wait"

    async def finish(self, worker: str, token: str, key: str, event: Event | None, outcome: dict[str, Any]) -> None:
        """The trial is over: its last report, if any, and its outcome with `status` and, if failed, `reason`."""
        lease = self._held(worker, token, key)
        if lease is not None:
            if event is not None:
                lease.events[int(event["epoch"])] = event
            lease.outcome, self._worked[lease.lane] = outcome, time.monotonic()
            lease.state = "failed" if outcome["status"] == "failed" else "finished"
        await self._wake()

    async def lane_lost(self, lane: str, reason: str, final: bool, up_s: float) -> Literal["gone", "worked", "failed"]:
        """A lane's training run ended by itself after `up_s` seconds, by no trial's doing; "worked" if a trial got on.

        `final`: each lane has failed too often, so none is left unless this one worked or workers of one are there.
        "gone": none is. Then Tune's trials are "stopped", and the driver asks `status` why.
        """
        worked = time.monotonic() - self._worked.get(lane, -math.inf) < up_s
        for name, worker in self._workers.items():
            if lane_of(name) == lane:
                worker.token = ""
                self._left.pop(name, None)
        for lease in self._on(lane):
            lease.lose()
        self._requeue(lambda lease: lease.lane == lane)
        if final and not worked and not any(worker.token for worker in self._workers.values()):
            self._dead = reason
        await self._wake()
        return "gone" if self._dead is not None else "worked" if worked else "failed"
