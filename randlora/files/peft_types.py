"""Read PEFT's directories of the types that are `peft:NAME` here: the settings and targets of such an adapter.

PEFT's own functions say which modules the settings name, and put the tensors in place. Every setting must have a
counterpart here. The file must hold exactly the tensors of the adapter that is built from the settings.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from randlora.adapter import AdapterConfig, Shape
from randlora.errors import CheckpointError, UnknownMethodError
from randlora.files.checkpoint import Adapted, fingerprint
from randlora.methods.bridge.build import PeftAdapter
from randlora.methods.bridge.config import PLACED
from randlora.methods.bridge.installed import PREFIX, peft, quiet
from randlora.methods.bridge.kinds import Kind, kind_of
from randlora.methods.registry import get_method
from randlora.model.sites import find_sites


@dataclasses.dataclass(frozen=True)
class Settings:
    """A directory's settings, in this package's terms.

    Attributes:
        config: the method's configuration.
        capacities: weight name -> capacity, for all weights that are adapted.
        basis_seed: the seed of the frozen tensors.
    """

    config: AdapterConfig
    capacities: dict[str, int]

    basis_seed: int


_ENDLESS = re.compile(r"\)[*+{]")
"""A repeated group in a regular expression: nested repetitions may match for ever."""
_REPEATS = re.compile(r"[*+{]")
"""A repetition in a regular expression."""
_MOST_REPEATS = 3
"""The largest number of repetitions that are accepted: more of them may match for ever."""


def check_pattern(setting: str, pattern: str) -> None:
    """Raise CheckpointError for a regular expression that may take for ever."""
    if _ENDLESS.search(pattern) or len(_REPEATS.findall(pattern)) > _MOST_REPEATS:
        raise CheckpointError(f"the PEFT adapter's {setting} has {pattern!r}, which may match without end")


def is_known(peft_type: object) -> bool:
    """Return whether a directory of this type can be read here."""
    try:
        return isinstance(peft_type, str) and kind_of(PREFIX + peft_type.lower()) is not None
    except UnknownMethodError:
        return False


def read_settings(model: nn.Module, folder: Path, peft_type: str) -> Settings:
    """Return the settings in a folder's `adapter_config.json`.

    Raises:
        CheckpointError: PEFT refuses the settings, or one of them has no counterpart here.
    """
    name = PREFIX + peft_type.lower()
    kind, method = kind_of(name), get_method(name)
    try:
        with quiet():
            peft_config = peft().PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"PEFT refuses the settings in {folder}: {error}") from error
    options = {name: getattr(peft_config, name) for name in method.options if hasattr(peft_config, name)}
    _check_fields(peft_config, kind, options)
    shapes = _targets(model, peft_config)
    seed = None if kind.seed is None else getattr(peft_config, kind.seed)
    value = 1 if kind.capacity_field is None else getattr(peft_config, kind.capacity_field)
    sizes = {name: kind.read(value, shape) for name, shape in shapes.items()}
    if kind.pooled:
        (total,) = set(sizes.values())  # one vector for the whole model
        sizes = _spread_evenly(total, {name: kind.most_of(shape, options) for name, shape in shapes.items()})
    return Settings(method.config_for(sizes, options), sizes, 0 if seed is None else int(seed))


_SHOWN = {"progressbar"}
"""PEFT's fields that only change what is shown."""


def _check_fields(peft_config: Any, kind: Kind, options: Mapping[str, Any]) -> None:
    """Raise CheckpointError if one of PEFT's fields has a value without a counterpart here."""
    handled = {*options, *PLACED, *_SHOWN, kind.capacity_field, kind.seed} - {"bias", "modules_to_save"}
    for field in dataclasses.fields(peft_config):
        if field.name in handled:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        expected, value = kind.fixed.get(field.name, default), getattr(peft_config, field.name)
        same = value == expected or (not value and not expected)
        if not same:
            raise CheckpointError(
                f"the PEFT adapter has {field.name}={value!r}, which has no counterpart here; {expected!r} has one"
            )


def _targets(model: nn.Module, peft_config: Any) -> dict[str, Shape]:
    """Return the (out, in) of the weights that PEFT would adapt, by name."""
    from peft.tuners.tuners_utils import check_target_module_exists

    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = getattr(peft_config, name, None)
        for pattern in [value] if isinstance(value, str) else value or ():
            check_pattern(name, str(pattern))
    sites = {site.module_name: site for site in find_sites(model).values() if site.attr == "weight"}
    targeted = {n: site for n, site in sites.items() if check_target_module_exists(peft_config, n)}
    if not targeted:
        raise CheckpointError(
            f"the PEFT adapter is for {peft_config.target_modules!r}, and this model has no such modules"
        )
    return {site.name: site.shape for site in targeted.values()}


def _spread_evenly(total: int, most: Mapping[str, int]) -> dict[str, int]:
    """Return capacities that add up to `total`, as even as their largest values allow."""
    sizes, remaining = {}, total
    for k, (name, limit) in enumerate(sorted(most.items(), key=lambda item: item[1])):
        sizes[name] = min(limit, -(-remaining // (len(most) - k)))
        remaining -= sizes[name]
    return {name: sizes[name] for name in most}


def fill(adapted: Adapted, tensors: Mapping[str, Tensor]) -> None:
    """Put a directory's tensors into an adapter that was attached with its settings.

    Raises:
        CheckpointError: the file has other tensors or shapes than the adapter, or its frozen tensors follow no seed, so
            that `save`, which keeps only the seed, could not keep them.
    """
    tuners = {id(a.tuner): a.tuner for a in adapted.adapters.values() if isinstance(a, PeftAdapter)}
    if len(tuners) > 1:
        raise CheckpointError("the PEFT adapter has a capacity that some of its weights cannot have")
    (tuner,) = tuners.values()
    with quiet():
        built = peft().get_peft_model_state_dict(tuner)
        if missing := sorted(built.keys() - tensors.keys()):
            raise CheckpointError(f"the PEFT adapter lacks {missing[:3]}")
        if extra := sorted(tensors.keys() - built.keys()):
            raise CheckpointError(f"the PEFT adapter holds {extra[:3]}, which have no counterpart here")
        if wrong := [name for name in built if built[name].shape != tensors[name].shape]:
            shapes = f"{tuple(tensors[wrong[0]].shape)} in the file and {tuple(built[wrong[0]].shape)} in the model"
            raise CheckpointError(f"{wrong[0]} is {shapes}")
        drawn_digest = fingerprint(adapted.redrawn())["digest"]
        peft().set_peft_model_state_dict(tuner, dict(tensors))
    if fingerprint(adapted.redrawn())["digest"] != drawn_digest:
        raise CheckpointError(
            f"the frozen tensors of the PEFT adapter are not those that PEFT draws here from the seed "
            f"{adapted.basis_seed}, so that save() could not keep them; train it with a seed, or merge it in PEFT"
        )
