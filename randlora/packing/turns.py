"""Whose slices a packed batch has, how far each reaches, and the random numbers that each draws.

A batch of K members has K equal slices of rows. Texts are padded behind to the longest text of the whole batch, so a
slice may be longer than it would be alone. Dropout must not notice: it works on a slice cut back to its own length,
with the state that torch's generator would have in a separate run.
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
    """A state of torch's global generators for each member, as separate runs would have it."""

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
        """Inside, the global generators are where this member left them."""
        if self._busy:  # it is the member's turn already
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
        """Refuse a model that drew random numbers outside of any member's turn."""
        if not all(map(torch.equal, self._get(), self._outer)):
            raise PackingError("the base model draws random numbers that are not dropout's, for all adapters at once")

    def _get(self) -> tuple[Tensor, ...]:
        """States of torch's global generators: the CPU's, and that of the CUDA device in use."""
        return (torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda))

    def _put(self, states: tuple[Tensor, ...]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._cuda, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


class Turn:
    """Positions in `active` are those of the slices in the batch; `active` has the members' numbers.

    Attributes:
        rows: texts of one slice, where rows are texts; None: slices are equal parts of any batch.
        widths: tokens of the longest text of each active member; None where rows are no texts.
        width: tokens that all texts are padded to.
        streams: the members' random numbers; None: nothing but adapters draws any, and these have streams of their own.
    """

    def __init__(self, count: int) -> None:
        self.active: tuple[int, ...] = tuple(range(count))
        self.rows: int | None = None
        self.widths: tuple[int, ...] | None = None
        self.width = 0
        self.streams: Streams | None = None
        self.sliced = False

    def give(self, active: Sequence[int], rows: int | None, widths: Sequence[int] | None) -> None:
        """The next batches are made of these members' slices."""
        self.active, self.rows = tuple(active), rows
        self.widths = None if widths is None else tuple(widths)
        self.width = max(self.widths or (0,))

    @contextmanager
    def only(self, position: int) -> Iterator[None]:
        """Inside, the batch is one member's, and so are the random numbers."""
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
        """The equal slices of x (K b, ...)."""
        self.check(x)
        return x.chunk(len(self.active))

    def check(self, x: Tensor) -> None:
        """Refuse rows that do not split into equal slices, or that are neither the batch's texts nor its tokens."""
        count = len(self.active)
        if x.shape[0] % count:
            raise PackingError(f"{x.shape[0]} rows are not {count} equal slices; pad the shorter ones")
        if self.rows is not None and x.shape[0] // count not in (self.rows, self.rows * self.width):
            raise PackingError(
                f"{x.shape[0]} rows are neither the texts nor the tokens of {count} times {self.rows} texts, so it is "
                "not known whose they are"
            )

    def each(self, apply: Callable[..., Tensor], *xs: Tensor, cut: bool = False) -> Tensor:
        """`apply(position, *slices)` to every slice of all x (K b, ...) in its member's turn, the results put together.

        Args:
            cut: the slices are as long as they would be alone, in every dimension that runs over the tokens.
        """
        cut = cut and any(width != self.width for width in self.widths or ())
        flat = cut and self._flat(xs[0])
        if flat:
            xs = tuple(x.reshape(-1, self.width, *x.shape[1:]) for x in xs)
        dims = self.token_dims(xs[0]) if cut else ()
        found = []
        for position, parts in enumerate(zip(*map(self.slices, xs), strict=True)):
            with self.only(position):
                if not cut:
                    found.append(apply(position, *parts))
                    continue
                assert self.widths is not None
                own = [narrowed(part, dims, self.widths[0]).contiguous() for part in parts]
                shape = own[0].shape
                y = apply(position, *(part.flatten(0, 1) for part in own) if flat else own)
                found.append(widened(y.view(*shape[:2], *y.shape[1:]) if flat else y, dims, self.width))
        y = torch.cat(found)
        return y.flatten(0, 1) if flat else y

    def _flat(self, x: Tensor) -> bool:
        """Whether the rows of x are tokens, of one text after another."""
        self.check(x)
        return self.rows is not None and self.width > 1 and x.shape[0] == len(self.active) * self.rows * self.width

    def token_dims(self, x: Tensor) -> tuple[int, ...]:
        """Which dimensions of x run over tokens: of (b, T, D) one, of (b, H, T, T) two, of (b, D) none."""
        if x.ndim == 2:
            return ()
        if x.ndim == 3 and x.shape[1] == self.width:
            return (1,)
        if x.ndim == 4 and x.shape[2] == x.shape[3] == self.width:
            return (2, 3)
        raise PackingError(f"in a tensor {tuple(x.shape)} it is not known where the {self.width} tokens are")


def narrowed(x: Tensor, dims: Sequence[int], width: int) -> Tensor:
    """The first `width` of these dimensions."""
    for dim in dims:
        x = x.narrow(dim, 0, width)
    return x


def widened(x: Tensor, dims: Sequence[int], width: int) -> Tensor:
    """Zeros behind, up to `width` in these dimensions."""
    more = [0, 0] * x.ndim
    for dim in dims:
        more[2 * (x.ndim - 1 - dim) + 1] = width - x.shape[dim]
    return pad(x, more) if any(more) else x
