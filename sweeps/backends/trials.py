"""Runs one trial in a worker's process, with smaller micro-batches if memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from sweeps.backends.memory import MicroBatch, free_memory, out_of_memory
from sweeps.backends.reports import load_trial
from sweeps.errors import reason
from trainables.config import TrialConfig


class GroupOutOfMemoryError(RuntimeError):
    """A trial that several workers share ran out of memory: all of them must start it again together."""


def train(
    order: Mapping[str, Any], warm: dict[str, Any], micro: MicroBatch, rank: int = 0, world: int = 1
) -> Generator[dict[str, Any], None, None]:
    """Yield the reports of a trial. If it runs out of memory, it starts again with half the micro-batch.

    Args:
        order: the order, as a backend passes it to its workers (`Order.for_worker`).
        warm: cache of models and data, which stays from trial to trial.
        micro: the number of examples that pass through the model at once.
        rank: index of this worker among those that share the trial.
        world: number of workers that share the trial.

    Raises:
        GroupOutOfMemoryError: memory ran out, and the trial has several workers.
        TrialError: the micro-batch can't be smaller.
        Exception: any error that the trial raises.
    """
    function, config = load_trial(order["trial"]), TrialConfig.model_validate(order["config"])
    while True:
        more = {} if micro.smaller is None else {"micro_batch_size": micro.smaller}
        try:
            trial = function(
                config,
                warm=warm,
                directory=Path(order["directory"]),
                keep=order["keep"] is not None,
                rank=rank,
                world=world,
                **more,
            )
            with contextlib.closing(trial):
                yield from trial
            return
        except Exception as error:
            if not out_of_memory(error):
                raise
            why = reason(error)
        # out of the handler: the exception's frames hold tensors
        warm.clear()
        free_memory()
        if world > 1:  # the other ranks may sit in a collective
            raise GroupOutOfMemoryError(why)
        micro.shrink(why)


def ended_early() -> RuntimeError:
    """Return the error for a trial function that returns before its last report."""
    return RuntimeError("the trial function returned without a report that has done = True")
