"""PEFT's directories of the types that this package has as `peft:NAME`: settings and targets of such an adapter.

PEFT's own functions say which modules the settings name, and put the tensors in place. Everything in the settings must
have a counterpart here, and the file must hold exactly the tensors of the adapter that is built from them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from randlora.adapter import AdapterConfig, Shape
from randlora.errors import CheckpointError
from randlora.files.checkpoint import Adapted, fingerprint
from randlora.methods.bridge.build import PeftAdapter
from randlora.methods.bridge.config import PLACED, peft, quiet
from randlora.methods.bridge.kinds import KINDS, PREFIX, Kind
from randlora.methods.registry import get_method
from randlora.model.sites import find_sites


@dataclasses.dataclass(frozen=True)
class Settings:
    """A directory's settings in this package's terms."""

    config: AdapterConfig
    capacities: dict[str, int]
    """Weight name -> capacity, of all weights that are adapted."""
    basis_seed: int


_ENDLESS, _REPEATS = re.compile(r"\)[*+{]"), re.compile(r"[*+{]")
"""Of regular expressions: a group that is repeated, and any repetition; nested or many, they take for ever."""


def check_pattern(setting: str, pattern: str) -> None:
    """Raise CheckpointError for a regular expression that may take for ever."""
    if _ENDLESS.search(pattern) or len(_REPEATS.findall(pattern)) > 3:
        raise CheckpointError(f"the PEFT adapter's {setting} has {pattern!r}, which may match without end")


def is_known(peft_type: object) -> bool:
    """Whether a directory of this type is read here."""
    return isinstance(peft_type, str) and peft_type.lower() in KINDS


def read_settings(model: nn.Module, folder: Path, peft_type: str) -> Settings:
    """Read `adapter_config.json`. Raises CheckpointError for a setting without a counterpart here."""
    short = peft_type.lower()
    kind, method = KINDS[short], get_method(PREFIX + short)
    try:
        with quiet():
            theirs = peft().PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"PEFT refuses the settings in {folder}: {error}") from error
    options = {name: getattr(theirs, name) for name in method.options if hasattr(theirs, name)}
    _check_fields(theirs, kind, options)
    shapes = _targets(model, theirs)
    seed = None if kind.seed is None else getattr(theirs, kind.seed)
    capacity = 1 if kind.capacity_field is None else kind.read(getattr(theirs, kind.capacity_field))
    sizes = dict.fromkeys(shapes, capacity)
    if kind.pooled:
        sizes = _spread(capacity, {name: kind.most(shape, options) for name, shape in shapes.items()})
    return Settings(method.config.from_options(max(sizes.values()), options), sizes, 0 if seed is None else int(seed))


def _check_fields(theirs: Any, kind: Kind, options: Mapping[str, Any]) -> None:
    known = {*options, *PLACED, kind.capacity_field, kind.seed} - {"bias", "modules_to_save"}
    for field in dataclasses.fields(theirs):
        if field.name in known:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        wanted, value = kind.fixed.get(field.name, default), getattr(theirs, field.name)
        same = value == wanted or (not value and not wanted)
        if not same:
            raise CheckpointError(
                f"the PEFT adapter has {field.name}={value!r}, which has no counterpart here; {wanted!r} has one"
            )


def _targets(model: nn.Module, theirs: Any) -> dict[str, Shape]:
    """The weights of the modules that PEFT would take."""
    from peft.tuners.tuners_utils import check_target_module_exists

    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = getattr(theirs, name, None)
        for pattern in [value] if isinstance(value, str) else value or ():
            check_pattern(name, str(pattern))
    sites = {site.module_name: site for site in find_sites(model).values() if site.attr == "weight"}
    found = {n: site for n, site in sites.items() if check_target_module_exists(theirs, n)}
    if not found:
        raise CheckpointError(f"the PEFT adapter is for {theirs.target_modules!r}, and this model has no such modules")
    return {site.name: site.shape for site in found.values()}


def _spread(total: int, most: Mapping[str, int]) -> dict[str, int]:
    """The sum of all capacities spread evenly, each up to its largest."""
    sizes, left = {}, total
    for k, (name, limit) in enumerate(sorted(most.items(), key=lambda item: item[1])):
        sizes[name] = min(limit, -(-left // (len(most) - k)))
        left -= sizes[name]
    return {name: sizes[name] for name in most}


def fill(adapted: Adapted, tensors: Mapping[str, Tensor]) -> None:
    """Put a directory's tensors into an adapter that was attached with its settings.

    Raises CheckpointError if the file holds other tensors than the adapter has, or of other shapes, and if its frozen
    tensors follow no seed: `save` keeps the seed alone.
    """
    tuners = {id(a.tuner): a.tuner for a in adapted.adapters.values() if isinstance(a, PeftAdapter)}
    if len(tuners) > 1:
        raise CheckpointError("the PEFT adapter has a capacity that some of its weights cannot have")
    (tuner,) = tuners.values()
    with quiet():
        wanted = peft().get_peft_model_state_dict(tuner)
        if missing := sorted(wanted.keys() - tensors.keys()):
            raise CheckpointError(f"the PEFT adapter lacks {missing[:3]}")
        if extra := sorted(tensors.keys() - wanted.keys()):
            raise CheckpointError(f"the PEFT adapter holds {extra[:3]}, which have no counterpart here")
        if wrong := [name for name in wanted if wanted[name].shape != tensors[name].shape]:
            shapes = f"{tuple(tensors[wrong[0]].shape)} in the file and {tuple(wanted[wrong[0]].shape)} in the model"
            raise CheckpointError(f"{wrong[0]} is {shapes}")
        drawn = fingerprint(adapted.redrawn())["digest"]
        peft().set_peft_model_state_dict(tuner, dict(tensors))
    if fingerprint(adapted.redrawn())["digest"] != drawn:
        raise CheckpointError(
            f"the frozen tensors of the PEFT adapter are not those that PEFT draws here from the seed "
            f"{adapted.basis_seed}, so that save() could not keep them; train it with a seed, or merge it in PEFT"
        )
