"""Trials on a device: as on the CPU, resumed, packed, side by side on one, out of memory, and on two."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from sweeps.packing.sizes import gpu_share
from sweeps.plan.estimate import probe_gpu
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.sweeps.lanes.support import outcome_in_a_lane, refuse_more_than, tiny_trial
from tests.trainables.support import one_tower_trial, outcome, run, work
from tests.trainables.tiny_images import save_dinov2, write_colours
from tests.trainables.training.support import check_weights, together
from trainables.config import TrialConfig
from trainables.training.worker import run_trial

pytestmark = pytest.mark.gpu
METHODS = ("randlora", "lora", "vera", "adalora", "full", "linear-probe")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small DINOv2, and images of coloured noise."""
    folder = tmp_path_factory.mktemp("gpu")
    return save_dinov2(folder / "dino"), write_colours(folder / "colours")


def trial(places: tuple[Path, Path], method: str = "lora", epochs: int = 2, **given: Any) -> TrialConfig:
    train = {"epochs": epochs, "global_batch_size": 16, "precision": "fp32"}
    return one_tower_trial(method, model=places[0], dataset=f"parquet:{places[1]}", train=train, image_size=32, **given)


def check_close(found: list[Any], wanted: list[Any], rel: float = 1e-3, scores: float = 0.1) -> None:
    """Reports of two runs: losses to `rel`, scores to `scores` of the rows (a device sums in another order)."""
    for (_, loss, score, samples), (_, want, want_score, want_samples) in zip(found[:-3], wanted[:-3], strict=True):
        assert loss == pytest.approx(want, rel=rel)
        assert score == pytest.approx(want_score, abs=scores)
        assert samples == want_samples
    assert found[-3] == pytest.approx(wanted[-3], abs=scores)


@pytest.mark.parametrize("method", METHODS)
def test_as_on_the_cpu(
    device: torch.device, on_cpu: pytest.MonkeyPatch, places: tuple[Path, Path], method: str, tmp_path: Path
) -> None:
    wanted = outcome(run(trial(places, method), tmp_path / "cpu"))
    on_cpu.undo()
    reports = run(trial(places, method), tmp_path / "device")
    where = reports[-1]["result"].measured.device
    assert where == (torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
    check_close(outcome(reports), wanted, rel=1e-2)


def test_precisions(device: torch.device, places: tuple[Path, Path], tmp_path: Path) -> None:
    """bf16, under autocast and in the base weights, comes near float32."""
    exact = run(trial(places, "randlora"), tmp_path / "exact")[-1]["train_loss"]
    for weights in ("fp32", "bf16"):
        config = trial(places, "randlora")
        low = config.model_copy(
            update={"train": config.train.model_copy(update={"precision": "bf16", "base_weights": weights})}
        )
        last = run(low, tmp_path / weights)[-1]
        assert last["result"].measured.precision == "bf16"
        assert last["train_loss"] == pytest.approx(exact, rel=0.05) and last["train_loss"] != exact


@pytest.mark.parametrize("held", ["nf4", "int8"])
def test_packed_base_weights(device: torch.device, places: tuple[Path, Path], held: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = trial(places, "randlora")
    packed = config.model_copy(update={"train": config.train.model_copy(update={"base_weights": held})})
    exact = run(config, tmp_path / "exact")[-1]["train_loss"]
    assert run(packed, tmp_path / held)[-1]["train_loss"] == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("method", ["randlora", "adalora"])
def test_it_goes_on_where_it_was(device: torch.device, places: tuple[Path, Path], method: str, tmp_path: Path) -> None:
    config = trial(places, method, epochs=3)
    wanted = outcome(run(config, tmp_path / "whole"))
    broken = run_trial(config, warm={}, directory=tmp_path / "broken")
    seen = [next(broken)]
    broken.close()
    assert list((tmp_path / "broken").glob("epoch-*"))
    again = run(config, tmp_path / "broken")
    assert again[:1] == seen  # with its times: it was not trained again
    check_close(outcome(again), wanted, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "randlora", "nola"])
def test_a_pack_as_separate_trials(
    device: torch.device, places: tuple[Path, Path], method: str, tmp_path: Path
) -> None:
    trials = [trial(places, method, lr=lr, init_seed=seed) for lr, seed in ((2e-3, 2), (5e-3, 3), (1e-2, 4))]
    *_, last = together(trials, tmp_path / "pack", keep=True)
    for place, config in enumerate(trials):
        own = run(config, tmp_path / str(place), keep=True)[-1]
        assert last[place]["train_loss"] == pytest.approx(own["train_loss"], rel=1e-3)
        check_weights(tmp_path / "pack", place, tmp_path / str(place), atol=1e-3)


def beside(rank: int, config: TrialConfig, folder: str) -> None:
    """One of the processes that share a device."""
    reports = run(config, Path(folder) / f"beside{rank}")
    (Path(folder) / f"beside{rank}.json").write_text(json.dumps(outcome(reports)), encoding="utf-8")


@pytest.mark.filterwarnings("default")
def test_two_share_a_device(device: torch.device, places: tuple[Path, Path], tmp_path: Path) -> None:
    tree = {
        "name": "shared",
        "model": {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["attn.in_proj_weight"]},
        "data": {"datasets": ["embedded:fashion-mnist-turned"], "train_size": ["1-shot"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}},
        "train": {"global_batch_size": 16},
    }
    measured = probe_gpu(Plan.from_spec(SweepSpec.parse(tree)))
    assert (measured.device > measured.peak > 0) is (device.type == "cuda")
    if device.type == "cuda":
        assert gpu_share(measured, 8, 1) <= 0.5
    config = trial(places)
    torch.multiprocessing.spawn(beside, args=(config, str(tmp_path)), nprocs=2)
    wanted = outcome(run(config, tmp_path / "alone"))
    for rank in range(2):
        check_close(json.loads((tmp_path / f"beside{rank}.json").read_text()), wanted, rel=1e-4)


@pytest.mark.parametrize(("fitting", "status"), [(10, "finished"), (0, "failed")])
def test_without_memory_it_halves_or_becomes_a_row(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fitting: int, status: str
) -> None:
    """The allocator itself refuses: a pebibyte is on no device."""
    ask = functools.partial(torch.empty, 2**50, dtype=torch.uint8, device=device)
    refuse_more_than(fitting, monkeypatch, ask)
    _, found = outcome_in_a_lane(tiny_trial("vision"), tmp_path / "t", monkeypatch)
    assert found["status"] == status, found.get("reason")
    sizes = [event["micro_batch_size"] for event in found["memory"]]
    assert sizes == ([16, 8] if fitting else [16, 8, 4, 2, 1])
    if not fitting:
        assert "memory" in found["reason"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("method", ["randlora", "full"])
def test_two_devices_as_one(device: torch.device, places: tuple[Path, Path], method: str, tmp_path: Path) -> None:
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip(f"two devices are needed, and torch finds {torch.cuda.device_count()}")
    config = trial(places, method)
    torch.multiprocessing.spawn(work, args=(2, config, str(tmp_path), device.type), nprocs=2)
    alone = run(config, tmp_path / "alone", keep=True)
    file = "weights.safetensors" if method == "full" else "adapter.safetensors"
    a, b = (load_file(str(tmp_path / d / "adapter" / file)) for d in ("alone", "trial"))
    assert a.keys() == b.keys()
    # Adam divides by the gradient's own size, which turns rounding in near-zero gradients into visible steps
    assert all((a[key] - b[key]).abs().mean() < 1e-3 for key in a)
    assert (tmp_path / "reports1.pickle").is_file()
    assert alone[-1]["result"].predicted.n_examples == 32
