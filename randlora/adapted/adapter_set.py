"""Several adapters on one model, one at a time in the forward: add, switch, disable, merge a weighted sum, unload.

    adapters = AdapterSet(model)
    adapters.add("colours", RandLoraConfig(r=6), targets)      # new ones are switched to
    adapters.add("shapes", LoraConfig(r=8), other_targets)
    adapters.switch("colours"); adapters.merge({"colours": 0.7, "shapes": 0.3}); adapters.unload()

Each adapter has its own method, ranks, targets, bases and seeds. Only the one switched to is in the model; the others
wait outside of it, so that they can neither clobber each other nor be found in the model's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapted.adapted import Adapted, check_can_merge
from randlora.adapted.attach import attach
from randlora.adapted.load import load
from randlora.adapter import AdapterConfig
from randlora.errors import AdapterError, nearest
from randlora.model.sites import Site, is_adapted


class AdapterSet:
    """Named adapters of `model`. A member is an `Adapted`."""

    def __init__(self, model: nn.Module) -> None:
        if is_adapted(model):
            raise AdapterError("the model has adapters already; detach() them first")
        self.model = model
        self._members: dict[str, Adapted] = {}
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        self._before_merge: dict[str, tuple[Site, Tensor]] | None = None

    def __getitem__(self, name: str) -> Adapted:
        if name not in self._members:
            known = sorted(self._members)
            raise AdapterError(f"no adapter named {name!r}: there are {known}; {nearest(name, known)}")
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    @property
    def active(self) -> str | None:
        """The adapter in the forward; None where the base model runs, or a merged sum."""
        return next((name for name, member in self._members.items() if member.enabled), None)

    @property
    def merged(self) -> bool:
        """Whether a weighted sum is in the weights."""
        return self._before_merge is not None

    def add(self, name: str, config: AdapterConfig, targets: Sequence[str], **settings: Any) -> Adapted:
        """Attach one more adapter and switch to it; `settings` as in `attach` (capacities, init_seed, basis_seed)."""
        return self._enter(name, lambda: attach(self.model, config, targets, **settings))

    def load(self, name: str, directory: str | Path) -> Adapted:
        """Load a saved adapter under a name and switch to it."""
        return self._enter(name, lambda: load(self.model, directory))

    def _enter(self, name: str, make: Callable[[], Adapted]) -> Adapted:
        self._check_unmerged("add an adapter")
        if name in self._members:
            raise AdapterError(f"an adapter named {name!r} is there already; remove() it, or take another name")
        was = self.active
        self.disable()
        try:
            added = make()
        except BaseException:
            if was is not None:
                self._members[was].enable()
            raise
        added.forget_flags()  # given back by unload(), when the last adapter goes
        self._members[name] = added
        return added

    def switch(self, name: str) -> Adapted:
        """Put the adapter `name` into the forward, in place of whichever is there."""
        self._check_unmerged("switch")
        member = self[name]
        if not member.enabled:
            self.disable()
            member.enable()
        return member

    def disable(self) -> nn.Module:
        """Run the base model; nothing is forgotten."""
        self._check_unmerged("disable")
        if (name := self.active) is not None:
            self._members[name].disable()
        return self.model

    @contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        """`with adapters.disabled():` runs the base model, then comes back to the adapter that ran."""
        was = self.active
        self.disable()
        try:
            yield self.model
        finally:
            if was is not None:
                self.switch(was)

    @torch.no_grad()
    def merge(self, weights: Mapping[str, float]) -> nn.Module:
        """Write W0 + sum_i weight_i delta_i into the model, with no adapter in the forward; `unmerge()` undoes it.

        The adapters may differ in method, rank and targets. Tied weights and methods without a delta are refused.
        """
        self._check_unmerged("merge")
        if not weights:
            raise AdapterError(f"merge() needs a weight per adapter, such as {{name: 0.5}}: there are {sorted(self)}")
        sums: dict[str, Tensor] = {}
        sites: dict[str, Site] = {}
        for name, weight in weights.items():
            member = self[name]
            check_can_merge(self.model, member.sites, member.adapters)
            for target, delta in member.deltas().items():
                share = delta * weight
                sums[target] = sums[target] + share if target in sums else share
                sites.setdefault(target, member.sites[target])
        self.disable()
        self._before_merge = {n: (site, site.parameter.detach().clone()) for n, site in sites.items()}
        for target, site in sites.items():
            site.base.copy_(site.base + sums[target])
        return self.model

    @torch.no_grad()
    def unmerge(self) -> nn.Module:
        """Restore the weights as they were, bit for bit; no adapter is in the forward."""
        for site, old in (self._before_merge or {}).values():
            site.parameter.copy_(old)
        self._before_merge = None
        return self.model

    def remove(self, name: str) -> None:
        """Forget one adapter; the base model runs if it was the one in the forward."""
        self._check_unmerged("remove an adapter", besides=name)
        self[name].detach()
        del self._members[name]

    def unload(self, keep_merged: bool = False) -> nn.Module:
        """Forget all adapters and return the model as it was: weights, classes, hooks and `requires_grad` flags.

        `keep_merged=True` leaves the merged sum in the weights.
        """
        if keep_merged:
            if self._before_merge is None:
                raise AdapterError("unload(keep_merged=True) without a merged sum: call merge({name: weight}) first")
            self._before_merge = None
        self.unmerge()
        for member in self._members.values():
            member.detach()
        self._members.clear()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        return self.model

    def _check_unmerged(self, verb: str, besides: str | None = None) -> None:
        if self.merged:
            raise AdapterError(f"cannot {verb} while a weighted sum is in the weights: unmerge() first")
        for name, member in self._members.items():
            if member.merged and name != besides:
                raise AdapterError(f"cannot {verb} while {name!r} is merged into the weights: unmerge() it first")
