"""Attach adapters to weights chosen by name, and freeze the rest."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from randlora.adapted.adapted import Adapted
from randlora.adapter import Adapter, AdapterConfig, Request, check_capacity
from randlora.arithmetic.bases import Bases
from randlora.errors import ConfigError, TargetError, nearest
from randlora.methods.method import Method
from randlora.methods.registry import get_method
from randlora.model.families import default_targets
from randlora.model.prompted import PLACE, PromptSite
from randlora.model.sites import Site, holders, is_adapted, shared_names
from randlora.model.targets import select


class _Weights(Mapping[str, Tensor]):
    """The frozen weights, each read when it is asked for: a quantised one is whole for no longer than needed."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites

    def __getitem__(self, name: str) -> Tensor:
        return self._sites[name].base.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _few(names: Iterable[str]) -> str:
    """Some names, or "none of them"."""
    some = list(names)
    return ", ".join(some[:3]) + (", ..." if len(some) > 3 else "") if some else "none of them"


def _warn_of_waste(method: Method, config: AdapterConfig, sites: Mapping[str, Site], sizes: Mapping[str, int]) -> None:
    """Warn of a capacity that no target can use: it costs parameters and brings nothing. Some targets may be small."""
    if method.open_ended or ":" in method.name:  # another package's has limits of its own
        return
    options = config.options()  # of one weight at a time: NoLA has as many bases as its smallest can use
    most = max(method.max_capacity([shape], **options) for shape in {site.shape for site in sites.values()})
    if (largest := max(sizes.values())) > most:
        warnings.warn(
            f"{method.title}: {method.capacity_field} = {largest} is above {most}, the most that any of the "
            f"{len(sites)} targets can use, so parameters do nothing; nearest: {method.capacity_field} = {most}",
            stacklevel=3,
        )


def _warn_of_ties(model: nn.Module, sites: Mapping[str, Site]) -> None:
    """Warn of a target whose tensor has other readers: they go on with W0."""
    held = holders(model)
    tied = [name for name, site in sites.items() if name != PLACE and held[id(site.parameter)] > 1]
    if tied:
        warnings.warn(
            f"{tied[0]} is tied ({', '.join(shared_names(model, sites[tied[0]].parameter))}): the adapter changes what "
            "its own module reads, and no other, and cannot be merged; untie the weight to adapt it everywhere",
            stacklevel=3,
        )


def _check_one_device(method: Method, sites: Mapping[str, Site], adapters: Mapping[str, Adapter]) -> None:
    """Refuse bases that all weights share where the weights are on several devices."""
    devices = sorted({str(site.parameter.device) for site in sites.values()})
    if len(devices) > 1 and any(isinstance(m, Bases) for adapter in adapters.values() for m in adapter.modules()):
        raise ConfigError(
            f"the weights of {method.title} share frozen bases, but the targets are on {', '.join(devices)}; move the "
            "model to one device, attach to the targets of one, or take a method without shared bases, such as LoRA"
        )


def sites_of(model: nn.Module, method: Method, targets: Sequence[str]) -> dict[str, Site]:
    """The sites that `targets` name: weights (`randlora.resolve_targets`), and the place of prompts.

    Raises TargetError: as `select`; a method of prompts without a place for them, or a place without such a method.
    """
    if not method.prompts or isinstance(targets, str):
        return select(model, targets)
    weights = [target for target in targets if target != PLACE]
    if PLACE not in targets or bool(weights) != method.on_weights:
        rule = f"{PLACE!r} and the weights to adapt" if method.on_weights else f"[{PLACE!r}]"
        raise TargetError(f"the targets of {method.title} are {rule}, but got {targets!r}")
    if weights:
        return {PLACE: PromptSite(model), **select(model, weights)}
    if is_adapted(model):
        raise TargetError("the model has adapters already; detach() them first")
    return {PLACE: PromptSite(model)}


def _without_gradient(sites: Mapping[str, Site], gradients: Mapping[str, Tensor]) -> list[str]:
    """Return the weights that have values but no gradient. Weights on the meta device are only counted."""
    return [n for n, site in sites.items() if n not in gradients and site.parameter.device.type != "meta"]


def _configured(name: str, options: Mapping[str, Any]) -> AdapterConfig:
    """Return a method's configuration. Raises ConfigError if the capacity is missing, or for unknown options."""
    kind = get_method(name).config
    field = kind.capacity_field
    own = [*kind.option_defaults(), field]
    if strange := next((key for key in options if key not in own), None):
        raise ConfigError(
            f"method {name!r} has no option {strange!r}; {nearest(strange, own)}; its capacity is {field!r}"
        )
    if field not in options:
        raise ConfigError(f"method {name!r} needs its capacity, {field!r}; nearest: attach(model, {name!r}, {field}=8)")
    return kind.from_options(options[field], {key: value for key, value in options.items() if key != field})


def attach(
    model: nn.Module,
    config: AdapterConfig | str,
    targets: Sequence[str] | None = None,
    *,
    capacities: Mapping[str, int] | None = None,
    init_seed: int = 0,
    basis_seed: int = 0,
    words: Sequence[int] = (),
    gradients: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Adapted:
    """Attach `config`'s method to the targets, in place, and freeze every other parameter.

    The model computes what it computed. `config` is a configuration, or a method's name with its capacity and options
    as keywords: `attach(model, "lora", r=8)`. If `targets` is None, those of the model's family are taken
    (`default_targets`).

    `capacities` overrides the configuration's capacity (r; NoLA's k) for named weights, the names being those of
    `resolve_targets`. `init_seed` gives trainable starts and dropout, `basis_seed` the frozen bases. A capacity above
    what any target can use (a LoRA's r above every min(out, in)) is a warning that names the most that is of use, a
    tied weight another. Methods of prompts have "prompts" among their targets, and change what the model computes;
    `words` are the token ids that they start from. `gradients`: the loss's gradient at every target
    (`weight_gradients`), which LoRA-GA starts from and others do not read.

    Raises `UnknownMethodError`, `TargetError` or `ConfigError`, and leaves the model untouched.
    """
    if isinstance(config, str):
        config = _configured(config, options)
    elif options:
        name = next(iter(options))
        raise ConfigError(
            f"{name} = {options[name]!r} beside a configuration: options are fields of {type(config).__name__}, or "
            f"keywords beside a method's name, attach(model, {getattr(config, 'method', 'lora')!r}, r=8)"
        )
    if not isinstance(config, AdapterConfig):
        raise ConfigError(
            f"config = {config!r} is no configuration of a method, with its capacity; nearest: LoraConfig(8), or "
            "'lora' and r=8"
        )
    method = get_method(config.method)
    if targets is None:
        usual = default_targets(model) if method.on_weights else []
        targets = [PLACE, *usual] if method.prompts else usual
    sites = sites_of(model, method, targets)
    sizes = dict.fromkeys(sites, config.capacity)
    for name, value in (capacities or {}).items():
        if name not in sites:
            raise TargetError(f"capacities names {name!r}, which is not among the targets; {nearest(name, sites)}")
        check_capacity(method.name, f"{method.capacity_field} of {name}", value, method.min_capacity)
        sizes[name] = value
    packed = [name for name, site in sites.items() if not site.by_activation]
    if packed and not (method.mergeable or method.prompts):
        raise ConfigError(
            f"{method.title}'s update is no matrix and needs a called nn.Linear, but {packed[0]} is read as a "
            "matrix; leave the weight out of targets, or take another method (of these targets it can adapt "
            f"{_few(n for n in sites if n not in packed)})"
        )
    if packed and float(getattr(config, "dropout", 0.0)) > 0.0:
        raise ConfigError(
            f"dropout on the adapter's input needs a called nn.Linear, but {packed[0]} is read as a matrix; "
            "use dropout=0.0, or leave the weight out of targets"
        )
    if unread := [name for name, site in sites.items() if site.quantised and not site.by_activation]:
        raise TargetError(
            f"{unread[0]} is quantised, and the module around it reads it or a hook (accelerate's) has given the layer "
            "a forward of its own: it cannot be adapted; take the hook off, or leave the weight out of targets"
        )
    if method.needs_gradients and (without := _without_gradient(sites, gradients or {})):
        raise ConfigError(
            f"{method.title} starts from the loss's gradient at the base weights, and gradients has none for "
            f"{_few(without)}; give gradients = weight_gradients(model, targets, backward), or take a start that needs "
            "no data, such as pissa"
        )
    called = {n: site for n, site in sites.items() if site.by_activation and n != PLACE}
    biased = {n: site.owner.bias for n, site in called.items() if isinstance(site.owner.bias, Tensor)}
    # not a Conv1D's: AdaMSS takes them for a column of the weight, and has none there, as in folders of before
    biases = {n: b[slice(*(sites[n].rows or (None,)))] for n, b in biased.items() if not sites[n].transposed}
    quantised = frozenset(n for n, site in sites.items() if site.quantised)
    place = sites[PLACE].shape if PLACE in sites else None
    weights, start = _Weights(sites), tuple(words)
    request = Request(
        config,
        weights,
        sizes,
        init_seed,
        basis_seed,
        biases,
        quantised,
        place,
        start,
        frozenset(biased),
        {} if gradients is None else gradients,
    )
    adapters = method.build(request)
    _check_one_device(method, sites, adapters)
    _warn_of_waste(method, config, sites, sizes)
    _warn_of_ties(model, sites)
    for name, adapter in adapters.items():
        adapter.train(sites[name].owner.training)
    adapted = Adapted(model, method, request, sites, adapters)
    adapted.freeze()
    adapted.install()
    adapted.reseed_dropout(0)
    return adapted
