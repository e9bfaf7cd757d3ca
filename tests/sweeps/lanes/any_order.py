"""Lanes in any order of events: nodes join and leave, workers die, hang and come back, and no trial is lost or twice.

A state machine of hypothesis drives the real pool, lanes, broker and leases on a cluster of fakes. It keeps what must
be true of each trial: which process has it, and how many of its attempts count.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sweeps.backends.ray.lanes.leases import ALONE_AFTER, MAX_LOSSES, MAX_SHRINKS, lane_of
from sweeps.backends.ray.pool import UNPLACED_S
from sweeps.spec.resources import ResourceSection
from tests.sweeps.lanes.cluster_of_fakes import Cluster, LaneRun, Process

T = TypeVar("T")
ATTEMPTS = 3
SILENCE_S = 20.0
SLACK_S = 2.5
"""The broker looks once a second whether a worker is silent."""
PICK = st.integers(0, 11)
"""Which of several: a node, a process, a trial."""


@dataclass
class Trial:
    """What must be true of a trial that the driver has submitted.

    Attributes:
        holder: the process that may train it and report; None while it waits for one.
        spared: the present attempt does not count: another worker of the lane has died.
        charged: attempts that count.
        end: how it ended: None as long as it has not, else the status and whose word that is.
        taken: the driver has it back, ended or not, and asks no more.
    """

    key: str
    timed: bool
    judged: bool
    holder: Process | None = None
    spared: bool = False
    charged: int = 0
    losses: int = 0
    shrinks: int = 0
    end: tuple[str, str] | None = None
    taken: bool = False
    steps: int = 0
    epoch: int = 0
    step: asyncio.Task[dict[str, Any]] | None = field(default=None, repr=False)

    @property
    def open(self) -> bool:
        return self.end is None and not self.taken

    def let_go(self, counts: bool) -> None:
        self.charged += counts
        self.holder, self.spared = None, False
        if self.charged >= ATTEMPTS:
            self.end = ("failed", "the broker")

    def lose(self) -> None:
        self.losses += 1
        self.let_go(self.losses > MAX_LOSSES)


class LanesInAnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lanes-"))
        self.trials: dict[str, Trial] = {}
        self.submitted = 0
        self.wrong: list[str] = []

    @initialize(
        cores=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        workers=st.sampled_from([1, 1, 2]),
        most=st.sampled_from([None, 2, 3]),
    )
    def start(self, cores: list[int], workers: int, most: int | None) -> None:
        if sum(cores) < workers:
            cores = [*cores, 2]
        asked = ResourceSection(workers=workers, max_concurrent=most, gpus_per_worker=0.0)
        self.asked = asked
        self.open(cores)
        self.submit(judged=False, timed=True, count=1, again=False)
        self.submit(judged=True, timed=False, count=1, again=False)
        self.submit(judged=False, timed=False, count=2, again=False)
        for process in self.cluster.processes:
            self.ask(process)

    def open(self, cores: list[int]) -> None:
        self.cluster = Cluster(self.folder, cores, self.asked, self.killed, self.lane_lost)
        self.cluster.place()

    # The driver

    @rule(
        judged=st.booleans(),
        timed=st.booleans(),
        count=st.sampled_from([1, 1, 2, 3]),
        again=st.booleans(),
    )
    def submit(self, judged: bool, timed: bool, count: int, again: bool) -> None:
        keys = [f"k{self.submitted + number}" for number in range(count)]
        self.submitted += count
        order = {"timeout": SILENCE_S if timed else None, "attempts": ATTEMPTS}
        judged = judged and count == 1
        for _ in range(1 + again):  # Ray calls again if an answer was lost
            self.cluster.do(self.broker.submit(dict.fromkeys(keys, order), 1 if judged else None))
        self.trials |= {key: Trial(key, timed, judged) for key in keys}

    @rule(pick=PICK)
    def ask_for_the_next_report(self, pick: int) -> None:
        if trial := chosen((t for t in self.trials.values() if not t.taken), pick):
            self.tune(trial)

    def tune(self, trial: Trial) -> None:
        """Tune asks for a trial's next report, unless it waits for one; the driver takes a trial that has ended."""
        if trial.step is None:
            trial.steps += 1
            trial.step = self.cluster.loop.create_task(self.broker.step(trial.key, trial.steps))
        self.cluster.do(asyncio.sleep(0))
        self.cluster.do(asyncio.sleep(0))
        if not trial.step.done():
            return
        answer, trial.step = trial.step.result(), None
        again = self.cluster.do(self.broker.step(trial.key, trial.steps))
        assert again == answer, "a step that is asked again moved on"
        assert answer["status"] != "stopped"
        assert answer["epoch"] >= trial.epoch
        trial.epoch = answer["epoch"]
        if answer["done"]:
            self.take(trial)

    def take(self, trial: Trial, over: bool = False) -> None:
        taken = self.cluster.do(self.broker.take(trial.key, over))
        assert taken == self.cluster.do(self.broker.take(trial.key, over))
        trial.taken = True
        if trial.end is None:
            assert taken["state"] in ("queued", "running")
            return
        status, word = trial.end
        assert (taken["state"], taken.get("by", "the broker")) == (status, word)
        assert taken["attempt"] == (trial.charged if word == "the broker" else trial.charged + 1)

    @rule(pick=PICK)
    def prune(self, pick: int) -> None:
        if trial := chosen((t for t in self.trials.values() if t.judged and not t.taken), pick):
            self.forget_step(trial)
            self.take(trial, over=True)

    @rule()
    def begin_another_sweep(self) -> None:
        self.cluster.do(self.broker.interrupt())
        for trial in self.trials.values():
            if not trial.taken:
                self.forget_step(trial)
                self.take(trial)
        self.cluster.do(self.broker.reset())

    def forget_step(self, trial: Trial) -> None:
        if trial.step is not None:
            trial.step.cancel()
            trial.step = None

    @rule()
    def look_at_the_nodes(self) -> None:
        self.follow()

    def follow(self) -> None:
        for _ in range(2):  # the first asks the broker, the second has its answer
            assert self.cluster.pool.busy >= 0
        self.cluster.pool.follow_nodes()
        self.cluster.await_runs()

    # Workers

    @rule(pick=PICK, again=st.booleans())
    def ask_for_a_trial(self, pick: int, again: bool) -> None:
        if idle := chosen((p for p in self.cluster.processes if not p.held), pick):
            self.ask(idle, again)

    def ask(self, process: Process, again: bool = False) -> None:
        if process.name not in self.broker._workers:
            assert self.cluster.do(self.broker.next(process.name, process.token, 0.5)) == "hello"
            self.cluster.hello(process)
        process.had.clear()
        orders = self.given(process)
        if again and process.alive:
            repeated = self.given(process)
            assert not orders or repeated == orders, "a worker that asked again was given something else"
            orders = repeated
        for order in orders:
            trial = self.trials[order["key"]]
            assert trial.open, "a trial that is over was handed out"
            assert trial.holder is None or not trial.holder.alive, "a trial was handed out that another worker has"
            assert order["attempt"] == trial.charged + 1
            trial.holder, trial.spared = process, False
            process.held[trial.key] = SimpleNamespace(epoch=0, heard=self.now, together=len(orders))
        lane = [p for p in process.run.processes if p.alive and any(self.may(p, key) for key in p.held)]
        if process in lane and len(lane) > 1:
            charged = [self.trials[key].charged for p in lane for key in p.held if self.may(p, key)]
            assert max(charged) < ALONE_AFTER, "a trial that is to run alone in its lane does not"

    def given(self, process: Process) -> list[dict[str, Any]]:
        answer = self.cluster.do(self.broker.next(process.name, process.token, 0.5))
        assert answer not in ("stop", "hello")
        return sorted(answer, key=lambda order: str(order["key"]))  # a pack has no order

    @rule(pick=PICK)
    def report_an_epoch(self, pick: int) -> None:
        if busy := chosen((p for p in self.cluster.processes if p.held), pick):
            self.report(busy)

    def report(self, process: Process) -> None:
        for key, own in [*process.held.items()]:
            may, event = self.may(process, key), {"epoch": own.epoch + 1, "val_score": 0.5}
            verdict = self.cluster.do(self.broker.report(process.name, process.token, key, event))
            if may:
                assert verdict in ("go", "wait") if self.trials[key].judged else verdict == "go"
            else:
                assert verdict in ("stop", "over"), "a worker may go on with a trial that it has no more"
            if verdict in ("stop", "over"):
                process.had.append(process.held.pop(key))
                continue
            own.heard = self.now
            own.epoch += verdict == "go"

    @rule(pick=PICK, failed=st.booleans())
    def end_a_trial(self, pick: int, failed: bool) -> None:
        if busy := chosen((p for p in self.cluster.processes if p.held), pick):
            self.finish(busy, failed)

    def finish(self, process: Process, failed: bool = False) -> None:
        key = min(process.held)
        may, own, trial = self.may(process, key), process.held.pop(key), self.trials[key]
        process.had.append(own)
        status = "failed" if failed else "finished"
        last = None if failed else {"epoch": own.epoch + 1, "done": True}
        outcome = {"status": status, "by": process.token}
        self.cluster.do(self.broker.finish(process.name, process.token, key, last, outcome))
        if may:
            trial.end, trial.holder = (status, process.token), None

    @rule(pick=PICK)
    def give_a_pack_back(self, pick: int) -> None:
        if process := chosen((p for p in self.cluster.processes if len(p.held) > 1), pick):
            keys = [*process.held]
            self.cluster.do(self.broker.unpack(process.name, process.token, keys, "too large", "memory"))
            for key in keys:
                if self.may(process, key):
                    self.trials[key].let_go(counts=False)
            process.had += process.held.values()
            process.held.clear()

    @rule(pick=PICK)
    def run_out_of_memory_in_a_group(self, pick: int) -> None:
        if process := chosen((p for p in self.cluster.processes if p.run.group and p.held), pick):
            (key,) = list(process.held)[:1]
            self.cluster.do(self.broker.again(process.name, process.token, key, "out of memory"))
            if self.may(process, key):
                trial = self.trials[key]
                trial.shrinks += 1
                trial.let_go(counts=trial.shrinks > MAX_SHRINKS)
            self.restart(process.run)

    # Deaths

    @rule(pick=PICK, at_once=st.booleans())
    def kill_a_worker(self, pick: int, at_once: bool) -> None:
        if process := chosen(self.cluster.processes, pick):
            process.alive = False
            process.run.untold[process.name] = "killed"
            if at_once:
                self.tell(process.run, dict(process.run.untold))
                self.go_on()

    @rule(pick=PICK, data=st.data())
    def tell_of_deaths(self, pick: int, data: st.DataObject) -> None:
        if run := chosen((run for _, run in sorted(self.cluster.runs.items()) if run.untold), pick):
            names = sorted(run.untold)
            told = data.draw(st.sets(st.sampled_from(names), min_size=1)) if len(names) > 1 else names
            self.tell(run, {name: run.untold[name] for name in told})

    def tell(self, run: LaneRun, told: dict[str, str | None]) -> None:
        for trial in self.on(run.lane):
            assert trial.holder is not None
            name = trial.holder.name
            if name not in told:
                trial.spared = True
            elif told[name] is None:
                trial.lose()
            else:
                trial.let_go(counts=True)
        self.cluster.tell(run, told)

    @rule(pick=PICK, ended=st.booleans())
    def hear_a_process_that_was_replaced(self, pick: int, ended: bool) -> None:
        """What it said before it died comes late."""
        if process := chosen((p for p in self.cluster.replaced if p.held), pick):
            if ended:
                self.finish(process)
            else:
                self.report(process)

    @rule(pick=PICK, at_once=st.booleans())
    def raise_in_a_worker(self, pick: int, at_once: bool) -> None:
        """Ray Train starts the lane again, and tells nobody why."""
        if process := chosen(self.cluster.processes, pick):
            self.restart(process.run)
            if at_once:
                self.go_on()

    def restart(self, run: LaneRun) -> None:
        if not run.untold:
            self.cluster.end_workers(run)

    @rule()
    def start_lanes_that_there_is_room_for(self) -> None:
        self.place()

    def go_on(self) -> None:
        """Start the lanes that wait, and let idle workers ask for trials. Then a report of a dead one arrives."""
        self.place()
        for process in self.cluster.processes:
            if process.alive and not process.held:
                self.ask(process)
        if process := chosen((p for p in self.cluster.replaced if p.held), -1):
            self.report(process)

    def place(self) -> None:
        waiting = {run.lane for run in self.cluster.runs.values() if run.room is None}
        self.cluster.place()
        for process in self.cluster.processes:
            if process.run.lane in waiting:
                for trial in self.on(process.run.lane):
                    if trial.holder is not None and trial.holder.name == process.name:
                        trial.let_go(counts=not trial.spared)

    @rule(pick=PICK, at_once=st.booleans())
    def end_a_controller(self, pick: int, at_once: bool) -> None:
        if lane := chosen(sorted(self.cluster.runs), pick):
            self.cluster.end_run(self.cluster.runs[lane])
            assert not self.broker._on(lane), "trials of a lane that is gone wait for it"
            if self.cluster.do(self.broker.status())["dead"] is not None:
                self.begin_anew()
            elif at_once:
                self.go_on()

    def begin_anew(self) -> None:
        """All lanes have failed too often. Tune hears that of every trial; the driver ends, and starts other lanes."""
        for trial in self.trials.values():
            if not trial.taken:
                self.forget_step(trial)
                answer: dict[str, Any] = {"done": False}
                while not answer["done"]:  # first the reports that have arrived
                    trial.steps += 1
                    answer = self.cluster.do(self.broker.step(trial.key, trial.steps))
                assert answer["status"] == ("stopped" if trial.end is None else trial.end[0])
                trial.taken = True
        self.cluster.close()
        self.open([2])

    def lane_lost(self, lane: str) -> None:
        for trial in self.on(lane):
            trial.lose()

    def killed(self, process: Process) -> None:
        """The broker ends a worker that was silent for too long."""
        had = [*process.held.values(), *process.had]
        if not any(self.now - own.heard >= SILENCE_S * own.together for own in had):
            self.wrong.append(f"{process.name} was ended, and had not been silent")
        for trial in self.on(process.run.lane):
            if trial.holder is not None and trial.holder.name == process.name:
                trial.let_go(counts=True)
            else:
                trial.spared = True

    @rule()
    def restart_the_broker(self) -> None:
        """Its actor dies, and comes back empty. The driver hears that trials were stopped, and submits them again."""
        for trial in self.trials.values():
            self.forget_step(trial)
        self.cluster.restart_broker()
        for trial in [*self.trials.values()]:
            if not trial.taken:
                answer = self.cluster.do(self.broker.step(trial.key, trial.steps + 1))
                assert (answer["done"], answer["status"]) == (True, "stopped")
                assert self.cluster.do(self.broker.take(trial.key)) is None
                trial.taken = True
                self.submit(judged=trial.judged, timed=trial.timed, count=1, again=False)

    # Nodes and time

    @rule(cores=st.integers(1, 3), fit=st.sampled_from([True, True, True, False]))
    @precondition(lambda self: len(self.cluster.nodes) < 4)
    def join(self, cores: int, fit: bool) -> None:
        self.cluster.join(cores, fit)

    @rule(pick=PICK, at_once=st.booleans())
    def leave(self, pick: int, at_once: bool) -> None:
        if name := chosen(sorted(self.cluster.nodes), pick):
            self.cluster.leave(name)
            if at_once:
                self.follow()
                self.go_on()

    @rule(seconds=st.sampled_from([3.0, 11.0, SILENCE_S + SLACK_S]))
    def let_time_pass(self, seconds: float) -> None:
        self.cluster.sleep(seconds)

    # What must be true

    @invariant()
    def no_trial_is_trained_twice(self) -> None:
        """At most one process may report on a trial.

        A process whose trial the broker has given to another one may train on until its next report. The broker answers
        that report with an order to stop, so such a process does not count here.
        """
        for trial in self.trials.values():
            holders = [p for p in self.cluster.processes if trial.key in p.held and trial.open]
            assert len(holders) <= 1, (trial, holders)

    @invariant()
    def no_core_is_lent_twice(self) -> None:
        assert all(free >= 0 for free in self.cluster.free().values())
        assert sum(shape.trials for shape in self.cluster.pool._lanes.shapes.values()) <= self.asked.most

    @invariant()
    def no_worker_is_ended_that_is_not_silent(self) -> None:
        assert not self.wrong, self.wrong

    @invariant()
    def no_worker_hangs_for_ever(self) -> None:
        for process in self.cluster.processes:
            for key, own in process.held.items():
                if self.trials[key].timed and self.may(process, key):
                    assert self.now - own.heard <= SILENCE_S * own.together + SLACK_S

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            shutil.rmtree(self.folder)
            return
        try:
            self.end_well()
        finally:
            self.cluster.close()
            shutil.rmtree(self.folder)

    def end_well(self) -> None:
        """From here on nothing breaks. Every trial ends, and all that there is room for is used."""
        if sum(self.room()) < self.asked.workers:
            self.cluster.join(3)
        for _ in range(40 + 4 * len(self.trials)):
            for _, run in sorted(self.cluster.runs.items()):
                if run.untold:
                    self.tell(run, dict(run.untold))
            self.follow()
            self.place()
            for process in self.cluster.processes:
                self.report(process)
                while process.held:
                    self.finish(process)
                self.ask(process)
            for trial in self.trials.values():
                if not trial.taken:
                    self.tune(trial)
            self.cluster.sleep(UNPLACED_S / 2)
            assert not self.wrong, self.wrong
            if all(trial.taken for trial in self.trials.values()) and self.all_used():
                return
        lost = [trial for trial in self.trials.values() if not trial.taken]
        raise AssertionError(f"trials were lost: {lost}" if lost else "there is room that no lane uses")

    def all_used(self) -> bool:
        trials = sum(1 if run.group else run.workers for run in self.cluster.runs.values() if run.room is not None)
        return trials == min(sum(self.room()) // self.asked.workers, self.asked.most)

    def room(self) -> list[int]:
        """Return how many workers each node that may run trials has room for."""
        return [int(cores) for name, cores in self.cluster.nodes.items() if name not in self.cluster.unfit]

    # Helpers

    @property
    def broker(self) -> Any:
        return self.cluster.broker

    @property
    def now(self) -> float:
        return self.cluster.loop.time()

    def may(self, process: Process, key: str) -> bool:
        trial = self.trials[key]
        return process.alive and trial.open and trial.holder is process

    def on(self, lane: str) -> list[Trial]:
        return [t for t in self.trials.values() if t.open and t.holder is not None and lane_of(t.holder.name) == lane]


def chosen(things: Iterable[T], pick: int) -> T | None:
    """Return one of several things; None if there are none."""
    several = [*things]
    return several[pick % len(several)] if several else None


TestLanesInAnyOrder = LanesInAnyOrder.TestCase
TestLanesInAnyOrder.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    suppress_health_check=[*HealthCheck],
)
