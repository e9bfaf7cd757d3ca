"""The device that the tests of this room run on: `--device cpu` runs the same bodies where there is no CUDA device."""

from __future__ import annotations

import pytest
import torch

import trainables.packing.together
import trainables.training.worker


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cuda", "cpu"), default="cuda", help="what tests/gpu runs on")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test, which is compared with the CPU."""
    kind = request.config.getoption("--device", "cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device; --device cpu runs the same bodies on the CPU")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Trials run on the CPU until the `undo()` of what this gives."""
    for module in (trainables.training.worker, trainables.packing.together):
        monkeypatch.setattr(module, "pick_device", lambda: torch.device("cpu"))
    return monkeypatch
