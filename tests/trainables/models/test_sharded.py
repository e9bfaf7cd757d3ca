"""Full fine-tuning of a language model split over two workers (FSDP2, gloo) against one worker that holds it whole."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file
from torch import nn

from randlora.model.sharded import whole
from tests.trainables.support import save_reports, saved_reports
from tests.trainables.tiny_language import save_model, write_rows
from trainables.config import TrialConfig
from trainables.models.loading import load_model
from trainables.models.sharded import gathered, shard
from trainables.training import adapting, worker
from trainables.training.optim import Group, make_adamw, state_tensors
from trainables.training.worker import run_trial


def config(tmp_path: Path, **train: Any) -> TrialConfig:
    return TrialConfig(
        stage="CONFIRM",
        cell_id="c",
        model=f"local:{save_model(tmp_path / 'llama', 'llama')}",
        adapt="all",
        targets=("q_proj",),
        dataset=f"json:{write_rows(tmp_path / 'rows', train=11, test=5)}",
        train_size=1.0,
        method="full",
        lr=1e-3,
        data_seed=0,
        init_seed=0,
        basis_seed=0,
        train={"global_batch_size": 5, "epochs": 3, "parallel": "fsdp", **train},
    )


def together(task: Callable[..., None], meet: str, *args: Any) -> None:
    """Runs `task(rank, world, *args)` in two processes that meet at a file and part together."""
    torch.multiprocessing.spawn(_process, args=(2, task, meet, args), nprocs=2)


def _process(rank: int, world: int, task: Callable[..., None], meet: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    task(rank, world, *args)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def work(rank: int, world: int, config: TrialConfig, folder: str, stop_after: int | None) -> None:
    directory = Path(folder) / "trial"
    warm: dict[str, Any] = {}
    trial = run_trial(config, warm=warm, directory=directory, keep=True, rank=rank, world=world)
    reports: list[Any] = []
    for report in trial:
        reports.append(report)
        if len(reports) == stop_after:
            break
    trial.close()
    if stop_after is None:
        save_reports(reports, Path(folder), rank)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_workers_with_half_the_weights_each_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    # batches of 5: shares of 3 and 2 in micro-batches of 2, so one worker has a pass less to make
    trial = config(tmp_path, micro_batch_size=2)
    alone = list(run_trial(trial, warm={}, directory=tmp_path / "alone", keep=True))
    for stop_after in (2, None):  # stopped after two epochs, and gone on from the checkpoint
        together(work, f"{tmp_path}/meet{stop_after}", trial, str(tmp_path), stop_after)
    both = [saved_reports(tmp_path, rank) for rank in (0, 1)]
    for reports in both:
        assert [r["epoch"] for r in reports] == [1, 2, 3]
        assert [r["train_loss"] for r in reports] == pytest.approx([r["train_loss"] for r in alone], rel=1e-4)
        result = reports[-1]["result"]
        assert result.measured.adapter_params == alone[-1]["result"].measured.adapter_params
        assert result.predicted.n_examples == 5
    assert both[0][-1]["result"].predicted.correct == both[1][-1]["result"].predicted.correct
    a, b = (load_file(str(tmp_path / d / "adapter" / "weights.safetensors")) for d in ("alone", "trial"))
    assert a.keys() == b.keys()
    assert all(a[k].shape == b[k].shape for k in a)
    # Adam divides by the gradient's own size, which turns rounding in near-zero gradients into visible steps
    assert all((a[k] - b[k]).abs().mean() < 2e-4 for k in a)


def gradients(rank: int, world: int, model: str) -> None:
    base = load_model(model).module.double()
    ids = torch.arange(24).reshape(4, 6)
    split = shard(base, torch.device("cpu"))
    split(input_ids=ids[rank::world]).logits.square().sum().backward()
    held = sum(p.to_local().numel() for p in split.parameters())  # type: ignore[attr-defined]
    assert held <= 0.6 * sum(p.numel() for p in base.parameters())
    base(input_ids=ids).logits.square().sum().backward()
    for (name, mine), theirs in zip(split.named_parameters(), base.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(whole(mine.grad), theirs.grad, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_gradients_are_the_sum_over_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model = f"local:{save_model(tmp_path / 'llama', 'llama')}"
    together(gradients, f"{tmp_path}/g", model)


def checkpoint(rank: int, _world: int, trial: TrialConfig, folder: str) -> None:
    split = shard(load_model(trial.model).module, torch.device("cpu"))
    adapting._put_aside = lambda *_: pytest.fail("a second copy of what nobody gets back")
    with adapting.adapted(split, trial) as trainables:
        optimizer = make_adamw([Group(trainables.parameters, 1e-3, 0.0)])
        split(input_ids=torch.arange(12).reshape(2, 6)).logits.square().sum().backward()
        optimizer.step()
        state = state_tensors(optimizer, trainables.parameters)
        kinds = Counter(name.partition(".")[0] for name in state)
        n = len(trainables.parameters)
        assert kinds == (Counter(p=n, m=n, v=n, t=n) if rank == 0 else Counter(t=n))
        wholes = {name: whole(p.detach()) for name, p in trainables.parameters.items()}
        if rank == 0:
            assert all(torch.equal(state[f"p.{name}"], p) for name, p in wholes.items())
            trainables.save(Path(folder))
            saved = load_file(f"{folder}/weights.safetensors")
            assert all(torch.equal(saved[name], p) for name, p in wholes.items())
        else:
            assert gathered(trainables.parameters) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_first_worker_alone_gets_them_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    together(checkpoint, f"{tmp_path}/g", config(tmp_path), str(tmp_path))


@pytest.fixture
def group_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("after", ["full", "lora"])
def test_an_earlier_trial_s_shards_are_gone(tmp_path: Path, group_of_one: None, after: str) -> None:
    trial, device, warm = config(tmp_path), torch.device("cpu"), dict[str, Any]()
    split = worker._base_model(trial, warm, device, 2)[1].module
    split(input_ids=torch.arange(6)[None]).logits.sum().backward()
    shard = weakref.ref(next(split.parameters()))
    gc.disable()
    try:
        del split
        assert shard() is not None  # held by a cycle, or there were nothing to do
        worker._base_model(trial.model_copy(update={"method": after}), warm, device, 2)
        assert shard() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("device", "left"), [("cuda", 0), ("cpu", 1)])
def test_other_trials_model_leaves_the_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, left: int
) -> None:
    warm: dict[str, Any] = {name: {"of": "lora"} for name in ("models", "marks", "features", "words", "pixels")}
    counts: list[int] = []

    def look(module: nn.Module, device: torch.device) -> nn.Module:
        counts.extend(len(warm[name]) for name in ("models", "marks", "features", "words", "pixels"))
        return module

    monkeypatch.setattr(worker, "shard", look)
    worker._base_model(config(tmp_path), warm, torch.device(device), 2)
    assert counts == [left] * 4 + [1]
