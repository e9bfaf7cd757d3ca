"""What a sweep will take, from a short probe of every method on this machine; no Ray is started.

The probe trains a few batches of each method's largest cell through the same code a lane runs, on one core. What it
can't see is other load on the machine, and cores that share memory bandwidth.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.store.store import open_store
from sweeps.cluster.hardware import in_seconds
from sweeps.cluster.resources import accelerators, plan_lanes
from sweeps.cluster.session import local_node
from sweeps.lanes.gpu_share import Measured
from sweeps.lanes.packs import pack_size, unpackable
from sweeps.plan.disk_size import keep_bytes
from sweeps.plan.plan import Plan
from sweeps.plan.split_sizes import split_sizes
from sweeps.search.seconds import spent
from sweeps.spec.cell import Cell
from sweeps.spec.resources import LimitsSection
from trainables.config import TrainSettings, TrialConfig

START_SECONDS = 15.0
"""Ray and the first lane, from the command to the first training step."""
TRIAL_OVERHEAD = 0.15
"""Seconds per trial that are neither training nor evaluation, lanes warm."""
PROBE_BATCHES = 3
_ROW_BYTES = 12_000
"""Journal, table rows and predictions of a trial."""


@dataclass(frozen=True)
class MethodEstimate:
    """One method's share: trials still to run, seconds of one of them, and of all.

    `tune_trials`: of an allowance in seconds, the TUNE trials that it holds by the probe, the mean over cells.
    """

    method: str
    trials: int
    seconds_per_trial: float
    seconds_total: float
    tune_trials: float | None = None


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
        allowance_seconds: `search.allowance.seconds`; how many trials that is, is then expected and not known.
        short: methods of whose trials that is too little for the ones that are run in any case, in words.
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
    allowance_seconds: float | None = None
    short: tuple[str, ...] = ()
    shared_bytes: int = 0

    @property
    def together_bytes(self) -> int:
        """Peak memory of all trials at a time on this machine, if it comes to all of them at once; on the CPU."""
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
    """What a cell still has to run. `spent`: device-seconds of stage TUNE; `chosen`: it has a learning rate."""

    cell: Cell
    tune: int
    confirm: int
    spent: float = 0.0
    chosen: bool = False

    @property
    def trials(self) -> int:
        return self.tune + self.confirm

    def at(self, seconds: float) -> _Left:
        """The same, where the allowance is in seconds and a TUNE trial takes so many of a device."""
        given = self.cell.allowance_seconds
        if given is None:
            return self
        fewest = self.cell.tune_trials
        more = math.ceil((given - self.spent) / seconds)
        tune = 0 if self.chosen and more <= 1 else max(self.tune, more)
        return replace(self, tune=tune, cell=replace(self.cell, tune_trials=max(fewest, math.ceil(given / seconds))))


def estimate_plan(plan: Plan) -> Estimate:
    """Probe every method that still has trials to run, and add up."""
    started = time.perf_counter()
    shapes = plan_lanes(plan.spec.resources, [local_node()])
    concurrent = sum(lane.trials for lane in shapes)
    left: Sequence[_Left] = [cell for cell in _left(plan) if cell.trials]
    if not left:
        return Estimate((), concurrent, 0, 0.0, 0.0, 0, 0, 0, 0.0)
    fewest = {c.cell.cell_id: c.cell.tune_trials for c in left}
    warm: dict[str, Any] = {}
    left, methods, memory, pack = _probe(plan, left, warm)
    trials = sum(m.trials for m in methods)
    if not trials:
        return Estimate((), concurrent, 0, 0.0, 0.0, 0, 0, 0, time.perf_counter() - started)
    busy = sum(m.seconds_total for m in methods)
    limits = plan.spec.limits
    hours = busy / 3600 * accelerators(shapes)
    cost = None if limits.price_per_hour is None else hours * limits.price_per_hour
    seconds = START_SECONDS + busy / min(concurrent, trials)
    return Estimate(
        methods=methods,
        concurrent=concurrent,
        trials_left=trials,
        seconds=seconds,
        accelerator_hours=hours,
        memory_bytes=memory,
        table_bytes=sum(c.trials for c in left) * _ROW_BYTES,
        kept_bytes=keep_bytes(plan, [c.cell for c in left]),
        probe_seconds=time.perf_counter() - started,
        cost=cost,
        over=tuple(_over(limits, seconds / 3600, hours, cost)),
        pack=pack,
        shared_bytes=_shared(warm),
        allowance_seconds=in_seconds(plan.spec.search),
        short=tuple(_short(left, methods, fewest)),
    )


def _short(left: Sequence[_Left], methods: Sequence[MethodEstimate], fewest: Mapping[str, int]) -> Iterator[str]:
    for method in methods:
        mine = [c.cell for c in left if c.cell.method == method.method and c.cell.allowance_seconds is not None]
        if any(cell.tune_trials <= fewest[cell.cell_id] for cell in mine):
            most = max(fewest[cell.cell_id] for cell in mine)
            yield (
                f"search.allowance.seconds = {mine[0].allowance_seconds:g} is too little for {method.method}: {most} "
                f"trial(s) of a cell, re-runs among them, are run in any case, {method.seconds_per_trial:.1f} s each"
            )


def _over(limits: LimitsSection, hours: float, accelerator_hours: float, cost: float | None) -> Iterator[str]:
    for name, value in (("max_hours", hours), ("max_accelerator_hours", accelerator_hours), ("max_cost", cost)):
        most = getattr(limits, name)
        if most is not None and value is not None and value > most:
            yield f"limits.{name} = {most:g}, and about {value:.3g} are left to run"


def _left(plan: Plan) -> list[_Left]:
    done: Counter[tuple[str, str]] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    chosen: set[str] = set()
    folder = plan.spec.folder
    if (folder / "journal.jsonl").exists():
        store = open_store(folder)
        for row in store.table("trials").to_pylist():
            done[row["cell_id"], row["stage"]] += 1
            seconds[row["cell_id"]] += (spent(row) or 0.0) * (row["stage"] == "TUNE")
        chosen = set(store.table("choices").column("cell_id").to_pylist())
    found = []
    for cell in plan.feasible:
        mine = cell.cell_id
        tune = max(0, cell.tune_trials - done[mine, "TUNE"])
        if cell.allowance_seconds is not None and seconds[mine] < cell.allowance_seconds:
            tune = max(1, tune)  # how many it is, the probe tells
        confirm = max(0, cell.confirm_seeds - done[mine, "CONFIRM"])
        found.append(_Left(cell, tune, confirm, seconds[mine], mine in chosen))
    return found


def _shared(warm: dict[str, Any]) -> int:
    from trainables.models.sharing.shared import shared_bytes

    return sum(shared_bytes(loaded.module) for loaded in warm.get("models", {}).values())


def _probe(
    plan: Plan, left: Sequence[_Left], warm: dict[str, Any]
) -> tuple[Sequence[_Left], tuple[MethodEstimate, ...], int, int]:
    """What is left by the times that it takes, what of each method, the largest peak memory, trials of a pack."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(plan.spec.resources.cpus_per_worker)))
    largest = {
        method: max((c.cell for c in left if c.cell.method == method), key=lambda cell: cell.count or 0)
        for method in dict.fromkeys(c.cell.method for c in left)
    }
    try:
        costs = {method: _Probe.of(cell, plan, warm) for method, cell in largest.items()}
        memory = max(cost.memory for cost in costs.values())
        pack = _pack(plan, memory)
        for method, cell in largest.items():
            if pack > 1 and unpackable(cell.base, cell.model) is None:
                costs[method] = _Probe.packed(cell, plan, warm, pack, costs[method])
    finally:
        torch.set_num_threads(threads)
    memory = max(cost.memory for cost in costs.values())
    found = []
    settings, workers = plan.spec.train, plan.spec.resources.workers
    left = [c.at(workers * costs[c.cell.method].trial(c.cell, "TUNE", settings)) for c in left]
    for method, cost in costs.items():
        mine_left = [c for c in left if c.cell.method == method]
        total = sum(
            c.tune * cost.trial(c.cell, "TUNE", settings) + c.confirm * cost.trial(c.cell, "CONFIRM", settings)
            for c in mine_left
        )
        trials = sum(c.trials for c in mine_left)
        if trials:
            timed = [c.cell.tune_trials for c in mine_left if c.cell.allowance_seconds is not None]
            mean = statistics.fmean(timed) if timed else None
            found.append(MethodEstimate(method, trials, total / trials, total, mean))
    return left, tuple(found), memory, pack


def _pack(plan: Plan, peak: int) -> int:
    """Trials of a pack at most on this machine, where trials take so much memory."""
    import torch

    resources = plan.spec.resources
    if resources.workers > 1 or resources.isolated:
        return 1
    gpu = torch.cuda.is_available() and resources.gpus_per_worker != 0
    return pack_size(resources.pack, Measured(peak, torch.cuda.mem_get_info()[1]) if gpu else None)


def probe_config(cell: Cell, plan: Plan) -> TrialConfig:
    """A trial of a cell cut to two epochs of a few batches: what a probe trains."""
    pool, _, _ = split_sizes(cell)
    batch = plan.spec.train.global_batch_size
    share: str | float = cell.train_size
    if not isinstance(share, str):
        share = min(share, PROBE_BATCHES * batch / pool * share)
    train = plan.spec.train.model_copy(update={"epochs": 2, "min_batches_per_epoch": 0})
    stage = "CONFIRM" if plan.spec.protocol == "paper" else "TUNE"
    trial = cell.trial(stage, cell.lr_centre, (0, 0, 0), train)
    return trial.model_copy(update={"train_size": share, "train": train})


def probe_gpu(plan: Any) -> Measured:
    """Train a few batches of every method's largest cell on this process's GPU, one after another.

    Raises:
        TrainablesError, OutOfMemoryError: as a trial would.
    """
    import torch

    from trainables.training.worker import run_trial

    peak = 0
    warm: dict[str, Any] = {}
    for method in dict.fromkeys(cell.method for cell in plan.feasible):
        cell = max((c for c in plan.feasible if c.method == method), key=lambda c: c.count or 0)
        with tempfile.TemporaryDirectory() as folder:
            config = probe_config(cell, plan)
            reports = list(run_trial(config, warm=warm, directory=Path(folder)))
        peak = max(peak, int(reports[-1]["peak_memory_bytes"] or 0))
    device = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    return Measured(peak, device)


@dataclass(frozen=True)
class _Probe:
    """Seconds per training image and per evaluated image of one method."""

    train: float
    evaluate: float
    memory: int

    @classmethod
    def of(cls, cell: Cell, plan: Plan, warm: dict[str, Any]) -> _Probe:
        from trainables.training.worker import run_trial

        _, val, _ = split_sizes(cell)
        config = probe_config(cell, plan)
        with tempfile.TemporaryDirectory() as folder:
            reports = list(run_trial(config, warm=warm, directory=Path(folder)))
        return cls._from(reports, val)

    @classmethod
    def packed(cls, cell: Cell, plan: Plan, warm: dict[str, Any], count: int, alone: _Probe) -> _Probe:
        """Of one trial in a pack of `count`; `alone` where these can't be packed."""
        from trainables.config import NotPackableError
        from trainables.training.packed import run_pack

        _, val, _ = split_sizes(cell)
        config = probe_config(cell, plan)
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder) / str(k) for k in range(count)]
            try:
                told = list(run_pack([config] * count, warm=warm, directories=places, keep=[False] * count))
            except NotPackableError:
                return alone
        first = [reports[0] for reports in told]
        return cls._from([report for report in first if isinstance(report, dict)], val)

    @classmethod
    def _from(cls, reports: Sequence[dict[str, Any]], val: int) -> _Probe:
        last = reports[-1]  # the first epoch pays for what later ones find cached
        images = last["samples"] / len(reports)
        return cls(
            train=last["seconds"] / images if images else 0.0,
            evaluate=last["seconds_eval"] / val if val else 0.0,
            memory=int(last["peak_memory_bytes"] or 0),
        )

    def trial(self, cell: Cell, stage: str, settings: TrainSettings) -> float:
        """Seconds of one trial of a cell."""
        train, val, test = split_sizes(cell)
        epochs = cell.settings(settings).epochs if cell.lr_centre is not None else 1
        tested = test if stage == "CONFIRM" else 0
        return TRIAL_OVERHEAD + epochs * (train * self.train + val * self.evaluate) + tested * self.evaluate
