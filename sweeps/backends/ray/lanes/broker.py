"""The broker: an actor that hands the driver's trials to lane workers, and their reports to the driver.

Its state is in memory only. If it dies, Ray starts it again, empty. Then Tune's trials end as "stopped", the driver
submits them again, and they go on from their own checkpoints.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

import ray

from sweeps.backends.ray.lanes.leases import SILENT, WAIT_S, Event, Lease, Process, Verdict, lane_of, result

ENDED_S = 10.0
"""Seconds within which Ray Train ends the other workers of a lane after one of them died."""


class Broker:
    """Holds the leases of a sweep by their keys, and the queue of those that wait for a worker.

    Every method is a coroutine of one asyncio actor. So no other method runs between two of its awaits. Ray repeats a
    call whose reply was lost, so each method may be called twice.

    Args:
        kill: ends a worker's process, given the handle from its `hello`. None: Ray's own `kill`.
    """

    def __init__(self, kill: Callable[[Any], None] | None = None) -> None:
        self._kill = ray.kill if kill is None else kill
        self._leases: dict[str, Lease] = {}
        self._queue: deque[str] = deque()
        self._workers: dict[str, Process] = {}
        self._doomed: set[str] = set()  # tokens of processes that are about to be ended
        self._worked: dict[str, float] = {}  # when a worker of a lane last reported, on the monotonic clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching = False
        self._stopping = False
        self._dead: str | None = None
        self._taken: dict[str, dict[str, Any]] = {}  # the driver's last `take`, and its answer
        self._left: dict[str, Lease] = {}  # by worker: a lease that the driver took while the worker still trains it
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

    async def submit(self, orders: Mapping[str, dict[str, Any]], window: int | None) -> None:
        """Queue one trial, or several that one worker trains together.

        Args:
            orders: the orders for the worker, by the names of the new leases. `timeout`: seconds without a report after
                which its worker is killed and the trial is queued again (None: never). `attempts`: how often it is
                started before it has failed.
            window: number of epochs that a worker may train beyond the last one that the driver has seen. None: any
                number.
        """
        pack = next(iter(orders))
        for key, order in orders.items():
            if key not in self._leases:
                self._leases[key] = Lease(key, order, pack=pack, window=window)
                self._queue.append(key)
        await self._wake()

    async def take(self, key: str, over: bool = False) -> dict[str, Any] | None:
        """Remove a lease, and return its outcome and reports; None if the lease is not known.

        A trial that still runs is abandoned. If no worker reported its end, time and place are what the broker saw.

        Args:
            key: the lease.
            over: the trial never goes on, so its worker removes its folder.
        """
        lease = self._leases.pop(key, None)
        if lease is None:
            return self._taken.get(key)
        if key in self._queue:
            self._queue.remove(key)
        if lease.state == "running":
            lease.over = over
            self._left[str(lease.worker)] = lease
        events = [lease.events[e] for e in sorted(lease.events)]
        facts = {"attempt": max(1, lease.attempt), "packed": lease.packed or None, "unpacked": lease.unpacked}
        answer = {"state": lease.state, **facts, "events": events, **lease.so_far, **lease.outcome}
        self._taken = {key: answer}
        await self._wake()
        return answer

    async def interrupt(self) -> None:
        """Stop all trials that run, and hand out no more until `reset`."""
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

        `workers`: the host of each worker. `nodes`: the id of the node of each lane, in the order in which the lanes
        came. `busy`: the number of workers that have a trial or a pack. `dead`: why no lane is left; None if there are
        lanes.
        """
        workers = {name: worker.where.get("host", "") for name, worker in self._workers.items() if worker.token}
        nodes = {lane_of(name): self._workers[name].node for name in workers}
        busy = {lease.worker for lease in self._leases.values() if lease.state == "running"}
        return {"workers": workers, "nodes": nodes, "busy": len(busy), "dead": self._dead}

    # Tune's side

    async def step(self, key: str, number: int) -> dict[str, Any]:
        """Wait for the next report or the end of a trial, and return it as Tune's result of step `number` (from 1).

        If the result's `status` is "stopped", the trial did not end: the sweep is being interrupted, or the lease is
        not known. A repeated call for the same step returns the same result.
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
                status = lease.state if over() else "stopped"  # a trial that ended says so even if the sweep stops
                lease.answer = result(lease.answer["epoch"], {"done": True}, status)
            lease.step = number
        return lease.answer

    # The lanes' side

    async def hello(
        self, worker: str, token: str, handle: Any = None, where: dict[str, Any] | None = None, node: str = ""
    ) -> None:
        """Register a lane worker that starts, or starts again. Trials that it held before are queued again.

        Args:
            worker: the worker's name.
            token: names this process of the worker.
            handle: the worker's handle, for `kill`.
            where: its machine (`sweeps.backends.reports.place`).
            node: Ray's id of the node that it runs on.
        """
        self._workers.pop(worker, None)  # so that the last to come is the last in `status`
        self._workers[worker] = Process(token, handle, where or {}, node)
        self._left.pop(worker, None)
        self._requeue(lambda lease: lease.worker == worker)
        await self._wake()

    def _token(self, worker: str | None) -> str | None:
        process = self._workers.get(str(worker))
        return None if process is None else process.token

    async def died(self, lane: str, reasons: Mapping[str, str | None], *, memory: bool = False) -> None:
        """Take the deaths of workers of a lane, and queue their trials again.

        Ray then ends the other workers of the lane as well, to start the lane as a whole. Their trials are queued again
        after that, and their attempts do not count.

        Args:
            lane: the lane's name.
            reasons: why each worker died, by the worker's name; None if it was lost with its node (`Lease.lose`).
            memory: whether the node had run out of memory.
        """
        self._doomed |= {process.token for name, process in self._workers.items() if lane_of(name) == lane}
        self._left = {name: lease for name, lease in self._left.items() if lane_of(name) != lane}
        for lease in self._on(lane):
            if (why := reasons.get(str(lease.worker))) is not None:
                lease.die(why, memory)
            elif str(lease.worker) in reasons:
                lease.lose()
            else:
                lease.spared = lease.death is None
                self._later(self._requeue_orphan(lease, lease.worker, self._token(lease.worker)))
        self._requeue(lambda lease: str(lease.worker) in reasons)
        await self._wake()

    async def _requeue_orphan(self, lease: Lease, worker: str | None, token: str | None) -> None:
        """Queue a trial again if its worker has not come back within `ENDED_S`, such as when its node is lost."""
        await asyncio.sleep(ENDED_S)
        if lease.worker == worker and self._token(worker) == token:
            self._requeue(lambda other: other is lease)
            await self._wake()

    def _later(self, work: Coroutine[Any, Any, None]) -> bool:
        """Start a task that runs beside the calls of this actor. Return True."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return True

    async def again(self, worker: str, token: str, key: str, reason: str) -> None:
        """Take back a group's trial that ran out of memory, and queue it to start with a smaller micro-batch."""
        lease = self._held(worker, token, key)
        if lease is not None:
            lease.give_back(reason)
            self._doomed.add(token)
            self._requeue(lambda other: other is lease)
        await self._wake()

    async def unpack(self, worker: str, token: str, keys: Sequence[str], reason: str, cause: str) -> None:
        """Take back trials of a worker's pack, and queue them to run one by one. The attempt does not count."""
        for key in reversed(keys):
            lease = self._held(worker, token, key)
            if lease is not None:
                lease.leave_pack(reason, cause)
                lease.let_go()
                lease.state = "queued"
                lease.attempt -= 1
                self._queue.appendleft(key)
        await self._wake()

    async def leave_together(self, worker: str, token: str, key: str, rank: int, world: int, timeout: float) -> bool:
        """Note that one rank of a data-parallel group leaves a trial because of an error.

        Returns:
            Whether all `world` ranks have left it within `timeout` seconds.
        """
        lease = self._held(worker, token, key)
        if lease is None:
            return False
        lease.left.add(rank)
        await self._wake()
        await self._wait(lambda: len(lease.left) == world, timeout)
        return len(lease.left) == world

    def _on(self, lane: str) -> list[Lease]:
        """Return the leases that run on a lane."""
        return [lease for lease in self._leases.values() if lease.state == "running" and lease.lane == lane]

    def _requeue(self, lost: Callable[[Lease], bool]) -> None:
        """Queue the running leases for which `lost` is true again, unless they have failed too often."""
        for lease in self._leases.values():
            if lease.state == "running" and lost(lease) and lease.start_again():
                self._queue.appendleft(lease.key)

    async def _watch(self) -> None:
        """End the workers of trials that have not reported for too long. Return if no trial has a time limit."""
        while timeouts := [lease.timeout for lease in self._timed() if lease.timeout is not None]:
            begun, pause = time.monotonic(), min(1.0, min(timeouts) / 4)
            await asyncio.sleep(pause)
            suspended = max(0.0, time.monotonic() - begun - pause)  # this process itself did not run
            for lease in self._timed():
                lease.heard += suspended
                if lease.silent:
                    await self._end(lease)
        self._watching = False

    def _timed(self) -> list[Lease]:
        return [*self._leases.values(), *self._left.values()]

    async def _end(self, lease: Lease) -> None:
        """Kill the worker of a trial. Ray then ends the other workers of its lane too."""
        worker = str(lease.worker)
        self._left.pop(worker, None)
        await self.died(lease.lane, {worker: f"{SILENT} for {lease.timeout:g} s (resources.trial_timeout)"})
        if worker in self._workers and self._workers[worker].handle is not None:
            self._kill(self._workers[worker].handle)

    def _next_for(self, worker: str) -> list[Lease]:
        """Return the leases for a worker without a trial: those it was given in a lost reply, else queued ones."""
        on_lane = self._on(lane_of(worker))
        if already_given := [lease for lease in on_lane if lease.worker == worker]:
            return already_given
        busy = [lease for lease in on_lane if self._token(lease.worker) not in self._doomed]
        if any(lease.alone for lease in busy):
            return []
        queued = [self._leases[key] for key in self._queue]
        # a trial that must be alone goes first in a lane that has started again: later its other workers may be busy
        fit = [lease for lease in queued if not (busy and lease.alone)]
        return self._mates(min(fit, key=lambda lease: not lease.alone)) if fit else []

    async def next(self, worker: str, token: str, timeout: float) -> list[dict[str, Any]] | Literal["stop", "hello"]:
        """Wait for the next trials for a worker, and return their orders.

        Returns:
            The orders that it trains together, with their keys and attempts; [] if none came within `timeout` seconds;
            "stop" at the end; "hello" if the broker does not know the worker, since it was started again.
        """

        def current() -> bool:
            return self._token(worker) == token and self._dead is None

        if worker not in self._workers:
            return "hello"
        self._left.pop(worker, None)

        def leasable() -> list[Lease]:
            return [] if self._stopping or token in self._doomed else self._next_for(worker)

        await self._wait(lambda: not current() or leasable(), timeout)
        if not current():
            return "stop"
        leases = leasable()
        for lease in leases:
            if lease.state == "queued":
                self._start(lease, worker, len(leases))
        return [lease.given for lease in leases]

    def _mates(self, lease: Lease) -> list[Lease]:
        """Return the queued leases that go to a worker together with a lease, and the lease itself."""
        if lease.pack is None:
            return [lease]
        queued = [self._leases[key] for key in self._queue]
        return [other for other in queued if other.pack == lease.pack]

    def _start(self, lease: Lease, worker: str, packed: int) -> None:
        self._queue.remove(lease.key)
        lease.state = "running"
        lease.worker = worker
        lease.attempt += 1
        lease.packed = packed
        lease.left = set()
        lease.heard = lease.began = time.monotonic()
        lease.where = self._workers[worker].where
        if lease.timeout is not None:
            self._watching = self._watching or self._later(self._watch())
        shrink, lease.shrink = lease.shrink, None
        attempt = {"key": lease.key, "attempt": lease.attempt, "ahead": lease.window is None, "shrink": shrink}
        lease.given = {**lease.order, **attempt}

    def _held(self, worker: str, token: str, key: str) -> Lease | None:
        """Return a lease if this process of the worker holds it; None if it does not, or if the sweep is stopping."""
        lease = self._leases.get(key)
        holds = lease is not None and lease.state == "running" and lease.worker == worker
        return lease if holds and self._token(worker) == token and not self._stopping else None

    async def report(self, worker: str, token: str, key: str, event: Event) -> Verdict:
        """Take the report of one epoch (ignored if it is a repeated one), and return whether the trial goes on."""
        lease = self._held(worker, token, key)
        if lease is not None:
            lease.events.setdefault(int(event["epoch"]), event)
            await self._wake()
        return await self.judged(worker, token, key, event["epoch"])

    async def judged(self, worker: str, token: str, key: str, epoch: int) -> Verdict:
        """Return whether a trial goes on after an epoch. Waits until the driver has seen enough of its epochs."""
        lease = self._held(worker, token, key)
        if lease is None:
            abandoned = self._left.get(worker)
            return "over" if abandoned is not None and abandoned.key == key and abandoned.over else "stop"

        def seen() -> bool:
            return lease.window is None or epoch - lease.seen <= lease.window

        lease.heard = math.inf
        self._worked[lease.lane] = time.monotonic()
        await self._wait(lambda: seen() or self._held(worker, token, key) is not lease, WAIT_S)
        lease.heard = time.monotonic()
        if self._held(worker, token, key) is not lease:
            return await self.judged(worker, token, key, epoch)
        return "go" if seen() else "wait"

    async def finish(self, worker: str, token: str, key: str, event: Event | None, outcome: dict[str, Any]) -> None:
        """Take the end of a trial: its last report, if any, and its outcome with `status` and, if failed, `reason`."""
        lease = self._held(worker, token, key)
        if lease is not None:
            if event is not None:
                lease.events[int(event["epoch"])] = event
            lease.outcome = outcome
            self._worked[lease.lane] = time.monotonic()
            lease.state = "failed" if outcome["status"] == "failed" else "finished"
        await self._wake()

    async def lane_lost(self, lane: str, reason: str, final: bool, up_s: float) -> Literal["gone", "worked", "failed"]:
        """Note that a lane's training run ended by itself, which is no trial's fault. Queue its trials again.

        Args:
            lane: the lane's name.
            reason: why it ended.
            final: whether every lane has now failed too often.
            up_s: the seconds for which it ran.

        Returns:
            "worked" if one of its trials reported in that time, and "failed" if none did. "gone" if no lane is left:
            then Tune's trials end as "stopped", and the driver finds the reason in `status`.
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


class BrokerActor(Broker):
    """The broker as a Ray actor. The signal SIGTERM ends its process at once.

    At SIGTERM Ray lets an asyncio actor answer all open calls before it ends, and takes no new ones. A call of `step`
    waits for the calls of workers, so neither would ever be answered. Ray runs the methods of such an actor outside the
    main thread, where Python does not let a signal be changed. So the C library restores the system's default.
    """

    def __init__(self) -> None:
        super().__init__()
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
        libc.signal(signal.SIGTERM, None)  # SIG_DFL
