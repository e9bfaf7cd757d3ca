"""What a sweep will take, from a short probe of every method on this machine; no Ray is started.

A method of which this machine has finished trials in the results folder is not probed: these have measured it. The
probe trains a few batches of each method's largest cell through the same code a lane runs, on one core. What it
can't see is other load on the machine, cores that share memory bandwidth, and trials that share a GPU's processors.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

from analysis.store.store import Store
from randlora.methods.registry import METHODS
from sweeps.backends.packs import Measured, least_share, pack_size, smallest_gpu, unpackable, worker_share
from sweeps.backends.resources import LaneShape, Node, accelerators, local_node, plan_lanes
from sweeps.errors import reason
from sweeps.plan.disk_size import keep_bytes
from sweeps.plan.plan import Plan
from sweeps.plan.split_sizes import split_sizes
from sweeps.records.replay import stored_state
from sweeps.spec.batch_sizes import with_largest_batch
from sweeps.spec.cell import Cell
from sweeps.spec.resources import LimitsSection, ResourceSection
from trainables.config import TrainSettings, TrialConfig
from trainables.data.images.batches import samples_per_epoch
from trainables.errors import TrainablesError, TrialError

START_SECONDS = 15.0
"""Ray and the first lane, from the command to the first training step."""
TRIAL_OVERHEAD = 0.15
"""Seconds per trial that are neither training nor evaluation, lanes warm."""
PROBE_BATCHES = 3
PROBE_ROWS = 64
"""Texts of each task that a probe evaluates, about a full batch: all of them take longer than what it trains."""
_ROW_BYTES = 12_000
"""Journal, table rows and predictions of a trial."""


@dataclass(frozen=True)
class MethodEstimate:
    """One method's share: trials still to run, seconds of one of them, and of all."""

    method: str
    trials: int
    seconds_per_trial: float
    seconds_total: float


@dataclass(frozen=True)
class Estimate:
    """Time, memory, disk and money of what is left of a sweep.

    Attributes:
        seconds: wall time, `concurrent` trials at a time, Ray's start included.
        accelerator_hours: what the trials hold: GPUs, or workers where they take none.
        memory_bytes: largest peak memory a probed trial had; on the CPU, of the whole process.
        shared_bytes: of these, the base model's that the workers of a machine hold together; 0 on GPUs.
        table_bytes: journal and tables.
        kept_bytes: adapters that `[keep]` leaves.
        cost: `accelerator_hours` at `limits.price_per_hour`; None where that is not given.
        over: limits that it would reach, in words.
        pack: trials that a worker trains at once at most; the seconds of methods that are packed are their share.
        unknown: methods whose probe failed, with why; of theirs, trials and bytes on disk alone are counted.
    """

    methods: tuple[MethodEstimate, ...]
    concurrent: int
    trials_left: int
    seconds: float
    accelerator_hours: float
    memory_bytes: int
    table_bytes: int
    kept_bytes: int
    probe_seconds: float
    cost: float | None = None
    over: tuple[str, ...] = ()
    pack: int = 1
    shared_bytes: int = 0
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def together_bytes(self) -> int:
        """Memory of this machine that its trials on CPUs take when all of them are at their peak."""
        return self.shared_bytes + self.concurrent * max(0, self.memory_bytes - self.shared_bytes)

    @property
    def disk_bytes(self) -> int:
        """All that stays on disk."""
        return self.table_bytes + self.kept_bytes

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**asdict(self), "disk_bytes": self.disk_bytes}


@dataclass(frozen=True)
class _Left:
    """What a cell still has to run."""

    cell: Cell
    tune: int
    confirm: int

    @property
    def trials(self) -> int:
        return self.tune + self.confirm


Tell = Callable[[str, int, int, str], None]
"""A callback for each step of a probe. Its arguments are the probed method, the method's number from 1, the number of
methods, and the step in words, such as "loading the model". Another process may call it, so it must be picklable."""


def estimate_plan(
    plan: Plan, *, retry_failed: bool = False, used_hours: float = 0.0, tell: Tell | None = None
) -> Estimate:
    """Add up the time of all trials that are left, from finished trials of their method or from a probe of it.

    Args:
        retry_failed: failed trials are run again.
        used_hours: accelerator-hours of earlier runs, which count against the limits of the whole sweep.
        tell: called before each step of a probe.
    """
    started = time.perf_counter()
    node = local_node()
    shapes = plan_lanes(plan.spec.resources, [node], least_share(plan.spec.resources))
    left = [cell for cell in _left(plan, retry_failed) if cell.trials]
    if not left:
        return Estimate((), sum(lane.trials for lane in shapes), 0, 0.0, 0.0, 0, 0, 0, 0.0)
    found = _apart(plan, left, node, tell) if node.gpus else _probe(plan, left, node, tell)
    concurrent = sum(lane.trials for lane in found.shapes)
    trials = sum(c.trials for c in left)
    busy = sum(m.seconds_total for m in found.methods)
    limits = plan.spec.limits
    hours = busy / 3600 * accelerators(found.shapes)
    cost = None if limits.price_per_hour is None else hours * limits.price_per_hour
    seconds = START_SECONDS + busy / min(concurrent, trials)
    return Estimate(
        methods=found.methods,
        concurrent=concurrent,
        trials_left=trials,
        seconds=seconds,
        accelerator_hours=hours,
        memory_bytes=found.memory,
        table_bytes=trials * _ROW_BYTES,
        kept_bytes=keep_bytes(plan, [c.cell for c in left]),
        probe_seconds=time.perf_counter() - started,
        cost=cost,
        over=tuple(_over(limits, seconds / 3600, hours, used_hours)),
        pack=found.pack,
        shared_bytes=found.shared,
        unknown=found.unknown,
    )


def _over(limits: LimitsSection, hours: float, accelerator_hours: float, used_hours: float) -> Iterator[str]:
    price = limits.price_per_hour or 0.0
    spent = {"max_accelerator_hours": (accelerator_hours, used_hours)}
    spent |= {"max_cost": (accelerator_hours * price, used_hours * price)}
    for name, (left, used) in ({"max_hours": (hours, 0.0)} | spent).items():  # max_hours is of one run
        most = getattr(limits, name)
        if most is not None and left + used > most:
            after = f" after {used:.3g}" if used > 0 else ""
            yield f"limits.{name} = {most:g}, and about {left:.3g} are left to run{after}"


def _left(plan: Plan, retry_failed: bool) -> list[_Left]:
    state = stored_state(plan.feasible, plan.spec, retry_failed=retry_failed)
    return [_Left(known.cell, *known.left()) for known in state.cells.values()]


def _shared(warm: dict[str, Any]) -> int:
    from trainables.models.shared import shared_bytes

    return sum(shared_bytes(loaded.module) for loaded in warm.get("models", {}).values())


@dataclass(frozen=True)
class _Found:
    """What the probes found: what is left of each method, the lanes that fit, and fields of an `Estimate`."""

    methods: tuple[MethodEstimate, ...]
    shapes: list[LaneShape]
    memory: int
    pack: int
    shared: int
    unknown: dict[str, str]


def _apart(plan: Plan, left: Sequence[_Left], node: Node, tell: Tell | None) -> _Found:
    """`_probe` in a process of its own: what it holds on a GPU ends with it, and trials find the GPU free."""
    spawn = multiprocessing.get_context("spawn")
    initializer = _hide_gpus if plan.spec.resources.gpus_per_worker == 0 else None
    # one task a child, or it would wait for more when the driver is killed
    with ProcessPoolExecutor(1, spawn, initializer, max_tasks_per_child=1) as process:
        try:
            given = Plan(plan.spec, plan.cells)  # without the base model's modules, which need not be sent
            return process.submit(_probe, given, left, node, tell).result()
        except BrokenProcessPool:
            why = "the probe's process was ended, perhaps for want of memory"
            shapes = plan_lanes(plan.spec.resources, [node], least_share(plan.spec.resources))
            return _Found((), shapes, 0, 1, 0, dict.fromkeys((c.cell.method for c in left), why))


def _hide_gpus() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _probe(plan: Plan, left: Sequence[_Left], node: Node, tell: Tell | None) -> _Found:
    import torch

    from sweeps.backends.memory import free_memory

    warm: dict[str, Any] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(plan.spec.resources.cpus_per_worker)))
    largest = _largest(c.cell for c in left)
    done = _finished_here(plan)
    try:
        probed: dict[str, _Probe | str] = {}
        for method in largest:
            if (known := _known(plan, done, method)) is not None:
                probed[method] = known
        asking = {method: cell for method, cell in largest.items() if method not in probed}
        for number, (method, cell) in enumerate(asking.items(), 1):
            tell_step = functools.partial(tell or _tell_nobody, method, number, len(asking))
            run_probe = functools.partial(_Probe.of, cell, plan, warm, tell_step)
            probed[method] = _tried(run_probe, warm)
        costs = {method: cost for method, cost in probed.items() if isinstance(cost, _Probe)}
        unknown = {m: why for m, why in probed.items() if isinstance(why, str)}
        peak = max((cost.memory for cost in costs.values()), default=0)
        measured = None if unknown else _measured(peak)  # a run's own probe fails as these did
        asked = plan.spec.resources
        share = 1.0 if measured is None else worker_share(asked, measured, node.cpus / node.gpus)
        shapes = plan_lanes(asked, [node], share)
        pack = _pack(asked, measured, shapes[0].per_worker.get("GPU", 0.0))
        for method in costs:
            cell = largest[method]
            if pack > 1 and unpackable(cell.base, cell.model) is None:
                together = _known(plan, done, method, pack) or _tried(
                    functools.partial(_Probe.packed, cell, plan, warm, pack), warm
                )
                if isinstance(together, _Probe):  # else a lane runs them one by one
                    costs[method] = together
    finally:
        torch.set_num_threads(threads)
    memory = max((cost.memory for cost in costs.values()), default=0)
    found = []
    for method, cost in costs.items():
        mine_left = [c for c in left if c.cell.method == method]
        total = sum(
            trials * cost.trial(c.cell, stage, plan.spec.train, plan.spec.resources.workers)
            for c in mine_left
            for stage, trials in (("TUNE", c.tune), ("CONFIRM", c.confirm))
        )
        trials = sum(c.trials for c in mine_left)
        found.append(MethodEstimate(method, trials, total / trials, total))
    shared = _shared(warm) if asking or node.gpus else min(memory, 4 * (plan.feasible[0].model_params or 0))
    warm.clear()
    free_memory()  # this process may be a driver, which holds it as long as the sweep runs
    return _Found(tuple(found), shapes, memory, pack, shared, unknown)


def _tell_nobody(method: str, number: int, count: int, step: str) -> None:
    """Do nothing: the `Tell` of an estimate that nobody follows."""


def _finished_here(plan: Plan) -> list[dict[str, Any]]:
    """Finished trials of the results folder that this machine trained alone, with their times."""
    resources = plan.spec.resources
    if not plan.spec.folder.is_dir() or resources.workers > 1 or plan.spec.train.select == "best":
        return []  # a probe takes workers to scale fully, and looks at validation are apart from it
    rows = Store((plan.spec.folder,)).table("trials").to_pylist()
    timed = ("samples", "epochs", "seconds_train", "seconds_eval", "peak_memory_bytes")
    return [
        row
        for row in rows
        if (row["status"], row["host"]) == ("finished", socket.gethostname()) and all(row[name] for name in timed)
    ]


def _known(plan: Plan, done: Iterable[Mapping[str, Any]], method: str, pack: int = 1) -> _Probe | None:
    """What finished trials of a method's largest cell measured, in packs of `pack`; None if there are none."""
    of_cell: dict[str, list[Mapping[str, Any]]] = {}
    for row in done:
        if (row["packed"] or 1) == pack:
            of_cell.setdefault(row["cell_id"], []).append(row)
    cell = _largest(c for c in plan.feasible if c.method == method and c.cell_id in of_cell).get(method)
    if cell is None:
        return None
    rows, (_, val, test) = of_cell[cell.cell_id], split_sizes(cell)
    evaluated = sum(row["epochs"] * val + (test if row["stage"] == "CONFIRM" else 0) for row in rows)
    return _Probe(
        train=sum(row["seconds_train"] for row in rows) / sum(row["samples"] for row in rows),
        evaluate=sum(row["seconds_eval"] for row in rows) / evaluated,
        memory=max(row["peak_memory_bytes"] for row in rows),
    )


def _tried(probe: Callable[[], _Probe], warm: dict[str, Any]) -> _Probe | str:
    """What a probe finds, or why it failed: that is one method's trouble, and not the sweep's."""
    from sweeps.backends.memory import free_memory

    try:
        return probe()
    except Exception as error:  # noqa: BLE001  # whatever a method raises
        why = reason(error)
        if not isinstance(error, TrialError | TrainablesError):
            warm.clear()  # as in a lane: nothing that it touched is trusted
    free_memory()  # out of the handler: the exception's frames hold tensors
    return why


def _largest(cells: Iterable[Cell]) -> dict[str, Cell]:
    """The cell with the most parameters of every method."""
    found: dict[str, Cell] = {}
    for cell in cells:
        known = found.setdefault(cell.method, cell)
        if (cell.count or 0) > (known.count or 0):
            found[cell.method] = cell
    return found


def _measured(peak: int) -> Measured | None:
    """With the memory of the GPUs that this process sees; None without one."""
    import torch

    return Measured(peak, smallest_gpu()) if torch.cuda.is_available() else None


def _pack(asked: ResourceSection, measured: Measured | None, gpu: float) -> int:
    """Most trials of a pack where a worker has so much of a GPU."""
    alone = asked.workers > 1 or asked.isolated
    return 1 if alone else pack_size(asked.pack, measured if gpu else None, min(1.0, gpu))


def probe_config(cell: Cell, plan: Plan) -> TrialConfig:
    """A trial of a cell cut to two epochs of a few batches: what a probe trains."""
    pool, _, _ = split_sizes(cell)
    settings = with_largest_batch(plan.spec)
    batch = settings.global_batch_size
    share: str | float = cell.train_size
    if not isinstance(share, str):
        share = min(share, PROBE_BATCHES * batch / pool * share)
    # of few batches a look at validation would be most: `_Probe.trial` adds what a trial has of them
    short = {"epochs": 2, "min_batches_per_epoch": 0, "select": "last", "select_every": None}
    train = settings.model_copy(update=short)
    stage = "CONFIRM" if plan.spec.protocol == "paper" else "TUNE"
    trial = _few_rows(cell).trial(stage, cell.lr_centre, (0, 0, 0), train)
    return trial.model_copy(update={"train_size": share, "train": train})


def _few_rows(cell: Cell) -> Cell:
    few = {name: min(n or PROBE_ROWS, PROBE_ROWS) for name, n in cell.evaluate if name.endswith("_rows")}
    return replace(cell, evaluate=cell.evaluate.model_copy(update=few))


def probe_gpu(plan: Plan) -> Measured:
    """Train a few batches of every method's largest cell on this process's GPU, one after another.

    Raises:
        TrainablesError, OutOfMemoryError: as a trial would.
    """
    warm: dict[str, Any] = {}
    peak = max(_Probe.of(cell, plan, warm).memory for cell in _largest(plan.feasible).values())
    return _measured(peak) or Measured(peak, 0)


@dataclass(frozen=True)
class _Probe:
    """Seconds per training image and per evaluated image of one method."""

    train: float
    evaluate: float
    memory: int

    @classmethod
    def of(cls, cell: Cell, plan: Plan, warm: dict[str, Any], tell: Callable[[str], None] = lambda _: None) -> _Probe:
        from trainables.training.worker import run_trial

        config = probe_config(cell, plan)
        with tempfile.TemporaryDirectory() as folder:
            reports = list(run_trial(config, warm=warm, directory=Path(folder), tell=tell))
        return cls._from(reports, cell)

    @classmethod
    def packed(cls, cell: Cell, plan: Plan, warm: dict[str, Any], count: int) -> _Probe:
        """Of one trial in a pack of `count`."""
        from trainables.training.packed import run_pack

        config = probe_config(cell, plan)
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / str(k) for k in range(count)]
            told = list(run_pack([config] * count, warm=warm, directories=places, keep=[False] * count))
        first = [reports[0] for reports in told]
        return cls._from([report for report in first if isinstance(report, dict)], cell)

    @classmethod
    def _from(cls, reports: Sequence[dict[str, Any]], cell: Cell) -> _Probe:
        last, (_, evaluated, _) = reports[-1], split_sizes(_few_rows(cell))
        images, seconds_eval = last["samples"] / len(reports), last["seconds_eval"]
        if cell.protocol == "paper":  # on validation it has nothing, and is probed on the test split
            evaluated = last["result"].predicted.n_examples
            seconds_eval = last["result"].measured.seconds_eval - sum(report["seconds_eval"] for report in reports)
        # the first epoch pays for what later ones find cached; a search on rows held out costs more, and ends with it
        whole = cell.base in METHODS and METHODS[cell.base].holds_out
        seconds = fmean(report["seconds"] for report in (reports if whole else reports[-1:]))
        return cls(
            train=seconds / images if images else 0.0,
            evaluate=seconds_eval / evaluated if evaluated else 0.0,
            memory=int(last["peak_memory_bytes"] or 0),
        )

    def trial(self, cell: Cell, stage: str, settings: TrainSettings, workers: int = 1) -> float:
        """Seconds of one trial of a cell; at least, where several workers share it: they are taken to scale fully."""
        train, val, test = split_sizes(cell)
        mine = cell.settings(settings)
        train = samples_per_epoch(train, mine.global_batch_size, mine.min_batches_per_epoch)
        steps = ceil(train / mine.global_batch_size)
        searched = [float(v) for d in cell.dimensions if d.name == "epochs" for v in d.ends] or [mine.epochs]
        # CONFIRM may get the most of them, and an allowance in samples is of whole trials
        whole = stage == "CONFIRM" or cell.allowance_samples is not None
        epochs = 1 if cell.lr_centre is None else max(searched) if whole else fmean(searched)
        tested = test if stage == "CONFIRM" else 0
        one = epochs * (train * self.train + val * self.evaluate) + tested * self.evaluate
        if mine.select == "best" and cell.lr_centre is not None:
            # a look is a forward pass, and training has one backward besides, which takes as long at least
            one += ceil(epochs * steps / (mine.select_every or steps)) * val * self.train / 2
        return TRIAL_OVERHEAD + one / workers
