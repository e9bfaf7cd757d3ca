"""Turns pydantic's errors about a sweep file into `sweeps.errors.Problem`."""

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
"""Keys of other tools, with ours. One is proposed if the section has our key."""


def rule_of(error: Mapping[str, Any]) -> str:
    """Return the rule that one of pydantic's errors is about."""
    kind = error["type"]
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return f"must be {word} {error['ctx'][key]}".removesuffix(".0")
    return _RULES.get(kind, str(error["msg"]).removeprefix("Value error, "))


def intended_key(name: str, known: Sequence[str]) -> str | None:
    """Return the known key for a wrong one: that of another tool's key, or the nearest in spelling; None if none is."""
    return _MEANT[name] if _MEANT.get(name) in known else nearest(name, known)


def repeats_item_errors(error: Mapping[str, Any]) -> bool:
    """Return whether an error calls a list too short only because its items are wrong. These have their own errors."""
    items = error["input"]
    return error["type"] == "too_short" and len(items) >= int(error["ctx"]["min_length"])


def option_problems(errors: Sequence[Mapping[str, Any]], field: str) -> list[Problem]:
    """Return one problem for each wrong option of the method at `field`.

    If an option may have several types, its problem has the rules of all of them.
    """
    by_field: dict[str, Problem] = {}
    for error in errors:
        one = problem(error, BaseModel)
        where = f"{field}.{one.field}" if error["loc"] else field
        earlier = by_field.get(where)
        rule = one.rule if earlier is None else f"{earlier.rule}, or {one.rule}"
        near = one.nearest or (None if earlier is None else earlier.nearest)
        by_field[where] = Problem(where, one.value if error["loc"] else None, rule, near)
    return list(by_field.values())


def problem(error: Mapping[str, Any], model: type[BaseModel]) -> Problem:
    """Turn one pydantic error into a `Problem`. For an unknown key it lists the known keys."""
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
        near = f"search.space.{searched}" if searched in TRAIN_FIELDS else intended_key(key, known)
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
    """Return the value as an allowed name; None if no allowed letter is left."""
    plain = unicodedata.normalize("NFKD", str(value)).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._") or None


def _known_keys(root: type[BaseModel], path: Sequence[str]) -> list[str]:
    model: Any = root
    named = False  # whether the part is a name from the user, and not a field
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
