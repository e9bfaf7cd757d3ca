"""LoRA with other starts: PiSSA, MiLoRA, OLoRA, Init[AB] and LoRA-GA.

delta = scale (B A - B_0 A_0). The published codes subtract scale B_0 A_0 from W0 instead, which is the same model. Here
W0 stays as it is, the delta is 0 at the start, and detaching gives W0 back. B_0 and A_0, with W0 = U diag(S) V^T:

    PiSSA    (Meng et al. 2024, arXiv 2404.02948)      U_r sqrt(S_r / scale), sqrt(S_r / scale) V_r^T, r largest values
    MiLoRA   (Wang et al. 2024, arXiv 2406.09044)      the same with the r smallest values
    OLoRA    (Buyukakyuz 2024, arXiv 2406.01775)       the first r columns of Q and rows of R, of W0 = Q R
    Init[AB] (Li et al. 2025, arXiv 2505.23194)        both uniform on +-1 / sqrt(in)
    LoRA-GA  (Wang et al. 2024, arXiv 2407.05000)      c U'_{r..2r}, c V'_r^T of the loss's gradient at W0, c =
                                                       out^(1/4) / sqrt(gamma)

If the rank is above the weight's own, the columns that a start does not fill start as in LoRA. Signs and last bits of
decompositions differ between machines, so checkpoints keep the starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from randlora.adapter import Adapter, Build, RankConfig, Request, check_capacity, check_positive, trainable
from randlora.arithmetic.bases import Draw
from randlora.methods.factored import Factored, drawn_start, lora_start, singular
from randlora.methods.lowrank.lora import lora_count
from randlora.methods.method import Method, low_rank_freedom


@dataclass(frozen=True)
class PissaConfig(RankConfig):
    """Configuration of PiSSA (arXiv 2404.02948): LoRA that starts from the largest singular values.

    Attributes:
        r: rank of the trained factors.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
    """

    method: ClassVar[str] = "pissa"


@dataclass(frozen=True)
class MiloraConfig(RankConfig):
    """Configuration of MiLoRA (arXiv 2406.09044): LoRA that starts from the smallest singular values.

    Attributes:
        r: rank of the trained factors.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
    """

    method: ClassVar[str] = "milora"


@dataclass(frozen=True)
class OloraConfig(RankConfig):
    """Configuration of OLoRA (arXiv 2406.01775): LoRA that starts from the QR decomposition of the weight.

    Attributes:
        r: rank of the trained factors.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
    """

    method: ClassVar[str] = "olora"


@dataclass(frozen=True)
class InitAbConfig(RankConfig):
    """Configuration of Init[AB] (arXiv 2505.23194): LoRA whose factors both start at random values.

    Attributes:
        r: rank of the trained factors.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
    """

    method: ClassVar[str] = "init-ab"


@dataclass(frozen=True)
class LoraGaConfig(RankConfig):
    """Configuration of LoRA-GA (arXiv 2407.05000): LoRA that starts from the loss's gradient at the weight.

    Attributes:
        r: rank of the trained factors.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        gamma: a larger gamma makes the start smaller, by its root.
        rows: the number of training rows that a sweep takes the gradient on: the first ones of the first epoch.
            `attach` gets the gradients and does not read it.
    """

    method: ClassVar[str] = "lora-ga"

    gamma: float = 16.0
    rows: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.method, "gamma", self.gamma)
        check_capacity(self.method, "rows", self.rows)


class Started(Factored):
    """LoRA with another start: A transposed (in x r) and B (out x r), with their starts as buffers."""

    derived: ClassVar[tuple[str, ...]] = ("a_start", "b_start")
    a_start: Tensor
    b_start: Tensor

    def __init__(self, name: str, config: RankConfig, request: Request, a: Tensor, b: Tensor) -> None:
        super().__init__(request.shapes[name], config.dropout)
        self.scale = config.scale
        r, device = request.capacities[name], request.weights[name].device
        if (missing := r - a.shape[1]) > 0:
            a = torch.cat([a, lora_start(name, missing, request).to(a)], 1)
        if (missing := r - b.shape[1]) > 0:
            b = torch.cat([b, b.new_zeros(self.shape[0], missing)], 1)
        self.a = trainable(a.contiguous(), request, device)
        self.b = trainable(b.contiguous(), request, device)
        self.register_buffer("a_start", self.a.detach().clone(), persistent=False)
        self.register_buffer("b_start", self.b.detach().clone(), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return B A - B_0 A_0 = (B - B_0) A + B_0 (A - A_0) as one product of rank 2 r, without cancellation."""
        a = torch.cat([self.a, self.a - self.a_start], 1)
        b = torch.cat([self.b - self.b_start, self.b_start], 1)
        return a, b


Start = Callable[[str, int, RankConfig, Request], tuple[Tensor, Tensor]]
"""Returns A_0 transposed (in x at most r) and B_0 (out x at most r), given a weight's name, r, configuration and
request."""


def _started(start: Start) -> Build:
    """Return the function that makes one weight's adapter with this start."""

    def build(request: Request) -> dict[str, Adapter]:
        config = request.config
        assert isinstance(config, RankConfig)
        return {
            name: Started(name, config, request, *start(name, r, config, request))
            for name, r in request.capacities.items()
        }

    return build


def _roots(u: Tensor, s: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    root = torch.sqrt(s / scale)
    return v * root, u * root


def _largest(name: str, r: int, config: RankConfig, request: Request) -> tuple[Tensor, Tensor]:
    """Return PiSSA's start."""
    u, s, v = singular(request.weights[name], request.dtype)
    return _roots(u[:, :r], s[:r], v[:, :r], config.scale)


def _smallest(name: str, r: int, config: RankConfig, request: Request) -> tuple[Tensor, Tensor]:
    """Return MiLoRA's start."""
    u, s, v = singular(request.weights[name], request.dtype)
    return _roots(u[:, -r:], s[-r:], v[:, -r:], config.scale)


def _orthogonal(name: str, r: int, config: RankConfig, request: Request) -> tuple[Tensor, Tensor]:
    """Return OLoRA's start."""
    q, upper = torch.linalg.qr(request.weights[name].detach().to(request.dtype))
    return upper[:r].t(), q[:, :r]


def _both_drawn(name: str, r: int, config: RankConfig, request: Request) -> tuple[Tensor, Tensor]:
    """Return Init[AB]'s start."""
    out, width = request.shapes[name]
    start = Draw(out, r, std=1.0 / math.sqrt(3.0 * width))
    return lora_start(name, r, request), drawn_start(name, "b", request, start)


def _of_gradient(name: str, r: int, config: RankConfig, request: Request) -> tuple[Tensor, Tensor]:
    """Return LoRA-GA's start. If the gradient is missing or zero, return an empty start, which becomes LoRA's.

    The gradient is zero if a checkpoint is loaded, which then puts the saved start in place.
    """
    assert isinstance(config, LoraGaConfig)
    out, width = request.shapes[name]
    gradient = request.gradients.get(name)  # None on the meta device
    if gradient is None or not gradient.any():
        empty = torch.empty(0, dtype=request.dtype, device=request.weights[name].device)
        return empty.expand(width, 0), empty.expand(out, 0)
    u, _, v = singular(gradient, request.dtype)
    size = out**0.25 / math.sqrt(config.gamma)
    return size * v[:, :r], size * u[:, r : 2 * r]


def _method(
    title: str, config: type[RankConfig], start: Start, source: str, *, needs_gradients: bool = False
) -> Method:
    """Return the entry of a method that differs from LoRA in its start alone."""
    return Method(
        title=title,
        config=config,
        count=lora_count,
        build=_started(start),
        published_lr=1e-3,
        published_lr_source=source,
        scale_rule="alpha / r, alpha = r by default, so 1",
        update_rank=lambda shape, capacity, **_: min(2 * capacity, *shape),  # what was taken off W0, what replaces it
        freedom=lambda shape, capacity, **_: low_rank_freedom(shape, capacity),
        needs_gradients=needs_gradients,
    )


PISSA = _method(
    "PiSSA", PissaConfig, _largest, "as LoRA, which its authors compare at one rate; no CLIP rate was published"
)
MILORA = _method("MiLoRA", MiloraConfig, _smallest, "as LoRA; no CLIP rate was published")
OLORA = _method("OLoRA", OloraConfig, _orthogonal, "as LoRA; no CLIP rate was published")
INIT_AB = _method("Init[AB]", InitAbConfig, _both_drawn, "as LoRA; no CLIP rate was published")
LORA_GA = _method("LoRA-GA", LoraGaConfig, _of_gradient, "as LoRA; no CLIP rate was published", needs_gradients=True)
