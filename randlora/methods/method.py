"""What the registry knows of a method, and the table of methods, whose first reader loads those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from threading import RLock
from typing import Any

from randlora.adapter import AdapterConfig, Build, Shape
from randlora.errors import AdapterError, UnknownMethodError, nearest

GROUP = "randlora.methods"
"""Entry points of this group name modules that call `register`."""


def full_rank(shapes: Sequence[Shape], **options: Any) -> int:
    """The reach of most methods, whose capacity is a rank: the largest min(out, in)."""
    return max(min(shape) for shape in shapes)


def low_rank(shape: Shape, r: int) -> int:
    """Degrees of freedom of a matrix of rank r, B A: B G and G^-1 A are the same one."""
    r = min(r, *shape)
    return r * (sum(shape) - r)


@dataclass(frozen=True)
class Misfit:
    """Why a method cannot adapt weights of some shapes at any capacity, and what to change."""

    reason: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """One fine-tuning method.

    `name` and `capacity_field`: the configuration's, unless given.
    `count(shape, capacity, **options)`: trainable parameters of one weight, exactly what `attach` builds.
    `together(shapes, capacity, **options)`, of a method whose weights share trainables: those of all weights, by name.
    They then have one capacity. None: the sum of `count`.
    `max_capacity(shapes, **options)`: reach; capacities `min_capacity..max_capacity` are worth trying on these weights
    (for a rank per weight, ask it for that weight alone).
    `open_ended`: whether a sweep may pin capacities beyond the reach. Parameters there act too (VeRA), or change how
    training moves but not what it can reach (NoLA).
    `legal(shape, capacity, **options)`: the capacity that a weight gets in place of one that it can't have; None: all
    capacities are legal.
    `misfit(shapes, **options)`: why the method cannot adapt these weights, by name, together at any capacity, or None
    if it can; None: it can adapt all.
    `update_rank(shape, capacity, **options)`, all options given: the largest rank that one weight's update can have;
    None where it is no matrix, or not stated. It is a bound that updates in general position reach, a fact of the
    formula and not of trained weights (`sweeps analyze spectrum` measures those).
    `freedom(shape, capacity, **options)`, all options given: how many directions one weight's update can move in, at a
    point in general position. None: `randlora.adapted.freedom` measures it. Of weights that share trainables
    `freedom_together(shapes, capacity, **options)` is the most that all have together; None: their count.
    `freedom_at_most(**options)`, all options given: whether `freedom` is a bound with these and may not be reached;
    None: it is not.
    `published_lr`: the rate its authors use on CLIP or the nearest task, the centre of a search.
    `mergeable`: whether the update is a matrix; False where it depends on the input (HydraLoRA).
    `scheduled`: whether a schedule makes what training ends with: it cuts what is built, which is more than counted,
    down to the capacity (AdaLoRA), or averages (PromptSRC).
    `holds_out`: whether some rows of a batch train other parameters than the rest (AutoLoRA's search of ranks).
    `prompts`: whether it puts prompts into a CLIP (`randlora.model.prompted`).
    `on_weights`: whether it adapts weights, as all but prompts alone do.
    `mixes_rows`: whether a row's update depends on the rest of its batch, padding included (Lily).
    `needs_gradients`: whether its start is made from the loss's gradient at W0 (LoRA-GA), which `attach` must be given.
    A sweep takes it on as many training rows as the configuration's field `rows` says.
    `needs_float_weight`: why it cannot act beside a weight that is kept in 4 or 8 bits; None: it can.
    `experimental`: in no paper, or only in a paper's outlook; may change.
    """

    config: type[AdapterConfig]
    name: str = ""
    capacity_field: str = ""
    count: Callable[..., int]
    together: Callable[..., int] | None = None
    max_capacity: Callable[..., int] = full_rank
    build: Build
    published_lr: float
    published_lr_source: str
    scale_rule: str
    title: str
    min_capacity: int = 1
    open_ended: bool = False
    legal: Callable[..., int] | None = None
    misfit: Callable[..., Misfit | None] | None = None
    mergeable: bool = True
    scheduled: bool = False
    holds_out: bool = False
    prompts: bool = False
    on_weights: bool = True
    mixes_rows: bool = False
    needs_gradients: bool = False
    needs_float_weight: str | None = None
    experimental: bool = False
    update_rank: Callable[..., int] | None = None
    freedom: Callable[..., int | None] | None = None
    freedom_together: Callable[..., int] | None = None
    freedom_at_most: Callable[..., bool] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.config.method)
        object.__setattr__(self, "capacity_field", self.capacity_field or self.config.capacity_field)

    @property
    def options(self) -> dict[str, Any]:
        """Option -> default: everything in the configuration but the capacity."""
        return self.config.option_defaults()

    def total(self, shapes: Mapping[str, Shape] | Sequence[Shape], capacity: int, **options: Any) -> int:
        """Trainable parameters of all weights at one capacity. Without names, weights of one shape are of one kind."""
        named = shapes if isinstance(shapes, Mapping) else {f"{i}.w.weight": shape for i, shape in enumerate(shapes)}
        if self.together is not None:
            return int(self.together(named, capacity, **options))
        return sum(self.count(shape, capacity, **options) for shape in named.values())

    def built(self, shapes: Mapping[str, Shape], capacities: Mapping[str, int], **options: Any) -> dict[str, int]:
        """The capacity that each weight is built with: the nearest `legal` one."""
        if (legal := self.legal) is None:
            return dict(capacities)
        return {name: legal(shapes[name], capacity, **options) for name, capacity in capacities.items()}

    def refuses(self, shapes: Mapping[str, Shape], **options: Any) -> Misfit | None:
        """Why the method cannot adapt these weights together at any capacity; None if it can."""
        found = None if self.misfit is None else self.misfit(shapes, **options)
        most = self.max_capacity(tuple(shapes.values()), **options) if found is None and shapes else self.min_capacity
        if most < self.min_capacity:
            reason = f"{self.capacity_field} is at least {self.min_capacity}, and these weights allow {most}"
            return Misfit(reason, "weights with more rows and columns")
        return found

    def rank(self, shape: Shape, capacity: int, **options: Any) -> int | None:
        """The largest rank that the update of a weight of this shape can have; None where that is not known."""
        return None if self.update_rank is None else self.update_rank(shape, capacity, **{**self.options, **options})

    def dof(self, shape: Shape, capacity: int, **options: Any) -> int | None:
        """Degrees of freedom of one weight's update, at most out x in; None where no formula is known."""
        known = None if self.freedom is None else self.freedom(shape, capacity, **{**self.options, **options})
        return None if known is None else min(known, shape[0] * shape[1])


class _Methods(MutableMapping[str, Method]):
    """Name -> method, in the order of registration. Reading it for the first time loads the methods of other packages.

    Raises:
        AdapterError: at any reading, a module of an installed package that can't be imported or whose method can't be
            registered, with its package: a sweep that left its method out would compare something else.
    """

    def __init__(self) -> None:
        self.registered: dict[str, Method] = {}
        self._lock = RLock()
        self._asked = False

    def _all(self) -> dict[str, Method]:
        with self._lock:
            if not self._asked:
                self._asked = True  # the modules that are loaded now may read the table themselves
                try:
                    _load_plugins()
                except AdapterError:
                    self._asked = False
                    raise
        return self.registered

    def __getitem__(self, name: str) -> Method:
        known = self._all()
        family = FAMILIES.get(name.partition(":")[0]) if name not in known and ":" in name else None
        if family is None:
            return known[name]
        return family(name)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self[name] is not None
        except (KeyError, UnknownMethodError):
            return False

    def __setitem__(self, name: str, method: Method) -> None:
        self._all()[name] = method

    def __delitem__(self, name: str) -> None:
        del self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


METHODS = _Methods()
FAMILIES: dict[str, Callable[[str], Method]] = {}
"""What makes the methods whose names start with a word and a colon, which no table lists."""


def _load_plugins() -> None:
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # anything may go wrong in it; named and raised on
            package = "?" if point.dist is None else point.dist.name
            said = f"{type(error).__name__}: {error}"
            raise AdapterError(
                f"the entry point {point.name} = {point.value!r} of the package {package} ({GROUP}) failed: {said}; "
                f"mend it, or pip uninstall {package}"
            ) from error


def register(method: Method) -> Method:
    """Add a method; a name can be taken once."""
    if method.name in METHODS.registered:
        raise AdapterError(f"a method named {method.name!r} is registered already")
    METHODS.registered[method.name] = method
    return method


def get_method(name: str) -> Method:
    """The method called `name`; unknown names list the known ones. "peft:NAME" is PEFT's own, where it is installed."""
    if name.partition(":")[0] not in FAMILIES and name not in METHODS:
        raise UnknownMethodError(f"unknown method {name!r}: known are {sorted(METHODS)}; {nearest(name, METHODS)}")
    return METHODS[name]
