"""What a lane's controller loads of this package. Without torch it takes half the memory, and starts sooner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.train import BackendConfig, UserCallback

from sweeps.backends.ray.compat import death_of
from sweeps.errors import reason


@dataclass
class Independent(BackendConfig):  # type: ignore[misc]  # Ray's classes carry no types for us
    """Workers without a process group between them: each runs its own trials."""

    backend: str = "none"
    """`TorchTrainer` sets it where it is empty, and nobody reads it."""


class Deaths(UserCallback):  # type: ignore[misc]
    """Tells the broker which workers died and why, before Ray Train starts their lane again. Runs in its controller."""

    def __init__(self, broker: Any, lane: str, group: bool) -> None:
        self.broker, self.lane, self.group = broker, lane, group

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        deaths = {rank: death_of(error) for rank, error in worker_exceptions.items()}
        # an error of a trial is none: its worker tells it
        causes = {rank: cause for rank, cause in deaths.items() if cause is not None}
        if causes:
            reasons = {
                f"{self.lane}/{0 if self.group else rank}": None if _away(cause) else reason(cause)
                for rank, cause in causes.items()
            }
            memory = any(
                isinstance(cause, ray.exceptions.OutOfMemoryError) or "out of memory" in str(cause).lower()
                for cause in causes.values()
            )
            ray.get(self.broker.died.remote(self.lane, reasons, memory=memory))


def _away(cause: Exception) -> bool:
    """Whether a worker was lost with its machine, or the way to it: no trial's doing."""
    if isinstance(cause, ray.exceptions.ActorDiedError):
        return cause.preempted or "its node has died" in str(cause)  # Ray's control store says so, and no class does
    return isinstance(cause, ray.exceptions.ActorUnavailableError)
