"""Gradient checkpointing: activations made again in the backward pass. Adapters repeat their dropout masks in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from trainables.errors import TrialError


@contextmanager
def recomputing(module: nn.Module) -> Iterator[None]:
    """Inside, the forward of a transformers model in training mode keeps the inputs of its layers alone.

    The backward pass may come after the block. Raises TrialError for a model that has no checkpointing.
    """
    # renamed in transformers 5, where the old names warn
    enable, disable = (
        getattr(module, f"activation_checkpointing_{verb}", None)
        or getattr(module, f"gradient_checkpointing_{verb}", None)
        for verb in ("enable", "disable")
    )
    if enable is None or disable is None or not getattr(module, "supports_gradient_checkpointing", False):
        raise TrialError(f"train.gradient_checkpointing: {type(module).__name__} does not support it; leave it out")
    enable({"use_reentrant": False})
    try:
        yield
    finally:
        disable()
