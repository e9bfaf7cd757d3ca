"""List every key of a sweep file with its type, its default and its docstring, from the models that read the file."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from sweeps.spec.schema import docstrings, inside
from sweeps.spec.spec import SweepSpec

SECTIONS = (
    "model",
    "data",
    "budgets",
    "methods",
    "search",
    "confirm",
    "train",
    "evaluate",
    "resources",
    "limits",
    "keep",
)


def kind(annotation: Any) -> str:
    """Return a type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if annotation is type(None) or annotation is Ellipsis:
        return ""
    if str(origin) == "typing.Literal":
        return ", ".join(f"`{json.dumps(a)}`" for a in args)
    if origin is tuple:
        return f"list of {kind(args[0])}"
    if origin is dict:
        return f"table of {kind(args[1])}"
    if str(origin) == "typing.Annotated" or hasattr(annotation, "__metadata__"):
        return kind(args[0])
    if origin is types.UnionType or str(origin) == "typing.Union":
        return " or ".join(dict.fromkeys(k for k in map(kind, args) if k))
    return {"int": "integer", "float": "number", "str": "text", "bool": "boolean", "Path": "path"}.get(
        getattr(annotation, "__name__", ""), "value"
    )


def default(field: Any) -> str:
    """Return a field's default as TOML writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ((), {}):
        return ""
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (key, type, default, meaning) of every key of a model. A table's keys follow it."""
    sentences = docstrings(model)
    for name, field in model.model_fields.items():
        yield f"`{prefix}{name}`", kind(field.annotation), default(field), sentences.get(name, "")
        for each in inside(field.annotation):
            yield from rows(each, f"{prefix}{name}.")


def sections() -> Iterator[tuple[str, list[tuple[str, str, str, str]]]]:
    """Yield every section with its rows; "" for the keys above them."""
    sentences = docstrings(SweepSpec)
    fields = SweepSpec.model_fields
    above = {n: f for n, f in fields.items() if n not in SECTIONS}
    yield "", [(f"`{n}`", kind(f.annotation), default(f), sentences.get(n, "")) for n, f in above.items()]
    for name in SECTIONS:
        (model,) = inside(fields[name].annotation)
        yield ("methods.NAME" if name == "methods" else name), list(rows(model))
