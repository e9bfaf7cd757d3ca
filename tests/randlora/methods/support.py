"""A small network for the bridge to PEFT, and its types configured for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from randlora import get_method
from randlora.methods.bridge.config import PeftOptions
from randlora.methods.bridge.kinds import KINDS

NAMES = sorted(KINDS)
TARGETS = ["up", "down", "q"]
SHAPES = [(32, 16), (16, 32), (16, 16)]
OPTIONS: dict[str, dict[str, Any]] = {"road": {"group_size": 16}}
CAPACITY = {"supertuning": 1000, "frod": 1000, "ia3": 1, "beft": 1}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.q = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(torch.tanh(self.up(x))) + self.q(x)
        return y


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Layer(), Layer(), nn.Linear(16, 4))


def of_conv1d() -> nn.Sequential:
    """The same network, its layers with a bias being transformers' Conv1D, as GPT-2's."""
    conv1d, model = pytest.importorskip("transformers.pytorch_utils").Conv1D, network()
    for layer in model[:2]:
        for name in ("up", "down"):
            linear = getattr(layer, name)
            held = conv1d(linear.out_features, linear.in_features)
            held.load_state_dict({"weight": linear.weight.t(), "bias": linear.bias})
            setattr(layer, name, held)
    return model


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)), torch.ones(3, 5, 4)


def configured(name: str, capacity: int | None = None, **options: Any) -> PeftOptions:
    method = get_method(f"peft:{name}")
    config = method.config.from_options(capacity or CAPACITY.get(name, 4), {**OPTIONS.get(name, {}), **options})
    assert isinstance(config, PeftOptions)
    return config


def single(shape: tuple[int, int], device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(shape[1], shape[0], bias=False, device=device))


def on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second singular vector and eigenvector points the other way."""
    svd, eigh = torch.linalg.svd, torch.linalg.eigh

    def turned(vectors: Tensor) -> Tensor:
        return vectors * torch.tensor([-1.0, 1.0]).repeat(len(vectors.T))[: len(vectors.T)].to(vectors)

    def other_svd(*args: Any, **named: Any) -> Any:
        u, s, vh = svd(*args, **named)
        return type(svd(torch.eye(1)))((turned(u), s, turned(vh.T).T))

    def other_eigh(*args: Any, **named: Any) -> Any:
        values, vectors = eigh(*args, **named)
        return type(eigh(torch.eye(1)))((values, turned(vectors)))

    monkeypatch.setattr(torch.linalg, "svd", other_svd)
    monkeypatch.setattr(torch.linalg, "eigh", other_eigh)
