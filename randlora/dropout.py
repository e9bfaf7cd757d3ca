"""Dropout masks that follow a named seed, and that gradient checkpointing gets a second time.

A checkpointed forward runs again inside backward and must drop what it dropped before. So each draw has a number, and
the mask is a function of (seed, number). `torch.utils.checkpoint` rewinds torch's global CPU generator. Every draw
takes one value of it as a label; a draw inside backward takes the number that its label stands for. The masks
themselves never depend on the global generator. On CUDA they are drawn by the device, whose numbers are not the CPU's.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Generator, Tensor

from randlora.arithmetic.bases import derive_seed
from randlora.errors import AdapterError

_REMEMBERED = 1024
"""Draws of one adapter between a forward and the backward that repeats it."""


class Masks:
    """The stream of masks of one adapter's input, keeping each entry with probability 1 - `dropout`."""

    def __init__(self, dropout: float, seed: int = 0) -> None:
        self.dropout = dropout
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Start the stream at `seed`."""
        self._seed, self._next = seed, 0
        self._numbers: OrderedDict[int, int] = OrderedDict()

    def seed(self) -> int:
        """The seed of the next draw.

        Raises `AdapterError` in a recomputation whose first run is unknown (checkpoint's preserve_rng_state=False).
        """
        number = self._number(int(torch.randint(1 << 62, ())))
        return derive_seed("mask", self._seed, number)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # Python state: torch.compile goes around it
    def draw(self, x: Tensor) -> Tensor:
        """A mask for x, of x's shape, dtype and device: 0 or 1 / (1 - dropout). Raises as `seed` does."""
        there = x.device if x.device.type == "cuda" else torch.device("cpu")
        generator = Generator(there).manual_seed(self.seed())
        keep = torch.empty(x.shape, device=there).bernoulli_(1.0 - self.dropout, generator=generator)
        return keep.to(device=x.device, dtype=x.dtype).div_(1.0 - self.dropout)

    def _number(self, label: int) -> int:
        if torch._C._current_graph_task_id() != -1:  # inside backward: torch.utils.checkpoint asks the same way
            if label not in self._numbers:
                raise AdapterError(
                    "a forward with adapter dropout runs again inside backward, but its first run is not known: "
                    "gradient checkpointing needs preserve_rng_state=True (its default), or set dropout = 0.0"
                )
            return self._numbers[label]
        number, self._next = self._next, self._next + 1
        self._numbers[label] = number
        if len(self._numbers) > _REMEMBERED:
            self._numbers.popitem(last=False)
        return number
