"""Select the weights with the lowest validation loss so far (`train.select = "best"`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from randlora.model.sharded import whole
from trainables.models.sharded import split_like

_PREFIX = "best."


class Selected:
    """A copy, on the CPU, of the best weights among those that were offered. Of equal ones the earlier ones stay.

    If weights are split over workers, all workers must make the same calls with the same losses.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._best: dict[str, Tensor] = {}
        self._seen = torch.tensor(
            [0.0, math.inf, math.nan], dtype=torch.float64
        )  # the best step, its loss, the last loss

    def offer(self, step: int, loss: float) -> None:
        """Keep the weights of now, after `step`, if their loss is the lowest. A loss that is not finite never is."""
        self._seen[2] = loss
        if loss < self._seen[1]:
            self._seen[:2] = torch.tensor([step, loss], dtype=self._seen.dtype)
            self._best = {n: whole(p.detach()).to("cpu", copy=True) for n, p in self._parameters.items()}

    @torch.no_grad()
    def settle(self) -> dict[str, float]:
        """Put the best weights in place. Return their step, their loss and the last weights' loss by name; {} without
        an offer."""
        if not self._best:
            return {}
        for name, value in self._best.items():
            self._parameters[name].copy_(split_like(value, self._parameters[name]))
        return dict(zip(("selected-step", "selected-loss", "last-loss"), self._seen.tolist(), strict=True))

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint; {} without an offer."""
        return {_PREFIX + n: t for n, t in {"": self._seen.clone(), **self._best}.items()} if self._best else {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned. Other keys are ignored."""
        own_tensors = {n.removeprefix(_PREFIX): t for n, t in tensors.items() if n.startswith(_PREFIX)}
        self._seen = own_tensors.pop("", self._seen)
        self._best = own_tensors
