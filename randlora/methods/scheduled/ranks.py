"""What AdaLoRA and AutoLoRA share: they build more rank-1 terms than the budget pays for, and keep the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from randlora.adapter import Adapter, Build, RankConfig, Request
from randlora.errors import CheckpointError, ConfigError
from randlora.methods.factored import Factored
from randlora.methods.scheduled.hooks import Schedule

MOST = 1_000_000
"""The largest `initial`. It is far beyond what any weight can use, and far from an overflow."""


@dataclass(frozen=True)
class TermsConfig(RankConfig):
    """Configuration with `r`, the average final rank. A weight starts with `initial` times as many terms as it ends
    with."""

    initial: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1.0 <= self.initial <= MOST:
            raise ConfigError(
                f"{self.method}: initial must be at least 1 (times the final rank), and at most {MOST:,}, but got "
                f"{self.initial!r}"
            )

    def initial_rank(self, r: int) -> int:
        """Return the number of terms that a weight of final rank r starts with."""
        return math.ceil(self.initial * r)


class Terms(Factored):
    """An adapter of `terms` rank-1 terms, of which the budget pays for r. `cost`: parameters of one term.

    A transposed, `a`, is (in x terms), and `b` is (out x terms).
    """

    cost: int
    a: nn.Parameter
    b: nn.Parameter

    def __init__(self, name: str, config: TermsConfig, request: Request) -> None:
        super().__init__(request.shapes[name], config.dropout)
        self.r, self.scale = request.capacities[name], config.scale
        self.terms = config.initial_rank(self.r)

    def kept(self) -> Tensor | None:
        """Return which terms are left, bool (terms); None until the schedule is finished."""
        assert isinstance(self.schedule, Ranks)
        kept_terms: Tensor | None = self.schedule.kept_of(self)
        return kept_terms

    def count(self) -> int:
        """Return the number of parameters that the budget pays for. Once the schedule is finished: those of the terms
        that are left."""
        kept_terms = self.kept()
        return (self.r if kept_terms is None else int(kept_terms.sum())) * self.cost


A = TypeVar("A", bound=Terms)


class Ranks(Schedule, Generic[A]):
    """Decides which terms of a model's weights are kept."""

    def __init__(self, adapters: Sequence[A]) -> None:
        self.adapters = list(adapters)
        self.sizes = [a.terms for a in self.adapters]
        ends = zip(self.adapters, accumulate(self.sizes), strict=True)
        self._places: dict[Terms, slice] = {a: slice(end - a.terms, end) for a, end in ends}
        self._kept: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Return whether the ranks are final."""
        return self._kept is not None

    def kept_of(self, adapter: Terms) -> Tensor | None:
        """Return which terms of one weight are kept, bool (terms); None while the schedule runs."""
        if self._kept is None:
            return None
        return self._kept[self._places[adapter]]

    def best(self, scores: Tensor, costs: Sequence[int], budget: int) -> Tensor:
        """Return the terms with the highest scores that fit into `budget`, bool as `scores`.

        A term that no longer fits is skipped in favour of a cheaper one.

        Args:
            scores: the scores of all terms, one weight after another.
            costs: the parameters of one term, for each weight.
            budget: the parameters of all kept terms at most.
        """
        order = torch.argsort(scores, descending=True, stable=True)
        cost_of_term = [c for c, size in zip(costs, self.sizes, strict=True) for _ in range(size)]
        is_kept = torch.zeros(len(cost_of_term), dtype=torch.bool)
        for index in order.tolist():
            if cost_of_term[index] <= budget:
                is_kept[index] = True
                budget -= cost_of_term[index]
        return is_kept.to(scores.device)

    def state(self) -> dict[str, Tensor]:
        return {} if self._kept is None else {"kept": self._kept.to(torch.uint8)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        kept_terms = state.get("kept")
        if kept_terms is not None and kept_terms.shape != (sum(self.sizes),):
            raise CheckpointError(
                f"the schedule's kept has shape {tuple(kept_terms.shape)} in the state, the adapters have "
                f"{sum(self.sizes)} terms"
            )
        self._kept = None if kept_terms is None else kept_terms.to(self.adapters[0].a.device).bool()


def ranked(terms: Callable[[str, Any, Request], A], schedule: Callable[[Sequence[A], Any], Ranks[A]]) -> Build:
    """Return a `Build` that makes terms for every weight and one schedule for all of them."""

    def build(request: Request) -> dict[str, Adapter]:
        adapters = {name: terms(name, request.config, request) for name in request.weights}
        shared = schedule(list(adapters.values()), request.config)
        for adapter in adapters.values():
            adapter.schedule = shared
        return dict(adapters)

    return build
