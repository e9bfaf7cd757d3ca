"""LoRA-FA (Zhang et al. 2023, arXiv 2308.03303), an example of your own method: delta = B A, where A stays frozen.

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
    """The settings of LoRA-FA. The budget decides `r`. Every further field is an option of `[methods.lora-fa]`."""

    method: ClassVar[str] = "lora-fa"

    r: int
    scale: float = 1.0


def count(shape: Shape, capacity: int, **options: Any) -> int:
    """Return the number of trainable parameters, r * out: only B is trained. Every trial checks this number."""
    return capacity * shape[0]


def max_capacity(shapes: Sequence[Shape], **options: Any) -> int:
    """Return the largest rank that any of the weights can use."""
    return max(min(shape) for shape in shapes)


class LoraFa(Adapter):
    """The adapter of one weight: B (out x r) is trained. A (r x in) is drawn once and stored in checkpoints."""

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
    """Return the largest rank that the update can have. Without this function, the report shows no rank."""
    return min(capacity, *shape)


def build(request: Request) -> dict[str, Adapter]:
    """Return one adapter for each weight. Each has another seed, made from `init_seed`."""
    config = request.config
    assert isinstance(config, LoraFaConfig)
    return {
        name: LoraFa(weight, request.capacities[name], config, 1000 * request.init_seed + i, request.dtype)
        for i, (name, weight) in enumerate(request.weights.items())
    }


register(
    Method(
        title="LoRA-FA",
        config=LoraFaConfig,
        count=count,
        max_capacity=max_capacity,
        build=build,
        published_lr=1e-3,
        published_lr_source="as LoRA: the centre of its range, unless the sweep file gives another",
        scale_rule="constant, 1 by default",
        update_rank=update_rank,
    )
)
