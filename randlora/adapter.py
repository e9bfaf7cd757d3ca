"""What every method has in common: a frozen 2-D weight (out x in), a learned delta, and a configuration.

Shape suffixes of this package: O out, I in, R rank, N rows (tokens), M the smaller of (out, in), J number of bases.
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
from randlora.errors import ConfigError, nearest

Shape = tuple[int, int]
"""(out, in) of a weight as `nn.Linear` keeps it."""


@dataclass(frozen=True)
class AdapterConfig:
    """Base of the configurations. `method` is the registry's name, `capacity_field` the field that sets the size."""

    method: ClassVar[str]
    capacity_field: ClassVar[str] = "r"
    least: ClassVar[int] = 1
    """The smallest capacity."""
    words: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    """Words that a numeric option takes besides numbers."""

    def __post_init__(self) -> None:
        """Refuse a bad capacity, infinities, and a bad `alpha` or `dropout` where there is one; subclasses do the rest.

        Raises:
            ConfigError: a value that is not allowed.
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
        """The value of the capacity field."""
        value: int = getattr(self, self.capacity_field)
        return value

    @classmethod
    def from_options(cls, capacity: int, options: Mapping[str, Any]) -> Self:
        """Build from a capacity and plain options; an unknown option is an error that names the known ones."""
        known = cls.option_defaults()
        for key in options:
            if key not in known:
                raise ConfigError(
                    f"method {cls.method!r} has no option {key!r}: it takes {sorted(known)}; {nearest(key, known)}"
                )
            kind, fits = _accepts(known[key])
            words = cls.words.get(key, ())
            rule = key == "alpha" and isinstance(options[key], str) and issubclass(cls, AlphaScale)  # checked later
            if not fits(options[key]) and options[key] not in words and not rule:
                either = "".join(f" or {word!r}" for word in words)
                raise ConfigError(f"{cls.method}: {key} must be {kind}{either} but got {options[key]!r}")
        return cls(**{cls.capacity_field: capacity, **options})

    @classmethod
    def option_defaults(cls) -> dict[str, Any]:
        """Name -> default of every field but the capacity."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.name != cls.capacity_field}

    def options(self) -> dict[str, Any]:
        """Name -> value of every field but the capacity."""
        values = dataclasses.asdict(self)
        del values[self.capacity_field]
        return values

    def own_alpha(self, shapes: Collection[Shape]) -> dict[str, float]:
        """By option the number that gives weights of these shapes this configuration's scale, in the mean where a rule
        gives each its own; empty where no option sets a scale over the rank."""
        return {}


_RULE = re.compile(r"(\d+(?:\.\d+)?)r(/sqrt\(n\))?")


class AlphaScale:
    """Mixed into a configuration with `r` and `alpha`: the scale of its delta.

    `alpha` is a number, or a rule in r, as papers write it: "2r" is a scale of 2 at every rank, and of methods with
    `by_bases` "2r/sqrt(n)" is 2 / sqrt(n) for a weight of n bases.
    """

    r: int
    alpha: float | str | None
    default_scale: ClassVar[float] = 1.0
    by_bases: ClassVar[bool] = False

    @property
    def scale(self) -> float:
        """alpha / r where alpha is given, else `default_scale` at every rank; before a rule's division by sqrt(n)."""
        return self.over(self.r)

    def over(self, rank: int) -> float:
        """alpha / rank; of a rule its number."""
        if isinstance(self.alpha, str):
            return float(self.alpha.partition("r")[0])
        return self.default_scale if self.alpha is None else self.alpha / rank

    def scale_of(self, bases: int) -> float:
        """The scale of a weight of so many bases."""
        return self.scale / bases**0.5 if isinstance(self.alpha, str) and "sqrt" in self.alpha else self.scale

    def bases(self, shape: Shape) -> int:
        """How many bases are summed for a weight, which a rule in n divides by."""
        return 1

    def own_alpha(self, shapes: Collection[Shape]) -> dict[str, float]:
        unit = dataclasses.replace(self, alpha=1.0)  # type: ignore[type-var]
        return {"alpha": fmean(self.scale_of(self.bases(shape)) for shape in shapes) / unit.scale}


@dataclass(frozen=True)
class RankConfig(AlphaScale, AdapterConfig):
    """Base of the configurations of most methods; `r` is a rank, `dropout` falls on the adapter's input."""

    r: int
    alpha: float | str | None = None
    dropout: float = 0.0


def _accepts(default: object) -> tuple[str, Callable[[object], bool]]:
    """What an option of this default may be, in words and as a test. A default of None stands for a number."""
    if isinstance(default, bool):
        return "true or false", lambda v: isinstance(v, bool)
    if isinstance(default, str):
        return "a string", lambda v: isinstance(v, str)
    if isinstance(default, int):
        return "an integer", lambda v: isinstance(v, int) and not isinstance(v, bool)
    none_too = default is None
    return "a number", lambda v: (isinstance(v, int | float) and not isinstance(v, bool)) or (none_too and v is None)


def check_capacity(method: str, field: str, value: int, least: int = 1) -> None:
    """Refuse a capacity that is not an integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{method}: {field} must be an integer of at least {least} but got {value!r}")


def check_finite(method: str, field: str, value: object) -> None:
    """Refuse a number that no float holds, such as `inf` and `nan`."""
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{method}: {field} must be a finite number but got {value!r}")


def check_positive(method: str, field: str, value: float | None) -> None:
    """Refuse a scale that is not positive; None asks for the default."""
    if value is not None and not value > 0:
        raise ConfigError(f"{method}: {field} must be positive or None (the default rule) but got {value!r}")


def check_rule(method: str, alpha: str, *, by_bases: bool) -> None:
    """Refuse an `alpha` in words that is no rule in r, or one in n where no bases are summed."""
    found = _RULE.fullmatch(alpha)
    if found is None or not 0 < float(found[1]) < math.inf or (found[2] and not by_bases):
        rules = "'2r' (a scale of 2 at every rank)" + (" or '2r/sqrt(n)' (n bases of a weight)" if by_bases else "")
        raise ConfigError(f"{method}: alpha must be a positive number or a rule such as {rules} but got {alpha!r}")


def check_share(method: str, field: str, value: float) -> None:
    """Refuse a share that is not between 0 and 1; both ends are excluded."""
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{method}: {field} must lie between 0 and 1 but got {value!r}")


@dataclass(frozen=True)
class Request:
    """What a method needs to build its adapters. `weights` are the frozen weights as (out x in) views, in order."""

    config: AdapterConfig
    weights: Mapping[str, Tensor]
    capacities: Mapping[str, int]
    init_seed: int
    basis_seed: int
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    """Biases of the weights that are called with one, but a Conv1D's."""
    quantised: frozenset[str] = frozenset()
    """Weights that the model keeps in 4 or 8 bits."""
    place: Shape | None = None
    """What prompts are counted by, where they have a place among the weights."""
    words: tuple[int, ...] = ()
    """Token ids that prompts start from; they are drawn where these are fewer."""
    biased: frozenset[str] = frozenset()
    """Weights that are called with a bias, a Conv1D's too."""
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    """The loss's gradient at every weight (out x in), for a method that starts from it."""

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Weight name -> (out, in)."""
        return {name: (w.shape[0], w.shape[1]) for name, w in self.weights.items()}

    @cached_property
    def device(self) -> torch.device:
        """Where the bases live: with the first weight."""
        return next(iter(self.weights.values())).device

    @cached_property
    def dtype(self) -> torch.dtype:
        """float64 for a float64 model, else float32, also where the base has less."""
        return torch.float64 if all(w.dtype == torch.float64 for w in self.weights.values()) else torch.float32


class Held(Protocol):
    """A weight kept for the length of an optimiser step; see `randlora.adapted.accumulate`."""

    def matrix(self, base: Tensor) -> Tensor | None:
        """W0 + delta (out x in), or None for the ordinary way."""

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor | None:
        """`F.linear(x, W0 + delta, bias)`, or None for the ordinary way."""

    def project(self) -> None:
        """Take the gradient summed so far back to the trainables."""


class Adapter(nn.Module, ABC):
    """A learned change of one frozen weight. Subclasses register their trainables as parameters, and nothing else.

    Arguments of the constructor: `shape` is (out, in); `dropout` is applied to the adapter's input, in training only.

    `derived` names buffers that depend on W0 and cannot be redrawn from a seed (a singular vector, a stored start):
    they are counted as stored bytes and kept in checkpoints. `schedule` is a `Schedule` (`scheduled.hooks`), if any.
    """

    derived: ClassVar[tuple[str, ...]] = ()
    rate_ratios: Mapping[str, float] = MappingProxyType({})
    """The factors of learning rates that are not 1 (LoRA+'s B), by name of the trainable."""
    moves_bias: bool = False
    """Whether the layer's bias changes too, so that no change of the weight alone is the same."""
    stand_in: ClassVar[bool] = False
    """Whether it only counts parameters. It stands for an adapter that cannot be built without the values of W0."""
    schedule: object | None = None
    held: Held | None = None

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.dropout = dropout
        self.masks = Masks(dropout)

    @abstractmethod
    def delta(self, base: Tensor) -> Tensor:
        """The change of `base` (out x in), same shape, differentiable in the trainables."""

    @abstractmethod
    def weight(self, base: Tensor) -> Tensor:
        """`base` plus its delta in one piece: the matrix form. Differentiable in the trainables; dtype of `base`."""

    @abstractmethod
    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear(x, base + delta, bias)` for x (..., in), by the cheaper of the two forms."""

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """`linear(x, W0, bias)` where W0 is quantised: y (..., out) is the layer's own W0 x + bias, x is (..., in).

        `base()` reads W0 (out x in) back, for methods that need it. This default makes the delta as a matrix.
        """
        return y + linear(self.drop(x).to(y.dtype), self.delta(base()).to(y.dtype))

    def matrix(self, base: Tensor) -> Tensor:
        """`weight(base)`, or the one held inside `accumulating()`."""
        found = None if self.held is None else self.held.matrix(base)
        return self.weight(base) if found is None else found

    def apply_to(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """`linear(x, base, bias)`, or by the weight held inside `accumulating()` where that pays."""
        found = None if self.held is None else self.held.linear(x, base, bias)
        return self.linear(x, base, bias) if found is None else found

    def project(self, base: Tensor, grad: Tensor) -> None:
        """Add to the trainables' `.grad` what `grad`, the gradient of `weight(base)` (out x in), means for them."""
        with torch.enable_grad():
            torch.autograd.backward([self.weight(base)], [grad])

    def pays_to_accumulate(self, rows: int, micro_batches: int) -> bool:
        """Whether one W0 + delta for `micro_batches` of `rows` each costs a called layer less than `linear` does."""
        return False

    def count(self) -> int:
        """Trainable parameters, summed over the tensors built."""
        return sum(p.numel() for p in self.parameters())

    def stored(self) -> Iterator[Tensor]:
        """What is kept beside the trainables: bases and starts; some may be other adapters' too."""
        return self.buffers()

    def redrawn(self) -> Iterator[Tensor]:
        """What else than shared bases a load draws again from the seed; checkpoints keep a fingerprint of it."""
        return iter(())

    @property
    def draws(self) -> bool:
        """Whether a training forward draws random numbers, by default for dropout."""
        return self.dropout > 0.0

    @property
    def dropping(self) -> bool:
        """Whether the next forward draws a dropout mask."""
        return self.training and self.draws

    def drop(self, x: Tensor) -> Tensor:
        """Inverted dropout with a mask from the adapter's own stream, which follows `init_seed`."""
        return x * self.masks.draw(x) if self.dropping else x

    def reseed_dropout(self, seed: int) -> None:
        """Start the stream of dropout masks at `seed`."""
        self.masks.reseed(seed)


Build = Callable[[Request], dict[str, Adapter]]
"""Makes one adapter per weight of the request; they may share one set of bases."""


def each_weight(adapter: Callable[[str, Any, Request], Adapter]) -> Build:
    """A `Build` of adapters that share nothing: `adapter(name, configuration, request)` for every weight."""
    return lambda request: {name: adapter(name, request.config, request) for name in request.weights}


def trainable(values: Tensor, request: Request, device: torch.device) -> nn.Parameter:
    """A trainable tensor in the request's precision on `device` (nothing is computed on the meta device)."""
    return nn.Parameter(values.to(device=device, dtype=request.dtype))
