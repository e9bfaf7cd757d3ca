"""AutoLoRA (Zhang et al. 2024, arXiv 2403.09113): a LoRA whose rank at every weight is found by meta learning.

While it searches, a weight has more rank-1 terms than the budget pays for (`initial` times r). Each term has a
selection variable: delta = scale * sum_j w_j b_j a_j^T with w = k softmax(selection) for k terms, so w = 1 at the
start. Most of the training rows train the terms. The rest is held out for the whole search, and trains the selection
variables: by the gradient of the held-out loss after a step of the terms (`bilevel`). `order = 2` follows the terms'
step by finite differences, as the paper does; `order = 1` leaves that out. After the share `search` of the training,
the terms with the largest w are kept and the others dropped. What is left starts anew, and is trained as a plain LoRA
on all rows. This needs the training loop's hooks (`Adapted.hooks`). Without them the selection variables are ordinary
trainables, and nothing is dropped.

The paper keeps the terms with w >= 1 (its threshold 1 / k), so its count is known only at the end. This method keeps
the largest terms of the whole model that the budget pays for, because a comparison at equal counts needs the count
beforehand. The capacity r is the average rank at the end, and `count()` is that of LoRA at r.

From the authors' code: Adam with learning rate 3e-4 and betas (0.5, 0.999) for the selection, 30 % of the rows held
out, 8 terms of which about 4 are left. That code retrains for as many epochs as a run without a search. Here the search
is part of the training, so that no method sees more samples. Start: as LoRA's. Scale: alpha / r; alpha = r by default,
so 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from randlora.adapter import Request, check_positive, check_share, trainable
from randlora.arithmetic.bases import Draw, derive_seed, draw
from randlora.errors import ConfigError
from randlora.methods.lowrank.lora import lora_count
from randlora.methods.method import Method, low_rank_freedom
from randlora.methods.scheduled.ranks import Ranks, Terms, TermsConfig, ranked

BETAS = (0.5, 0.999)


@dataclass(frozen=True)
class AutoLoraConfig(TermsConfig):
    """Configuration of AutoLoRA (arXiv 2403.09113).

    Attributes:
        r: average final rank.
        alpha: alpha / r is the scale of the delta; None: 1 at every rank. A rule such as "2r" is a scale of 2 at every
            rank.
        dropout: probability of dropout on the adapter's input. Packed weights cannot have it.
        initial: a weight starts with this many times r terms.
        search: the share of the training that looks for the ranks.
        held_out: the share of the rows that train the selection variables meanwhile.
        selection_lr: the learning rate of Adam for the selection variables.
        order: 2 follows the terms' step by finite differences, as the paper does; 1 leaves that out.
    """

    method: ClassVar[str] = "autolora"

    search: float = 0.5
    held_out: float = 0.3
    selection_lr: float = 3e-4
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("autolora", "selection_lr", self.selection_lr)
        check_share("autolora", "search", self.search)
        check_share("autolora", "held_out", self.held_out)
        if self.order not in (1, 2):
            raise ConfigError(f"autolora: order must be 1 or 2 (derivatives) but got {self.order!r}")


class AutoLora(Terms):
    """AutoLoRA of one weight: A transposed (in x k), B (out x k) and the selection variables (k)."""

    def __init__(self, name: str, config: AutoLoraConfig, request: Request) -> None:
        super().__init__(name, config, request)
        (out, width), device = self.shape, request.weights[name].device
        self.cost = out + width
        self._seed = None if device.type == "meta" else derive_seed("lora", request.init_seed, name)
        self.a = trainable(self._start("a"), request, device)
        self.b = trainable(torch.zeros(out, self.terms), request, device)
        self.selection = trainable(torch.zeros(self.terms), request, device)

    def _start(self, stream: str) -> Tensor:
        width = self.shape[1]
        if self._seed is None:
            return torch.empty(width, self.terms, device="meta")
        return draw(self._seed, stream, Draw(width, self.terms, std=1.0 / math.sqrt(3.0 * width)))

    def weights(self) -> Tensor:
        """Return w (k), the weights of the terms while the search runs. Their mean is 1."""
        return torch.softmax(self.selection, 0) * self.terms

    def factors(self) -> tuple[Tensor, Tensor]:
        kept_terms = self.kept()
        if kept_terms is None:
            return self.a * self.weights(), self.b
        return self.a[:, kept_terms], self.b[:, kept_terms]

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Give the terms a new start, and weights of 1."""
        self.a.copy_(self._start("a after the search"))
        self.b.zero_()
        self.selection.zero_()


class Selector(Ranks[AutoLora]):
    """The search of one model: the optimiser of the selection variables, and which terms are kept."""

    def __init__(self, adapters: Sequence[AutoLora], config: AutoLoraConfig) -> None:
        super().__init__(adapters)
        self.config = config
        self._adam = torch.optim.Adam(self.apart(), lr=config.selection_lr, betas=BETAS)

    @property
    def order(self) -> int:
        return self.config.order

    def _end(self, total: int) -> int:
        """Return the last step of the search. At least one more step must train the new start, which is the
        base model."""
        if total < 2 and not self.finished:
            raise ConfigError(
                f"autolora: of {total} training step none is left after the search; train for 2 at least, or take lora"
            )
        return min(max(1, round(self.config.search * total)), total - 1)

    def apart(self) -> list[nn.Parameter]:
        return [a.selection for a in self.adapters]

    def held_out(self, step: int, total: int) -> float:
        # after the last step of the search the terms start anew, so nothing need be learnt for them
        return 0.0 if self.finished or step + 1 >= self._end(total) else self.config.held_out

    def phase(self, step: int, total: int) -> tuple[int, int]:
        end = self._end(total)
        return (0, end) if step < end else (end, total - end)

    def on_held_out(self) -> None:
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def on_step(self, step: int, total: int) -> None:
        for selection in self.apart():  # the gradients come from the rows that train the terms
            selection.grad = None
        if not self.finished and step >= self._end(total):
            self._kept = self._choose()
            for adapter in self.adapters:
                adapter.begin_anew()
            self._adam.state.clear()

    def restarts(self, step: int, total: int) -> bool:
        return step == self._end(total)

    @torch.no_grad()
    def _choose(self) -> Tensor:
        """Return the terms with the largest weights that fit into the budget."""
        weights = torch.cat([a.weights() for a in self.adapters])
        costs = [a.cost for a in self.adapters]
        return self.best(weights, costs, sum(a.cost * a.r for a in self.adapters))

    def state(self) -> dict[str, Tensor]:
        tensors = super().state()
        for i, selection in enumerate(self.apart()):
            for key, value in self._adam.state.get(selection, {}).items():
                tensors[f"{i}.{key}"] = value
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        device = self.adapters[0].selection.device
        self._adam.state.clear()
        for i, selection in enumerate(self.apart()):
            moments = {k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{i}.")}
            if moments:  # torch keeps the step on the CPU
                places = {k: torch.device("cpu") if k == "step" else device for k in moments}
                self._adam.state[selection] = {k: v.to(places[k]).clone() for k, v in moments.items()}


AUTOLORA = Method(
    title="AutoLoRA",
    config=AutoLoraConfig,
    count=lora_count,  # at the end
    build=ranked(AutoLora, Selector),
    published_lr=1e-3,
    published_lr_source="as LoRA; no CLIP rate was published",
    scale_rule="alpha / r, alpha = r by default, so 1",
    scheduled=True,
    holds_out=True,
    update_rank=lambda shape, capacity, **_: min(capacity, *shape),
    freedom=lambda shape, capacity, **_: low_rank_freedom(shape, capacity),
)
