"""Which slices a packed batch has, how long their texts are, and the random numbers that each member draws.

A batch of K members has K equal slices of rows. Texts are padded at the end to the longest text of the whole batch, so
a slice may be longer than it would be alone. Dropout must not depend on that. It works on a slice that is cut to its
own length, with the state that torch's generator would have in a separate run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

from randlora.errors import AdapterError


class PackingError(AdapterError):
    """These adapters cannot share a forward, or this model cannot run them together."""


class Streams:
    """A state of torch's global generators for each member, as a separate run would have it."""

    def __init__(self, seeds: Mapping[int, int], device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self._busy = False
        self._states: dict[int, tuple[Tensor, ...]] = {}
        outer = self._get()
        for member, seed in seeds.items():
            torch.manual_seed(seed)
            self._states[member] = self._get()
        self._put(outer)
        self._outer = outer

    @contextmanager
    def of(self, member: int) -> Iterator[None]:
        """Inside the block, the global generators continue where this member left them."""
        if self._busy:  # the generators are this member's already
            yield
            return
        outer = self._get()
        self._put(self._states[member])
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            self._states[member] = self._get()
            self._put(outer)

    def check(self) -> None:
        """Raise PackingError if the model drew random numbers outside of any member's turn."""
        if not all(map(torch.equal, self._get(), self._outer)):
            raise PackingError("the base model draws random numbers that are not dropout's, for all adapters at once")

    def _get(self) -> tuple[Tensor, ...]:
        """Return the states of torch's global generators: the CPU's, and that of the CUDA device in use."""
        return (torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda))

    def _put(self, states: tuple[Tensor, ...]) -> None:
        """Set the states of torch's global generators."""
        torch.set_rng_state(states[0])
        for device, state in zip(self._cuda, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


class Turn:
    """Says which member's slice is where in the batch. A position is that of a slice; `active` has the members'
    numbers.

    Attributes:
        rows: number of texts of one slice, if rows are texts. None: slices are equal parts of any batch.
        widths: tokens of the longest text of each active member; None if rows are not texts.
        width: the number of tokens that all texts are padded to.
        streams: the members' random numbers. None: only adapters draw any, and these have their own streams.
    """

    def __init__(self, count: int) -> None:
        self.active: tuple[int, ...] = tuple(range(count))
        self.rows: int | None = None
        self.widths: tuple[int, ...] | None = None
        self.width = 0
        self.streams: Streams | None = None
        self.sliced = False

    def give(self, active: Sequence[int], rows: int | None, widths: Sequence[int] | None) -> None:
        """Say which members' slices make the next batches."""
        self.active, self.rows = tuple(active), rows
        self.widths = None if widths is None else tuple(widths)
        self.width = max(self.widths or (0,))

    @contextmanager
    def only(self, position: int) -> Iterator[None]:
        """Inside the block, the batch belongs to one member, and random numbers are its own."""
        before = self.active, self.widths, self.sliced
        member = self.active[position]
        self.active, self.sliced = (member,), True
        self.widths = None if self.widths is None else (self.widths[position],)
        try:
            if self.streams is None:
                yield
            else:
                with self.streams.of(member):
                    yield
        finally:
            self.active, self.widths, self.sliced = before

    def slices(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the equal slices of x (K b, ...)."""
        self.check(x)
        return x.chunk(len(self.active))

    def check(self, x: Tensor) -> None:
        """Raise PackingError for rows that do not split into equal slices, or that are neither the batch's texts nor
        its tokens."""
        count = len(self.active)
        if x.shape[0] % count:
            raise PackingError(f"{x.shape[0]} rows are not {count} equal slices; pad the shorter ones")
        if self.rows is not None and x.shape[0] // count not in (self.rows, self.rows * self.width):
            raise PackingError(
                f"{x.shape[0]} rows are neither the texts nor the tokens of {count} times {self.rows} texts, so it is "
                "not known whose they are"
            )

    def each(self, apply: Callable[..., Tensor], *xs: Tensor, cut: bool = False) -> Tensor:
        """Return `apply(position, *slices)` of every slice of all x (K b, ...), put together. Each runs in its member's
        turn.

        Args:
            apply: the function.
            xs: the tensors.
            cut: make slices as long as they would be alone, in every dimension that runs over the tokens.
        """
        cut = cut and any(width != self.width for width in self.widths or ())
        flat = cut and self._flat(xs[0])
        if flat:
            xs = tuple(x.reshape(-1, self.width, *x.shape[1:]) for x in xs)
        dims = self.token_dims(xs[0]) if cut else ()
        results = []
        for position, parts in enumerate(zip(*map(self.slices, xs), strict=True)):
            with self.only(position):
                if not cut:
                    results.append(apply(position, *parts))
                    continue
                assert self.widths is not None
                narrowed_parts = [narrowed(part, dims, self.widths[0]).contiguous() for part in parts]
                shape = narrowed_parts[0].shape
                y = apply(position, *(part.flatten(0, 1) for part in narrowed_parts) if flat else narrowed_parts)
                results.append(widened(y.view(*shape[:2], *y.shape[1:]) if flat else y, dims, self.width))
        y = torch.cat(results)
        return y.flatten(0, 1) if flat else y

    def _flat(self, x: Tensor) -> bool:
        """Return whether the rows of x are tokens, of one text after another."""
        self.check(x)
        return self.rows is not None and self.width > 1 and x.shape[0] == len(self.active) * self.rows * self.width

    def token_dims(self, x: Tensor) -> tuple[int, ...]:
        """Return which dimensions of x run over tokens: one of (b, T, D), two of (b, H, T, T), none of (b, D)."""
        if x.ndim == 2:
            return ()
        if x.ndim == 3 and x.shape[1] == self.width:
            return (1,)
        if x.ndim == 4 and x.shape[2] == x.shape[3] == self.width:
            return (2, 3)
        raise PackingError(f"cannot tell which dimension of a tensor {tuple(x.shape)} has the {self.width} tokens")


def narrowed(x: Tensor, dims: Sequence[int], width: int) -> Tensor:
    """Return the first `width` entries in these dimensions."""
    for dim in dims:
        x = x.narrow(dim, 0, width)
    return x


def widened(x: Tensor, dims: Sequence[int], width: int) -> Tensor:
    """Return x with zeros at the end, up to `width` in these dimensions."""
    padding = [0, 0] * x.ndim
    for dim in dims:
        padding[2 * (x.ndim - 1 - dim) + 1] = width - x.shape[dim]
    return pad(x, padding) if any(padding) else x
