"""A small model with every kind of target, configurations of every method, and the paper's equation 4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from randlora import (
    AdaLoraConfig,
    Adapted,
    AdapterConfig,
    AutoLoraConfig,
    DoraConfig,
    HybridConfig,
    HydraLoraConfig,
    InitAbConfig,
    LoraConfig,
    LoraPlusConfig,
    LoraXsConfig,
    MiloraConfig,
    NolaConfig,
    OloraConfig,
    PissaConfig,
    RandLoraAConfig,
    RandLoraBConfig,
    RandLoraConfig,
    RandLoraSvdConfig,
    SvftConfig,
    VeraConfig,
    attach,
    get_method,
)

TARGETS = ["attn.in_proj_weight", "attn.out_proj", "fc", "proj", "square", "own.in_proj_weight"]

CONFIGS: list[AdapterConfig] = [
    LoraConfig(3),
    LoraConfig(2, rank_stabilised=True),
    DoraConfig(3),
    VeraConfig(7),
    VeraConfig(5, scale=3.0),
    NolaConfig(9, r=2),
    RandLoraConfig(5),
    RandLoraConfig(5, start="gamma"),
    RandLoraConfig(3, distribution="ternary", sparsity=4.0),
    RandLoraConfig(4, distribution="ternary", sparsity="sqrt"),
    RandLoraAConfig(5, r=4),
    RandLoraAConfig(3, r=4, distribution="ternary"),
    RandLoraBConfig(3),
    PissaConfig(3),
    MiloraConfig(3),
    OloraConfig(3),
    InitAbConfig(3),
    LoraPlusConfig(3),
    LoraXsConfig(5),
    SvftConfig(4),
    AdaLoraConfig(3),
    AutoLoraConfig(3),
    HydraLoraConfig(3),
    HybridConfig(5),
    RandLoraSvdConfig(5),
]
K = 3


def targets_of(config: AdapterConfig) -> list[str]:
    """All kinds of weights; called `nn.Linear`s alone for a method whose update depends on the input."""
    return TARGETS if get_method(config.method).mergeable else ["fc", "proj", "square"]


def config_id(config: AdapterConfig) -> str:
    return f"{config.method}-{config.capacity}"


class OwnAttention(nn.Module):
    """A packed weight that is a bare parameter, as in open_clip's own attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width, generator=_generator(5)) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = nn.functional.linear(x, self.in_proj_weight).chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


class Block(nn.Module):
    """in = out, in < out and in > out; called and read weights."""

    def __init__(self, width: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 4, batch_first=True)
        self.fc = nn.Linear(width, hidden)
        self.proj = nn.Linear(hidden, width, bias=False)
        self.square = nn.Linear(width, width)
        self.own = OwnAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + self.proj(nn.functional.gelu(self.fc(x)))
        return self.own(x + self.square(x))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block(dtype: torch.dtype = torch.float32, width: int = 16, hidden: int = 24) -> Block:
    """The same weights every time, whatever the global generator's state."""
    model = Block(width, hidden)
    generator = _generator(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.to(dtype)


def batch(dtype: torch.dtype = torch.float32, rows: int = 3, width: int = 16) -> Tensor:
    return torch.randn(rows, 5, width, generator=_generator(1)).to(dtype)


def stored(layer: nn.Module) -> nn.Parameter:
    """The frozen weight of an adapted layer, whose attribute `weight` is W0 + delta."""
    return dict(layer.named_parameters(recurse=False))["weight"]


def perturb(parameters: Iterator[nn.Parameter] | Adapted, size: float = 0.1) -> None:
    """Move every trainable, since some gradients are zero at the start."""
    generator = _generator(2)
    tensors = parameters.parameters() if isinstance(parameters, Adapted) else parameters
    with torch.no_grad():
        for parameter in tensors:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * size)


def equation_4(shape: tuple[int, int], lam: Tensor, gam: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * sum_j B_j diag(lambda_j) A diag(gamma_j), the k-th column of B_j being B's column k n + j."""
    r, n = lam.shape
    total = torch.zeros(max(shape), min(shape), dtype=lam.dtype)
    for j in range(n):
        b_j = torch.stack([b[:, k * n + j] for k in range(r)], dim=1)
        total += b_j @ torch.diag(lam[:, j]) @ a @ torch.diag(gam[j])
    total *= scale
    return total if shape[0] >= shape[1] else total.t()


def members_of(
    model: nn.Module, config: AdapterConfig, *, seeds: list[tuple[int, int]] | None = None, targets: Any = None
) -> list[Adapted]:
    """K adapters with trainables of their own, all disabled."""
    members = []
    for k, (init, basis) in enumerate(seeds or [(k, 7) for k in range(K)]):
        member = attach(model, config, targets or targets_of(config), init_seed=init, basis_seed=basis)
        generator = torch.Generator().manual_seed(40 + k)
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
        member.disable()
        members.append(member)
    return members
