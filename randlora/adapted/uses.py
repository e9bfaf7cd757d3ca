"""Whether each adapter takes part in a forward of its model, whatever the model's code is.

    check_used(adapted, lambda: model(x))      # an error that names a weight whose adapter is idle

An adapter takes part if its layer is called, or if its weight is read. Neither can be known from names of classes, so
it is recorded while the model runs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from randlora.adapted.adapted import Adapted
from randlora.adapter import Adapter, AdapterConfig
from randlora.errors import ConfigError, IdleAdapterError, few
from randlora.methods.method import Method

_CALLS = ("apply_to", "beside", "of_text", "of_image")
"""Methods of adapters through which they act on an input. The last two are those of prompts."""
_READS = ("matrix", "read")
"""Methods of adapters that make W0 + delta for whoever reads the weight."""


@dataclass
class Uses:
    """What a model did with its adapters.

    Attributes:
        names: the weights that have adapters, in the model's order.
        called: those whose adapter acted on an input.
        read: those that were read as a matrix.
    """

    names: tuple[str, ...]
    called: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)

    @property
    def idle(self) -> list[str]:
        """Return the weights whose adapter took no part."""
        return [name for name in self.names if name not in self.called | self.read]

    @property
    def unreached(self) -> list[str]:
        """Return the idle weights that have a sibling in use: the same name but for numbers.

        This is how an expert looks that no token reached.
        """
        used = {_without_numbers(name) for name in self.called | self.read}
        return [name for name in self.idle if _without_numbers(name) in used]


@contextmanager
def recording(adapters: Mapping[str, Adapter]) -> Iterator[Uses]:
    """Record inside the block which adapters take part. Outside of it, nothing is recorded and nothing costs time.

    Compiled code does not see the block: run it under `torch.compiler.set_stance("force_eager")`.

    Args:
        adapters: the adapters by weight name.
    """
    uses = Uses(tuple(adapters))
    watched = [
        (adapter, entry, partial(_noting, getattr(adapter, entry), into, name))
        for entries, into in ((_CALLS, uses.called), (_READS, uses.read))
        for entry in entries
        for name, adapter in adapters.items()
        if hasattr(adapter, entry)
    ]
    for adapter, entry, wrapper in watched:
        setattr(adapter, entry, wrapper)  # of the instance, in front of the class's
    try:
        yield uses
    finally:
        for adapter, entry, _ in watched:
            delattr(adapter, entry)


def _noting(entry: Callable[..., Any], into: set[str], name: str, *args: Any, **kwargs: Any) -> Any:
    into.add(name)
    return entry(*args, **kwargs)


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "", name)


def check_used(adapted: Adapted, run: Callable[[], object]) -> None:
    """Run a model, and raise an error if one of its adapters took no part, because it could learn nothing.

    Compiled modules run without their compiled code. If another weight of the same name but for numbers takes part,
    such as another expert of a list, the idle one is a warning.

    Args:
        adapted: the model with its adapters, enabled.
        run: runs the model once, such as `lambda: model(x)`.

    Raises:
        IdleAdapterError: a weight was neither read, nor was its layer called.
        ConfigError: a weight was only read, and the method or its dropout needs a called layer.
    """
    with torch.compiler.set_stance("force_eager"), recording(adapted.adapters) as uses:
        run()
    if unreached := uses.unreached:
        warnings.warn(unreached_words(unreached), stacklevel=2)
    check_uses(adapted, uses, [name for name in uses.idle if name not in unreached])


def check_uses(adapted: Adapted, uses: Uses, idle: Iterable[str]) -> None:
    """Raise an error for the first of the `idle` weights, or for one that was only read and cannot be.

    Raises:
        IdleAdapterError, ConfigError: as `check_used`.
    """
    for name in idle:
        site = adapted.sites[name]
        owner: Any = type(site.owner)
        layer = f"{getattr(owner, 'plain', owner).__name__}, its module"
        around = "" if site.parent is None else f", and {type(site.parent).__name__} around it"
        raise IdleAdapterError(
            f"the adapter of {name} takes no part in the forward: {layer}{around} neither call the layer nor read its "
            "weight, so nothing could be learned there; leave it out of targets, or name the weight that the model uses"
        )
    read = [name for name in uses.names if name in uses.read - uses.called]
    if moved := [name for name in read if adapted.adapters[name].moves_bias]:
        raise ConfigError(
            f"{adapted.method.title} changes the bias too, but {moved[0]} is read as a matrix, and its layer is not "
            "called; leave the weight out of targets, or take another method"
        )
    check_read(adapted.method, adapted.config, read, adapted.sites)


def check_read(method: Method, config: AdapterConfig, read: list[str], targets: Iterable[str]) -> None:
    """Raise ConfigError if a method or its dropout cannot adapt weights that are read as matrices.

    Args:
        method, config: the method and its configuration.
        read: names of the weights that are read.
        targets: names of all weights.
    """
    if read and not (method.mergeable or method.prompts):
        raise ConfigError(
            f"{method.title}'s update is not a matrix and needs a called nn.Linear, but {read[0]} is read as a "
            "matrix; leave the weight out of targets, or take another method (of these targets it can adapt "
            f"{few(n for n in targets if n not in read)})"
        )
    if read and float(getattr(config, "dropout", 0.0)) > 0.0:
        raise ConfigError(
            f"dropout on the adapter's input needs a called nn.Linear, but {read[0]} is read as a matrix; "
            "use dropout=0.0, or leave the weight out of targets"
        )


def unreached_words(names: list[str]) -> str:
    """Return the sentence about weights that no input reached."""
    return (
        f"no input reached the adapters of {few(names)} ({len(names)} in all), while others of the same name but for "
        "numbers took part: they may belong to experts that no token was sent to"
    )
