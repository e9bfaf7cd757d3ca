"""What tests of shared base models look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.models.loading import LoadedModel, load_model
from trainables.models.sharing.shared import FILE, PREFIX
from trainables.models.sharing.skeleton import named_tensors


def own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, of which nothing has been said yet."""
    monkeypatch.setenv("SWEEPS_CACHE", str(folder))
    monkeypatch.setattr("trainables.models.sharing.shared._said", set())
    return folder


def counted_loads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every `load_model` that sharing makes, whether it read weights."""
    made: list[bool] = []

    def counted(model_id: str, *, weights: bool = True) -> LoadedModel:
        made.append(weights)
        return load_model(model_id, weights=weights)

    monkeypatch.setattr("trainables.models.sharing.shared.load_model", counted)
    return made


def files(cache: Path) -> list[Path]:
    """The files of weights in a cache."""
    return sorted(cache.glob(f"{PREFIX}*/{FILE}"))


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same tensors under the same names in the same order."""
    a, b = named_tensors(one), named_tensors(other)
    return list(a) == list(b) and all(
        torch.equal(t, b[n]) and t.requires_grad == b[n].requires_grad for n, t in a.items()
    )


def size(module: nn.Module) -> int:
    """Bytes of a model's tensors."""
    return sum(t.nbytes for t in named_tensors(module).values())
