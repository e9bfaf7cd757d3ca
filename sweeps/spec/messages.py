"""What pydantic finds wrong in a sweep file, in the words of `sweeps.errors.Problem`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from analysis.format import plural
from sweeps.errors import Problem, nearest
from sweeps.spec.space import TRAIN_FIELDS

_RULES = {
    "missing": "is required",
    "extra_forbidden": "unknown key",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list, in [ ]",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "path_type": "must be a path, as text",
    "string_pattern_mismatch": "must be letters, digits, '.', '_' and '-', the first one a letter or a digit",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_MEANT = {
    "batch_size": "global_batch_size",
    "learning_rate": "lr",
    "n_trials": "trials",
    "num_trials": "trials",
    "ranks": "lora_rank",
    "rank": "lora_rank",
    "dataset": "datasets",
    "num_epochs": "epochs",
    "n_seeds": "seeds",
}
"""Names of other tools, with ours; taken where the section has that key."""


def rule_of(error: Mapping[str, Any]) -> str:
    """The rule that one of pydantic's errors is about."""
    kind = error["type"]
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return f"must be {word} {error['ctx'][key]}".removesuffix(".0")
    return _RULES.get(kind, str(error["msg"]).removeprefix("Value error, "))


def meant(name: str, known: Sequence[str]) -> str | None:
    """The known name that a wrong one stands for: that of another tool, or the closest in spelling."""
    return _MEANT[name] if _MEANT.get(name) in known else nearest(name, known)


def is_echo(error: Mapping[str, Any]) -> bool:
    """Pydantic also calls a list too short whose items are bad; the items' own errors say it."""
    given = error["input"]
    return error["type"] == "too_short" and len(given) >= int(error["ctx"]["min_length"])


def option_problems(errors: Sequence[Mapping[str, Any]], field: str) -> list[Problem]:
    """Return what is wrong with the options of the method at `field`, one problem an option.

    An option that may be of several types is told the rules of all of them.
    """
    found: dict[str, Problem] = {}
    for error in errors:
        told = problem(error, BaseModel)
        where = f"{field}.{told.field}" if error["loc"] else field
        before = found.get(where)
        rule = told.rule if before is None else f"{before.rule}, or {told.rule}"
        near = told.nearest or (None if before is None else before.nearest)
        found[where] = Problem(where, told.value if error["loc"] else None, rule, near)
    return list(found.values())


def problem(error: Mapping[str, Any], model: type[BaseModel]) -> Problem:
    """Turn one pydantic error into a `Problem`, with the known keys where a key is unknown."""
    skip = {"int", "float", "str", "tuple", "dict"}  # union branches that pydantic puts into the path
    loc = [
        p for p in error["loc"] if not (isinstance(p, str) and (p in skip or p.startswith(("literal[", "constrained"))))
    ]
    field = ".".join(str(p) for p in loc) or "file"
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _known_keys(model, [p for p in loc[:-1] if isinstance(p, str)])
        key = str(loc[-1])
        searched = _MEANT.get(key, key) if loc[:-1] == ["search"] else ""
        near = f"search.space.{searched}" if searched in TRAIN_FIELDS else meant(key, known)
        return Problem(field, error["input"], f"unknown key; known: {', '.join(known)}", near)
    value = None if kind == "missing" or isinstance(error["input"], dict | BaseModel) else error["input"]
    if kind == "literal_error":
        choices = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        return Problem(field, value, f"must be one of {', '.join(choices)}", nearest(str(value), choices))
    if kind == "too_short":
        return Problem(field, value, f"must hold at least {plural(error['ctx']['min_length'], 'item')}")
    slug = _slug(value) if kind == "string_pattern_mismatch" else None
    return Problem(field, value, rule_of(error), slug)


def _slug(value: object) -> str | None:
    """The value as a name that is allowed; None where nothing of it is left."""
    plain = unicodedata.normalize("NFKD", str(value)).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._") or None


def _known_keys(root: type[BaseModel], path: Sequence[str]) -> list[str]:
    model: Any = root
    named = False  # the part is a name that the user gives, not a field
    for part in path:
        if named:
            named = False
            continue
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field is not None else None
        named = getattr(model, "__origin__", None) is dict
        args = [a for a in getattr(model, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        model = args[0] if args else model
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
