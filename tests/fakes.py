"""A sweep that trains nothing: plans of fake cells, and a trial function with an analytic learning curve.

The faults of a trial are set by its cell's options: `delay` (seconds an epoch), `seconds` (what it says of them),
`fail_above`, `nan_above` (learning rates), `kill`, `hang`, `full_disk` ("once" or "always", in epoch 2: SIGKILL of the
worker, sleep without end, ENOSPC), `oom_above` (micro-batch size), `fail_rank` (the rank that raises in epoch 2), `log`
(a file that gets a line per epoch trained).
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed

from sweeps.spec.space import Dimension, Extra, Space
from trainables.config import TrialConfig
from trainables.errors import TrialError

TRIAL = "tests.fakes:analytic_trial"


def _noise(*parts: object) -> float:
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def analytic_score(config: dict[str, Any], epoch: int) -> float:
    """Validation score after an epoch: best at lr 1e-3, better with budget, epochs; a seeded jitter of 0.02."""
    lr, budget = config["lr"], config["budget"]
    gain = 0.03 * math.log10(budget) if budget else 0.1
    loss = 0.0 if lr is None else 0.1 * (math.log10(lr) + 3) ** 2
    jitter = 0.02 * _noise(config["method"], config["data_seed"], config["init_seed"], lr)
    return max(0.0, 0.6 + gain - loss + jitter - 0.2 / epoch)


def analytic_trial(
    trial: TrialConfig,
    *,
    warm: dict[str, Any],
    directory: Path,
    keep: bool = False,
    rank: int = 0,
    world: int = 1,
    micro_batch_size: int | None = None,
) -> Generator[dict[str, Any], None, None]:
    """The contract of `trainables.training.worker.run_trial`, without a model."""
    config = trial.model_dump(mode="json")
    options = dict(config["options"])
    micro = micro_batch_size or math.ceil(config["train"]["global_batch_size"] / world)
    lr, epochs = config["lr"], config["train"]["epochs"]
    warm["trials"] = warm.get("trials", 0) + 1
    state = directory / "state.json"
    history: list[dict[str, Any]] = json.loads(state.read_text()) if state.exists() else []
    yield from history
    for epoch in range(len(history) + 1, epochs + 1):
        time.sleep(options.get("delay", 0.0))
        if "log" in options:
            with Path(options["log"]).open("a") as file:
                file.write(f"{directory.name} {epoch} {os.getpid()}\n")
        if lr is not None and lr > options.get("fail_above", math.inf):
            raise ValueError(f"lr {lr} is too much\nfor this fake")
        if lr is not None and lr > options.get("nan_above", math.inf):
            raise TrialError(f"loss became nan at step {epoch}")
        if epoch == 2 and rank == world - 1 and _strikes(options.get("kill"), directory):
            os.kill(os.getpid(), signal.SIGKILL)
        if epoch == 2 and rank == world - 1 and _strikes(options.get("hang"), directory):
            while True:
                time.sleep(60)
        if epoch == 2 and _strikes(options.get("full_disk"), directory):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
        if epoch == 2 and rank == options.get("fail_rank"):
            raise ValueError(f"rank {rank} alone is at fault")
        if micro > options.get("oom_above", math.inf):
            raise torch.OutOfMemoryError(f"tried to allocate {micro} GiB")
        if world > 1:
            torch.distributed.all_reduce(torch.ones(1))
        report = {
            "epoch": epoch,
            "done": False,
            "train_loss": 1.0 / epoch,
            "val_score": analytic_score(config, epoch),
            "seconds": options.get("seconds", 0.5),
            "seconds_eval": 0.0,
            "samples": 100 * epoch,
            "samples_per_second": None,
            "peak_memory_bytes": 1000,
        }
        history.append(report)
        if epoch < epochs:
            if rank == 0:
                state.with_suffix(".tmp").write_text(json.dumps(history))
                state.with_suffix(".tmp").replace(state)
            yield report
    if keep:
        (directory / "adapter").mkdir(exist_ok=True)
        (directory / "adapter" / "adapter.json").write_text("{}")
    yield {**history[-1], "done": True, "result": _result(config, history)}


def _strikes(kind: str | None, directory: Path) -> bool:
    if kind is None:
        return False
    marker = directory / "killed"
    first = not marker.exists()
    marker.touch()
    return first or kind == "always"


def _result(config: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    confirm = config["stage"] == "CONFIRM"
    return {
        "val_score": history[-1]["val_score"],
        "test_score": history[-1]["val_score"] - 0.01 if confirm else None,
        "correct": base64.b64encode(bytes([0b10110000])).decode() if confirm else None,
        "n_examples": 4 if confirm else None,
        "examples_hash": "abcd" if confirm else None,
        "adapter_params": config["budget"] or 0,
        "head_params": 0,
        "stored_bytes": 0,
        "device": "cpu",
        "precision": "fp32",
        "backend": "default",
        "seconds_train": sum(r["seconds"] for r in history),
        "seconds_eval": 0.0,
        "seconds_setup": 0.0,
        "samples": history[-1]["samples"],
        "peak_memory_bytes": 1000,
        "versions": {"python": "3"},
    }


def mended_trial(trial: TrialConfig, **how: Any) -> Generator[dict[str, Any], None, None]:
    """`analytic_trial` once the cause of its failures is gone."""
    faults = ("fail_above", "nan_above", "kill", "hang", "full_disk", "oom_above")
    options = tuple(option for option in trial.options if option[0] not in faults)
    return analytic_trial(trial.model_copy(update={"options": options}), **how)


@dataclass(frozen=True)
class FakeTrain:
    epochs: int = 3
    global_batch_size: int = 32


@dataclass(frozen=True)
class FakeTrial:
    stage: str
    cell_id: str
    method: str
    budget: int | None
    lr: float | None
    data_seed: int
    init_seed: int
    basis_seed: int
    options: tuple[tuple[str, Any], ...]
    train: FakeTrain
    extra: Extra = ()

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        task = {"model": "fake-model", "adapt": "vision", "targets": (), "dataset": "fake-data", "train_size": 1.0}
        return task | {k: v for k, v in asdict(self).items() if k != "extra"}

    @property
    def trial_id(self) -> str:
        values = {**self.model_dump(), "options": self.extra or None}  # faults and logs don't make another trial
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FakeCell:
    method: str
    budget: int | None = 1000
    sweep: str = "fake"
    lr_low: float | None = 1e-5
    lr_high: float | None = 1e-1
    lr_centre: float | None = 1e-3
    tune_trials: int = 0
    confirm_seeds: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    feasible: bool = True
    reason: str | None = None
    model: str = "fake-model"
    adapt: str = "vision"
    dataset: str = "fake-data"
    train_size: str | float = 1.0
    allocation: str | None = "uniform"
    capacity: int | None = 4
    dimensions: tuple[Dimension, ...] = ()
    published: Extra = ()
    epochs: int | None = 3
    epoch_samples: int | None = None

    @property
    def reference(self) -> str | None:
        return None if self.budget is None else f"params-{self.budget}"

    @property
    def cell_id(self) -> str:
        return f"{self.method}-{self.budget}"

    @property
    def label(self) -> str:
        return f"{self.method} {self.budget}"

    @property
    def space(self) -> Space | None:
        if self.lr_low is None or self.lr_high is None:
            return None
        return Space(self.lr_low, self.lr_high, self.dimensions)

    def trial(
        self, stage: str, lr: float | None, seeds: tuple[int, int, int], train: Any, extra: Extra = ()
    ) -> FakeTrial:
        mine = {k: v for k, v in extra if k != "epochs"}
        options = (*self.options, *sorted(mine.items()))
        train = replace(train, epochs=dict(extra).get("epochs", train.epochs))
        return FakeTrial(stage, self.cell_id, self.method, self.budget, lr, *seeds, options, train, tuple(extra))

    def row(self) -> dict[str, Any]:
        names = "cell_id sweep model adapt dataset method label reference budget allocation capacity feasible reason"
        names += " lr_low lr_high lr_centre tune_trials confirm_seeds"
        return {**{name: getattr(self, name) for name in names.split()}, "train_size": str(self.train_size)}


@dataclass(frozen=True)
class FakeSamples:
    samples: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class FakeSearch:
    trials: int = 6
    sampler: str = "grid"
    rerun_rates: int = 1
    rerun_seeds: int = 1
    pruner: str = "none"
    seed: int = 0
    allowance: FakeSamples | None = None
    warm_start: tuple[str, ...] = ()
    widen: int = 0

    @property
    def reruns(self) -> int:
        return self.rerun_rates * self.rerun_seeds

    @property
    def rates(self) -> int:
        return self.trials - self.reruns


@dataclass(frozen=True)
class FakeConfirm:
    seeds: tuple[int, ...] = (0, 1)
    hold: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FakeResources:
    workers: int = 1
    concurrent: int | Literal["auto"] = "auto"
    cpus_per_worker: float = 1
    gpus_per_worker: float | Literal["auto"] = 0
    pack: int | Literal["auto"] = 1
    isolated: bool = False
    trial_timeout: float | None = None
    attempts: int = 3
    order: str = "methods"
    priority: tuple[str | float, ...] = ()


@dataclass(frozen=True)
class FakeLimits:
    max_hours: float | None = None
    max_accelerator_hours: float | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True)
class FakeKeep:
    adapters: str = "none"
    full: bool = False


@dataclass(frozen=True)
class FakeSpec:
    folder: Path
    name: str = "fake"
    search: FakeSearch = FakeSearch()
    confirm: FakeConfirm = FakeConfirm()
    train: FakeTrain = FakeTrain()
    resources: FakeResources = FakeResources()
    limits: FakeLimits = FakeLimits()
    keep: FakeKeep = FakeKeep()

    def identity(self) -> dict[str, Any]:
        search = {k: v for k, v in asdict(self.search).items() if k not in ("trials", "allowance", "widen")}
        search["warm_start"] = list(self.search.warm_start)  # as it comes back from JSON
        return {"name": self.name, "train": asdict(self.train), "search": search, "methods": {}}


@dataclass(frozen=True)
class FakePlan:
    spec: FakeSpec
    cells: tuple[FakeCell, ...]

    @property
    def feasible(self) -> tuple[FakeCell, ...]:
        return tuple(cell for cell in self.cells if cell.feasible)


def fake_plan(folder: Path, cells: tuple[FakeCell, ...] | None = None, **sections: Any) -> FakePlan:
    """Two methods at two budgets, a full fine-tuning cell and zero-shot, unless other cells are given."""
    spec = FakeSpec(folder, **sections)
    if cells is None:
        cells = (
            *(FakeCell(method, budget) for budget in (1000, 8000) for method in ("lora", "randlora")),
            FakeCell("full", None),
            FakeCell("zero-shot", None, lr_low=None, lr_high=None, lr_centre=None),
        )
    return FakePlan(spec, tuple(_counted(cell, spec) for cell in cells))


def _counted(cell: FakeCell, spec: FakeSpec) -> FakeCell:
    trains = cell.lr_centre is not None
    values = {name: getattr(cell, name) for name in FakeCell.__dataclass_fields__}
    counts = {
        "tune_trials": spec.search.trials if trains else 0,
        "confirm_seeds": len(spec.confirm.seeds) if trains else 1,
    }
    return FakeCell(**{**values, **counts, "sweep": spec.name})
