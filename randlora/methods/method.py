"""What the registry knows of a method, and the table itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from randlora.adapter import AdapterConfig, Build, Shape
from randlora.errors import AdapterError, UnknownMethodError, nearest


@dataclass(frozen=True)
class Method:
    """One fine-tuning method.

    `count(shape, capacity, **options)`: trainable parameters of one weight, exactly what `attach` builds.
    `max_capacity(shapes, **options)`: reach; capacities `min_capacity..max_capacity` are worth trying on these weights
    (for a rank per weight, ask it for that weight alone).
    `update_rank(shape, capacity, **options)`, all options given: the largest rank that one weight's update can have;
    None where it is no matrix, or nobody has said.
    `published_lr`: the rate its authors use on CLIP or the nearest task, the centre of a search.
    `mergeable`: whether the update is a matrix; False where it depends on the input (HydraLoRA).
    `scheduled`: whether more is built than counted, until a schedule has cut it down to the capacity (AdaLoRA).
    `holds_out`: whether some rows of a batch train something else than the others (AutoLoRA's search of ranks).
    `experimental`: of nobody's paper, or of a paper's outlook alone: may change.
    """

    name: str
    config: type[AdapterConfig]
    capacity_field: str
    count: Callable[..., int]
    max_capacity: Callable[..., int]
    build: Build
    published_lr: float
    published_lr_source: str
    scale_rule: str
    title: str
    min_capacity: int = 1
    mergeable: bool = True
    scheduled: bool = False
    holds_out: bool = False
    experimental: bool = False
    update_rank: Callable[..., int] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Option -> default: everything in the configuration but the capacity."""
        return self.config.option_defaults()

    def total(self, shapes: Sequence[Shape], capacity: int, **options: Any) -> int:
        """Trainable parameters of all `shapes` at one capacity."""
        return sum(self.count(shape, capacity, **options) for shape in shapes)

    def rank(self, shape: Shape, capacity: int, **options: Any) -> int | None:
        """The largest rank that the update of a weight of this shape can have; None where that is not known."""
        return None if self.update_rank is None else self.update_rank(shape, capacity, **{**self.options, **options})


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method; a name can be taken once."""
    if method.name in METHODS:
        raise AdapterError(f"a method named {method.name!r} is registered already")
    METHODS[method.name] = method
    return method


def get_method(name: str) -> Method:
    """The method called `name`; unknown names list the known ones."""
    if name not in METHODS:
        raise UnknownMethodError(f"unknown method {name!r}: known are {sorted(METHODS)}{nearest(name, METHODS)}")
    return METHODS[name]
