"""Attach adapters to weights that are chosen by name, and freeze the rest of the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from randlora.adapted.adapted import Adapted
from randlora.adapted.uses import check_read
from randlora.adapter import Adapter, AdapterConfig, Request, check_capacity
from randlora.arithmetic.bases import Bases
from randlora.errors import ConfigError, TargetError, few, nearest
from randlora.methods.method import Method
from randlora.methods.registry import get_method
from randlora.model.families import default_targets
from randlora.model.prompted import PLACE, PromptSite
from randlora.model.sites import Site, holders, is_adapted, shared_names
from randlora.model.targets import select


class _Weights(Mapping[str, Tensor]):
    """The frozen weights by name. Each is read when it is asked for, so only one quantised weight is unpacked at a
    time."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites

    def __getitem__(self, name: str) -> Tensor:
        return self._sites[name].base.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def _warn_of_waste(method: Method, config: AdapterConfig, sites: Mapping[str, Site], sizes: Mapping[str, int]) -> None:
    """Warn of a capacity that is above what any target can use: the parameters beyond it do nothing."""
    if method.open_ended or ":" in method.name:  # methods of other packages have their own limits
        return
    options = config.options()
    # asked for one weight at a time: for several, NoLA's limit is that of the smallest
    most = max(method.max_capacity([shape], **options) for shape in {site.shape for site in sites.values()})
    if (largest := max(sizes.values())) > most:
        warnings.warn(
            f"{method.title}: {method.capacity_field} = {largest} is above {most}, the most that any of the "
            f"{len(sites)} targets can use, so parameters do nothing; nearest: {method.capacity_field} = {most}",
            stacklevel=3,
        )


def _warn_of_ties(model: nn.Module, sites: Mapping[str, Site]) -> None:
    """Warn of a target whose tensor other modules read too: they go on with W0."""
    users = holders(model)
    tied = [name for name, site in sites.items() if name != PLACE and users[id(site.parameter)] > 1]
    if tied:
        warnings.warn(
            f"{tied[0]} is tied ({', '.join(shared_names(model, sites[tied[0]].parameter))}): the adapter changes what "
            "its own module reads, and no other, and cannot be merged; untie the weight to adapt it everywhere",
            stacklevel=3,
        )


def _check_one_device(method: Method, sites: Mapping[str, Site], adapters: Mapping[str, Adapter]) -> None:
    """Raise ConfigError if the targets are on several devices and share frozen bases."""
    devices = sorted({str(site.parameter.device) for site in sites.values()})
    if len(devices) > 1 and any(isinstance(m, Bases) for adapter in adapters.values() for m in adapter.modules()):
        raise ConfigError(
            f"the weights of {method.title} share frozen bases, but the targets are on {', '.join(devices)}; move the "
            "model to one device, attach to the targets of one, or take a method without shared bases, such as LoRA"
        )


def sites_of(model: nn.Module, method: Method, targets: Sequence[str]) -> dict[str, Site]:
    """Return where the adapters go for each name in `targets`: weights, and the place of prompts.

    Raises:
        TargetError: a target matches no weight, a method of prompts has no "prompts" among its targets, or the model
            cannot take prompts.
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
    """Return the weights that have values but no gradient. Weights on the meta device are not asked: they are only
    counted."""
    return [n for n, site in sites.items() if n not in gradients and site.parameter.device.type != "meta"]


def _configured(name: str, options: Mapping[str, Any]) -> AdapterConfig:
    """Return a method's configuration. Raises ConfigError if the capacity is missing, or if an option is unknown."""
    kind = get_method(name).config
    field = kind.capacity_field
    known = [*kind.option_defaults(), field]
    if unknown := next((key for key in options if key not in known), None):
        raise ConfigError(
            f"method {name!r} has no option {unknown!r}; {nearest(unknown, known)}; its capacity is {field!r}"
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
    """Attach adapters to weights of a model, in place, and freeze every other parameter.

    At first the model computes what it computed before, to rounding; only methods of prompts change it.

    Args:
        model: any module. It is left untouched if an error is raised.
        config: a configuration such as `LoraConfig(8)`, or the method's name with its capacity and options as keywords:
            `attach(model, "lora", r=8)`.
        targets: full names of weights, ends of names, or patterns (`resolve_targets`). Methods of prompts have
            "prompts" among them. None: the default of the model's family (`default_targets`).
        capacities: weight name -> capacity (a rank r; NoLA's k), for weights that differ from the configuration's. The
            names are those of `resolve_targets`.
        init_seed: the seed of the trainables' start and of dropout.
        basis_seed: the seed of the frozen random bases.
        words: token ids from which prompts start; methods without prompts ignore them.
        gradients: weight name -> the loss's gradient (out x in), as `weight_gradients` returns them. LoRA-GA starts
            from them; other methods ignore them.
        options: the capacity and options of a method that is given by name.

    Returns:
        The model with its adapters.

    Raises:
        UnknownMethodError: no method has this name.
        TargetError: a target matches no weight that can be adapted.
        ConfigError: a value is not allowed, or the method cannot adapt one of the targets.

    A capacity above what any target can use is a warning, which names the largest useful one. A tied weight is a
    warning.
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
            f"config = {config!r} is not the configuration of a method; nearest: LoraConfig(8), or 'lora' and r=8"
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
    check_read(method, config, packed, sites)
    if unread := [name for name, site in sites.items() if site.quantised and not site.by_activation]:
        raise TargetError(
            f"{unread[0]} is quantised, and a hook of accelerate has replaced the forward of its layer. Such a layer "
            "cannot be adapted. Remove the hook, or leave the weight out of targets"
        )
    if scripted := [name for name, site in sites.items() if isinstance(site.owner, torch.jit.ScriptModule)]:
        raise TargetError(
            f"{scripted[0]} belongs to a scripted or traced module, whose code no adapter can enter; attach to the "
            "plain model, and merge() before you script it"
        )
    if method.needs_gradients and (without := _without_gradient(sites, gradients or {})):
        raise ConfigError(
            f"{method.title} starts from the loss's gradient at the base weights, and gradients has none for "
            f"{few(without)}; give gradients = weight_gradients(model, targets, backward), or take a start that needs "
            "no data, such as pissa"
        )
    called = {n: site for n, site in sites.items() if site.by_activation and n != PLACE}
    biased = {n: site.owner.bias for n, site in called.items() if isinstance(site.owner.bias, Tensor)}
    # Without the biases of Conv1D: AdaMSS would take them for a column of the weight, which older folders do not have.
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
        adapter.has_matrix = method.mergeable and not adapter.moves_bias
        adapter.train(sites[name].owner.training)
    adapted = Adapted(model, method, request, sites, adapters)
    adapted.freeze()
    adapted.install()
    adapted.reseed_dropout(0)
    return adapted
