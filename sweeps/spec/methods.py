"""The methods a sweep can name: randlora's adapters, and those without a budget (full, linear probe, zero-shot)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from randlora.methods.registry import METHODS
from sweeps.errors import Problem, nearest, unknown
from sweeps.spec.messages import meant, rule_of
from sweeps.spec.search_space import option_names, space_problems
from sweeps.spec.sections import MethodSection, Sections


@dataclass(frozen=True)
class WithoutBudget:
    """A method that no parameter budget applies to: drawn as a horizontal line.

    Attributes:
        published_lr: the rate its search range is centred on; None where nothing trains.
        trains: what it trains, in words.
        full_rank: whether that is the target weights themselves.
    """

    published_lr: float | None
    trains: str
    full_rank: bool = False


WITHOUT_BUDGET: dict[str, WithoutBudget] = {
    # RandLoRA paper, Table 8: full fine-tuning of CLIP at 1e-5; small models take more, so specs set their own centre
    "full": WithoutBudget(1e-5, "every weight of the adapted towers", True),
    "full-targets": WithoutBudget(1e-5, "the target weights, whole", True),
    # RandLoRA's released DINOv2 code trains its linear head at 1e-3 (its CLIP probes, with another scale, at 0.02)
    "linear-probe": WithoutBudget(1e-3, "a linear head on the frozen model"),
    "zero-shot": WithoutBudget(None, "nothing: the base model as it is"),
}

_SHARED_KEYS = ("method", "lr", "space", "budgets", "allocation", "capacity", "unmatched")


def known_methods() -> tuple[str, ...]:
    """Names a sweep file may use under `[methods]`."""
    return (*METHODS, *WITHOUT_BUDGET)


def has_budget(name: str) -> bool:
    """Whether the method is matched to a parameter budget."""
    return name in METHODS


def full_rank(name: str) -> bool:
    """Whether the method trains the target weights themselves, so that their update can have any rank."""
    return name in WITHOUT_BUDGET and WITHOUT_BUDGET[name].full_rank


def published_lr(name: str) -> float | None:
    """The learning rate the method's range is centred on by default; None for a method that trains nothing."""
    return METHODS[name].published_lr if name in METHODS else WITHOUT_BUDGET[name].published_lr


def method_problems(tree: Mapping[str, Any], spec: Sections | None) -> list[Problem]:
    """Unknown methods and options of a sweep file, even where other parts of it are wrong."""
    sections = tree.get("methods")
    if not isinstance(sections, Mapping):
        return []
    problems = []
    for name, section in sections.items():
        base = section.get("method") if isinstance(section, Mapping) else None
        if base is not None:
            problems += _variant_problems(name, base)
        if base is None and name not in known_methods():
            rule = "unknown method; known: " + ", ".join(known_methods())
            rule += f"; for a variant of one under a name of its own, write method = NAME in [methods.{name}]"
            problems.append(Problem(f"methods.{name}", name, rule, nearest(name, known_methods())))
        elif isinstance(section, Mapping) and (base is None or base in METHODS):
            problems += _option_problems(name, base or name, section)
    if spec is not None and not problems:
        for name, checked in spec.methods.items():
            problems += _budget_problems(name, checked, spec)
        problems += space_problems(spec)
    return problems


def _variant_problems(name: str, base: object) -> list[Problem]:
    if base not in METHODS:
        return [unknown(f"methods.{name}.method", str(base), "method that takes a budget", tuple(METHODS))]
    if name in known_methods() and name != base:
        return [Problem(f"methods.{name}.method", base, f"{name} is a method itself; give the variant another name")]
    if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name) is None:
        rule = "a variant's name has small letters, digits, '.', '+' and '-'"
        return [Problem(f"methods.{name}", name, rule)]
    return []


def _option_problems(name: str, base: str, section: Mapping[str, Any]) -> list[Problem]:
    options = {k: v for k, v in section.items() if k not in _SHARED_KEYS}
    field, problems = f"methods.{name}", []
    if base in METHODS:
        method = METHODS[base]
        for key in {method.capacity_field, "rank"} & options.keys():
            value = options.pop(key)
            rule = "is decided by the budget; to pin it, write capacity"
            problems.append(Problem(f"{field}.{key}", value, rule, f"capacity = {value}"))
    known = option_names(base)
    for key in [k for k in options if k not in known]:
        everything = sorted({*_SHARED_KEYS, *known})
        problems.append(
            Problem(
                f"{field}.{key}",
                options.pop(key),
                f"unknown key; known: {', '.join(everything)}",
                meant(key, everything),
            )
        )
    if base in METHODS:
        method = METHODS[base]
        try:
            TypeAdapter(method.config).validate_python({method.capacity_field: method.min_capacity, **options})
        except ValidationError as error:
            for e in error.errors(include_url=False):
                where = ".".join((field, *(str(p) for p in e["loc"])))
                value = e["input"] if e["loc"] else None
                problems.append(Problem(where, value, rule_of(dict(e))))
    return problems


def _budget_problems(name: str, section: MethodSection, spec: Sections) -> list[Problem]:
    field, problems = f"methods.{name}", []
    references = spec.budgets.references()
    for label in section.budgets or ():
        if label not in references:
            problems.append(unknown(f"{field}.budgets", label, "budget", references))
    if not has_budget(spec.base(name)):
        for key in ("budgets", "allocation", "capacity"):
            if getattr(section, key) is not None:
                problems.append(Problem(f"{field}.{key}", getattr(section, key), f"{name} has no budget"))
    if published_lr(spec.base(name)) is None and section.lr is not None:
        problems.append(Problem(f"{field}.lr", section.lr.model_dump(exclude_none=True), f"{name} trains nothing"))
    return problems
