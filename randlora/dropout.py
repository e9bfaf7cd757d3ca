"""Dropout masks that follow a named seed, and that gradient checkpointing gets a second time.

With gradient checkpointing, a forward runs again inside backward, and must drop the same entries. So each draw has a
number, and the mask is a function of (seed, number). Every draw takes one value from torch's global CPU generator as a
label. `torch.utils.checkpoint` resets that generator before it repeats a forward, so the repeated draw gets the same
label, and with it the number of the first draw. The masks themselves do not depend on the global generator. On CUDA the
device draws the masks, and its random numbers differ from the CPU's.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Generator, Tensor

from randlora.arithmetic.bases import derive_seed
from randlora.errors import AdapterError

_REMEMBERED = 1024
"""Number of draws whose labels an adapter remembers, between a forward and the backward that repeats it."""


class Masks:
    """The stream of dropout masks of one adapter. A mask keeps each entry with probability 1 - `dropout`."""

    def __init__(self, dropout: float, seed: int = 0) -> None:
        self.dropout = dropout
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Restart the stream at `seed`."""
        self._seed, self._next = seed, 0
        self._numbers: OrderedDict[int, int] = OrderedDict()

    def seed(self) -> int:
        """Return the seed of the next mask.

        Raises:
            AdapterError: a forward is repeated whose first run is not known (checkpointing with
                preserve_rng_state=False).
        """
        number = self._number(int(torch.randint(1 << 62, ())))
        return derive_seed("mask", self._seed, number)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # Python state: torch.compile goes around it
    def draw(self, x: Tensor) -> Tensor:
        """Return a mask of x's shape, dtype and device, with entries 0 or 1 / (1 - dropout). Raises AdapterError as
        `seed` does."""
        device = x.device if x.device.type == "cuda" else torch.device("cpu")
        generator = Generator(device).manual_seed(self.seed())
        keep = torch.empty(x.shape, device=device).bernoulli_(1.0 - self.dropout, generator=generator)
        return keep.to(device=x.device, dtype=x.dtype).div_(1.0 - self.dropout)

    def _number(self, label: int) -> int:
        """Return the number of a draw: a new one, or inside backward the number of the draw that is repeated."""
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
