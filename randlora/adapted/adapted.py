"""A model with its adapters: count, merge, disable, detach, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from html import escape
from itertools import count
from pathlib import Path
from weakref import WeakSet

import torch
from torch import Tensor, nn

from randlora.adapted.accumulate import accumulating
from randlora.adapter import Adapter, AdapterConfig, Request, Shape
from randlora.arithmetic.bases import Bases, derive_seed
from randlora.arithmetic.contract import plain
from randlora.errors import AdapterError, CheckpointError
from randlora.files import checkpoint, peft_export
from randlora.methods.method import Method
from randlora.methods.scheduled.hooks import Hooks
from randlora.model.sharded import check_whole
from randlora.model.sites import Site, holders, is_adapted, shared_names

_CLOCK = count(1)
"""Tells which of several adapters of one model came first."""
_SHOWN = 20
"""How many weights the table in a notebook lists at most."""
_LIVE: WeakSet[Adapted] = WeakSet()
"""All that are not detached."""


def check_can_merge(model: nn.Module, sites: Mapping[str, Site], adapters: Mapping[str, Adapter]) -> None:
    """Refuse to merge what is no change of a weight alone, into a tensor with other users, or into a quantised one."""
    held = holders(model)
    for name, site in sites.items():
        if adapters[name].moves_bias:
            raise AdapterError(
                f"cannot merge {name}: the adapter changes the layer's bias as well, which a merged weight would not; "
                "save() or export_peft() keeps the adapter itself"
            )
        if site.quantised:
            raise AdapterError(
                f"cannot merge {name}: its weight is quantised, and rounding W0 + delta would lose the delta; keep the "
                "adapter, export_deltas(), or merge into the model in full precision"
            )
        if held[id(site.parameter)] > 1:
            names = shared_names(model, site.parameter)
            raise AdapterError(f"cannot merge {name}: its tensor is tied to {names}; untie it, or keep the adapter")


class Adapted:
    """A model with its adapters, as `attach` returns it.

    `capacities` has every target's capacity; `adapters` is keyed by weight name. Tensors are called
    "<weight name>.<tensor>", as in "mlp.c_fc.weight.lambdas".
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        request: Request,
        sites: Mapping[str, Site],
        adapters: Mapping[str, Adapter],
    ) -> None:
        self.model = model
        self.method = method
        self.config: AdapterConfig = request.config
        self.capacities = dict(request.capacities)
        self.sites = dict(sites)
        self.adapters = dict(adapters)
        self.init_seed, self.basis_seed = request.init_seed, request.basis_seed
        self.shapes: dict[str, Shape] = {name: site.shape for name, site in sites.items()}
        self._requires_grad: dict[nn.Parameter, bool] = {}
        self._before_merge: dict[str, Tensor] | None = None
        self._names: dict[nn.Parameter, str] = {}
        self._since = self._merged_at = 0
        self._fits = True  # W0 is still what it was attached on
        self._attached = self._detached = False

    def __repr__(self) -> str:
        sizes = sorted(set(self.capacities.values()))
        span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]}..{sizes[-1]}"
        where = (
            "merged" if self.merged else "attached" if self._attached else "detached" if self._detached else "disabled"
        )
        return (
            f"<Adapted: {self.method.title}, {self.method.capacity_field} = {span}, {self.count():,} parameters on "
            f"{len(self.sites)} weights of {type(self.model).__name__}, {where}>"
        )

    def _repr_html_(self) -> str:
        """Return a table of the adapted weights, which notebooks show."""
        rows = [
            (name, f"{self.shapes[name][0]} x {self.shapes[name][1]}", self.capacities[name], f"{adapter.count():,}")
            for name, adapter in list(self.adapters.items())[:_SHOWN]
        ]
        head = ("weight", "shape", self.method.capacity_field, "parameters")
        lines = ["".join(f"<th>{escape(str(each))}</th>" for each in head)]
        lines += ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
        more = len(self.adapters) - len(rows)
        rest = f"<p>and {more} more weights</p>" if more else ""
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<p>{escape(repr(self)[1:-1])}</p><table>{table}</table>{rest}"

    # -- trainables ---------------------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trainable tensor, in the order of the targets."""
        for name, adapter in self.adapters.items():
            for key, parameter in adapter.named_parameters():
                yield f"{name}.{key}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable tensors, for an optimiser."""
        return (parameter for _, parameter in self.named_parameters())

    def rate_ratios(self) -> dict[str, float]:
        """Return the factors of learning rates that are not 1 (LoRA+'s B), by name of the trainable."""
        return {f"{n}.{key}": ratio for n, a in self.adapters.items() for key, ratio in a.rate_ratios.items()}

    def count(self) -> int:
        """Trainable parameters, summed over the tensors that exist; under a rank schedule, those that remain."""
        return sum(adapter.count() for adapter in self.adapters.values())

    @property
    def hooks(self) -> Hooks:
        """`on_step` and `regulariser`, which a training loop calls for methods with a schedule."""
        return Hooks(self.adapters.values())

    def derived(self) -> dict[str, Tensor]:
        """Frozen tensors made from the base weights, each once; a checkpoint keeps them: no seed gives them back."""
        named = [(f"{n}.{key}", a.get_buffer(key)) for n, a in self.adapters.items() for key in a.derived]
        first = {id(tensor): name for name, tensor in reversed(named)}
        return {name: tensor for name, tensor in named if first[id(tensor)] == name}

    def redrawn(self) -> list[Tensor]:
        """What a load draws again beside the shared bases, each tensor once; a checkpoint has its fingerprint."""
        return list({id(t): t for adapter in self.adapters.values() for t in adapter.redrawn()}.values())

    def bases(self) -> Bases | None:
        """The frozen matrices that the adapters share; None for a method without."""
        for adapter in self.adapters.values():
            for module in adapter.modules():
                if isinstance(module, Bases):
                    return module
        return None

    def stored_bytes(self) -> int:
        """Bytes of frozen tensors that the adapters keep in memory (shared bases counted once).

        Without the copy of the bases in another precision that forwards under autocast make and keep.
        """
        seen = {id(b): b for adapter in self.adapters.values() for b in adapter.stored()}
        return sum(b.numel() * b.element_size() for b in seen.values())

    def state_dict(self) -> dict[str, Tensor]:
        """The trainable tensors alone, detached but not copied."""
        return {name: p.detach() for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy values in; names and shapes must be exactly those of `state_dict()`."""
        own = dict(self.named_parameters())
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise CheckpointError(f"adapter tensors differ from the model's: missing {missing[:5]}, extra {extra[:5]}")
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise CheckpointError(
                    f"{name} has shape {tuple(state[name].shape)} in the state, {tuple(parameter.shape)} in the model"
                )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def reseed_dropout(self, step: int) -> None:
        """Restart dropout masks from (init_seed, weight, step): a resumed run then draws what it would have drawn."""
        for name, adapter in self.adapters.items():
            adapter.reseed_dropout(derive_seed("dropout", self.init_seed, name, step))

    def accumulating(self, micro_batches: int) -> AbstractContextManager[None]:
        """Gradient accumulation with one W0 + delta per optimiser step; see `adapted.accumulate`."""
        return accumulating(self.model, micro_batches)

    # -- deltas, merging, detaching -----------------------------------------------------------------------------------

    @torch.no_grad()
    def deltas(self) -> dict[str, Tensor]:
        """Weight name -> delta (out x in), in the adapters' precision. A bias's change is not in it."""
        return self._made("take deltas", lambda adapter, base: adapter.delta(base))

    def _made(self, verb: str, make: Callable[[Adapter, Tensor], Tensor]) -> dict[str, Tensor]:
        """`make` of every adapter and its W0, outside autocast, which would round all of W0."""
        self.check_whole(verb)
        if not self.merged:
            self._check_base(verb)
        made = {}
        for name, adapter in self.adapters.items():
            base = self.sites[name].base.detach() if self._before_merge is None else self._before_merge[name]
            with plain(base.device):
                made[name] = make(adapter.to(base.device), base)  # the model may have moved since disable()
        return made

    def check_whole(self, verb: str) -> None:
        """Refuse what FSDP2 leaves no process the tensors for."""
        check_whole(verb, self.model, [*self.parameters(), *(site.parameter for site in self.sites.values())])

    def _check_base(self, verb: str) -> None:
        """Refuse to take for W0 what another adapter has merged into since this one was attached."""
        if not self._fits:
            raise AdapterError(
                f"cannot {verb}: it was attached on weights with another adapter merged in, which were restored since; "
                "attach it again"
            )
        for other in self._sharing():
            if other.merged and other._merged_at > self._since:
                raise AdapterError(
                    f"cannot {verb}: another adapter ({other.method.title}) is merged into the weights; unmerge() it"
                )

    def _sharing(self) -> Iterator[Adapted]:
        """The other live adapters on some of this one's weights."""
        own = {id(site.parameter) for site in self.sites.values()}
        return (a for a in _LIVE - {self} if any(id(site.parameter) in own for site in a.sites.values()))

    @property
    def enabled(self) -> bool:
        """Whether the adapters are in the forward."""
        return self._attached

    def disable(self) -> nn.Module:
        """Take the adapters out of the forward, without forgetting them; `enable()` puts them back."""
        if self.merged:
            raise AdapterError("cannot disable merged adapters: unmerge() first")
        if self._attached:
            self._remove()
        return self.model

    def enable(self) -> nn.Module:
        """Put disabled adapters back, on the device and in the mode (train or eval) that the model is in now."""
        if self._detached:
            raise AdapterError("cannot enable: the adapters are detached from the model; attach again or load()")
        if not self._attached and not self.merged:
            if is_adapted(self.model):
                raise AdapterError("cannot enable: other adapters are in the model; disable them first")
            self._check_base("enable")
            for name, site in self.sites.items():
                self.adapters[name].to(site.parameter.device).train(site.owner.training)
            self.install()
        return self.model

    @contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        """`with adapted.disabled():` runs the base model."""
        was = self._attached
        self.disable()
        try:
            yield self.model
        finally:
            if was:
                self.enable()

    def install(self) -> None:
        """Put every adapter at its site; `attach` calls it."""
        for name, site in self.sites.items():
            site.install(self.adapters[name])
        self._attached = True

    def _remove(self) -> None:
        for site in reversed(list(self.sites.values())):
            site.remove()
        self._attached = False

    @property
    def merged(self) -> bool:
        """Whether the deltas are written into the weights now."""
        return self._before_merge is not None

    def merge(self) -> nn.Module:
        """Write W0 + delta into the model's weights and take the adapters out of the forward; returns the model.

        The old weights are kept, so that `unmerge()` and `detach()` give them back bit for bit.
        Tied weights are refused: the other user of the tensor would change as well.
        """
        if self.merged:
            return self.model
        if self._detached:
            raise AdapterError("cannot merge: the adapters are detached from the model; attach again or load()")
        if not self._attached:
            raise AdapterError("cannot merge: the adapters are disabled; enable() them first")
        check_can_merge(self.model, self.sites, self.adapters)
        with torch.no_grad():
            new = self._made("merge", lambda adapter, base: adapter.weight(base))
            self._before_merge = {name: site.base.detach().clone() for name, site in self.sites.items()}
            self._merged_at = next(_CLOCK)
            self._remove()
            for name, site in self.sites.items():
                site.base.copy_(new[name])
        return self.model

    def unmerge(self) -> nn.Module:
        """Undo `merge()`: restore the weights bit for bit and put the adapters in place, as `enable()` does."""
        if self._before_merge is not None:
            self._restore("unmerge")
            self.enable()
        return self.model

    @contextmanager
    def merging(self) -> Iterator[nn.Module]:
        """`with adapted.merging():` evaluates with the deltas merged, once, and unmerges at the end."""
        was = self.merged
        self.merge()
        try:
            yield self.model
        finally:
            if not was:
                self.unmerge()

    def detach(self, keep_merged: bool = False) -> nn.Module:
        """Take the adapters off and return the plain model, its weights and `requires_grad` flags as before `attach`.

        `keep_merged=True` leaves W0 + delta in the weights instead. Detaching twice does nothing. Of several adapters
        of one model the last to go gives the flags back, in whatever order they go.
        """
        if self._detached:
            return self.model
        if keep_merged:
            self.merge()
            self._before_merge = None
        elif self._before_merge is not None:
            self._restore("detach")
        elif self._attached:
            self._remove()
        self._thaw()
        self._detached = True
        return self.model

    def _restore(self, verb: str) -> None:
        assert self._before_merge is not None
        if is_adapted(self.model):
            raise AdapterError(f"cannot {verb}: other adapters are in the model; disable them first")
        self._check_base(verb)
        with torch.no_grad():
            for name, old in self._before_merge.items():
                self.sites[name].base.copy_(old)
        self._before_merge = None
        for other in self._sharing():
            other._fits &= other._since < self._merged_at

    def freeze(self) -> None:
        """Freeze the base model and remember its `requires_grad` flags for `detach()`; `attach` calls it."""
        self._since = next(_CLOCK)
        _LIVE.add(self)
        self._names = {p: name for name, p in self.model.named_parameters()}
        self._requires_grad = {p: p.requires_grad for p in self._names}
        for parameter in self._requires_grad:
            parameter.requires_grad_(False)

    def _thaw(self) -> None:
        """Give the flags back; to the next adapter of the model that came later, which still needs them frozen."""
        _LIVE.discard(self)
        later = sorted((a for a in _LIVE if a._since > self._since), key=lambda a: a._since)
        now = dict(self.model.named_parameters())
        for was, flag in self._requires_grad.items():
            parameter = now.get(self._names[was], was)  # `load_state_dict(assign=True)` puts others there
            heir, key = next(((a, p) for a in later for p in (was, parameter) if p in a._requires_grad), (None, was))
            if heir is None:
                parameter.requires_grad_(flag)
            else:
                heir._requires_grad[key] = flag
        self._requires_grad, self._names = {}, {}

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path, *, bases: bool = False) -> Path:
        """Write `adapter.safetensors` (trainables) and `adapter.json`; see `randlora.files.checkpoint.save`."""
        return checkpoint.save(self, directory, bases=bases)

    def export_peft(self, directory: str | Path) -> Path:
        """Write PEFT's adapter format; see `randlora.files.peft_export.export_peft`."""
        return peft_export.export_peft(self, directory)

    def export_deltas(self, directory: str | Path) -> Path:
        """Write every delta as a dense matrix; see `randlora.files.checkpoint.export_deltas`."""
        return checkpoint.export_deltas(self, directory)
