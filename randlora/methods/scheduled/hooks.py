"""The hooks of adapters that need more from a training loop than gradients: a step count, and a penalty on the loss.

hooks = hooks_in(model)                      # or adapted.hooks
penalty = hooks.regulariser()                # None for most methods
... backward, optimizer.step() ...
hooks.on_step(step, total)                   # step counts finished steps from 1; gradients must still be there

A schedule that learns from held-out rows (AutoLoRA's search of ranks) needs more: see `Schedule.held_out`, `apart`,
`on_held_out`, `phase` and `restarts`, and `randlora.methods.scheduled.bilevel`. Their defaults ask for nothing.
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from randlora.adapter import Adapter


class Schedule(ABC):
    """A schedule that the adapters of one model share and that follows the training (such as AdaLoRA's rank
    allocation)."""

    @abstractmethod
    def on_step(self, step: int, total: int) -> None:
        """Act after an optimiser step, before the gradients are cleared.

        Args:
            step: the number of finished steps.
            total: the number of steps of the training.
        """

    @property
    def order(self) -> int:
        """Return the order of the derivatives of the held-out loss: 1 or 2 (`randlora.methods.scheduled.bilevel`)."""
        return 1

    def apart(self) -> list[nn.Parameter]:
        """Return the trainables that the schedule trains itself, on held-out rows. They do not belong in the
        optimiser."""
        return []

    def held_out(self, step: int, total: int) -> float:
        """Return the share of the training rows that train only what `apart` returns.

        Args:
            step: the step, counted from 0.
            total: the number of steps of the training.
        """
        return 0.0

    def on_held_out(self) -> None:
        """Take a step on what `apart` returns, with its gradients, which come from held-out rows."""
        return

    def phase(self, step: int, total: int) -> tuple[int, int]:
        """Return the first step and the length of the part of the training that contains a step.

        Each part has its own learning-rate schedule.

        Args:
            step: the step, counted from 0.
            total: the number of steps of the training.
        """
        return 0, total

    def restarts(self, step: int, total: int) -> bool:
        """Return whether training begins anew after a step, so that the optimiser must forget its moments.

        Args:
            step: the number of finished steps.
            total: the number of steps of the training.
        """
        return False

    def regulariser(self) -> Tensor | None:
        """Return a scalar to add once to the loss of a step, however many micro-batches it has; None if there is no
        penalty."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return what the next step depends on besides the trainables, for a checkpoint."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""


class Hooks(Schedule):
    """The schedules of a set of adapters, called as one. It does nothing for methods without a schedule.

    Penalties are added. Of orders and held-out shares the largest counts, of phases the shortest.
    """

    def __init__(self, adapters: Iterable[Adapter]) -> None:
        schedules = [a.schedule for a in adapters if isinstance(a.schedule, Schedule)]
        self.schedules: tuple[Schedule, ...] = tuple({id(s): s for s in schedules}.values())

    def on_step(self, step: int, total: int) -> None:
        """Act after an optimiser step, before the gradients are cleared.

        Args:
            step: the number of finished steps.
            total: the number of steps of the training.
        """
        for schedule in self.schedules:
            schedule.on_step(step, total)

    def regulariser(self) -> Tensor | None:
        """Return a scalar to add once to the loss of a step; None if there is no penalty."""
        parts = [p for p in (s.regulariser() for s in self.schedules) if p is not None]
        return functools.reduce(operator.add, parts) if parts else None

    @property
    def order(self) -> int:
        """Return the highest order of the derivatives of the held-out loss: 1 or 2."""
        return max((s.order for s in self.schedules), default=1)

    def apart(self) -> list[nn.Parameter]:
        """Return the trainables that the schedules train themselves, on held-out rows. They do not belong in the
        optimiser."""
        return [p for s in self.schedules for p in s.apart()]

    def held_out(self, step: int, total: int) -> float:
        """Return the share of the training rows that train only what `apart` returns.

        Args:
            step: the step, counted from 0.
            total: the number of steps of the training.
        """
        return max((s.held_out(step, total) for s in self.schedules), default=0.0)

    def on_held_out(self) -> None:
        """Take a step on what `apart` returns, with its gradients, which come from held-out rows."""
        for schedule in self.schedules:
            schedule.on_held_out()

    def phase(self, step: int, total: int) -> tuple[int, int]:
        """Return the first step and the length of the shortest part of the training that contains a step.

        Args:
            step: the step, counted from 0.
            total: the number of steps of the training.
        """
        return min((s.phase(step, total) for s in self.schedules), key=lambda p: p[1], default=(0, total))

    def restarts(self, step: int, total: int) -> bool:
        """Return whether training begins anew after a step, so that the optimiser must forget its moments.

        Args:
            step: the number of finished steps.
            total: the number of steps of the training.
        """
        return any(s.restarts(step, total) for s in self.schedules)

    def state(self) -> dict[str, Tensor]:
        """Return all states in one flat table with keys "schedule.INDEX.NAME"."""
        return {f"schedule.{i}.{name}": t for i, s in enumerate(self.schedules) for name, t in s.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned. Other keys are ignored."""
        for i, schedule in enumerate(self.schedules):
            prefix = f"schedule.{i}."
            schedule.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def hooks_in(model: nn.Module) -> Hooks:
    """Return the hooks of the adapters that are installed in `model`.

    Without adapters, or if their methods have no schedule, the hooks do nothing.
    """
    return Hooks(m for m in model.modules() if isinstance(m, Adapter))
