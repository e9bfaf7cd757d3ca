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
from randlora.arithmetic.contract import autocast_off
from randlora.errors import AdapterError, CheckpointError
from randlora.files import checkpoint, peft_export
from randlora.methods.method import Method
from randlora.methods.scheduled.hooks import Hooks
from randlora.model.sharded import check_whole
from randlora.model.sites import Site, holders, is_adapted, shared_names

_CLOCK = count(1)
"""Numbers the events of all adapters, so that the order of attaching and merging is known."""
_SHOWN = 20
"""How many weights the table in a notebook lists at most."""
_LIVE: WeakSet[Adapted] = WeakSet()
"""All `Adapted` that are not detached."""


def check_can_merge(model: nn.Module, sites: Mapping[str, Site], adapters: Mapping[str, Adapter]) -> None:
    """Raise AdapterError if a delta cannot be written into its weight.

    That is so if the adapter also changes the bias, if the weight is quantised, or if another module uses its tensor.
    """
    users = holders(model)
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
        if users[id(site.parameter)] > 1:
            names = shared_names(model, site.parameter)
            raise AdapterError(f"cannot merge {name}: its tensor is tied to {names}; untie it, or keep the adapter")


class Adapted:
    """A model with its adapters, as `attach` returns it.

    Attributes:
        model: the model, in which the adapters are installed.
        method: the entry of the registry.
        config: the method's configuration.
        capacities: the capacity of every target, by weight name.
        sites: where each adapter is installed, by weight name.
        adapters: the adapters, by weight name.
        shapes: (out, in) of every target, by weight name.
        init_seed, basis_seed: the seeds of the trainables' start and of the frozen bases.

    Tensors are called "<weight name>.<tensor>", such as "mlp.c_fc.weight.lambdas".
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
        self._fits = True  # the weights are still those that the adapters were attached to
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
        lines = ["".join(f"<th>{escape(str(title))}</th>" for title in head)]
        lines += ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
        unlisted = len(self.adapters) - len(rows)
        note = f"<p>and {unlisted} more weights</p>" if unlisted else ""
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<p>{escape(repr(self)[1:-1])}</p><table>{table}</table>{note}"

    # -- trainables ---------------------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name, tensor) of every trainable tensor, in the order of the targets."""
        for name, adapter in self.adapters.items():
            for key, parameter in adapter.named_parameters():
                yield f"{name}.{key}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable tensors, for an optimiser."""
        return (parameter for _, parameter in self.named_parameters())

    def rate_ratios(self) -> dict[str, float]:
        """Return the factors of learning rates that are not 1 (such as that of LoRA+'s B), by name of the trainable."""
        return {f"{n}.{key}": ratio for n, a in self.adapters.items() for key, ratio in a.rate_ratios.items()}

    def count(self) -> int:
        """Return the number of trainable parameters, summed over the tensors that exist.

        Under a rank schedule (AdaLoRA, AutoLoRA) these are the parameters that remain.
        """
        return sum(adapter.count() for adapter in self.adapters.values())

    @property
    def hooks(self) -> Hooks:
        """Return the hooks that a training loop calls for methods with a schedule. They do nothing for other
        methods."""
        return Hooks(self.adapters.values())

    def derived(self) -> dict[str, Tensor]:
        """Return the frozen tensors that are made from the base weights, each once, by name.

        No seed gives them back, so a checkpoint keeps them.
        """
        named = [(f"{n}.{key}", a.get_buffer(key)) for n, a in self.adapters.items() for key in a.derived]
        first = {id(tensor): name for name, tensor in reversed(named)}
        return {name: tensor for name, tensor in named if first[id(tensor)] == name}

    def redrawn(self) -> list[Tensor]:
        """Return the tensors, other than the shared bases, that `load` draws again from the seed. Each tensor comes
        once.

        A checkpoint keeps a fingerprint of them.
        """
        return list({id(t): t for adapter in self.adapters.values() for t in adapter.redrawn()}.values())

    def bases(self) -> Bases | None:
        """Return the frozen matrices that the adapters share; None if the method has none."""
        for adapter in self.adapters.values():
            for module in adapter.modules():
                if isinstance(module, Bases):
                    return module
        return None

    def stored_bytes(self) -> int:
        """Return the bytes of frozen tensors that the adapters keep in memory. Shared bases count once.

        A forward under autocast also keeps a copy of the bases in another precision. That copy is not counted.
        """
        stored = {id(b): b for adapter in self.adapters.values() for b in adapter.stored()}
        return sum(b.numel() * b.element_size() for b in stored.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the trainable tensors alone, detached but not copied, by name."""
        return {name: p.detach() for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the trainable tensors.

        Args:
            state: tensors with exactly the names and shapes of `state_dict()`.

        Raises:
            CheckpointError: names or shapes differ.
        """
        parameters = dict(self.named_parameters())
        missing, extra = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
        if missing or extra:
            raise CheckpointError(f"adapter tensors differ from the model's: missing {missing[:5]}, extra {extra[:5]}")
        for name, parameter in parameters.items():
            if parameter.shape != state[name].shape:
                raise CheckpointError(
                    f"{name} has shape {tuple(state[name].shape)} in the state, {tuple(parameter.shape)} in the model"
                )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    def reseed_dropout(self, step: int) -> None:
        """Restart the dropout masks of every adapter from (init_seed, weight, step), so that a resumed run draws the
        same masks."""
        for name, adapter in self.adapters.items():
            adapter.reseed_dropout(derive_seed("dropout", self.init_seed, name, step))

    def accumulating(self, micro_batches: int) -> AbstractContextManager[None]:
        """Return a block that accumulates gradients through one W0 + delta per optimiser step
        (`randlora.accumulating`).

        Args:
            micro_batches: the number of backward passes in the block.
        """
        return accumulating(self.model, micro_batches)

    # -- deltas, merging, detaching -----------------------------------------------------------------------------------

    @torch.no_grad()
    def deltas(self) -> dict[str, Tensor]:
        """Return the delta (out x in) of every weight by name, in the adapters' precision. Changes of biases are not
        included."""
        return self._of_each_weight("take deltas", lambda adapter, base: adapter.delta(base))

    def _of_each_weight(self, verb: str, make: Callable[[Adapter, Tensor], Tensor]) -> dict[str, Tensor]:
        """Return `make(adapter, W0)` of every weight. It runs outside autocast, which would round all of W0."""
        self.check_whole(verb)
        if not self.merged:
            self._check_base(verb)
        results = {}
        for name, adapter in self.adapters.items():
            base = self.sites[name].base.detach() if self._before_merge is None else self._before_merge[name]
            with autocast_off(base.device):
                results[name] = make(adapter.to(base.device), base)  # the model may have moved since disable()
        return results

    def check_whole(self, verb: str) -> None:
        """Raise AdapterError if FSDP2 has split the tensors, so that no process has them whole.

        Args:
            verb: what cannot be done, for the message.
        """
        check_whole(verb, self.model, [*self.parameters(), *(site.parameter for site in self.sites.values())])

    def _check_base(self, verb: str) -> None:
        """Raise AdapterError if the weights now include the delta of an adapter that was merged later."""
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
        """Yield the other live adapters that share weights with this one."""
        weights = {id(site.parameter) for site in self.sites.values()}
        return (a for a in _LIVE - {self} if any(id(site.parameter) in weights for site in a.sites.values()))

    @property
    def enabled(self) -> bool:
        """Return whether the adapters take part in the forward."""
        return self._attached

    def disable(self) -> nn.Module:
        """Take the adapters out of the forward and return the model; `enable()` puts them back."""
        if self.merged:
            raise AdapterError("cannot disable merged adapters: unmerge() first")
        if self._attached:
            self._remove()
        return self.model

    def enable(self) -> nn.Module:
        """Put disabled adapters back and return the model.

        They follow the model to its device and its mode (train or eval).
        """
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
        """Run the base model inside the block: `with adapted.disabled(): ...`."""
        was = self._attached
        self.disable()
        try:
            yield self.model
        finally:
            if was:
                self.enable()

    def install(self) -> None:
        """Put every adapter in its place; `attach` calls this."""
        for name, site in self.sites.items():
            site.install(self.adapters[name])
        self._attached = True

    def _remove(self) -> None:
        for site in reversed(list(self.sites.values())):
            site.remove()
        self._attached = False

    @property
    def merged(self) -> bool:
        """Return whether the deltas are written into the weights now."""
        return self._before_merge is not None

    def merge(self) -> nn.Module:
        """Write W0 + delta into the model's weights, take the adapters out of the forward, and return the model.

        The old weights are kept, so that `unmerge()` and `detach()` give them back bit for bit.

        Raises:
            AdapterError: a weight is tied (its other user would change as well) or quantised, the adapter changes a
                bias, or the adapters are disabled or detached.
        """
        if self.merged:
            return self.model
        if self._detached:
            raise AdapterError("cannot merge: the adapters are detached from the model; attach again or load()")
        if not self._attached:
            raise AdapterError("cannot merge: the adapters are disabled; enable() them first")
        check_can_merge(self.model, self.sites, self.adapters)
        with torch.no_grad():
            new = self._of_each_weight("merge", lambda adapter, base: adapter.weight(base))
            self._before_merge = {name: site.base.detach().clone() for name, site in self.sites.items()}
            self._merged_at = next(_CLOCK)
            self._remove()
            for name, site in self.sites.items():
                site.base.copy_(new[name])
        return self.model

    def unmerge(self) -> nn.Module:
        """Undo `merge()`: restore the weights bit for bit, put the adapters back, and return the model."""
        if self._before_merge is not None:
            self._restore("unmerge")
            self.enable()
        return self.model

    @contextmanager
    def merging(self) -> Iterator[nn.Module]:
        """Merge the deltas at the start of the block, and unmerge them at its end: `with adapted.merging(): ...`."""
        was = self.merged
        self.merge()
        try:
            yield self.model
        finally:
            if not was:
                self.unmerge()

    def detach(self, keep_merged: bool = False) -> nn.Module:
        """Take the adapters off and return the plain model.

        Its weights and its `requires_grad` flags are then as before `attach`. If several adapters share a model, the
        last one to be detached restores the flags. Detaching twice does nothing.

        Args:
            keep_merged: leave W0 + delta in the weights.
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
        """Freeze the base model and remember its `requires_grad` flags for `detach()`; `attach` calls this."""
        self._since = next(_CLOCK)
        _LIVE.add(self)
        self._names = {p: name for name, p in self.model.named_parameters()}
        self._requires_grad = {p: p.requires_grad for p in self._names}
        for parameter in self._requires_grad:
            parameter.requires_grad_(False)

    def _thaw(self) -> None:
        """Restore the `requires_grad` flags, or hand them to a later adapter of the model that still needs them
        frozen."""
        _LIVE.discard(self)
        later = sorted((a for a in _LIVE if a._since > self._since), key=lambda a: a._since)
        now = dict(self.model.named_parameters())
        for was, flag in self._requires_grad.items():
            parameter = now.get(self._names[was], was)  # `load_state_dict(assign=True)` replaces parameters
            heir, key = next(((a, p) for a in later for p in (was, parameter) if p in a._requires_grad), (None, was))
            if heir is None:
                parameter.requires_grad_(flag)
            else:
                heir._requires_grad[key] = flag
        self._requires_grad, self._names = {}, {}

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path, *, bases: bool = False) -> Path:
        """Write the adapter to `directory` and return that folder.

        Args:
            directory: the folder for `adapter.safetensors` (the trainables) and `adapter.json`; made if missing.
            bases: also write the frozen matrices. `load` can draw them again from the seed.
        """
        return checkpoint.save(self, directory, bases=bases)

    def export_peft(self, directory: str | Path) -> Path:
        """Write the adapter in PEFT's format to `directory`, and return that folder.

        Raises:
            ExportError: PEFT has no exact form for it; the message names what to use instead.
        """
        return peft_export.export_peft(self, directory)

    def export_deltas(self, directory: str | Path) -> Path:
        """Write every delta as a dense matrix (out x in) to `directory/deltas.safetensors`, and return the folder.

        Raises:
            ExportError: the adapter also changes biases.
        """
        return checkpoint.export_deltas(self, directory)
