"""Methods that start from the singular value decomposition W0 = U diag(S) V^T of the weight that they change.

LoRA-XS (Balazy et al. 2024, arXiv 2405.17604): delta = scale U_r diag(S_r) R V_r^T. Only R (r x r) is trained. It
starts at 0, which is not a stationary point. (The authors start at 1e-5 times a normal draw.)

SVFT (Lingam et al. 2024, arXiv 2405.19597): delta = scale U M V^T with whole U and V. M (m x m) is trained on some
diagonals and zero elsewhere. The capacity is their number k: the main one, then +1, -1, +2, ... (The authors' "plain"
is k = 1, their "banded" with d off-diagonals is k = 2 d + 1.) M starts at 0.

U, V and starts differ in their last bits between machines, so checkpoints keep them. SVFT's are twice as large as the
weights, on disk and in memory: the price of the method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from randlora.adapter import AdapterConfig, RankConfig, Request, Shape, check_positive, each_weight, trainable
from randlora.arithmetic.contract import low_rank_linear
from randlora.methods.factored import Factored, singular
from randlora.methods.method import Method, full_rank


@dataclass(frozen=True)
class LoraXsConfig(RankConfig):
    """Configuration of LoRA-XS (arXiv 2405.17604).

    Attributes:
        r: side of the trained square matrix, at most min(out, in) of a weight.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
    """

    method: ClassVar[str] = "lora-xs"


@dataclass(frozen=True)
class SvftConfig(AdapterConfig):
    """Configuration of SVFT (arXiv 2405.19597).

    Attributes:
        k: number of trained diagonals of M.
        scale: multiplies the delta. The paper has no such factor.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
    """

    method: ClassVar[str] = "svft"
    capacity_field: ClassVar[str] = "k"

    k: int
    scale: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.method, "scale", self.scale)


def diagonals(m: int, k: int) -> tuple[int, int]:
    """Return how many trained diagonals lie above and below the main one: k - 1 in turn, at most m - 1 each."""
    return min(k // 2, m - 1), min((k - 1) // 2, m - 1)


def svft_count(shape: Shape, capacity: int, **options: Any) -> int:
    """Return the number of entries: m on the main diagonal, and m - i on the i-th beside it."""
    m = min(shape)
    above, below = diagonals(m, capacity)
    return m * (1 + above + below) - above * (above + 1) // 2 - below * (below + 1) // 2


class LoraXs(Factored):
    """LoRA-XS of one weight: the r x r matrix between `left` = U_r diag(S_r) and `right` = V_r, which are frozen."""

    derived: ClassVar[tuple[str, ...]] = ("left", "right")
    left: Tensor
    right: Tensor

    def __init__(self, name: str, config: LoraXsConfig, request: Request) -> None:
        base = request.weights[name]
        super().__init__(request.shapes[name], config.dropout)
        self.scale = config.scale
        r = min(request.capacities[name], *self.shape)
        u, s, v = singular(base, request.dtype)
        self.register_buffer("left", u[:, :r] * s[:r], persistent=False)
        self.register_buffer("right", v[:, :r].contiguous(), persistent=False)
        self.core = trainable(torch.zeros(r, r), request, base.device)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.right, self.left @ self.core


class Svft(Factored):
    """SVFT of one weight: the entries of M's diagonals in one vector, between whole singular bases."""

    derived: ClassVar[tuple[str, ...]] = ("left", "right")
    left: Tensor
    right: Tensor

    def __init__(self, name: str, config: SvftConfig, request: Request) -> None:
        base = request.weights[name]
        super().__init__(request.shapes[name], config.dropout)
        self.scale = config.scale
        m, k = min(self.shape), request.capacities[name]
        above, below = diagonals(m, k)
        self.offsets = [0, *range(1, above + 1), *range(-1, -below - 1, -1)]
        self._places: Tensor | None = None
        u, _, v = singular(base, request.dtype)
        self.register_buffer("left", u.contiguous(), persistent=False)
        self.register_buffer("right", v.contiguous(), persistent=False)
        self.entries = trainable(torch.zeros(svft_count(self.shape, k)), request, base.device)

    def places(self) -> Tensor:
        """Return where the entries lie in M, row by row. The o-th diagonal above starts at o, the o-th below at o m."""
        if self._places is None or self._places.device != self.entries.device:
            m = min(self.shape)
            with torch.inference_mode(False):  # training must be able to use what an evaluation made
                runs = [torch.arange(m - abs(o)) * (m + 1) + (o if o >= 0 else -o * m) for o in self.offsets]
                self._places = torch.cat(runs).to(self.entries.device)
        return self._places

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: all but the places, which torch.func may have made unfit to copy."""
        return self.__dict__ | {"_places": None}

    def middle(self) -> Tensor:
        """Return M (m x m)."""
        m = min(self.shape)
        return self.entries.new_zeros(m * m).index_put((self.places(),), self.entries).view(m, m)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.right, self.left @ self.middle()

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        (out, width), m, rows = self.shape, min(self.shape), x.numel() // x.shape[-1]
        if rows * (out + width + m) >= out * (width + m):
            return super().linear(x, base, bias)
        # for few rows, three products cost less than U M and one merged weight
        return low_rank_linear((x, self.drop(x)), base, bias, (self.right, self.left), self.scale, self.middle())


LORA_XS = Method(
    title="LoRA-XS",
    config=LoraXsConfig,
    count=lambda shape, capacity, **_: min(capacity, *shape) ** 2,
    build=each_weight(LoraXs),
    published_lr=1e-3,
    published_lr_source="as LoRA; no CLIP rate was published",
    scale_rule="alpha / r, alpha = r by default, so 1",
    update_rank=lambda shape, capacity, **_: min(capacity, *shape),
    freedom=lambda shape, capacity, **_: min(capacity, *shape) ** 2,
)
SVFT = Method(
    title="SVFT",
    config=SvftConfig,
    count=svft_count,
    max_capacity=lambda shapes, **_: 2 * full_rank(shapes) - 1,  # all diagonals of the largest M
    build=each_weight(Svft),
    published_lr=5e-3,
    published_lr_source="ours: no CLIP rate was published; a step of M's entries moves the delta less than LoRA's",
    scale_rule="scale, 1 by default",
    update_rank=lambda shape, capacity, **_: min(shape),  # the main diagonal lies between all singular vectors
    freedom=svft_count,
)
