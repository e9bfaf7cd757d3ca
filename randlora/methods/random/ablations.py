"""RandLoRA's rank ablations at equal parameters (arXiv 2502.00987, section 6.3): does the rank matter, or the
parameters?

RandLoRA-a, rank r: delta = (scale / N) (sum_i B_i diag(lambda_i)) (sum_i A_i diag(gamma_i)), i = 1..N. The A_i are
distinct, because with one A the gammas would collapse into one. The capacity is N, at a fixed r (32, the LoRA rank that
the paper matches). N = 124 has 124 (32 + 768) = 99,200 parameters on a 768-wide weight, RandLoRA-6 has 99,072.

RandLoRA-b, half the rank: RandLoRA with N = ceil(m / 2 r) bases, m = min(out, in), so its rank is ceil(m / 2). The
capacity is r. r = 3 has 128 (3 + 768) = 98,688 parameters.

Neither is in any released code. Both start as RandLoRA does, by the option `start`. Every basis has unit variance. The
division by N keeps a step's size equal for all N. The default scale of 10 makes it that of RandLoRA on 768-wide weights
(10 sqrt(32) / 768 against 2 / sqrt(768), RMS per step of lambda).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from randlora.adapter import Adapter, AdapterConfig, AlphaScale, Request, Shape, check_capacity
from randlora.arithmetic.bases import Bases
from randlora.arithmetic.contract import weighted_sum
from randlora.methods.factored import Factored
from randlora.methods.method import Method, low_rank_freedom
from randlora.methods.random.randlora import (
    STARTS,
    RandLoraConfig,
    build_randlora,
    check_sparsity,
    check_start,
    initial,
    spread_bases,
    zeros_in_bases,
)

RANK_R_SCALE = 10.0


@dataclass(frozen=True)
class RandLoraAConfig(AlphaScale, AdapterConfig):
    """Configuration of RandLoRA-a (arXiv 2502.00987, section 6.3). The delta is multiplied by the scale and divided by
    n.

    Attributes:
        n: the number of bases that are summed into each factor.
        r: the rank of the update.
        alpha: alpha / r is the scale of the delta; None: 10 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        distribution: how the entries of the bases are distributed: "uniform", "normal", "binary" or "ternary".
        sparsity: s of a ternary basis, as in `RandLoraConfig`.
        start: the diagonal that starts at 0, "lambda" or "gamma".
    """

    method: ClassVar[str] = "randlora-a"
    capacity_field: ClassVar[str] = "n"
    default_scale: ClassVar[float] = RANK_R_SCALE
    words = RandLoraConfig.words

    n: int
    r: int = 32
    alpha: float | str | None = None
    dropout: float = 0.0
    distribution: str = "uniform"
    sparsity: float | Literal["sqrt"] = 6.0
    start: str = "lambda"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_capacity(self.method, "r", self.r)
        check_sparsity(self.distribution, self.sparsity)
        check_start(self.method, self.start, STARTS)


@dataclass(frozen=True)
class RandLoraBConfig(RandLoraConfig):
    """Configuration of RandLoRA-b (arXiv 2502.00987, section 6.3): RandLoRA with half as many bases at each r.

    Attributes:
        r: rank of one basis.
        alpha, dropout, distribution, sparsity, sparse_a, start: as in `RandLoraConfig`.
    """

    method: ClassVar[str] = "randlora-b"

    def bases(self, shape: Shape) -> int:
        """Return the number of bases for a weight of this `shape` (out, in)."""
        return half_bases(shape, self.r)


def half_bases(shape: Shape, r: int) -> int:
    """Return n = ceil(m / (2 r))."""
    return -(-min(shape) // (2 * r))


class RandLoraA(Factored):
    """RandLoRA-a of one weight: lambda (r x n) and gamma (n x m)."""

    def __init__(self, shape: Shape, n: int, config: RandLoraAConfig, bases: Bases, request: Request) -> None:
        super().__init__(shape, config.dropout)
        self.n, self.r, self.scale = n, config.r, config.scale / n
        self.bases = bases
        device = bases.get("A").device
        self.lambdas, self.gammas = initial(config.start, self.r, n, min(shape), request, device)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the two sums. B's sum belongs to the longer side.

        A (n r x m) has basis after basis. B (D x r n) is paired as in RandLoRA: the k-th column of B_j is column k n +
        j.
        """
        large, small, rows = max(self.shape), min(self.shape), self.n * self.r
        b_DRN = self.bases.get("B")[:large, :rows].view(large, self.r, self.n)
        a_NRM = self.bases.get("A")[:rows, :small].view(self.n, self.r, small)
        long = weighted_sum(b_DRN, self.lambdas, shared=0, summed=2)
        short = weighted_sum(a_NRM, self.gammas, shared=1, summed=0).t()
        return (short, long) if self.shape[0] >= self.shape[1] else (long, short)


def build_randlora_a(request: Request) -> dict[str, Adapter]:
    """Build the adapters on shared bases, which are large enough for the largest target and N."""
    config, sizes = request.config, request.capacities
    assert isinstance(config, RandLoraAConfig)
    columns = max(sizes.values()) * config.r
    bases = spread_bases(request, columns, columns, config.distribution, config.sparsity)
    return {name: RandLoraA(shape, sizes[name], config, bases, request) for name, shape in request.shapes.items()}


def randlora_a_freedom(shape: Shape, n: int, *, r: int, **_: Any) -> int:
    """Return the degrees of freedom of both sums, without changes of one sum that undo those of the other."""
    small, large = min(shape), max(shape)
    undone = (
        1 if n < r else r if n < large else r * r
    )  # changes that cancel: by a number; of the rows of a free A; by any mixture, if B is free too
    return min(min(n, large) * r + min(n, r) * small - undone, low_rank_freedom(shape, r))


RANDLORA_A = Method(
    title="RandLoRA-a",
    config=RandLoraAConfig,
    count=lambda shape, capacity, *, r=32, **_: capacity * (r + min(shape)),
    build=build_randlora_a,
    published_lr=1e-3,
    published_lr_source="as RandLoRA",
    scale_rule=f"alpha / r; by default {RANK_R_SCALE:g}; divided by n",
    update_rank=lambda shape, capacity, *, r, **_: min(r, *shape),
    freedom=randlora_a_freedom,
    freedom_at_most=zeros_in_bases,
)
RANDLORA_B = Method(
    title="RandLoRA-b",
    config=RandLoraBConfig,
    count=lambda shape, capacity, **_: half_bases(shape, capacity) * (capacity + min(shape)),
    max_capacity=lambda shapes, **_: max(-(-min(shape) // 2) for shape in shapes),  # one basis of half the rank
    build=functools.partial(build_randlora, bases_of=half_bases),
    published_lr=1e-3,
    published_lr_source="as RandLoRA",
    scale_rule="as RandLoRA",
    update_rank=lambda shape, capacity, **_: min(half_bases(shape, capacity) * capacity, *shape),
    freedom=lambda shape, capacity, **_: half_bases(shape, capacity) * (capacity + min(shape) - 1),
    freedom_at_most=zeros_in_bases,
)
