"""RandLoRA (arXiv 2502.00987): full-rank updates from frozen random bases and trained diagonals.

delta = scale * sum_{j=1..n} B_j diag(lambda_j) A diag(gamma_j) (equation 4), n = ceil(m / r), m = min(out, in).
lambda_j has r entries and gamma_j has m. gamma acts on the smaller dimension (on the input's if both are equal). For in
> out the delta is the transpose. One B (flat: max of out and in x max n r) and one A (max r x max m) serve all layers.
A layer reads B's first n r columns. Column k n + j is the k-th column of B_j, which is PEFT's pairing at any n.

Start: one diagonal is 0, so that the delta is 0 and that diagonal gets the first gradient.
  "lambda"  lambda = 0 and gamma = 1 / m, as PEFT and the released code for language models (the default)
  "gamma"   gamma = 0 and lambda = 1 / max(n, r), as the released code for images
With "gamma" a first step moves the delta m / max(n, r) times as far: 6 times for r = 6 on a 768-wide weight. Then n m
entries get a gradient instead of n r.

Scale: alpha / r if alpha is given, else `DEFAULT_SCALE` at every rank. alpha = "2r/sqrt(n)" is the paper's rule for
language models (appendix C.4). It gives layers of different shape different scales. Published codes differ: 1 / r and
10 / r (paper, CLIP), 2 / sqrt(n) (paper, LLM), 20 (PEFT). With a constant, steps are equally large at all ranks: with n
r = m terms, a step e in lambda moves the delta by scale * e / sqrt(m) (RMS) at any r. With the start "gamma", a step e
in gamma moves it by scale * e sqrt(m) / max(n, r).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora.adapter import Adapter, RankConfig, Request, Shape, trainable
from randlora.arithmetic import ternary
from randlora.arithmetic.bases import Bases, Draw, check_distribution
from randlora.arithmetic.contract import Spread, compute_dtype, spread_linear, spread_project, spread_weight
from randlora.arithmetic.plans import pays_to_accumulate
from randlora.errors import ConfigError, nearest
from randlora.methods.method import Method, full_rank

STARTS = ("lambda", "gamma")
DEFAULT_SCALE = 2.0
"""The default scale: the lower end of what RandLoRA's first author recommends (alpha from 2 r to 20 r).

It works at learning rates of 1e-3 to 1e-2.
"""


@dataclass(frozen=True)
class RandLoraConfig(RankConfig):
    """Configuration of RandLoRA (arXiv 2502.00987).

    Attributes:
        r: rank of one basis. A smaller r has more bases and more parameters.
        alpha: alpha / r is the scale of the delta; None: `DEFAULT_SCALE` at every rank. A rule such as "2r" or
            "2r/sqrt(n)" is accepted, with n bases for a weight.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        distribution: how the entries of the bases are distributed: "uniform", "normal", "binary" or "ternary".
        sparsity: s of a ternary basis, whose entries are 0 with probability 1 - 2 / s: a number from 2, or "sqrt" for
            sqrt(D), D the largest min(out, in) of the targets. The paper's s = 2, 6, sqrt(D), 100, 200 have 0, 66, 93,
            98 and 99 % zeros at D = 768 (section 6.4).
        sparse_a: whether A is ternary too. Otherwise only B is, and A is +-1.
        start: the diagonal that starts at 0, "lambda" or "gamma".
    """

    method: ClassVar[str] = "randlora"
    default_scale: ClassVar[float] = DEFAULT_SCALE
    by_bases: ClassVar[bool] = True
    words = MappingProxyType({"sparsity": ("sqrt",)})

    distribution: str = "uniform"
    sparsity: float | Literal["sqrt"] = 6.0
    sparse_a: bool = False
    start: str = "lambda"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sparsity(self.distribution, self.sparsity)
        check_start(self.method, self.start, STARTS)
        if self.sparse_a:
            warnings.warn(
                "sparse_a=True: a sparse A of few rows has all-zero columns and the delta loses rank; "
                "sparse_a=False keeps A at +-1 at the same cost",
                stacklevel=3,
            )

    def bases(self, shape: Shape) -> int:
        """Return the number of bases for a weight of this `shape` (out, in)."""
        return num_bases(shape, self.r)


def check_start(method: str, start: str, allowed: Sequence[str]) -> None:
    """Raise ConfigError for a `start` that the method does not have."""
    if start not in allowed:
        rule = "start must be " + " or ".join(map(repr, allowed))
        raise ConfigError(f"{method}: {rule} but got {start!r}; {nearest(start, allowed)}")


def check_sparsity(distribution: str, sparsity: float | str) -> None:
    """Raise ConfigError for an unknown distribution, or a sparsity that is neither "sqrt" nor at least 2."""
    if isinstance(sparsity, str) and sparsity != "sqrt":
        raise ConfigError(f"sparsity must be a number from 2 or 'sqrt' but got {sparsity!r}")
    check_distribution(distribution, 2.0 if isinstance(sparsity, str) else sparsity)


def num_bases(shape: Shape, r: int) -> int:
    """Return n = ceil(min(out, in) / r)."""
    return -(-min(shape) // r)


def randlora_count(shape: Shape, capacity: int, **options: Any) -> int:
    """Return n (r + m): the entries of lambda (r x n) and gamma (n x m)."""
    return num_bases(shape, capacity) * (capacity + min(shape))


def initial(
    start: str, r: int, n: int, m: int, request: Request, device: torch.device
) -> tuple[nn.Parameter, nn.Parameter]:
    """Return lambda (r x n) and gamma (n x m). The one that `start` names is 0, the other one is constant."""
    lambdas = torch.zeros(r, n, dtype=torch.float64)
    gammas = torch.zeros(n, m, dtype=torch.float64)
    if start == "lambda":
        gammas.fill_(1.0 / m)
    else:
        lambdas.fill_(1.0 / max(n, r))
    return trainable(lambdas, request, device), trainable(gammas, request, device)


def fp16_factor(large: int, dtype: torch.dtype | None) -> float:
    """Return a power of two near sqrt(large) that multiplies M and divides B in fp16; 1 for other types.

    M's entries are about scale * lambda / m, and fp16's steps there are 6e-8.
    """
    return 2.0 ** (large.bit_length() // 2) if dtype == torch.float16 else 1.0


class RandLora(Adapter):
    """RandLoRA of one weight: lambda (r x n) and gamma (n x m)."""

    def __init__(self, shape: Shape, r: int, n: int, config: RandLoraConfig, bases: Bases, request: Request) -> None:
        super().__init__(shape, config.dropout)
        device = bases.get("A").device
        self.r, self.n, self.scale = r, n, config.scale_of(n)
        self.tall = shape[0] >= shape[1]
        self.ternary = config.distribution == "ternary"
        self.bases = bases
        self.lambdas, self.gammas = initial(config.start, r, n, min(shape), request, device)

    def part(self, dtype: torch.dtype | None = None) -> Spread:
        """Return this layer's slices of the shared bases, with B in `dtype`."""
        factor = fp16_factor(self.bases.draws["B"].rows, dtype)
        b = self.bases.get("B", dtype, 1.0 / factor)
        large, inner = max(self.shape), self.n * self.r
        compact = ternary.compact_form(self.bases, b, large, inner) if self.ternary else None
        a = self.bases.get("A")[: self.r, : min(self.shape)]
        return Spread(a, b[:large, :inner], self.scale * factor, self.tall, compact)

    def delta(self, base: Tensor) -> Tensor:
        return spread_weight(None, (self.lambdas, self.gammas), self.part())

    def weight(self, base: Tensor) -> Tensor:
        dtype = compute_dtype(base)
        part = self.part(dtype if dtype != base.dtype else None)
        return spread_weight(base, (self.lambdas, self.gammas), part)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        part = self.part(compute_dtype(x))
        if self.dropping:
            return linear(x, base, bias) + self.delta_output(self.drop(x))
        if base.requires_grad:
            return linear(x, self.weight(base), bias)
        return spread_linear(x, base, bias, (self.lambdas, self.gammas), part)

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        return y + self.delta_output(self.drop(x)).to(y.dtype)

    def project(self, base: Tensor, grad: Tensor) -> None:
        spread_project((self.lambdas, self.gammas), self.part(), grad)

    def pays_to_accumulate(self, rows: int, micro_batches: int) -> bool:
        sizes = (rows, max(self.shape), min(self.shape), self.n * self.r)
        compact = self.part().compact
        return pays_to_accumulate(*sizes, micro_batches, gather_time=None if compact is None else compact.relative_time)

    def delta_output(self, x: Tensor) -> Tensor:
        """Return the delta's share of the output, x delta^T."""
        return spread_linear(x, None, None, (self.lambdas, self.gammas), self.part(compute_dtype(x)))


def spread_bases(
    request: Request, rows: int, columns: int, distribution: str, sparsity: float | str, *, sparse_a: bool = False
) -> Bases:
    """Return A (rows x the largest m) and B (the largest side x columns). A ternary B has a binary A unless `sparse_a`.

    A sparsity of "sqrt" is the root of the largest m, and at least 2.
    """
    shapes = list(request.shapes.values())
    s = max(2.0, math.sqrt(full_rank(shapes))) if isinstance(sparsity, str) else float(sparsity)
    a_kind = distribution if distribution != "ternary" or sparse_a else "binary"
    draws = {
        "A": Draw(rows, full_rank(shapes), a_kind, sparsity=s),
        "B": Draw(max(map(max, shapes)), columns, distribution, sparsity=s),
    }
    return Bases(request.basis_seed, draws, request.device, request.dtype)


def build_randlora(request: Request, bases_of: Callable[[Shape, int], int] = num_bases) -> dict[str, Adapter]:
    """Build the adapters on one A and one B for the largest target. Each weight has lambda and gamma for n =
    bases_of(shape, r)."""
    config, ranks = request.config, request.capacities
    assert isinstance(config, RandLoraConfig)
    sizes = {name: bases_of(shape, ranks[name]) for name, shape in request.shapes.items()}
    columns = max(n * ranks[name] for name, n in sizes.items())
    kind = (config.distribution, config.sparsity)
    bases = spread_bases(request, max(ranks.values()), columns, *kind, sparse_a=config.sparse_a)
    return {
        name: RandLora(shape, ranks[name], sizes[name], config, bases, request)
        for name, shape in request.shapes.items()
    }


def randlora_freedom(shape: Shape, r: int, **_: Any) -> int:
    """Return the degrees of freedom. In every basis, lambda times c and gamma over c give the same update."""
    return num_bases(shape, r) * (r + min(shape) - 1)


def zeros_in_bases(*, distribution: str, **_: Any) -> bool:
    """Return whether rows or columns of a basis may be all zero, so that the formula is an upper bound."""
    return distribution == "ternary"


RANDLORA = Method(
    title="RandLoRA",
    config=RandLoraConfig,
    count=randlora_count,
    build=build_randlora,
    published_lr=1e-3,
    published_lr_source="RandLoRA paper, Table 8 (CLIP)",
    scale_rule=f"alpha / r; by default {DEFAULT_SCALE:g} at every rank; '2r/sqrt(n)': by weight",
    update_rank=lambda shape, capacity, **_: min(shape),  # n r >= m
    freedom=randlora_freedom,
    freedom_at_most=zeros_in_bases,
)
