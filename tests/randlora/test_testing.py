"""`randlora.testing.check`: every method of ours passes, and each promise that is broken is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from randlora import METHODS, Adapter, Request
from randlora.methods.lowrank.lora import Lora
from randlora.testing import CheckError, check


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_keeps_its_promises(name: str) -> None:
    check(name)


class Restless(Lora):
    """LoRA whose start is not zero."""

    def delta(self, base: Tensor) -> Tensor:
        return super().delta(base) + 0.1


class Twice(Lora):
    """LoRA whose forward pass has the delta twice."""

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return 2 * super().linear(x, base, bias) - torch.nn.functional.linear(x, base, bias)


class Random(Lora):
    """LoRA whose A comes from the global generator."""

    def start(self) -> None:
        with torch.no_grad():
            self.a.normal_()


class Frozen(Lora):
    """LoRA that counts a matrix which it does not train."""

    def start(self) -> None:
        self.a.requires_grad_(requires_grad=False)


class Noisy(Lora):
    """LoRA that changes the model's outputs while it trains."""

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return super().linear(x, base, bias) + (0.1 if self.training else 0.0)


class OfRows(Lora):
    """LoRA that cannot read (batch x tokens x in)."""

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return torch.addmm(torch.zeros(1) if bias is None else bias, x, self.weight(base).t())


class Summed(Lora):
    """LoRA that adds its delta to the weight in the product's precision."""

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, base + self.delta(base), bias)


def built_as(kind: type[Lora]) -> Callable[[Request], dict[str, Adapter]]:
    plain = METHODS["lora"].build

    def build(request: Request) -> dict[str, Adapter]:
        made = plain(request)
        for adapter in made.values():
            adapter.__class__ = kind
            if request.weights["0.weight"].device.type != "meta":
                getattr(adapter, "start", lambda: None)()
        return made

    return build


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"count": lambda shape, capacity, **options: 1},
            "at r = 4 count says 3 trainable parameters, 448 are built on 'meta'",
        ),
        (
            {"count": lambda shape, capacity, **options: min(capacity, 4) * sum(shape)},
            "at r = 8 count says 448 trainable parameters, 896 are built on 'meta'",
        ),
        ({"build": built_as(Random)}, "the same seeds give another start of 0.weight.a: draw all random numbers"),
        ({"build": built_as(Frozen)}, "0.weight.a does not require a gradient"),
        ({"build": built_as(Noisy)}, "the start changes the model's outputs in train mode, by "),
        ({"build": built_as(OfRows)}, "RuntimeError: .*"),
        ({"build": built_as(Restless)}, "weight is not the base and delta of 0.weight, by 1.0e-01"),
        ({"build": built_as(Twice)}, "merged weights give other outputs than linear"),
    ],
)
def test_a_broken_promise_is_named(changed: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = dataclasses.replace(METHODS["lora"], **changed)
    monkeypatch.setitem(METHODS.registered, "lora", method)
    with pytest.raises(CheckError, match=f"method 'lora' at r = 4:\n(.*\n)*{words}"):
        check("lora")


def test_small_deltas_that_autocast_rounds_away_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS.registered, "lora", dataclasses.replace(METHODS["lora"], build=built_as(Summed)))
    with pytest.warns(UserWarning, match="'lora' rounds small deltas away under bf16 autocast"):
        check("lora")
