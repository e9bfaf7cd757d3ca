"""The interface that all methods share: a configuration, and an adapter, which learns a delta of a frozen 2-D weight.

Names of tensors end in their shape: O out, I in, R rank, N rows (tokens), M the smaller of (out, in), J number of
bases.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora.dropout import Masks
from randlora.errors import AdapterError, ConfigError, nearest

Shape = tuple[int, int]
"""(out, in) of a weight, as `nn.Linear` stores it."""


@dataclass(frozen=True)
class AdapterConfig:
    """Base class of the methods' configurations.

    Attributes:
        method: the method's name in the registry.
        capacity_field: the name of the field that sets the size, such as "r".
        least: the smallest capacity.
        words: option name -> strings that a numeric option accepts besides numbers.
    """

    method: ClassVar[str]
    capacity_field: ClassVar[str] = "r"
    least: ClassVar[int] = 1
    words: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})

    def __post_init__(self) -> None:
        """Check the capacity, `alpha` and `dropout`, and that all numbers are finite. Subclasses check the rest.

        Raises:
            ConfigError: a value is not allowed.
        """
        check_capacity(self.method, self.capacity_field, self.capacity, self.least)
        for key, value in self.options().items():
            check_finite(self.method, key, value)
        alpha = getattr(self, "alpha", None)
        if isinstance(alpha, str):
            check_rule(self.method, alpha, by_bases=getattr(self, "by_bases", False))
        else:
            check_positive(self.method, "alpha", alpha)
        dropout = getattr(self, "dropout", 0.0)
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"{self.method}: dropout must be in [0, 1) but got {dropout!r}; 0.0 turns it off")

    @property
    def capacity(self) -> int:
        """Return the value of the capacity field."""
        value: int = getattr(self, self.capacity_field)
        return value

    @classmethod
    def from_options(cls, capacity: int, options: Mapping[str, Any]) -> Self:
        """Return the configuration with this capacity and these options.

        Args:
            capacity: the value of the capacity field.
            options: option name -> value; the others keep their default.

        Raises:
            ConfigError: an option is unknown, or its value is not allowed.
        """
        defaults = cls.option_defaults()
        for key in options:
            if key not in defaults:
                raise ConfigError(
                    f"method {cls.method!r} has no option {key!r}: it takes {sorted(defaults)}; "
                    f"{nearest(key, defaults)}"
                )
            kind, fits = _accepts(defaults[key])
            strings = cls.words.get(key, ())
            is_alpha_rule = key == "alpha" and isinstance(options[key], str) and issubclass(cls, AlphaScale)
            if not fits(options[key]) and options[key] not in strings and not is_alpha_rule:
                alternatives = "".join(f" or {word!r}" for word in strings)
                raise ConfigError(f"{cls.method}: {key} must be {kind}{alternatives} but got {options[key]!r}")
        return cls(**{cls.capacity_field: capacity, **options})

    @classmethod
    def option_defaults(cls) -> dict[str, Any]:
        """Return option name -> default, for every field but the capacity."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.name != cls.capacity_field}

    def options(self) -> dict[str, Any]:
        """Return option name -> value, for every field but the capacity."""
        values = dataclasses.asdict(self)
        del values[self.capacity_field]
        return values

    def own_alpha(self, shapes: Collection[Shape]) -> dict[str, float]:
        """Return the option values (such as `alpha`) that give weights of these shapes this configuration's scale.

        If the shapes have different scales, the values give their mean. {} if the method has no such option.
        """
        return {}


_RULE = re.compile(r"(\d+(?:\.\d+)?)r(/sqrt\(n\))?")


class AlphaScale:
    """Mixed into a configuration with `r` and `alpha`: it computes the scale of the delta.

    `alpha` is a number, or a rule in r as papers write it. "2r" is a scale of 2 at every rank. A method with `by_bases`
    also accepts "2r/sqrt(n)", a scale of 2 / sqrt(n) for a weight with n bases.
    """

    r: int
    alpha: float | str | None
    default_scale: ClassVar[float] = 1.0
    by_bases: ClassVar[bool] = False

    @property
    def scale(self) -> float:
        """Return alpha / r, or `default_scale` if alpha is None. The division by sqrt(n) of a rule is not included."""
        return self.over(self.r)

    def over(self, rank: int) -> float:
        """Return alpha / rank, `default_scale` if alpha is None, or the number in the rule."""
        if isinstance(self.alpha, str):
            return float(self.alpha.partition("r")[0])
        return self.default_scale if self.alpha is None else self.alpha / rank

    def scale_of(self, bases: int) -> float:
        """Return the scale of a weight with this number of bases."""
        return self.scale / bases**0.5 if isinstance(self.alpha, str) and "sqrt" in self.alpha else self.scale

    def bases(self, shape: Shape) -> int:
        """Return the number of bases that are summed for a weight: the n of a rule."""
        return 1

    def own_alpha(self, shapes: Collection[Shape]) -> dict[str, float]:
        unit = dataclasses.replace(self, alpha=1.0)  # type: ignore[type-var]
        return {"alpha": fmean(self.scale_of(self.bases(shape)) for shape in shapes) / unit.scale}


@dataclass(frozen=True)
class RankConfig(AlphaScale, AdapterConfig):
    """Base class of most configurations.

    Attributes:
        r: rank of the update.
        alpha: alpha / r is the scale of the delta. None: the method's default scale at every rank. A rule such as "2r"
            is a scale of 2 at every rank.
        dropout: probability of dropout on the adapter's input, in training. Weights that are read as matrices, such as
            packed ones, cannot have it.
    """

    r: int
    alpha: float | str | None = None
    dropout: float = 0.0


def _accepts(default: object) -> tuple[str, Callable[[object], bool]]:
    """Return which values an option with this default accepts: in words, and as a test. A default of None means a
    number."""
    if isinstance(default, bool):
        return "true or false", lambda v: isinstance(v, bool)
    if isinstance(default, str):
        return "a string", lambda v: isinstance(v, str)
    if isinstance(default, int):
        return "an integer", lambda v: isinstance(v, int) and not isinstance(v, bool)
    accepts_none = default is None
    return (
        "a number",
        lambda v: (isinstance(v, int | float) and not isinstance(v, bool)) or (accepts_none and v is None),
    )


def check_capacity(method: str, field: str, value: int, least: int = 1) -> None:
    """Raise ConfigError if a capacity is not an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{method}: {field} must be an integer of at least {least} but got {value!r}")


def check_finite(method: str, field: str, value: object) -> None:
    """Raise ConfigError if a number is infinite, NaN, or too large for a float."""
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{method}: {field} must be a finite number but got {value!r}")


def check_positive(method: str, field: str, value: float | None) -> None:
    """Raise ConfigError if a number is not positive. None is accepted: it means the default."""
    if value is not None and not value > 0:
        raise ConfigError(f"{method}: {field} must be positive or None (the default rule) but got {value!r}")


def check_rule(method: str, alpha: str, *, by_bases: bool) -> None:
    """Raise ConfigError if a string `alpha` is not a rule in r; a rule in n is accepted only `by_bases`."""
    rule = _RULE.fullmatch(alpha)
    if rule is None or not 0 < float(rule[1]) < math.inf or (rule[2] and not by_bases):
        rules = "'2r' (a scale of 2 at every rank)" + (" or '2r/sqrt(n)' (n bases of a weight)" if by_bases else "")
        raise ConfigError(f"{method}: alpha must be a positive number or a rule such as {rules} but got {alpha!r}")


def check_share(method: str, field: str, value: float) -> None:
    """Raise ConfigError if a share is not between 0 and 1, both excluded."""
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{method}: {field} must lie between 0 and 1 but got {value!r}")


@dataclass(frozen=True)
class Request:
    """What a method needs to build its adapters.

    Attributes:
        config: the method's configuration.
        weights: weight name -> frozen weight, as an (out x in) view, in the order of the targets.
        capacities: weight name -> capacity.
        init_seed: the seed of the trainables' start.
        basis_seed: the seed of the frozen bases.
        biases: weight name -> bias, for weights that are called with one. Those of a Conv1D are left out.
        quantised: names of the weights that the model stores in 4 or 8 bits.
        place: what prompts are counted by; None if prompts are not among the targets.
        words: token ids from which prompts start. If they are fewer than the vectors, all vectors are drawn.
        biased: names of the weights that are called with a bias, those of a Conv1D included.
        gradients: weight name -> the loss's gradient (out x in), for a method that starts from it.
    """

    config: AdapterConfig
    weights: Mapping[str, Tensor]
    capacities: Mapping[str, int]
    init_seed: int
    basis_seed: int
    biases: Mapping[str, Tensor] = field(default_factory=dict)

    quantised: frozenset[str] = frozenset()

    place: Shape | None = None

    words: tuple[int, ...] = ()

    biased: frozenset[str] = frozenset()

    gradients: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Return weight name -> (out, in)."""
        return {name: (w.shape[0], w.shape[1]) for name, w in self.weights.items()}

    @cached_property
    def device(self) -> torch.device:
        """Return the device of the first weight, where the bases are kept."""
        return next(iter(self.weights.values())).device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Return the trainables' type: float64 for a float64 model, else float32, even if the weights have
        fewer bits."""
        return torch.float64 if all(w.dtype == torch.float64 for w in self.weights.values()) else torch.float32


class Held(Protocol):
    """A weight that is kept for the length of an optimiser step (`randlora.adapted.accumulate`)."""

    def matrix(self, base: Tensor) -> Tensor | None:
        """Return W0 + delta (out x in); None if the layer must go the ordinary way."""

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return `F.linear(x, W0 + delta, bias)`; None if the layer must go the ordinary way."""

    def project(self) -> None:
        """Turn the gradient summed so far into gradients of the trainables."""


class Adapter(nn.Module, ABC):
    """A learned change (delta) of one frozen weight. A subclass registers its trainables as parameters, and nothing
    else.

    Args:
        shape: (out, in) of the weight.
        dropout: probability of dropout on the adapter's input, in training.

    Attributes:
        derived: names of buffers that are made from W0 and that no seed gives back, such as singular vectors. They
            count as stored bytes, and checkpoints keep them.
        rate_ratios: trainable's name -> factor of its learning rate, if that is not 1 (LoRA+'s B).
        moves_bias: whether the layer's bias changes too. Then no change of the weight alone is equivalent.
        has_matrix: whether the update is a change of the weight alone; `attach` sets it.
        stand_in: whether the adapter only counts parameters, because it cannot be built without the values of W0.
        schedule: the `Schedule` (`scheduled.hooks`) that the adapters of a model share; None for most methods.
        held: the weight that `accumulating()` keeps; None outside of it.
    """

    derived: ClassVar[tuple[str, ...]] = ()
    rate_ratios: Mapping[str, float] = MappingProxyType({})

    moves_bias: bool = False

    has_matrix: bool = True

    stand_in: ClassVar[bool] = False

    schedule: object | None = None
    held: Held | None = None

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.dropout = dropout
        self.masks = Masks(dropout)

    @abstractmethod
    def delta(self, base: Tensor) -> Tensor:
        """Return the change of the weight (out x in), differentiable in the trainables.

        Args:
            base: W0 (out x in).
        """

    @abstractmethod
    def weight(self, base: Tensor) -> Tensor:
        """Return W0 + delta (out x in) as one matrix in `base`'s dtype, differentiable in the trainables.

        Args:
            base: W0 (out x in).
        """

    @abstractmethod
    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """Return `F.linear(x, W0 + delta, bias)`, computed in the cheaper of the two forms.

        Args:
            x: the input (..., in).
            base: W0 (out x in).
            bias: the layer's bias (out); None if it has none.
        """

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """Return `F.linear(x, W0 + delta, bias)` for a quantised W0, from the layer's own output.

        This default makes the delta as a matrix.

        Args:
            x: the input (..., in).
            y: the layer's own output W0 x + bias (..., out).
            base: returns W0 (out x in) in full precision, for methods that need it.
            bias: the layer's bias (out); None if it has none.
        """
        return y + linear(self.drop(x).to(y.dtype), self.delta(base()).to(y.dtype))

    def matrix(self, base: Tensor) -> Tensor:
        """Return `weight(base)`, or the weight that `accumulating()` keeps."""
        weight = None if self.held is None else self.held.matrix(base)
        return self.weight(base) if weight is None else weight

    def read(self, base: Tensor) -> Tensor:
        """Return `matrix(base)` for code that reads the weight of a layer that adapters act on when it is called.

        If the update is no matrix, this is W0 for code that only asks for its type or shape (see `only_shown`).
        """
        if self.has_matrix:
            return self.matrix(base)
        error = ConfigError(
            f"the update of {type(self).__name__} is no matrix, but the weight ({self.shape[0]} x {self.shape[1]}) is "
            "read as one; leave the weight out of targets, or take another method"
        )
        return only_shown(base, error)

    def apply_to(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """Return `linear(x, base, bias)`. Inside `accumulating()`, use the weight kept there if that costs less."""
        output = None if self.held is None else self.held.linear(x, base, bias)
        return self.linear(x, base, bias) if output is None else output

    def project(self, base: Tensor, grad: Tensor) -> None:
        """Turn the gradient of `weight(base)` into gradients of the trainables, and add them to their `.grad`.

        Args:
            base: W0 (out x in).
            grad: the gradient of `weight(base)` (out x in).
        """
        with torch.enable_grad():
            torch.autograd.backward([self.weight(base)], [grad])

    def pays_to_accumulate(self, rows: int, micro_batches: int) -> bool:
        """Return whether one W0 + delta for several micro-batches costs a called layer less than `linear` for each.

        Args:
            rows: rows (tokens) of a micro-batch.
            micro_batches: the number of micro-batches in an optimiser step.
        """
        return False

    def __prepare_scriptable__(self) -> Adapter:
        """Refuse `torch.jit.script`, which calls this. Raises AdapterError."""
        raise AdapterError(
            f"torch.jit.script cannot compile a model with adapters ({type(self).__name__}): merge() or detach() them "
            "first, or use torch.compile"
        )

    def count(self) -> int:
        """Return the number of trainable parameters, summed over the tensors that exist."""
        return sum(p.numel() for p in self.parameters())

    def stored(self) -> Iterator[Tensor]:
        """Yield the tensors that are in memory beside the trainables: bases and starts. Adapters may share some of
        them."""
        return self.buffers()

    def redrawn(self) -> Iterator[Tensor]:
        """Yield the tensors, other than shared bases, that `load` draws again from the seed. A checkpoint has their
        fingerprint."""
        return iter(())

    @property
    def draws(self) -> bool:
        """Return whether a forward in training draws random numbers. By default that is so if there is dropout."""
        return self.dropout > 0.0

    @property
    def dropping(self) -> bool:
        """Return whether the next forward draws a dropout mask."""
        return self.training and self.draws

    def drop(self, x: Tensor) -> Tensor:
        """Return x after dropout. The mask comes from the adapter's own random stream, which follows `init_seed`."""
        return x * self.masks.draw(x) if self.dropping else x

    def reseed_dropout(self, seed: int) -> None:
        """Restart the stream of dropout masks at `seed`."""
        self.masks.reseed(seed)


class _Shown(Tensor):
    """W0 while gradients are off. Its type, device and shape may be asked for. A computation with it raises `error`."""

    error: AdapterError

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _QUESTIONS:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, _Shown):
                raise value.error
        raise AdapterError("a weight whose adapter has no matrix is read as one")


_QUESTIONS = frozenset(
    ("__get__", "size", "dim", "numel", "element_size", "is_floating_point", "is_complex", "get_device", "__len__")
)
"""Names of what may be called on a `_Shown`. `__get__` reads an attribute, such as `dtype`."""


def only_shown(base: Tensor, error: AdapterError) -> Tensor:
    """Return W0 for code that asks for its type or shape.

    Code that computes with it raises `error`: in its backward pass, or at once if gradients are off.
    """

    def refuse(_: Tensor) -> None:
        raise error

    if not torch.is_grad_enabled():
        frozen = base.detach().as_subclass(_Shown)
        frozen.error = error
        return frozen
    shown = base.detach().requires_grad_()
    shown.register_hook(refuse)  # type: ignore[no-untyped-call]
    return shown


Build = Callable[[Request], dict[str, Adapter]]
"""Makes one adapter for each weight of a request. The adapters may share one set of bases."""


def each_weight(adapter: Callable[[str, Any, Request], Adapter]) -> Build:
    """Return a `Build` of adapters that share nothing: it calls `adapter(name, configuration, request)` for each
    weight."""
    return lambda request: {name: adapter(name, request.config, request) for name in request.weights}


def trainable(values: Tensor, request: Request, device: torch.device) -> nn.Parameter:
    """Return a trainable tensor with these values, in the request's precision, on `device`.

    On the meta device nothing is computed.
    """
    return nn.Parameter(values.to(device=device, dtype=request.dtype))
