"""The entry of a method in the registry, and the table of entries, which loads those of other packages at its first
use."""

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
    """Return the largest min(out, in), which is the largest useful capacity of a method whose capacity is a rank.

    Args:
        shapes: (out, in) of each weight.
        options: the method's options, which do not matter here.
    """
    return max(min(shape) for shape in shapes)


def low_rank_freedom(shape: Shape, r: int) -> int:
    """Return the degrees of freedom of a matrix B A of rank r. (B G and G^-1 A give the same matrix.)"""
    r = min(r, *shape)
    return r * (sum(shape) - r)


@dataclass(frozen=True)
class Misfit:
    """Why a method cannot adapt some weights at any capacity, and what to change."""

    reason: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """The registry's entry of one fine-tuning method.

    In the functions below, `shape` is (out, in), and `options` are the method's options. A function without a default
    for an option gets all options.

    Attributes:
        config: the class of its configuration, which also has the method's name.
        title: the name that people read.
        count: count(shape, capacity, **options) returns the number of trainable parameters of one weight, exactly as
            `attach` builds it.
        together: together(shapes, capacity, **options) returns the number for all weights by name, if weights share
            trainables. They then have one capacity. None: the sum of `count`.
        build: makes the adapters of a `Request`.
        max_capacity: max_capacity(shapes, **options) returns the largest useful capacity on these weights. If each
            weight has its own rank, ask for one weight at a time.
        min_capacity: the smallest capacity.
        open_ended: whether a sweep may use capacities beyond `max_capacity`. Parameters there act too (VeRA), or change
            how training moves but not what it can reach (NoLA).
        legal: legal(shape, capacity, **options) returns the nearest capacity that a weight can have. None: all are
            legal.
        misfit: misfit(shapes, **options) returns why the method cannot adapt these weights, by name, at any capacity;
            None if it can. None instead of a function: it can adapt all weights.
        update_rank: update_rank(shape, capacity, **options) returns the largest rank that one weight's update can have;
            None if it is not a matrix, or not known. Updates in general position reach it. (`sweeps analyze spectrum`
            measures trained weights.)
        freedom: freedom(shape, capacity, **options) returns the number of directions in which one weight's update can
            move, at a point in general position. None: `randlora.adapted.freedom` measures it.
        freedom_together: freedom_together(shapes, capacity, **options) returns the most that all weights have together,
            if they share trainables. None: their count.
        freedom_at_most: freedom_at_most(**options) returns whether `freedom` is only an upper bound with these options.
            None: it never is.
        published_lr: the learning rate that the authors use on CLIP or the nearest task. A search is centred on it.
        published_lr_source: where that rate was published.
        scale_rule: how the delta is scaled, in words.
        mergeable: whether the update is a matrix. It is not if it depends on the input (HydraLoRA).
        scheduled: whether a schedule makes the final weights: it cuts more parameters than are counted down to the
            capacity (AdaLoRA), or it averages (PromptSRC).
        holds_out: whether some rows of a batch train other parameters than the rest (AutoLoRA's search of ranks).
        prompts: whether it puts prompts into a CLIP (`randlora.model.prompted`).
        on_weights: whether it adapts weights. Only methods of prompts alone do not.
        mixes_rows: whether a row's update depends on the rest of its batch, padding included (Lily).
        needs_gradients: whether it starts from the loss's gradient at W0 (LoRA-GA), which `attach` must be given. A
            sweep takes it on as many training rows as the option `rows` says.
        needs_float_weight: why it cannot act beside a weight that is kept in 4 or 8 bits. None: it can.
        experimental: whether it is in no paper, or only in a paper's outlook. It may change.
    """

    config: type[AdapterConfig]
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

    @property
    def name(self) -> str:
        """Return the name in the registry and in sweep files. Adapters find their method by it."""
        return self.config.method

    @property
    def capacity_field(self) -> str:
        """Return the name of the configuration's field that sets the size, such as "r"."""
        return self.config.capacity_field

    @property
    def options(self) -> dict[str, Any]:
        """Return option name -> default, for every field of the configuration but the capacity."""
        return self.config.option_defaults()

    def total(self, shapes: Mapping[str, Shape] | Sequence[Shape], capacity: int, **options: Any) -> int:
        """Return the number of trainable parameters of all weights at one capacity.

        Args:
            shapes: weight name -> (out, in). In a list without names, weights of one shape count as layers of one kind.
            capacity: the capacity of every weight.
            options: options that are not at their default.
        """
        by_name = shapes if isinstance(shapes, Mapping) else {f"{i}.w.weight": shape for i, shape in enumerate(shapes)}
        if self.together is not None:
            return int(self.together(by_name, capacity, **options))
        return sum(self.count(shape, capacity, **options) for shape in by_name.values())

    def config_for(self, capacities: Mapping[str, int], options: Mapping[str, Any]) -> AdapterConfig:
        """Return the configuration for weights with these capacities, the largest of which is its own capacity.

        Args:
            capacities: weight name -> capacity; at least one.
            options: option name -> value; the others keep their default.

        Raises:
            ConfigError: an option is unknown, or its value is not allowed.
        """
        return self.config.from_options(max(capacities.values()), options)

    def built(self, shapes: Mapping[str, Shape], capacities: Mapping[str, int], **options: Any) -> dict[str, int]:
        """Return the capacity that each weight really gets: the nearest legal one.

        Args:
            shapes: weight name -> (out, in).
            capacities: weight name -> the capacity asked for.
            options: options that are not at their default.
        """
        if (legal := self.legal) is None:
            return dict(capacities)
        return {name: legal(shapes[name], capacity, **options) for name, capacity in capacities.items()}

    def refuses(self, shapes: Mapping[str, Shape], **options: Any) -> Misfit | None:
        """Return why the method cannot adapt these weights together at any capacity; None if it can.

        Args:
            shapes: weight name -> (out, in).
            options: options that are not at their default.
        """
        misfit = None if self.misfit is None else self.misfit(shapes, **options)
        most = self.max_capacity(tuple(shapes.values()), **options) if misfit is None and shapes else self.min_capacity
        if most < self.min_capacity:
            reason = f"{self.capacity_field} is at least {self.min_capacity}, and these weights allow {most}"
            return Misfit(reason, "weights with more rows and columns")
        return misfit

    def rank(self, shape: Shape, capacity: int, **options: Any) -> int | None:
        """Return the largest rank that the update of a weight can have; None if that is not known.

        Args:
            shape: (out, in).
            capacity: the weight's capacity.
            options: options that are not at their default.
        """
        return None if self.update_rank is None else self.update_rank(shape, capacity, **{**self.options, **options})

    def dof(self, shape: Shape, capacity: int, **options: Any) -> int | None:
        """Return the degrees of freedom of one weight's update, at most out x in; None if no formula is known.

        Args:
            shape: (out, in).
            capacity: the weight's capacity.
            options: options that are not at their default.
        """
        freedom = None if self.freedom is None else self.freedom(shape, capacity, **{**self.options, **options})
        return None if freedom is None else min(freedom, shape[0] * shape[1])


class _Methods(MutableMapping[str, Method]):
    """Method name -> method, in the order of registration. The first read loads the methods of other packages.

    Raises:
        AdapterError: at every read, if an installed package has a method that cannot be imported or registered. A sweep
            that left that method out would compare something else.
    """

    def __init__(self) -> None:
        self.registered: dict[str, Method] = {}
        self._lock = RLock()
        self._asked = False

    def _all(self) -> dict[str, Method]:
        """Return the table, after loading the methods of other packages once."""
        with self._lock:
            if not self._asked:
                self._asked = True  # set first, because the modules that are loaded may read the table
                try:
                    _load_plugins()
                except AdapterError:
                    self._asked = False
                    raise
        return self.registered

    def __getitem__(self, name: str) -> Method:
        methods = self._all()
        family = FAMILIES.get(name.partition(":")[0]) if name not in methods and ":" in name else None
        if family is None:
            return methods[name]
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
"""First word of a name such as "peft:miss" -> function that makes the method. The table does not list these methods."""


def _load_plugins() -> None:
    """Load the entry points of other packages. Raises AdapterError that names the package if one fails."""
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # a foreign module may raise anything; the error is raised again with its package
            package = "?" if point.dist is None else point.dist.name
            reason = f"{type(error).__name__}: {error}"
            raise AdapterError(
                f"the entry point {point.name} = {point.value!r} of the package {package} ({GROUP}) failed: {reason}; "
                f"mend it, or pip uninstall {package}"
            ) from error


def register(method: Method) -> Method:
    """Add a method to the registry, and return it.

    Raises:
        AdapterError: a method of this name is registered already.
    """
    if method.name in METHODS.registered:
        raise AdapterError(f"a method named {method.name!r} is registered already")
    METHODS.registered[method.name] = method
    return method


def get_method(name: str) -> Method:
    """Return the method of this name, such as "lora". "peft:NAME" is a method of Hugging Face PEFT, if that is
    installed.

    Raises:
        UnknownMethodError: no method has this name; the message lists the known ones.
    """
    if name.partition(":")[0] not in FAMILIES and name not in METHODS:
        raise UnknownMethodError(f"unknown method {name!r}: known are {sorted(METHODS)}; {nearest(name, METHODS)}")
    return METHODS[name]
