"""The JSON schema of sweep files, with which editors complete and check them. It is made from the pydantic models.

It says which values a key takes. `SweepSpec.parse` checks the rest: the options of each method, and contradictions
between keys.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from sweeps.spec.search import ListsAreValues, OneOrMany
from sweeps.spec.spec import FORMS, SweepSpec

FILE = "sweep-file.schema.json"
_SHORT: Mapping[str, dict[str, Any]] = {
    "ConfirmSection.seeds": {"type": "integer", "minimum": 1},
    "MethodSection.lr": {"type": "number", "exclusiveMinimum": 0},
}
"""Keys that have a short form: a number of seeds; the centre of a range."""
_FORM = "What `--scale {}` changes: the file's own keys, and `drop`, a key or a list of keys to remove."


def schema_text() -> str:
    """Return the schema as text."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """Return the schema of a whole sweep file, in TOML, YAML or JSON."""
    root = SweepSpec.model_json_schema()
    parts = {"SweepSpec": root, **root["$defs"]}
    for model in set(_models(SweepSpec)):
        _describe(model, parts[model.__name__])
    for form in FORMS:
        root["properties"][form] = {"type": "object", "description": _FORM.format(form)}
    root["properties"]["$schema"] = {"type": "string", "description": "Where this schema is; for JSON."}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Sweep file of randlora-sweeps"}
    return head | {key: value for key, value in root.items() if key not in head}


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the text below each field in the source, by the field's name. Fields of base classes are included."""
    texts: dict[str, str] = {}
    for cls in reversed([c for c in model.__mro__ if issubclass(c, BaseModel) and c is not BaseModel]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for line, below in zip(tree.body, tree.body[1:], strict=False):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(line, ast.AnnAssign) and isinstance(text, ast.Constant):
                texts[ast.unparse(line.target)] = " ".join(str(text.value).split())
    return texts


def inside(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation contains."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in inside(part)]


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a model and all models in its fields."""
    yield model
    for field in model.model_fields.values():
        for part in inside(field.annotation):
            yield from _models(part)


def _describe(model: type[BaseModel], part: dict[str, Any]) -> None:
    """Add to a model's schema the descriptions of its keys, and the short forms that its validators read."""
    texts = docstrings(model)
    part.pop("title", None)
    for name, field in model.model_fields.items():
        key = part["properties"][name]
        key.pop("title", None)
        if OneOrMany in field.metadata:
            _also(key, key["items"])
        if ListsAreValues in field.metadata:
            for table in (key, *key.get("anyOf", ())):
                if "additionalProperties" in table:
                    table["additionalProperties"] = {"anyOf": [table["additionalProperties"], {"type": "array"}]}
        if (short := _SHORT.get(f"{model.__name__}.{name}")) is not None:
            _also(key, short)
        below = inside(field.annotation)
        if name in texts or below:
            key["description"] = texts.get(name) or " ".join(str(below[0].__doc__).partition("\n\n")[0].split())


def _also(key: dict[str, Any], form: dict[str, Any]) -> None:
    """Let a key also have another form."""
    saved: dict[str, Any] = {name: key.pop(name) for name in ("default", "description") if name in key}
    own = dict(key)
    key.clear()
    key["anyOf"] = [*own.get("anyOf", [own]), form]
    key.update(saved)
