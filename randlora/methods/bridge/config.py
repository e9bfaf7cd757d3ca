"""A type's configuration: the fields of PEFT's own that a sweep may set, checked by PEFT's class."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

from torch.sparse import check_sparse_tensor_invariants

from randlora.adapter import AdapterConfig, Shape, check_capacity, check_positive
from randlora.errors import AdapterError, ConfigError, nearest
from randlora.methods.bridge.kinds import PREFIX, Kind
from randlora.methods.lowrank.lora import STABILISED_ALPHA
from randlora.methods.method import METHODS

PLACED = frozenset(
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"}
    | {"fan_in_fan_out", "inference_mode", "task_type", "peft_type", "auto_mapping", "base_model_name_or_path"}
    | {"revision", "peft_version", "megatron_core", "qalora_group_size"}
)
"""Fields of PEFT's configurations that say where an adapter goes; attaching decides it."""
_ANY = (5040 * 64, 5040 * 64)
"""A shape that most capacities are legal on, to ask PEFT about the other fields."""
_SIMPLE = (bool, int, float, str, type(None))


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of what it is asked to do here on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft() -> Any:
    """The package. Raises `AdapterError` where it is not installed, with the command that installs it."""
    try:
        with quiet():
            import peft
    except ImportError as error:
        raise AdapterError(
            f"methods called {PREFIX}NAME need the package peft ({error}): pip install 'randlora-sweeps[peft]'"
        ) from error
    invariants: Any = check_sparse_tensor_invariants
    if not invariants.is_enabled():
        invariants.disable()  # as it is; torch warns in SHiRA's forward as long as nobody chose
    return peft


class PeftOptions(AdapterConfig):
    """Base of the configurations; subclasses are made by `config_class`."""

    kind: ClassVar[Kind]
    theirs: ClassVar[type[Any]]

    def __reduce__(self) -> tuple[Callable[..., PeftOptions], tuple[str, int, dict[str, Any]]]:
        """Pickled by the method's name: no module has the class by its own."""
        return _again, (self.method, self.capacity, self.options())

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
                raise ConfigError(f"{self.method}: {name} = {value!r} is none of PEFT's words; {nearest(value, words)}")
        self.at(self.kind.legal(_ANY, self.capacity, {**self.kind.fixed, **self.options()}))

    @classmethod
    def _refuse(cls, options: Mapping[str, Any]) -> None:
        for name, words in cls.kind.refused.items():
            value = options.get(name)
            if isinstance(value, str) and value.startswith(words):
                raise ConfigError(
                    f"{cls.method}: {name} = {value!r} writes into the base weights or needs data; take "
                    f"{name} = true, or the methods pissa, olora, lora-ga and lora-xs of this package"
                )

    @classmethod
    def from_options(cls, capacity: int, options: Mapping[str, Any]) -> Self:
        """As the base class; refused words are told what to take instead, what is fixed may be named: folders do."""
        cls._refuse(options)
        own = {key: value for key, value in options.items() if (key, value) not in cls.kind.fixed.items()}
        return super().from_options(capacity, own)

    @property
    def dropout(self) -> float:
        """The largest of the options called dropout."""
        return max((float(v) for k, v in self.options().items() if k.endswith("dropout")), default=0.0)

    def own_alpha(self, shapes: Collection[Shape]) -> dict[str, float]:
        if self.kind.alpha is None:
            return {}
        (name, unit), given = self.kind.alpha, self.options()
        default = STABILISED_ALPHA if given.get("use_rslora") else unit * self.capacity  # alpha / sqrt(r), or / r
        return {name: default if given[name] is None else given[name]}

    def at(self, capacity: int, **more: Any) -> Any:
        """PEFT's configuration at a capacity, with more of its fields.

        Raises:
            ConfigError: a value that PEFT refuses, in its words.
        """
        kind, options = self.kind, self.options()
        for name, given in self.own_alpha(()).items():
            stable, rank = options.get("use_rslora"), self.capacity
            # one scale for all layers, also where their ranks differ
            options[name] = given * math.sqrt(capacity / rank) if stable else given * capacity / rank
        fields = {**kind.fixed, **options, **more}
        if kind.capacity_field is not None:
            fields[kind.capacity_field] = kind.value(capacity)
        try:
            with quiet():
                return self.theirs(**fields)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.method}: PEFT refuses this configuration: {error}") from error


def _again(method: str, capacity: int, options: Mapping[str, Any]) -> PeftOptions:
    """The configuration that was pickled."""
    config = METHODS[method].config.from_options(capacity, options)
    assert isinstance(config, PeftOptions)
    return config


def _parts(hint: Any) -> tuple[Any, ...]:
    """What a field may be: types, and the words of a Literal."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(part for one in typing.get_args(hint) for part in _parts(one))
    return (hint,)


def config_class(name: str, kind: Kind, theirs: type[Any]) -> type[PeftOptions]:
    """The configuration of the type `name`, from PEFT's class for it."""
    capacity = "size" if kind.capacity_field is None else kind.capacity_field
    hints = typing.get_type_hints(theirs)
    words: dict[str, tuple[str, ...]] = {}
    fields: list[Any] = [(capacity, int)] if kind.capacity_field else [(capacity, int, 1)]
    for f in dataclasses.fields(theirs):
        default = kind.defaults.get(f.name, f.default)
        parts = _parts(hint := hints[f.name])
        ours = f.name in (*PLACED, *kind.fixed, kind.capacity_field, kind.seed)
        if ours or type(default) not in _SIMPLE or not all(p in _SIMPLE or isinstance(p, str) for p in parts):
            continue
        if kind.alpha is not None and f.name == kind.alpha[0]:
            hint, default = float | None, None
        elif found := tuple(p for p in parts if isinstance(p, str)):
            refused = kind.refused.get(f.name, ())
            words[f.name] = tuple(word for word in found if not word.startswith(refused))
            hint = typing.Union[tuple(str if isinstance(p, str) else p for p in parts)]  # noqa: UP007
        fields.append((f.name, hint, dataclasses.field(default=default)))
    space = {"method": name, "capacity_field": capacity, "least": kind.least, "words": words, "kind": kind}
    space |= {
        "__module__": __name__,
        "theirs": theirs,
        "__doc__": f"{kind.title}: the fields of PEFT's {theirs.__name__}.",
    }
    title = f"Peft{theirs.__name__.removesuffix('Config')}"
    return dataclasses.make_dataclass(title, fields, bases=(PeftOptions,), namespace=space, frozen=True)
