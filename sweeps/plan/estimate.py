"""Estimates time, memory, disk and cost of a sweep from a short probe of every method on this machine, without Ray.

If the results folder has finished trials of a method from this machine, their times are used instead of a probe. A
probe trains a few batches of the method's largest cell, with the same code as a worker, on one core. It does not see
other load on the machine, cores that share memory bandwidth, or trials that share a GPU's processors.
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
from sweeps.backends.resources import LaneShape, Node, accelerators, local_node, plan_lanes
from sweeps.errors import reason
from sweeps.packing.choosing import unpackable
from sweeps.packing.sizes import Measured, least_share, pack_size, smallest_gpu, worker_share
from sweeps.plan.disk_size import keep_bytes
from sweeps.plan.plan import Plan
from sweeps.plan.split_sizes import split_sizes
from sweeps.records.replay import stored_state
from sweeps.spec.batch_sizes import with_largest_batch
from sweeps.spec.cell import Cell
from sweeps.spec.resources import LimitsSection
from trainables.config import TrainSettings, TrialConfig
from trainables.data.images.batches import samples_per_epoch
from trainables.errors import TrainablesError, TrialError

START_SECONDS = 15.0
"""Seconds that Ray and the first lane need, from the command to the first training step."""
TRIAL_OVERHEAD = 0.15
"""Seconds of a trial that are neither training nor evaluation, if its worker has the model in its cache."""
PROBE_BATCHES = 3
PROBE_ROWS = 64
"""The number of texts of each task that a probe evaluates: all of them would take longer than its training."""
_ROW_BYTES = 12_000
"""Bytes of a trial in the journal and in the tables, with its predictions."""


@dataclass(frozen=True)
class MethodEstimate:
    """The part of one method.

    Attributes:
        method: the method.
        trials: number of trials still to run.
        seconds_per_trial: mean worker-seconds of one of them.
        seconds_total: worker-seconds of all of them.
    """

    method: str
    trials: int
    seconds_per_trial: float
    seconds_total: float


@dataclass(frozen=True)
class Estimate:
    """The estimated time, memory, disk and cost of the trials that are left of a sweep.

    Attributes:
        methods: the part of each method.
        concurrent: number of trials at a time.
        trials_left: number of trials still to run.
        seconds: wall time in seconds, with Ray's start.
        accelerator_hours: hours of the GPUs that trials hold, or of workers if they take no GPU.
        memory_bytes: the largest peak memory of a probed trial; on the CPU, of the whole process.
        table_bytes: bytes of journal and tables.
        kept_bytes: bytes of the adapters that `[keep]` keeps.
        probe_seconds: seconds that the probes took.
        cost: `accelerator_hours` at `limits.price_per_hour`; None if that is not set.
        over: texts about limits that the sweep would reach.
        pack: the largest number of trials that a worker trains at once. The seconds of packed methods are for their
            share of a worker.
        shared_bytes: the part of `memory_bytes` that the workers of a machine share, the base model; 0 on GPUs.
        unknown: why the probe failed, by method. For these methods only trials and bytes on disk are counted.
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
        """Return the bytes of memory that all trials on the CPUs of this machine take together at their peak."""
        return self.shared_bytes + self.concurrent * max(0, self.memory_bytes - self.shared_bytes)

    @property
    def disk_bytes(self) -> int:
        """Return the bytes that stay on disk."""
        return self.table_bytes + self.kept_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return {**asdict(self), "disk_bytes": self.disk_bytes}


@dataclass(frozen=True)
class _Left:
    """The number of trials that a cell still has to run."""

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
    """Estimate what the remaining trials take, from finished trials of their method or from a probe of it.

    Args:
        plan: the plan.
        retry_failed: whether failed trials are run again.
        used_hours: accelerator-hours of earlier runs, which count against the limits of the whole sweep.
        tell: called before each step of a probe.
    """
    started = time.perf_counter()
    node = local_node()
    shapes = plan_lanes(plan.spec.resources, [node], least_share(plan.spec.resources))
    remaining = [cell for cell in _left(plan, retry_failed) if cell.trials]
    if not remaining:
        return Estimate((), sum(lane.trials for lane in shapes), 0, 0.0, 0.0, 0, 0, 0, 0.0)
    probed = _probe_in_process(plan, remaining, node, tell) if node.gpus else _probe(plan, remaining, node, tell)
    concurrent = sum(lane.trials for lane in probed.shapes)
    trials = sum(c.trials for c in remaining)
    busy = sum(m.seconds_total for m in probed.methods)
    limits = plan.spec.limits
    hours = busy / 3600 * accelerators(probed.shapes)
    cost = None if limits.price_per_hour is None else hours * limits.price_per_hour
    seconds = START_SECONDS + busy / min(concurrent, trials)
    return Estimate(
        methods=probed.methods,
        concurrent=concurrent,
        trials_left=trials,
        seconds=seconds,
        accelerator_hours=hours,
        memory_bytes=probed.memory,
        table_bytes=trials * _ROW_BYTES,
        kept_bytes=keep_bytes(plan, [c.cell for c in remaining]),
        probe_seconds=time.perf_counter() - started,
        cost=cost,
        over=tuple(_over(limits, seconds / 3600, hours, used_hours)),
        pack=probed.pack,
        shared_bytes=probed.shared,
        unknown=probed.unknown,
    )


def _over(limits: LimitsSection, hours: float, accelerator_hours: float, used_hours: float) -> Iterator[str]:
    """Yield texts about the limits that the sweep would reach."""
    price = limits.price_per_hour or 0.0
    spent = {"max_accelerator_hours": (accelerator_hours, used_hours)}
    spent |= {"max_cost": (accelerator_hours * price, used_hours * price)}
    for name, (more, used) in ({"max_hours": (hours, 0.0)} | spent).items():  # max_hours is of one run
        most = getattr(limits, name)
        if most is not None and more + used > most:
            after = f" after {used:.3g}" if used > 0 else ""
            yield f"limits.{name} = {most:g}, and about {more:.3g} are left to run{after}"


def _left(plan: Plan, retry_failed: bool) -> list[_Left]:
    """Return the numbers of trials that the cells still have to run, by the results folder."""
    state = stored_state(plan.feasible, plan.spec, retry_failed=retry_failed)
    return [_Left(cell_state.cell, *(cell_state.left() or (0, 0))) for cell_state in state.cells.values()]


def _shared(warm: dict[str, Any]) -> int:
    """Return the bytes of the cached models that workers of a machine share."""
    from trainables.models.shared import shared_bytes

    return sum(shared_bytes(loaded.module) for loaded in warm.get("models", {}).values())


@dataclass(frozen=True)
class _Probed:
    """The results of the probes: the estimate of each method, the lanes that fit, and fields of an `Estimate`."""

    methods: tuple[MethodEstimate, ...]
    shapes: list[LaneShape]
    memory: int
    pack: int
    shared: int
    unknown: dict[str, str]


def _probe_in_process(plan: Plan, remaining: Sequence[_Left], node: Node, tell: Tell | None) -> _Probed:
    """Run `_probe` in another process. Its memory on a GPU ends with it, so the GPU is free for trials."""
    spawn = multiprocessing.get_context("spawn")
    initializer = _hide_gpus if plan.spec.resources.gpus_per_worker == 0 else None
    # one task for each child: otherwise it would wait for more tasks if the driver is killed
    with ProcessPoolExecutor(1, spawn, initializer, max_tasks_per_child=1) as process:
        try:
            small_plan = Plan(plan.spec, plan.cells)  # without the base model's modules, which need not be sent
            return process.submit(_probe, small_plan, remaining, node, tell).result()
        except BrokenProcessPool:
            why = "the probe's process was ended, perhaps because memory ran out"
            shapes = plan_lanes(plan.spec.resources, [node], least_share(plan.spec.resources))
            return _Probed((), shapes, 0, 1, 0, dict.fromkeys((c.cell.method for c in remaining), why))


def _hide_gpus() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _probe(plan: Plan, remaining: Sequence[_Left], node: Node, tell: Tell | None) -> _Probed:
    """Probe every method, or take the times of its finished trials, and return the results."""
    import torch

    from sweeps.backends.memory import free_memory

    warm: dict[str, Any] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(plan.spec.resources.cpus_per_worker)))
    largest = _largest(c.cell for c in remaining)
    done = _finished_here(plan)
    try:
        probed: dict[str, _Probe | str] = {}
        for method in largest:
            if (earlier := _from_finished(plan, done, method)) is not None:
                probed[method] = earlier
        to_probe = {method: cell for method, cell in largest.items() if method not in probed}
        for number, (method, cell) in enumerate(to_probe.items(), 1):
            tell_step = functools.partial(tell or _tell_nobody, method, number, len(to_probe))
            run_probe = functools.partial(_Probe.of, cell, plan, warm, tell_step)
            probed[method] = _run_or_reason(run_probe, warm)
        costs = {method: cost for method, cost in probed.items() if isinstance(cost, _Probe)}
        unknown = {m: why for m, why in probed.items() if isinstance(why, str)}
        peak = max((cost.memory for cost in costs.values()), default=0)
        measured = None if unknown else _measured(peak)  # the probe of a run would fail like these
        resources = plan.spec.resources
        share = 1.0 if measured is None else worker_share(resources, measured, node.cpus / node.gpus)
        shapes = plan_lanes(resources, [node], share)
        pack = pack_size(resources, measured, shapes[0].per_worker.get("GPU", 0.0))
        for method in costs:
            cell = largest[method]
            train = plan.spec.train
            why_alone = unpackable(cell.base, cell.model, train.gradient_checkpointing, train.base_weights)
            if pack > 1 and why_alone is None:
                together = _from_finished(plan, done, method, pack) or _run_or_reason(
                    functools.partial(_Probe.packed, cell, plan, warm, pack), warm
                )
                if isinstance(together, _Probe):  # otherwise a worker runs them one by one
                    costs[method] = together
    finally:
        torch.set_num_threads(threads)
    memory = max((cost.memory for cost in costs.values()), default=0)
    estimates = []
    for method, cost in costs.items():
        of_method = [c for c in remaining if c.cell.method == method]
        total = sum(
            trials * cost.trial(c.cell, stage, plan.spec.train, plan.spec.resources.workers)
            for c in of_method
            for stage, trials in (("TUNE", c.tune), ("CONFIRM", c.confirm))
        )
        trials = sum(c.trials for c in of_method)
        estimates.append(MethodEstimate(method, trials, total / trials, total))
    shared = _shared(warm) if to_probe or node.gpus else min(memory, 4 * (plan.feasible[0].model_params or 0))
    warm.clear()
    free_memory()  # this process may be a driver, which would keep it as long as the sweep runs
    return _Probed(tuple(estimates), shapes, memory, pack, shared, unknown)


def _tell_nobody(method: str, number: int, count: int, step: str) -> None:
    """Do nothing: the `Tell` of an estimate without a display."""


def _finished_here(plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of finished trials of the results folder that this machine trained, with their times."""
    resources = plan.spec.resources
    if not plan.spec.folder.is_dir() or resources.workers > 1 or plan.spec.train.select == "best":
        return []  # `_Probe.trial` divides by the workers and adds evaluations, which these times contain already
    rows = Store((plan.spec.folder,)).table("trials").to_pylist()
    timed = ("samples", "epochs", "seconds_train", "seconds_eval", "peak_memory_bytes")
    return [
        row
        for row in rows
        if (row["status"], row["host"]) == ("finished", socket.gethostname()) and all(row[name] for name in timed)
    ]


def _from_finished(plan: Plan, done: Iterable[Mapping[str, Any]], method: str, pack: int = 1) -> _Probe | None:
    """Return the times of finished trials of a method's largest cell in packs of `pack`; None if there are none."""
    of_cell: dict[str, list[Mapping[str, Any]]] = {}
    for row in done:
        if (row["packed"] or 1) == pack:
            of_cell.setdefault(row["cell_id"], []).append(row)
    cell = _largest(c for c in plan.feasible if c.method == method and c.cell_id in of_cell).get(method)
    if cell is None:
        return None
    rows = of_cell[cell.cell_id]
    _, val, test = split_sizes(cell)
    evaluated = sum(row["epochs"] * val + (test if row["stage"] == "CONFIRM" else 0) for row in rows)
    return _Probe(
        train=sum(row["seconds_train"] for row in rows) / sum(row["samples"] for row in rows),
        evaluate=sum(row["seconds_eval"] for row in rows) / evaluated,
        memory=max(row["peak_memory_bytes"] for row in rows),
    )


def _run_or_reason(probe: Callable[[], _Probe], warm: dict[str, Any]) -> _Probe | str:
    """Run a probe and return its result, or the reason why it failed. Other methods are still probed."""
    from sweeps.backends.memory import free_memory

    try:
        return probe()
    except Exception as error:  # noqa: BLE001  # a method may raise any error
        why = reason(error)
        if not isinstance(error, TrialError | TrainablesError):
            warm.clear()  # as in a worker: the cache may be damaged
    free_memory()  # out of the handler: the exception's frames hold tensors
    return why


def _largest(cells: Iterable[Cell]) -> dict[str, Cell]:
    """Return the cell with the most parameters of each method, by method."""
    largest: dict[str, Cell] = {}
    for cell in cells:
        earlier = largest.setdefault(cell.method, cell)
        if (cell.count or 0) > (earlier.count or 0):
            largest[cell.method] = cell
    return largest


def _measured(peak: int) -> Measured | None:
    """Return a peak with the memory of the smallest GPU that this process sees; None if it sees none."""
    import torch

    return Measured(peak, smallest_gpu()) if torch.cuda.is_available() else None


def probe_config(cell: Cell, plan: Plan) -> TrialConfig:
    """Return the trial that a probe trains: a trial of the cell with two epochs of a few batches."""
    pool, _, _ = split_sizes(cell)
    settings = with_largest_batch(plan.spec)
    batch = settings.global_batch_size
    share: str | float = cell.train_size
    if not isinstance(share, str):
        share = min(share, PROBE_BATCHES * batch / pool * share)
    # with few batches, evaluations would take most of the time: `_Probe.trial` adds those of a whole trial
    short = {"epochs": 2, "min_batches_per_epoch": 0, "select": "last", "select_every": None}
    train = cell.settings(settings).model_copy(update=short)
    stage = "CONFIRM" if plan.spec.protocol == "paper" else "TUNE"
    trial = _few_rows(cell).trial(stage, cell.lr_centre, (0, 0, 0), train)
    return trial.model_copy(update={"train_size": share, "train": train})


def _few_rows(cell: Cell) -> Cell:
    """Return the cell with at most `PROBE_ROWS` evaluated texts of each task."""
    few = {name: min(n or PROBE_ROWS, PROBE_ROWS) for name, n in cell.evaluate if name.endswith("_rows")}
    return replace(cell, evaluate=cell.evaluate.model_copy(update=few))


def probe_gpu(plan: Plan) -> Measured:
    """Train a few batches of every method's largest cell on this process's GPU, and return the largest peak memory.

    Raises:
        TrainablesError, OutOfMemoryError: a probe failed as a trial would.
    """
    warm: dict[str, Any] = {}
    peak = max(_Probe.of(cell, plan, warm).memory for cell in _largest(plan.feasible).values())
    return _measured(peak) or Measured(peak, 0)


@dataclass(frozen=True)
class _Probe:
    """The measured times and memory of one method.

    Attributes:
        train: seconds for each training example.
        evaluate: seconds for each evaluated example.
        memory: peak memory in bytes.
    """

    train: float
    evaluate: float
    memory: int

    @classmethod
    def of(cls, cell: Cell, plan: Plan, warm: dict[str, Any], tell: Callable[[str], None] = lambda _: None) -> _Probe:
        """Train a short trial of a cell, and return what it measured."""
        from trainables.training.worker import run_trial

        config = probe_config(cell, plan)
        with tempfile.TemporaryDirectory() as folder:
            reports = list(run_trial(config, warm=warm, directory=Path(folder), tell=tell))
        return cls._from(reports, cell)

    @classmethod
    def packed(cls, cell: Cell, plan: Plan, warm: dict[str, Any], count: int) -> _Probe:
        """Train a pack of `count` short trials of a cell, and return what was measured for one of them."""
        from trainables.packing.together import run_pack

        config = probe_config(cell, plan)
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / str(k) for k in range(count)]
            steps = list(run_pack([config] * count, warm=warm, directories=places, keep=[False] * count))
        first = [reports[0] for reports in steps]
        return cls._from([report for report in first if isinstance(report, dict)], cell)

    @classmethod
    def _from(cls, reports: Sequence[dict[str, Any]], cell: Cell) -> _Probe:
        """Return what the reports of a short trial measured."""
        last = reports[-1]
        _, evaluated, _ = split_sizes(_few_rows(cell))
        images = last["samples"] / len(reports)
        seconds_eval = last["seconds_eval"]
        if cell.protocol == "paper":  # it has no validation split, so its test split is evaluated
            evaluated = last["result"].predicted.n_examples
            seconds_eval = last["result"].measured.seconds_eval - sum(report["seconds_eval"] for report in reports)
        # the first epoch is slower, because nothing is cached. But a method that holds rows out searches in it only
        all_epochs = cell.base in METHODS and METHODS[cell.base].holds_out
        seconds = fmean(report["seconds"] for report in (reports if all_epochs else reports[-1:]))
        return cls(
            train=seconds / images if images else 0.0,
            evaluate=seconds_eval / evaluated if evaluated else 0.0,
            memory=int(last["peak_memory_bytes"] or 0),
        )

    def trial(self, cell: Cell, stage: str, settings: TrainSettings, workers: int = 1) -> float:
        """Return the seconds of one trial of a cell. If several workers share it, they are assumed to scale fully."""
        train, val, test = split_sizes(cell)
        own = cell.settings(settings)
        train = samples_per_epoch(train, own.global_batch_size, own.min_batches_per_epoch)
        steps = ceil(train / own.global_batch_size)
        searched = [float(v) for d in cell.dimensions if d.name == "epochs" for v in d.ends] or [own.epochs]
        # the choice may be the largest number of epochs, and an allowance in samples counts whole trials
        longest = stage == "CONFIRM" or cell.allowance_samples is not None
        epochs = 1 if cell.lr_centre is None else max(searched) if longest else fmean(searched)
        tested = test if stage == "CONFIRM" else 0
        one = epochs * (train * self.train + val * self.evaluate) + tested * self.evaluate
        if own.select == "best" and cell.lr_centre is not None:
            # an evaluation is a forward pass; training also has a backward pass, which takes at least as long
            one += ceil(epochs * steps / (own.select_every or steps)) * val * self.train / 2
        return TRIAL_OVERHEAD + one / workers
