"""Precision and the float32 back end: checked before they are used, named in the row, nothing else touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests import conftest
from tests.support import ROOT
from trainables import runtime
from trainables.config import TrialConfig
from trainables.errors import TrialError
from trainables.runtime import choose_precision, float32_backend
from trainables.training.worker import run_trial

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_check() -> Iterator[None]:
    runtime._why_not_fast.cache_clear()
    yield
    runtime._why_not_fast.cache_clear()


def switch() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)


def others() -> tuple[str, str]:
    """The global switch, and CUDA's."""
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision


def force(monkeypatch: pytest.MonkeyPatch, loss: float) -> None:
    """Errors of 1e-7, times `loss` once the switch is on."""
    plain = {"mm": 1e-7, "bmm": 2e-7}
    monkeypatch.setattr(
        runtime, "_errors", lambda: {n: e * (loss if switch() == "bf16" else 1.0) for n, e in plain.items()}
    )


def test_accurate_products_are_used_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 1.5)
    before, rest = switch(), others()
    with float32_backend("fast", CPU) as name:
        assert (name, switch(), torch.backends.cuda.matmul.fp32_precision) == ("fast", "bf16", rest[1])
    assert (switch(), others()) == (before, rest)
    with pytest.raises(RuntimeError, match="mine"), float32_backend("fast", CPU):
        raise RuntimeError("mine")
    assert switch() == before


def test_inaccurate_products_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 5000.0)
    before = switch()
    with float32_backend("fast", CPU) as name:
        assert name.startswith("default (fast refused: relative error of") and "5.0e-04" in name
        assert switch() == before


def test_what_amx_does_is_found_by_the_check_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that are rounded to bfloat16 as soon as the switch is on, and the check unforced.

    The switch is one that no processor obeys: with AMX the real one would round other products as well.
    """
    exact, own = torch.bmm, SimpleNamespace(fp32_precision="none")

    def rounding(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if own.fp32_precision == "bf16" and a.dtype == torch.float32:
            return exact(a.bfloat16(), b.bfloat16()).float()
        return exact(a, b)

    monkeypatch.setattr(torch, "bmm", rounding)
    monkeypatch.setattr(runtime, "_switch", lambda: own)
    with float32_backend("fast", CPU) as name:
        assert "relative error of bmm" in name and own.fp32_precision == "none"


def test_the_default_and_other_devices_check_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_why_not_fast", lambda: pytest.fail("checked"))
    for asked, device in (("default", CPU), ("fast", torch.device("cuda")), ("default", torch.device("cuda"))):
        with float32_backend(asked, device) as name:
            assert name == "default"


@pytest.mark.parametrize("asked", ["default", "fast"])
def test_convolutions_on_cuda_are_float32s(asked: str) -> None:
    assert torch.backends.cudnn.allow_tf32, "torch's default"
    with pytest.raises(RuntimeError, match="mine"), float32_backend(asked, torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.conv.fp32_precision != "tf32"
        raise RuntimeError("mine")
    assert torch.backends.cudnn.allow_tf32
    with float32_backend(asked, CPU):
        assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("major", "auto"), [(7, "fp32"), (8, "bf16")])
def test_emulated_bf16_counts_as_none(monkeypatch: pytest.MonkeyPatch, major: int, auto: str) -> None:
    """A V100 and a T4 are of capability 7: torch can make bf16 tensors there, and multiplies them in float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "V100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    device = torch.device("cuda", 0)
    assert choose_precision("auto", device)[0] == auto
    if auto == "fp32":
        with pytest.raises(TrialError, match="V100 has none"):
            choose_precision("bf16", device)


@pytest.mark.parametrize(
    ("asked", "seen"),
    [("tests", ""), ("tests/sweeps/lanes/test_gpu_share.py", ""), ("tests/gpu/test_trials.py::x", "0")],
)
def test_only_the_tests_of_devices_see_one(monkeypatch: pytest.MonkeyPatch, asked: str, seen: str) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    conftest.pytest_configure(cast("pytest.Config", SimpleNamespace(args=[asked])))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_a_torch_without_the_switch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_switch", lambda: None)
    with float32_backend("fast", CPU) as name:
        assert "has no switch" in name


@pytest.mark.parametrize("loss", [1.0, 100.0])
def test_a_trials_row_says_what_it_ran_on(
    make_trial: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    force(monkeypatch, loss)
    trial = make_trial("randlora", train={"epochs": 1, "float32": "fast"})
    warm: dict[str, Any] = {}
    reports = list(run_trial(trial, warm=warm, directory=tmp_path))
    backend = reports[-1]["result"].measured.backend
    assert backend == "fast" if loss == 1.0 else backend.startswith("default (fast refused")
    assert switch() == "none"


def test_ids_of_trials_that_ask_for_nothing_stay(make_trial: Callable[..., TrialConfig]) -> None:
    plain = make_trial("randlora", train={})
    assert make_trial("randlora", train={"float32": "default"}).trial_id == plain.trial_id
    assert make_trial("randlora", train={"float32": "fast"}).trial_id != plain.trial_id


def test_held_weights_give_the_gradient_of_plain_accumulation(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    losses = []
    for held in (False, True):
        settings = {"epochs": 2, "global_batch_size": 32, "micro_batch_size": 8, "hold_weights": held}
        reports = list(run_trial(make_trial("randlora", train=settings), warm={}, directory=tmp_path / str(held)))
        losses.append([r["train_loss"] for r in reports])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][1] != losses[0][0]
