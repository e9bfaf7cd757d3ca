"""Make the configuration of a PEFT type: the fields of PEFT's own that a sweep may set, checked by PEFT's class."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, Self

from randlora.adapter import AdapterConfig, Shape, check_capacity, check_positive
from randlora.errors import ConfigError, nearest
from randlora.methods.bridge.installed import quiet
from randlora.methods.bridge.kinds import Kind
from randlora.methods.lowrank.lora import STABILISED_ALPHA
from randlora.methods.method import METHODS

PLACED = frozenset(
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"}
    | {"fan_in_fan_out", "inference_mode", "task_type", "peft_type", "auto_mapping", "base_model_name_or_path"}
    | {"revision", "peft_version", "megatron_core", "qalora_group_size"}
)
"""Fields of PEFT's configurations that say where an adapter goes. Attaching decides that here."""
_ANY = (5040 * 64, 5040 * 64)
"""A shape on which most capacities are legal. It serves to ask PEFT about the other fields."""
_SIMPLE = (bool, int, float, str, type(None))
"""Types of the fields that a sweep may set."""


class PeftOptions(AdapterConfig):
    """Base class of the configurations of PEFT's types. `config_class` makes the subclasses.

    Attributes:
        kind: the type's entry in `kinds`.
    """

    kind: ClassVar[Kind]

    def __reduce__(self) -> tuple[Callable[..., PeftOptions], tuple[str, int, dict[str, Any]]]:
        """Pickle the method's name, because no module has the class under its own name."""
        return _unpickled, (self.method, self.capacity, self.options())

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse(self.options())
        for name, least in self.kind.sizes.items():
            if (size := getattr(self, name)) is not None:
                check_capacity(self.method, name, size, least)
        if self.kind.alpha is not None:
            check_positive(self.method, self.kind.alpha[0], getattr(self, self.kind.alpha[0]))
        for name, words in self.words.items():
            value = getattr(self, name)
            if isinstance(value, str) and value not in words:
                raise ConfigError(
                    f"{self.method}: {name} = {value!r} is not one of PEFT's words; {nearest(value, words)}"
                )
        legal = self.kind.legal
        every = {**self.kind.option_defaults, **self.options()}
        self.peft_config(self.capacity if legal is None else legal(_ANY, self.capacity, every))

    @classmethod
    def _refuse(cls, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for strings that PEFT accepts and this package does not."""
        for name, words in cls.kind.refused.items():
            value = options.get(name)
            if isinstance(value, str) and value.startswith(words):
                raise ConfigError(
                    f"{cls.method}: {name} = {value!r} writes into the base weights or needs data; take "
                    f"{name} = true, or the methods pissa, olora, lora-ga and lora-xs of this package"
                )

    @classmethod
    def from_options(cls, capacity: int, options: Mapping[str, Any]) -> Self:
        """Return the configuration with this capacity and these options, as the base class does.

        For strings that are refused, the message says what to use instead. Fixed fields may be given with their fixed
        value, because saved folders contain them.
        """
        cls._refuse(options)
        free = {key: value for key, value in options.items() if (key, value) not in cls.kind.fixed.items()}
        return super().from_options(capacity, free)

    @property
    def dropout(self) -> float:
        """Return the largest option whose name ends in "dropout"."""
        return max((float(v) for k, v in self.options().items() if k.endswith("dropout")), default=0.0)

    def own_alpha(self, shapes: Collection[Shape]) -> dict[str, float]:
        if self.kind.alpha is None:
            return {}
        (name, unit), values = self.kind.alpha, self.options()
        default = STABILISED_ALPHA if values.get("use_rslora") else unit * self.capacity  # alpha / sqrt(r), or / r
        return {name: default if values[name] is None else values[name]}

    def peft_config(self, capacity: int, **more: Any) -> Any:
        """Return PEFT's configuration at a capacity.

        Args:
            capacity: the value of the capacity field.
            more: other fields of PEFT's configuration.

        Raises:
            ConfigError: PEFT refuses a value; the message has PEFT's words.
        """
        kind, options = self.kind, self.options()
        for name, alpha in self.own_alpha(()).items():
            stable, rank = options.get("use_rslora"), self.capacity
            # all layers have one scale, even if their ranks differ
            options[name] = alpha * math.sqrt(capacity / rank) if stable else alpha * capacity / rank
        fields = {**kind.fixed, **options, **more}
        if kind.capacity_field is not None:
            fields[kind.capacity_field] = kind.value(capacity)
        try:
            with quiet():
                return kind.theirs(**fields)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.method}: PEFT refuses this configuration: {error}") from error


def _unpickled(method: str, capacity: int, options: Mapping[str, Any]) -> PeftOptions:
    """Return the configuration that was pickled."""
    config = METHODS[method].config.from_options(capacity, options)
    assert isinstance(config, PeftOptions)
    return config


def _accepted(hint: Any) -> tuple[Any, ...]:
    """Return what a field accepts: types, and the strings of a Literal."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(hint) for part in _accepted(member))
    return (hint,)


def config_class(name: str, kind: Kind) -> type[PeftOptions]:
    """Return the configuration class of the type `name`.

    Args:
        name: the method's name, such as "peft:miss".
        kind: the type's entry in `kinds`.
    """
    theirs = kind.theirs
    capacity = "size" if kind.capacity_field is None else kind.capacity_field
    hints = typing.get_type_hints(theirs)
    words: dict[str, tuple[str, ...]] = {}
    fields: list[Any] = [(capacity, int)] if kind.capacity_field else [(capacity, int, 1)]
    for f in dataclasses.fields(theirs):
        default = kind.defaults.get(f.name, f.default)
        parts = _accepted(hint := hints[f.name])
        ours = f.name in (*PLACED, *kind.fixed, kind.capacity_field, kind.seed)
        if ours or type(default) not in _SIMPLE or not all(p in _SIMPLE or isinstance(p, str) for p in parts):
            continue
        if kind.alpha is not None and f.name == kind.alpha[0]:
            hint, default = float | None, None
        elif strings := tuple(p for p in parts if isinstance(p, str)):
            refused = kind.refused.get(f.name, ())
            words[f.name] = tuple(word for word in strings if not word.startswith(refused))
            hint = typing.Union[tuple(str if isinstance(p, str) else p for p in parts)]  # noqa: UP007
        fields.append((f.name, hint, dataclasses.field(default=default)))
    space = {"method": name, "capacity_field": capacity, "least": kind.least, "words": words, "kind": kind}
    space |= {
        "__module__": __name__,
        "__doc__": f"{kind.title}: the fields of PEFT's {theirs.__name__}.",
    }
    title = f"Peft{theirs.__name__.removesuffix('Config')}"
    return dataclasses.make_dataclass(title, fields, bases=(PeftOptions,), namespace=space, frozen=True)
