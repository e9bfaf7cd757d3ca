"""Turn target weights into bitsandbytes layers of 4 or 8 bits (extra `quantised`), before adapters are attached.

quantise(model, ["q_proj", "v_proj"], bits=4)       # or a model that transformers loaded quantised
adapted = attach(model, LoraConfig(r=16), ["q_proj", "v_proj"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from randlora.errors import ConfigError, TargetError
from randlora.model.quantised import PlannedLayer, bitsandbytes_library, dequantised, keep_layout
from randlora.model.sites import Site, find_sites, holders
from randlora.model.targets import select


def quantise(model: nn.Module, targets: Sequence[str], bits: Literal[4, 8] = 4, **options: Any) -> list[str]:
    """Turn the targets into bitsandbytes layers of `bits` bits, in place, and return the names of their weights.

    Args:
        model: a model on the device on which it will run. Everything else in it stays as it is.
        targets: names of weights as in `attach`. Each must belong to a called `nn.Linear` or `Conv1D`.
        bits: 4 (NF4 unless `options` has another `quant_type`) or 8.
        options: passed to `bitsandbytes.nn.Linear4bit` or `Linear8bitLt`.

    Raises:
        ConfigError: bitsandbytes is not installed, or `bits` is neither 4 nor 8.
        TargetError: a target matches nothing, or a weight that does not belong to a called linear layer.
    """
    if bits not in (4, 8):
        raise ConfigError(f"bits must be 4 or 8 but got {bits!r}")
    library = bitsandbytes_library()
    sites = select(model, targets)
    for name, site in sites.items():
        if not can_be_quantised(site):
            raise TargetError(
                f"{name} cannot be quantised: only whole weights of called nn.Linear and Conv1D layers are"
            )
    for site in sites.values():
        model.set_submodule(site.module_name, _layer(library, site, bits, options))
    return list(sites)


def can_be_quantised(site: Site) -> bool:
    """Return whether a weight is the whole weight of a called `nn.Linear`, or of transformers' `Conv1D`."""
    plain = type(site.owner) is nn.Linear or site.transposed
    return plain and site.by_activation and site.part is None


def linear_layers(model: nn.Module, head: nn.Module | None = None) -> dict[str, Site]:
    """Return the weights that QLoRA keeps in 4 bits: those of all linear layers but the head.

    A weight that other modules also hold stays as it is.
    """
    held = holders(model)
    return {
        name: site
        for name, site in find_sites(model).items()
        if can_be_quantised(site) and site.owner is not head and held[id(site.parameter)] == 1
    }


def quantise_layers(
    model: nn.Module, sites: Mapping[str, Site], bits: Literal[4, 8], device: torch.device, **options: Any
) -> None:
    """Turn layers that `linear_layers` found into bitsandbytes layers on `device`, in place.

    Raises ConfigError: bitsandbytes is not installed.
    """
    library = bitsandbytes_library()
    for site in sites.values():
        model.set_submodule(site.module_name, _layer(library, site, bits, options, device))


def as_quantised(site: Site, bits: Literal[4, 8], **options: Any) -> Tensor:
    """Return the weight (out x in) that a bitsandbytes layer would read back. Raises ConfigError if it is missing."""
    return dequantised(_layer(bitsandbytes_library(), site, bits, options))


def plan_layers(model: nn.Module, sites: Mapping[str, Site], bits: int, dtype: torch.dtype) -> None:
    """Let `PlannedLayer`s stand for quantised layers, in place. Needs no values and no bitsandbytes."""
    for site in sites.values():
        model.set_submodule(site.module_name, PlannedLayer(site.owner, site.shape, bits, dtype))


def _layer(
    library: Any, site: Site, bits: int, options: Mapping[str, Any], device: torch.device | None = None
) -> nn.Module:
    """Return a bitsandbytes layer in place of the site's own, on `device`; None: where its weight is."""
    old = cast(Any, site.owner)
    out, width = site.shape
    sizes = (width, out, old.bias is not None)
    if bits == 4:
        new = library.nn.Linear4bit(*sizes, **{"quant_type": "nf4", **options})
    else:
        new = library.nn.Linear8bitLt(*sizes, **{"has_fp16_weights": False, **options})
    new.weight.data = site.base.detach().to("cpu", copy=True).contiguous()  # it quantises what comes from there
    new.bias = old.bias
    new.train(old.training)
    keep_layout(new)
    return cast(nn.Module, new.to(device or old.weight.device))  # the move quantises
