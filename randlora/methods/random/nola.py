"""NoLA (Koohpayegani et al. 2024, arXiv 2310.02556): LoRA's factors as trained sums of frozen random matrices.

A = A_0 + sum_i a_i A_i (r x in), B = sum_i b_i B_i (out x r), delta = (alpha / r) B A. The trainables are the k_A + k_B
coefficients of a weight, at any shape and r. Here k = k_A + k_B, with k_A = ceil(k / 2) and k_B = k - k_A.

Start, as in the authors' language-model code: A_0 is a frozen LoRA initialisation (uniform on +-1 / sqrt(in)) and all
coefficients are 0. So the delta is exactly 0 and b gets the gradient; a gets one as soon as b has moved. The bases have
variance 1 / k_A and 1 / k_B (as in their LLaMA variant). So a step e of every coefficient moves a factor's entries by
e, as in LoRA, whatever the number of bases.

`start = "released"` is the NoLA in the RandLoRA paper's released code: there is no A_0, a = 1 / k_A and b = 1 / k_B, so
that the delta is not 0, and the bases have variance 1. The paper's scales are 1 / r (table 8) and 2 / sqrt(n) (table
9), with n = k_A.

The bases are drawn from the seed when attaching, shared by all layers (as in the RandLoRA paper's NoLA), and never
saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from randlora.adapter import Adapter, AdapterConfig, AlphaScale, Request, Shape, check_capacity, trainable
from randlora.arithmetic.bases import Bases, Draw
from randlora.arithmetic.contract import autocast_off
from randlora.methods.factored import Factored
from randlora.methods.method import Method, low_rank_freedom
from randlora.methods.random.randlora import check_start

STARTS = ("zero", "released")
MAX_BASES = 4096
"""The largest k that a budget can get. A sweep file can ask for a larger one.

With k, a forward pass reads k r (in + out) / 2 numbers to make the factors of one weight.
"""


@dataclass(frozen=True)
class NolaConfig(AlphaScale, AdapterConfig):
    """Configuration of NoLA (arXiv 2310.02556).

    Attributes:
        k: the number of coefficients per weight, k_A + k_B.
        r: the rank of the factors. It costs no parameters.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" or "2r/sqrt(n)" is
            accepted, with n = k_A.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        start: "zero" or "released" (see the module).
    """

    method: ClassVar[str] = "nola"
    capacity_field: ClassVar[str] = "k"
    least: ClassVar[int] = 2
    by_bases: ClassVar[bool] = True

    k: int
    r: int = 1
    alpha: float | str | None = None
    dropout: float = 0.0
    start: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_capacity("nola", "r", self.r)
        check_start("nola", self.start, STARTS)

    def bases(self, shape: Shape) -> int:
        """Return k_A, the n of a rule in `alpha`, for a weight of this `shape` (out, in)."""
        return split_bases(self.k)[0]


def split_bases(k: int) -> tuple[int, int]:
    """Return (k_A, k_B)."""
    return k - k // 2, k // 2


def nola_max_capacity(shapes: Sequence[Shape], *, r: int = 1, **options: Any) -> int:
    """Return the largest k with k_A <= r in and k_B <= r out on every weight, at most `MAX_BASES`.

    More coefficients than entries reach no other updates. A sweep file can ask for them, as the RandLoRA paper has
    1,024 bases at r = 1 on 512-wide weights.
    """
    return min(MAX_BASES, *(min(2 * r * width, 2 * r * out + 1) for out, width in shapes))


class Nola(Factored):
    """NoLA of one weight: the coefficients a (k_A) and b (k_B)."""

    def __init__(self, shape: Shape, config: NolaConfig, k: int, bases: Bases, request: Request) -> None:
        super().__init__(shape, config.dropout)
        self.k_a, self.k_b = split_bases(k)
        self.scale, self.r, self.released = config.scale_of(self.k_a), config.r, config.start == "released"
        self.bases = bases
        device = bases.get("A").device
        first = (1.0 / self.k_a, 1.0 / self.k_b) if self.released else (0.0, 0.0)
        self.a = trainable(torch.full((self.k_a,), first[0], dtype=torch.float64), request, device)
        self.b = trainable(torch.full((self.k_b,), first[1], dtype=torch.float64), request, device)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A transposed (in x r) and B (out x r). Each is one matrix-vector product, which saves no copy of the
        bases."""
        out, width = self.shape
        rows_a, rows_b = width * self.r, out * self.r
        basis_a, basis_b = self.bases.get("A")[:rows_a, : self.k_a], self.bases.get("B")[:rows_b, : self.k_b]
        with autocast_off(self.a.device):
            if self.released:
                a, b = torch.mv(basis_a, self.a), torch.mv(basis_b, self.b)
            else:
                start = self.bases.get("A0")[:rows_a, 0] * (1.0 / math.sqrt(3.0 * width))
                a = torch.addmv(start, basis_a, self.a, alpha=1.0 / math.sqrt(self.k_a))
                b = torch.mv(basis_b, self.b * (1.0 / math.sqrt(self.k_b)))
        return a.view(width, self.r), b.view(out, self.r)


def build_nola(request: Request) -> dict[str, Adapter]:
    """Build the adapters on shared bases with one column per basis. Rows are the entries of a (max in x r) or (max out
    x r) factor."""
    config, shapes = request.config, request.shapes
    assert isinstance(config, NolaConfig)
    wide, tall = max(s[1] for s in shapes.values()), max(s[0] for s in shapes.values())
    k_a, k_b = split_bases(max(request.capacities.values()))
    draws = {"A0": Draw(wide * config.r, 1), "A": Draw(wide * config.r, k_a), "B": Draw(tall * config.r, k_b)}
    bases = Bases(request.basis_seed, draws, request.device, request.dtype)
    return {name: Nola(shape, config, request.capacities[name], bases, request) for name, shape in shapes.items()}


def nola_freedom(shape: Shape, k: int, *, r: int, start: str, **_: Any) -> int:
    """Return how many coefficients move the factors, at most `low_rank_freedom`.

    One is lost if the scale of A is free: with the released start, which has no A_0, or if the A_i span every A.
    """
    k_a, k_b = split_bases(k)
    free_scale = start == "released" or k_a >= r * shape[1]  # then a times c and b over c give the same update
    return min(min(k_a, r * shape[1]) + min(k_b, r * shape[0]) - free_scale, low_rank_freedom(shape, r))


NOLA = Method(
    title="NoLA",
    config=NolaConfig,
    count=lambda shape, capacity, **_: capacity,
    max_capacity=nola_max_capacity,
    build=build_nola,
    published_lr=5e-3,
    published_lr_source="NoLA's ViT and GPT-2 runs",
    scale_rule="alpha / r with alpha = r by default, so 1; '2r/sqrt(n)'; the sums of bases are divided by sqrt(k)",
    min_capacity=2,
    open_ended=True,
    update_rank=lambda shape, capacity, *, r, **_: min(
        r, *shape
    ),  # r is an option: more parameters do not raise the rank
    freedom=nola_freedom,
)
