"""The part of this package that a lane's controller imports. Without torch it takes half the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.train import BackendConfig, UserCallback

from sweeps.backends.ray.compat import death_of
from sweeps.errors import reason


@dataclass
class IndependentWorkers(BackendConfig):  # type: ignore[misc]  # Ray's classes carry no types for us
    """A Ray Train backend without a process group: each worker runs its own trials."""

    backend: str = "none"
    """Not read. It is not empty, because `TorchTrainer` would then set it."""


class Deaths(UserCallback):  # type: ignore[misc]
    """A callback that tells the broker which workers died and why, before Ray Train starts their lane again."""

    def __init__(self, broker: Any, lane: str, group: bool) -> None:
        self.broker, self.lane, self.group = broker, lane, group

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        deaths = {rank: death_of(error) for rank, error in worker_exceptions.items()}
        # None: a trial raised, and its worker reports that
        causes = {rank: cause for rank, cause in deaths.items() if cause is not None}
        if causes:
            reasons = {
                f"{self.lane}/{0 if self.group else rank}": None if _lost_with_node(cause) else reason(cause)
                for rank, cause in causes.items()
            }
            memory = any(
                isinstance(cause, ray.exceptions.OutOfMemoryError) or "out of memory" in str(cause).lower()
                for cause in causes.values()
            )
            ray.get(self.broker.died.remote(self.lane, reasons, memory=memory))


def _lost_with_node(cause: Exception) -> bool:
    """Return whether a worker was lost because its node was lost or cannot be reached, which is no trial's fault."""
    if isinstance(cause, ray.exceptions.ActorDiedError):
        return cause.preempted or "its node has died" in str(cause)  # Ray's control store says so, and no class does
    return isinstance(cause, ray.exceptions.ActorUnavailableError)
