"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): LoRA triplets under a budget that moves to the weights that need it.

delta = scale * B diag(e) A. Training starts with more triplets than the budget pays for: `initial` times r on every
weight. It measures how much each triplet matters (smoothed |parameter * gradient| times its variability, section 3.2).
Between the steps `start * total` and `stop * total`, more and more of the least important triplets of the whole model
get e = 0, by a cubic schedule (section 3.3). After that the pattern stays. A penalty keeps A and B near orthonormal.

It does the same as PEFT, step for step, with two differences. The schedule is given in fractions of the training. And
`allocate = "parameters"` (the default) fills the final budget by the parameters that a triplet costs (out + in + 1), so
that the count is right whichever weights keep triplets. "ranks" counts triplets alone, as PEFT does; a model of unequal
weights then ends above or below its budget. (PEFT 0.21.2 also lets the optimiser change the divisor of the scale,
`ranknum`, and adds the penalty only if the model's own output has a `loss` and is called through `base_model`.)

The capacity r is the average final rank. It is the budget, and `count()` returns its count. Until the schedule is
finished, `initial` times as much is built and trained. The schedule needs the training loop's hooks (`Adapted.hooks`).
Without them nothing is cut.

Start: A and B are normal with standard deviation 0.02, and e = 0. Scale: alpha / init_r, also after cuts. The default
is `DEFAULT_SCALE`, because at 1 a step of e would hardly move the delta (0.02 squared per triplet).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from randlora.adapter import Request, check_capacity, check_share, trainable
from randlora.arithmetic.bases import Draw
from randlora.errors import ConfigError, nearest
from randlora.methods.factored import drawn_start
from randlora.methods.method import Method, low_rank_freedom
from randlora.methods.scheduled.ranks import Ranks, Terms, TermsConfig, ranked

ALLOCATE = ("parameters", "ranks")
DEFAULT_SCALE = 32.0
"""The default scale. With it a first step moves the delta about as far as LoRA's: 32 * 0.02^2 sqrt(1.5) against 1 /
sqrt(3 * 768)."""


@dataclass(frozen=True)
class AdaLoraConfig(TermsConfig):
    """Configuration of AdaLoRA (arXiv 2303.10512).

    Attributes:
        r: average final rank.
        alpha: alpha / init_r is the scale of the delta; None: `DEFAULT_SCALE`.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        initial: a weight starts with this many times r triplets (init_r).
        start, stop: shares of the training between which triplets are cut.
        interval: steps between two cuts.
        beta_importance, beta_uncertainty: how slowly the averages of importance and of its variability change, in (0,
            1).
        orthogonal: weight of the penalty that keeps A and B near orthonormal; 0: no penalty.
        allocate: "parameters" fills the final budget by what a triplet costs, "ranks" by the number of triplets, as
            PEFT.
    """

    method: ClassVar[str] = "adalora"
    default_scale: ClassVar[float] = DEFAULT_SCALE

    initial: float = 1.5
    start: float = 0.1
    stop: float = 0.5
    interval: int = 10
    beta_importance: float = 0.85
    beta_uncertainty: float = 0.85
    orthogonal: float = 0.5
    allocate: str = "parameters"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_capacity("adalora", "interval", self.interval)
        if not 0.0 <= self.start < self.stop <= 1.0:
            raise ConfigError(
                f"adalora: 0 <= start < stop <= 1 must hold (fractions of the training) but got start = {self.start!r} "
                f"and stop = {self.stop!r}"
            )
        check_share("adalora", "beta_importance", self.beta_importance)
        check_share("adalora", "beta_uncertainty", self.beta_uncertainty)
        if not self.orthogonal >= 0.0:
            raise ConfigError(f"adalora: orthogonal must not be negative but got {self.orthogonal!r}")
        if self.allocate not in ALLOCATE:
            raise ConfigError(f"adalora: unknown allocate {self.allocate!r}; {nearest(self.allocate, ALLOCATE)}")

    @property
    def scale(self) -> float:
        """Return alpha / init_r, or the default scale if alpha is None. It is one number for all layers."""
        return self.over(self.initial_rank(self.r))


class AdaLora(Terms):
    """AdaLoRA of one weight: A transposed (in x init_r), B (out x init_r) and e (init_r)."""

    def __init__(self, name: str, config: AdaLoraConfig, request: Request) -> None:
        super().__init__(name, config, request)
        (out, width), device = self.shape, request.weights[name].device
        self.cost = out + width + 1
        self.a = trainable(drawn_start(name, "a", request, Draw(width, self.terms, "normal", 0.02)), request, device)
        self.b = trainable(drawn_start(name, "b", request, Draw(out, self.terms, "normal", 0.02)), request, device)
        self.e = trainable(torch.zeros(self.terms), request, device)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a * self.e, self.b


class Allocator(Ranks[AdaLora]):
    """Scores the importance of every triplet of a model, and decides which are kept."""

    def __init__(self, adapters: Sequence[AdaLora], config: AdaLoraConfig) -> None:
        super().__init__(adapters)
        self.config = config
        self._smooth: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_step(self, step: int, total: int) -> None:
        begin, end = round(self.config.start * total), max(1, round(self.config.stop * total))
        if self._kept is not None:
            self._cut(self._kept)
            return
        if step < end or not self._smooth:
            self._follow()
        if step >= end:
            self._kept = self._choose(0.0)
            self._smooth = {}
            self._cut(self._kept)
        elif step > begin and step % self.config.interval == 0:
            self._cut(self._choose((1.0 - (step - begin) / (end - begin)) ** 3))

    def regulariser(self) -> Tensor | None:
        """Return orthogonal * mean over all A and B of ||P^T P - 1||_F; None if `orthogonal` is 0."""
        if self.config.orthogonal == 0.0:
            return None
        factors = [p for adapter in self.adapters for p in (adapter.a, adapter.b)]
        parts = [torch.linalg.matrix_norm(p.t() @ p - torch.eye(p.shape[1]).to(p)) for p in factors]
        return torch.stack(parts).mean() * self.config.orthogonal

    def state(self) -> dict[str, Tensor]:
        return {**self._smooth, **super().state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        device = self.adapters[0].e.device
        self._smooth = {name: t.to(device).clone() for name, t in state.items() if name != "kept"}

    def _follow(self) -> None:
        """Update the smoothed sensitivity |p g| and its variability, for each parameter."""
        c = self.config
        for i, adapter in enumerate(self.adapters):
            for key, p in (("a", adapter.a), ("b", adapter.b), ("e", adapter.e)):
                now = torch.zeros_like(p) if p.grad is None else (p * p.grad).abs()
                mean = self._smooth.setdefault(f"{i}.{key}.importance", torch.zeros_like(p))
                spread = self._smooth.setdefault(f"{i}.{key}.uncertainty", torch.zeros_like(p))
                mean.mul_(c.beta_importance).add_(now, alpha=1.0 - c.beta_importance)
                spread.mul_(c.beta_uncertainty).add_((now - mean).abs_(), alpha=1.0 - c.beta_uncertainty)

    def _scores(self) -> Tensor:
        """Return one score per triplet: e's, plus the means over A's row and B's column."""

        def score(i: int, key: str) -> Tensor:
            return self._smooth[f"{i}.{key}.importance"] * self._smooth[f"{i}.{key}.uncertainty"]

        n = range(len(self.adapters))
        return torch.cat([score(i, "e") + score(i, "a").mean(0) + score(i, "b").mean(0) for i in n])

    def _choose(self, remaining: float) -> Tensor:
        """Return which triplets to keep if the share `remaining` of the way from the initial to the final budget is
        left."""
        by_cost = self.config.allocate == "parameters"
        costs = [a.cost if by_cost else 1 for a in self.adapters]
        first = sum(c * a.terms for c, a in zip(costs, self.adapters, strict=True))
        last = sum(c * a.r for c, a in zip(costs, self.adapters, strict=True))
        return self.best(self._scores(), costs, int((first - last) * remaining + last))

    def _cut(self, kept: Tensor) -> None:
        """Set e to 0 for the triplets that are not kept."""
        for adapter, part in zip(self.adapters, torch.split(kept, self.sizes), strict=True):
            adapter.e.masked_fill_(~part, 0.0)


ADALORA = Method(
    title="AdaLoRA",
    config=AdaLoraConfig,
    count=lambda shape, capacity, **_: capacity * (shape[0] + shape[1] + 1),
    build=ranked(AdaLora, Allocator),
    published_lr=1e-3,
    published_lr_source="as LoRA; no CLIP rate was published",
    scale_rule=f"alpha / the initial rank; by default {DEFAULT_SCALE:g}",
    scheduled=True,
    update_rank=lambda shape, capacity, **_: min(capacity, *shape),  # at the end
    freedom=lambda shape, capacity, **_: low_rank_freedom(shape, capacity),
)
