"""Several adapters of one kind in one forward: slice k of the batch goes through adapter k, and all share the frozen
model.

    members = [attach(...), attach(...)]       # same method, weights and capacities; each disabled after it is attached
    pack = Pack(members)
    pack.together()                            # a batch (K b, ...): rows 0..b-1 are the first member's, and so on
    pack.select(1)                             # the second member alone, for evaluation
    pack.remove()                              # the members are as they were, disabled

Texts of all slices are padded at the end to one length, and `together` gets their own lengths. A frozen model with
dropout runs inside `pack.drawing(...)`, where every slice gets the masks of a separate run.

The pack computes the frozen products once for all rows. LoRA and its relatives, DoRA, VeRA and RandLoRA have stacked
products for the rest (`stacked`). For any other method the slices go one by one, and also in a layer whose matrix form
is cheaper. No row is combined with a row of another slice, so a member that diverges leaves the others alone. PLoRA
(arXiv 2508.02932) packs LoRA; the same holds for any adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapted.adapted import Adapted
from randlora.adapter import Adapter, only_shown
from randlora.arithmetic.bases import Bases
from randlora.model.attention import self_attention
from randlora.model.sites import PackedWeight, Site, reader_of
from randlora.packing.dropouts import OwnDropout, drops_activations
from randlora.packing.stacked import stacked_linear
from randlora.packing.turns import PackingError, Streams, Turn

__all__ = ["Pack", "PackingError", "Together", "drops_activations"]


class Together(Adapter):
    """The members' adapters of one weight, in the place of one adapter.

    They are not its submodules, because each stays the member's own.
    """

    def __init__(self, members: Sequence[Adapter], turn: Turn) -> None:
        super().__init__(members[0].shape)
        self.members, self._turn, self.has_matrix = tuple(members), turn, members[0].has_matrix

    def train(self, mode: bool = True) -> Together:
        """Set the mode of the members too."""
        for member in self.members:
            member.train(mode)
        super().train(mode)
        return self

    @property
    def one(self) -> Adapter:
        """Return the one adapter that is active alone."""
        if len(self._turn.active) != 1:
            raise self._several()
        return self.members[self._turn.active[0]]

    def _several(self) -> PackingError:
        return PackingError(
            f"a weight was read as a matrix while {len(self._turn.active)} adapters share the batch: "
            "its reader is not a module that this package splits; run the adapters one by one"
        )

    def read(self, base: Tensor) -> Tensor:
        return super().read(base) if len(self._turn.active) == 1 else only_shown(base, self._several())

    def delta(self, base: Tensor) -> Tensor:
        return self.one.delta(base)

    def weight(self, base: Tensor) -> Tensor:
        return self.one.weight(base)

    @property
    def _active(self) -> list[Adapter]:
        return [self.members[k] for k in self._turn.active]

    @property
    def dropping(self) -> bool:
        return any(member.dropping for member in self._active)

    def drop(self, x: Tensor) -> Tensor:
        """Return x after every member's own dropout on its slice. The masks are those of a separate run."""
        active = self._active
        return self._turn.each(lambda k, part: active[k].drop(part), x, cut=True) if self.dropping else x

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        active = self._active
        return self._turn.each(
            lambda k, part, y_part: active[k].beside(part, y_part, base, bias), x, y, cut=self.dropping
        )

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        turn, active = self._turn, self._active
        if len(active) == 1:
            with turn.only(0):
                return active[0].linear(x, base, bias)
        turn.check(x)
        y = stacked_linear(active, x, base, bias, self.drop)
        if y is None:
            y = turn.each(lambda k, part: active[k].linear(part, base, bias), x, cut=self.dropping)
        return y


class Pack:
    """Several adapters in one forward (see the module).

    It disables `members`, and starts with all of them active.

    Attributes:
        adapters: the members' adapters by weight name.

    Raises:
        PackingError: the members differ in model, method, weights, capacities or options that change shapes; the method
            holds rows of a batch out or has prompts; or a module of the model does not have the batch in its first
            dimension.
    """

    def __init__(self, members: Sequence[Adapted]) -> None:
        _check(members)
        self.members = tuple(members)
        self._turn = Turn(len(members))
        self.model = members[0].model
        for member in members:
            member.disable()
        share_bases(members)
        self.adapters: dict[str, Together] = {}
        self._sites: list[Site] = []
        self._readers: dict[int, tuple[nn.Module, Any]] = {}  # its own forward if the instance has one
        for name, site in members[0].sites.items():
            layer = Together([member.adapters[name] for member in members], self._turn)
            layer.train(site.owner.training)
            for adapter in layer.members:
                adapter.to(site.parameter.device)
            site.install(layer)
            self.adapters[name] = layer
            self._sites.append(site)
            if not site.by_activation:
                reader = reader_of(site)
                self._readers[id(reader)] = reader, vars(reader).get("forward")
        for reader, _ in self._readers.values():
            split_forward(reader, self._turn)

    @property
    def layers(self) -> Iterator[tuple[str, Together]]:
        """Yield the places of the adapters, with the qualified names of their modules."""
        for name, module in self.model.named_modules():
            if isinstance(module, Together):
                yield name, module

    def together(
        self, which: Sequence[int] | None = None, *, rows: int | None = None, widths: Sequence[int] | None = None
    ) -> None:
        """Say that the batch now has equal slices of several members.

        Args:
            which: the members, in the order of their slices. None: all, in order.
            rows: rows of one slice, if rows are texts.
            widths: tokens of each slice's longest text. All texts are padded at the end to the longest of all.
        """
        chosen = tuple(range(len(self.members))) if which is None else tuple(which)
        if not chosen or any(not 0 <= k < len(self.members) for k in chosen) or len(set(chosen)) < len(chosen):
            raise PackingError(f"members {list(chosen)} of {len(self.members)}: name some of them, each once")
        self._turn.give(chosen, rows, widths)

    def select(self, member: int) -> None:
        """Say that the batch now belongs to one member. It may have any size, in training or evaluation."""
        self.together([member])

    def alone(self, position: int) -> AbstractContextManager[None]:
        """Return a block in which random numbers are those of the member whose slice is at this position of the
        batch."""
        return self._turn.only(position)

    @contextmanager
    def drawing(self, seeds: Mapping[int, int] | None, device: torch.device) -> Iterator[None]:
        """Inside the block, dropout of the frozen model follows each member's seed, and so does all that runs in
        `alone`.

        A slice's masks are those of a run after `torch.manual_seed(seed)`. Checkpointed activations are not supported.

        Args:
            seeds: member -> seed. None: only the adapters draw random numbers (`drops_activations`), and their masks
                have their own seeds.
            device: the model's device.

        Raises:
            PackingError: at the end, if the model drew random numbers that belong to no member.
        """
        if seeds is None:
            streams = Streams({}, device)
            yield
            if not any(member.dropping for _, layer in self.layers for member in layer.members):
                streams.check()  # values of the same generator label the masks of adapters
            return
        streams = self._turn.streams = Streams(seeds, device)
        try:
            with OwnDropout(self._turn):
                yield
        finally:
            self._turn.streams = None
        streams.check()

    def remove(self) -> nn.Module:
        """Take the adapters out of the model and return it. The members stay, disabled."""
        for reader, own_forward in self._readers.values():
            if own_forward is None:
                del reader.forward
            else:
                reader.forward = own_forward
        self._readers.clear()
        for site in reversed(self._sites):
            site.remove()
        self._sites.clear()
        return self.model


def _check(members: Sequence[Adapted]) -> None:
    """Raise PackingError if the members cannot share a forward."""
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
        if [p.shape for p in member.parameters()] != [p.shape for p in first.parameters()]:
            raise PackingError("the adapters of a pack differ in an option that gives their trainables other shapes")
        if member.merged:
            raise PackingError("a merged adapter cannot be packed: unmerge() first")
    if first.hooks.apart():
        raise PackingError(
            f"{first.method.title} cannot be packed: it holds some rows of each batch out, other numbers in every trial"
        )
    if first.method.prompts:
        raise PackingError(f"{first.method.title} cannot be packed: every member has prompts of its own")
    for name, module in first.model.named_modules():
        if getattr(module, "batch_first", True) is False:
            raise PackingError(f"{name or 'the model'} keeps the sequence before the batch, so slices would mix")


def share_bases(members: Sequence[Adapted]) -> None:
    """Let members whose frozen matrices have the same seed and sizes use the same ones, so that there is one copy."""
    shared: list[Bases] = []
    for member in members:
        for adapter in member.adapters.values():
            bases = getattr(adapter, "bases", None)
            if not isinstance(bases, Bases) or bases.given or adapter.derived:
                continue
            same = next((b for b in shared if b.seed == bases.seed and b.draws == bases.draws), None)
            if same is None:
                shared.append(bases)
            else:
                adapter.bases = same


# -- modules that read their weights instead of letting an adapter meet the input --------------------------------------


def split_forward(reader: nn.Module, turn: Turn) -> None:
    """Give `reader` a forward that runs slice by slice; `del reader.forward` undoes this."""
    original: Callable[..., Any] = reader.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        count = len(turn.active)
        if count == 1:
            return original(*args, **kwargs)
        if isinstance(reader, nn.MultiheadAttention):
            attended = self_attention(reader, *args, **kwargs)
            if attended is not None:
                return attended, None
        total = next((v.shape[0] for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if total is None:
            raise PackingError("a module with packed weights was called without a tensor: there is no batch to split")
        if total % count:
            raise PackingError(f"{total} rows are not {count} equal slices; pad the shorter ones")
        results = []
        for position in range(count):
            for module in reader.modules():
                if isinstance(module, PackedWeight):
                    module.forget()
            slices = [_cut(value, "", total, count, position) for value in args]
            keyword_slices = {name: _cut(value, name, total, count, position) for name, value in kwargs.items()}
            with turn.only(position):
                results.append(original(*slices, **keyword_slices))
        return _join(results)

    reader.forward = forward


def _cut(value: Any, name: str, total: int, count: int, position: int) -> Any:
    """Return one slice of a tensor whose first dimension is the batch. A tensor over positions (two dimensions) stays
    whole."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] % total:
        return value
    if value.ndim == 2 and name in ("attn_mask", "mask", "src_mask", "rope"):
        return value
    return value.chunk(count)[position]


def _join(results: list[Any]) -> Any:
    """Put the results of all slices together."""
    first = results[0]
    if isinstance(first, Tensor):
        return torch.cat(results)
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(_join(list(parts)) for parts in zip(*results, strict=True))
    raise PackingError(f"a module with packed weights returned {type(first).__name__}, which cannot be put together")
