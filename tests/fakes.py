"""A sweep that trains nothing: plans of fake cells, and a trial function with an analytic learning curve.

The faults of a trial are set by its cell's options: `delay` (seconds an epoch), `seconds` (what it says of them),
`fail_above`, `nan_above` (learning rates), `kill`, `hang`, `full_disk` ("once" or "always", in epoch 2: SIGKILL of the
worker, sleep without end, ENOSPC), `oom_above` (micro-batch size), `fail_rank` (the rank that raises in epoch 2), `log`
(a file that gets a line per epoch trained).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed

from analysis.store.rows import TrialRow
from sweeps.plan.plan import Plan
from sweeps.search.slots import Slot
from sweeps.spec.cell import Cell
from sweeps.spec.resources import LimitsSection, Order, ResourceSection
from sweeps.spec.search import Allowance, SearchSection
from sweeps.spec.sections import BudgetSection, ConfirmSection, DataSection, KeepSection, MethodSection, ModelSection
from sweeps.spec.solution import Solution
from sweeps.spec.space import Extra
from sweeps.spec.spec import SweepSpec
from trainables.config import TrainSettings, TrialConfig
from trainables.errors import TrialError
from trainables.training.measured import Measured, Predicted, Result

TRIAL = "tests.fakes:analytic_trial"
SLOWER = "SWEEPS_TEST_SLOWER"
"""A process with this variable takes so many times its `delay`."""
AHEAD = "SWEEPS_TEST_AHEAD"
"""The clock of a process with this variable is so many seconds ahead."""
if AHEAD in os.environ:
    _clock = time.time
    time.time = lambda: _clock() + float(os.environ[AHEAD])


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
        time.sleep(options.get("delay", 0.0) * float(os.environ.get(SLOWER, "1")))
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


def _result(config: dict[str, Any], history: list[dict[str, Any]]) -> Result:
    confirm = config["stage"] == "CONFIRM"
    last = history[-1]
    measured = Measured(
        val_score=last["val_score"],
        test_score=last["val_score"] - 0.01 if confirm else None,
        train_loss=last["train_loss"],
        epochs=last["epoch"],
        adapter_params=config["budget"] or 0,
        head_params=0,
        stored_bytes=0,
        device="cpu",
        precision="fp32",
        backend="default",
        seconds_train=sum(r["seconds"] for r in history),
        seconds_eval=0.0,
        seconds_setup=0.0,
        samples=last["samples"],
        peak_memory_bytes=1000,
        versions={"python": "3"},
    )
    right = Predicted(n_examples=4, correct=bytes([0b10110000]), examples_hash="abcd")
    return Result(measured, right if confirm else Predicted())


def fake_row(slot: Slot, status: str = "finished", **columns: Any) -> TrialRow:
    """The row of a slot that is over; `columns` are what is known of it beside."""
    data_seed, init_seed, basis_seed = slot.seeds
    return TrialRow(
        sweep="fake",
        trial_id=slot.trial_id,
        cell_id=slot.cell_id,
        stage=slot.stage,
        slot=slot.slot,
        lr=slot.lr,
        data_seed=data_seed,
        init_seed=init_seed,
        basis_seed=basis_seed,
        status=status,
        **columns,
    )


def mended_trial(trial: TrialConfig, **how: Any) -> Generator[dict[str, Any], None, None]:
    """`analytic_trial` once the cause of its failures is gone."""
    faults = ("fail_above", "nan_above", "kill", "hang", "full_disk", "oom_above")
    options = tuple(option for option in trial.options if option[0] not in faults)
    return analytic_trial(trial.model_copy(update={"options": options}), **how)


FAULTS = ("delay", "seconds", "log", "fail_above", "nan_above", "kill", "hang", "full_disk", "oom_above", "fail_rank")
FAULTS_OF_PACKS = ("refuse_pack", "pack_oom_above", "pack_kill")


class FakeTrial(TrialConfig):
    """A trial's configuration whose id its faults do not change, so that a sweep with them equals one without."""

    @property
    def trial_id(self) -> str:
        options = tuple(option for option in self.options if option[0] not in (*FAULTS, *FAULTS_OF_PACKS))
        return TrialConfig(**{**dict(self), "options": options}).trial_id


class FakeCell(Cell):
    """A cell of a method at a budget, all else given a value unless it is named."""

    def __init__(self, method: str, budget: int | None = 1000, **named: Any) -> None:
        usual: dict[str, Any] = {
            "cell_id": f"{method}-{budget}",
            "sweep": "fake",
            "model": "fake-model",
            "adapt": "vision",
            "targets": ("weight",),
            "dataset": "fake-data",
            "train_size": 1.0,
            "options": (),
            "reference": None if budget is None else f"params-{budget}",
            "solution": None if budget is None else Solution(method, "uniform", 4, {}, budget, budget, 0, None, None),
            "lr_low": 1e-5,
            "lr_high": 1e-1,
            "lr_centre": 1e-3,
            "tune_trials": 0,
            "confirm_seeds": 0,
            "base": method,
        }
        super().__init__(**{**usual, **named, "method": method})

    def trial(
        self, stage: str, lr: float | None, seeds: tuple[int, int, int], train: TrainSettings, extra: Extra = ()
    ) -> FakeTrial:
        return FakeTrial(**dict(super().trial(stage, lr, seeds, train, extra)))

    def trial_id_of(self, config: Mapping[str, Any]) -> str:
        return FakeTrial.model_validate(config).trial_id


class FakeTrain(TrainSettings):
    """`[train]` of three short epochs."""

    def __init__(self, epochs: int = 3, global_batch_size: int = 32) -> None:
        super().__init__(epochs=epochs, global_batch_size=global_batch_size)


class FakeSamples(Allowance):
    """`search.allowance` in samples."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples=samples)


class FakeSearch(SearchSection):
    """`[search]` of six trials, one of them a re-run, without a local fit."""

    trials: int = 6
    rerun_rates: int = 1
    rerun_seeds: int = 1
    refine: int | Literal["auto"] = 0


class FakeConfirm(ConfirmSection):
    """`[confirm]` of two seeds."""

    def __init__(self, seeds: tuple[int, ...] = (0, 1), hold: dict[str, int] | None = None) -> None:
        super().__init__(seeds=seeds, hold=hold or {})


class FakeResources(ResourceSection):
    """`[resources]` without a GPU, cells in the plan's order."""

    gpus_per_worker: float | Literal["auto"] = 0.0
    order: Order = "methods"


class FakeKeep(KeepSection):
    """`[keep]` of adapters."""

    def __init__(self, adapters: Literal["none", "best", "confirm", "all"] = "none") -> None:
        super().__init__(adapters=adapters)


FakeLimits, FakePlan = LimitsSection, Plan


def fake_spec(folder: Path, **sections: Any) -> SweepSpec:
    """A sweep file of no model and no data, with these sections."""
    usual = {
        "name": "fake",
        "model": ModelSection(id="fake-model", adapt="vision"),
        "data": DataSection(datasets=("fake-data",)),
        "budgets": BudgetSection(params=(1000,)),
        "methods": {"lora": MethodSection()},
        "search": FakeSearch(),
        "confirm": FakeConfirm(),
        "train": FakeTrain(),
        "resources": FakeResources(),
    }
    return SweepSpec.model_validate({**usual, **sections, "output": folder})


def fake_plan(folder: Path, cells: tuple[FakeCell, ...] | None = None, **sections: Any) -> Plan:
    """Two methods at two budgets, a full fine-tuning cell and zero-shot, unless other cells are given."""
    spec = fake_spec(folder, **sections)
    if cells is None:
        cells = (
            *(FakeCell(method, budget) for budget in (1000, 8000) for method in ("lora", "randlora")),
            FakeCell("full", None),
            FakeCell("zero-shot", None, lr_low=None, lr_high=None, lr_centre=None),
        )
    return Plan(spec, tuple(_counted(cell, spec) for cell in cells))


def _counted(cell: FakeCell, spec: SweepSpec) -> Cell:
    trains, allowance = cell.lr_centre is not None, spec.search.allowance
    epochs = spec.train.epochs
    trials = spec.search.trials
    if allowance is not None and allowance.samples is not None and cell.epoch_samples is not None:
        trials = allowance.samples // (epochs * cell.epoch_samples)
    return replace(
        cell,
        epochs=epochs if trains else None,
        tune_trials=trials if trains else 0,
        confirm_seeds=len(spec.confirm.seeds) if trains and not spec.confirm.seeds_are_fixed else 1,
        sweep=spec.name,
    )
