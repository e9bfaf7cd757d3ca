"""Several adapters of one kind in one forward: slice k of the batch goes through adapter k, all share the frozen model.

    members = [attach(...), attach(...)]       # same method, weights and capacities; each disabled after it is attached
    pack = Pack(members)
    pack.together()                            # a batch (K b, ...): rows 0..b-1 are the first member's, and so on
    pack.select(1)                             # the second member alone, for evaluation
    pack.remove()                              # the members are as they were, disabled

The frozen products are computed once for all rows. LoRA, DoRA, VeRA and RandLoRA have stacked products for the rest
(`randlora.stacked`); any other method, and a layer for which the matrix form is cheaper, takes its slices one by one.
No row meets another one's slice, so a member that diverges leaves the others alone. PLoRA (arXiv 2508.02932) packs
LoRA; the same holds for any adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapter import Adapter
from randlora.attach import Adapted
from randlora.attention import self_attention
from randlora.bases import Bases
from randlora.errors import AdapterError
from randlora.sites import PackedWeight, Site, reader_of
from randlora.stacked import stacked_linear


class PackingError(AdapterError):
    """These adapters cannot share a forward, or this model cannot run them together."""


class _Turn:
    """Whose slices the batch has now: positions among the members, in the order of the slices."""

    def __init__(self, count: int) -> None:
        self.active: tuple[int, ...] = tuple(range(count))

    @contextmanager
    def only(self, member: int) -> Iterator[None]:
        """Inside, the batch is one member's."""
        before, self.active = self.active, (member,)
        try:
            yield
        finally:
            self.active = before


class Together(Adapter):
    """The members' adapters of one weight, in the place of one adapter. They are no submodules: each stays its own."""

    def __init__(self, members: Sequence[Adapter], turn: _Turn) -> None:
        super().__init__(members[0].shape)
        self._members, self._turn = tuple(members), turn

    @property
    def members(self) -> tuple[Adapter, ...]:
        """One a member of the pack."""
        return self._members

    def train(self, mode: bool = True) -> Together:
        """Members follow."""
        for member in self._members:
            member.train(mode)
        super().train(mode)
        return self

    @property
    def one(self) -> Adapter:
        """The adapter whose turn it is alone."""
        if len(self._turn.active) != 1:
            raise PackingError(
                f"a weight was read as a matrix while {len(self._turn.active)} adapters share the batch: "
                "its reader is not a module that this package splits; run the adapters one by one"
            )
        return self._members[self._turn.active[0]]

    def delta(self, base: Tensor) -> Tensor:
        return self.one.delta(base)

    def weight(self, base: Tensor) -> Tensor:
        return self.one.weight(base)

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        active = [self._members[k] for k in self._turn.active]
        check_rows(x, len(active))
        slices = zip(active, x.chunk(len(active)), y.chunk(len(active)), strict=True)
        return torch.cat([member.beside(part, own, base, bias) for member, part, own in slices])

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        active = [self._members[k] for k in self._turn.active]
        if len(active) == 1:
            return active[0].linear(x, base, bias)
        check_rows(x, len(active))
        y = stacked_linear(active, x, base, bias)
        if y is not None:
            return y
        parts = [member.linear(part, base, bias) for member, part in zip(active, x.chunk(len(active)), strict=True)]
        return torch.cat(parts)


def check_rows(x: Tensor, count: int) -> None:
    """Refuse a batch that `count` equal slices do not make up."""
    if x.shape[0] % count:
        raise PackingError(f"{x.shape[0]} rows are not {count} equal slices; pad the shorter ones")


class Pack:
    """`members`, which it disables, in one forward; see the module. It starts with all members together.

    Raises:
        PackingError: they differ in model, method, weights, capacities or options of a shape, a method has a schedule,
            or a module of the model does not keep the batch first.
    """

    def __init__(self, members: Sequence[Adapted]) -> None:
        _check(members)
        self.members = tuple(members)
        self._turn = _Turn(len(members))
        model = members[0].model
        for member in members:
            member.disable()
        share_bases(members)
        self._sites: list[Site] = []
        self._readers: dict[int, nn.Module] = {}
        for name, site in members[0].sites.items():
            layer = Together([member.adapters[name] for member in members], self._turn)
            layer.train(site.owner.training)
            for adapter in layer.members:
                adapter.to(site.parameter.device)
            site.install(layer)
            self._sites.append(site)
            if not site.by_activation:
                reader = reader_of(site)
                self._readers[id(reader)] = reader
        self.model = model
        for reader in self._readers.values():
            split_forward(reader, self._turn)

    @property
    def layers(self) -> Iterator[tuple[str, Together]]:
        """The places of the adapters, by the qualified names of their modules."""
        for name, module in self.model.named_modules():
            if isinstance(module, Together):
                yield name, module

    def together(self, which: Sequence[int] | None = None) -> None:
        """The batch has equal slices of these members from now on; None: of all, in order."""
        chosen = tuple(range(len(self.members))) if which is None else tuple(which)
        if not chosen or any(not 0 <= k < len(self.members) for k in chosen) or len(set(chosen)) < len(chosen):
            raise PackingError(f"members {list(chosen)} of {len(self.members)}: name some of them, each once")
        self._turn.active = chosen

    def select(self, member: int) -> None:
        """The batch is this member's alone from now on: any size, training or evaluation."""
        self.together([member])

    def remove(self) -> nn.Module:
        """Take the adapters out of the model and return it; the members stay, disabled."""
        for reader in self._readers.values():
            del reader.forward
        self._readers.clear()
        for site in reversed(self._sites):
            site.remove()
        self._sites.clear()
        return self.model


def _check(members: Sequence[Adapted]) -> None:
    if not members:
        raise PackingError("a pack needs at least one adapter")
    first = members[0]
    for member in members:
        if member.model is not first.model:
            raise PackingError("the adapters of a pack are attached to different models")
        if member.method.name != first.method.name:
            raise PackingError(f"a pack has one method, got {first.method.name!r} and {member.method.name!r}")
        if member.capacities != first.capacities:
            raise PackingError("the adapters of a pack differ in their weights or capacities")
        if member.merged:
            raise PackingError("a merged adapter cannot be packed: unmerge() first")
    refused = next((a for a in first.adapters.values() if not a.packable or a.schedule is not None), None)
    if refused is not None:
        raise PackingError(f"{first.method.title} cannot be packed: its schedule follows one training")
    for name, module in first.model.named_modules():
        if getattr(module, "batch_first", True) is False:
            raise PackingError(f"{name or 'the model'} keeps the sequence before the batch, so slices would mix")


def share_bases(members: Sequence[Adapted]) -> None:
    """Let members whose frozen matrices have the same seed and sizes use the same ones: one copy, one product."""
    kept: list[Bases] = []
    for member in members:
        for adapter in member.adapters.values():
            own = getattr(adapter, "bases", None)
            if type(own) is not Bases or adapter.derived:
                continue
            same = next((b for b in kept if b.seed == own.seed and b.draws == own.draws), None)
            if same is None:
                kept.append(own)
            else:
                adapter.bases = same


# -- modules that read their weights instead of letting an adapter meet the input --------------------------------------


def split_forward(reader: nn.Module, turn: _Turn) -> None:
    """Give `reader` a forward that takes the slices of a batch apart; `del reader.forward` undoes it."""
    original: Callable[..., Any] = reader.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        count = len(turn.active)
        if count == 1:
            return original(*args, **kwargs)
        if isinstance(reader, nn.MultiheadAttention):
            attended = self_attention(reader, *args, **kwargs)
            if attended is not None:
                return attended, None
        total = _rows(args, kwargs)
        results = []
        for position, member in enumerate(turn.active):
            for module in reader.modules():
                if isinstance(module, PackedWeight):
                    module.forget()
            cut = _Cut(total, count, position)
            with turn.only(member):
                results.append(original(*map(cut, args), **{k: cut(v, k) for k, v in kwargs.items()}))
        return _join(results)

    reader.forward = forward


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value.shape[0]
    raise PackingError("a module with packed weights was called without a tensor, so there is no batch to split")


class _Cut:
    """One slice of whatever has the batch first; masks over positions, which have two dimensions, stay whole."""

    def __init__(self, total: int, count: int, position: int) -> None:
        if total % count:
            raise PackingError(f"{total} rows are not {count} equal slices; pad the shorter ones")
        self._total, self._count, self._position = total, count, position

    def __call__(self, value: Any, name: str = "") -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] % self._total:
            return value
        if value.ndim == 2 and name in ("attn_mask", "mask", "src_mask"):
            return value
        return value.chunk(self._count)[self._position]


def _join(results: list[Any]) -> Any:
    first = results[0]
    if isinstance(first, Tensor):
        return torch.cat(results)
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(_join(list(parts)) for parts in zip(*results, strict=True))
    raise PackingError(f"a module with packed weights returned {type(first).__name__}, which cannot be put together")
