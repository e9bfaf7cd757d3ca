"""Turn target weights into bitsandbytes layers of 4 or 8 bits (extra `quantised`), before adapters are attached.

quantise(model, ["q_proj", "v_proj"], bits=4)       # or a model that transformers loaded quantised
adapted = attach(model, LoraConfig(r=16), ["q_proj", "v_proj"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from torch import nn

from randlora.errors import ConfigError, TargetError
from randlora.model.quantised import bitsandbytes_library
from randlora.model.targets import select


def quantise(model: nn.Module, targets: Sequence[str], bits: Literal[4, 8] = 4, **options: Any) -> list[str]:
    """Turn the targets into bitsandbytes layers of `bits` bits, in place, and return the names of their weights.

    Args:
        model: a model on the device on which it will run. Everything else in it stays as it is.
        targets: names of weights as in `attach`. Each must belong to an `nn.Linear` that is called.
        bits: 4 (NF4 unless `options` has another `quant_type`) or 8.
        options: passed to `bitsandbytes.nn.Linear4bit` or `Linear8bitLt`.

    Raises:
        ConfigError: bitsandbytes is not installed, or `bits` is neither 4 nor 8.
        TargetError: a target matches nothing, or a weight that does not belong to a called `nn.Linear`.
    """
    if bits not in (4, 8):
        raise ConfigError(f"bits must be 4 or 8 but got {bits!r}")
    library = bitsandbytes_library()
    sites = select(model, targets)
    for name, site in sites.items():
        if type(site.owner) is not nn.Linear or not site.by_activation or site.part is not None:
            raise TargetError(f"{name} cannot be quantised: only whole weights of called nn.Linear layers are")
    for site in sites.values():
        old = cast(nn.Linear, site.owner)
        sizes = (old.in_features, old.out_features, old.bias is not None)
        if bits == 4:
            new = library.nn.Linear4bit(*sizes, **{"quant_type": "nf4", **options})
        else:
            new = library.nn.Linear8bitLt(*sizes, **{"has_fp16_weights": False, **options})
        new.weight.data = old.weight.detach().to("cpu", copy=True)  # bitsandbytes quantises what comes from there
        new.bias = old.bias
        new.train(old.training)
        model.set_submodule(site.module_name, new.to(old.weight.device))  # the move quantises
    return list(sites)
