"""LoRA-FA (Zhang et al. 2023, arXiv 2308.03303), an example of a method of one's own: delta = B A, A stays frozen.

Importing this module registers the method; `pyproject.toml` beside it makes every process that uses randlora import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora import Adapter, AdapterConfig, Method, Request, Shape, register


@dataclass(frozen=True)
class LoraFaConfig(AdapterConfig):
    """`r` sets the size, so the budget decides it; every further field is an option of `[methods.lora-fa]`."""

    method: ClassVar[str] = "lora-fa"

    r: int
    scale: float = 1.0


def count(shape: Shape, capacity: int, **options: Any) -> int:
    """r out: B alone is trained. Held against the built module in every trial."""
    return capacity * shape[0]


def max_capacity(shapes: Sequence[Shape], **options: Any) -> int:
    """The largest rank that any of the weights can use."""
    return max(min(shape) for shape in shapes)


class LoraFa(Adapter):
    """One weight's B (out x r), trained, and A (r x in), drawn once and kept in checkpoints (`derived`)."""

    derived = ("a",)
    a: Tensor

    def __init__(self, base: Tensor, r: int, config: LoraFaConfig, seed: int, dtype: torch.dtype) -> None:
        out, width = base.shape
        super().__init__((out, width))
        self.scale = config.scale
        if base.device.type == "meta":  # only counted
            start = torch.empty(r, width, device="meta")
        else:
            start = torch.randn(r, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
        self.register_buffer("a", start.to(base.device, dtype), persistent=False)
        self.b = nn.Parameter(torch.zeros(out, r, device=base.device, dtype=dtype))

    def delta(self, base: Tensor) -> Tensor:
        return self.scale * self.b @ self.a

    def weight(self, base: Tensor) -> Tensor:
        return base + self.delta(base).to(base.dtype)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, base, bias) + self.scale * linear(linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))


def update_rank(shape: Shape, capacity: int, **options: Any) -> int:
    """The largest rank that the update can have. Without it the report has no rank to hold against parameters."""
    return min(capacity, *shape)


def build(request: Request) -> dict[str, Adapter]:
    """One adapter per weight, with a seed of its own from `init_seed`."""
    config = request.config
    assert isinstance(config, LoraFaConfig)
    return {
        name: LoraFa(weight, request.capacities[name], config, 1000 * request.init_seed + i, request.dtype)
        for i, (name, weight) in enumerate(request.weights.items())
    }


register(
    Method(
        name="lora-fa",
        title="LoRA-FA",
        config=LoraFaConfig,
        capacity_field="r",
        count=count,
        max_capacity=max_capacity,
        build=build,
        published_lr=1e-3,
        published_lr_source="as LoRA: the centre of its range, unless the sweep file gives another",
        scale_rule="constant, 1 by default",
        update_rank=update_rank,
    )
)
