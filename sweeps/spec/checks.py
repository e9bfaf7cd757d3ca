"""Checks one section of a sweep file against another: methods and options, searched values, priorities."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from analysis.format import EVERY_METHOD
from randlora.errors import AdapterError
from randlora.methods.registry import METHODS, get_method
from sweeps.errors import Problem, nearest, unknown
from sweeps.spec.batch_sizes import batch_problems
from sweeps.spec.messages import intended_key, option_problems, rule_of
from sweeps.spec.methods import capacity_reference, has_budget, known_methods, published_lr
from sweeps.spec.search_space import dimensions, option_names, searchable
from sweeps.spec.sections import MethodSection, Sections
from sweeps.spec.space import TRAIN_FIELDS, Value
from trainables.config import NO_TRAINING, TrainSettings


def method_problems(tree: Mapping[str, Any], spec: Sections | None) -> list[Problem]:
    """Return the problems of the methods of a sweep file, even if other parts of it are wrong.

    Args:
        tree: the content of the file.
        spec: the file as sections; None if other parts of it are wrong.
    """
    sections = tree.get("methods")
    if not isinstance(sections, Mapping):
        return []
    problems = []
    for name, section in sections.items():
        base = section.get("method") if isinstance(section, Mapping) else None
        if base is not None:
            problems += _variant_problems(name, base)
        if base is None and (problem := _family_problem(f"methods.{name}", name)):
            problems.append(problem)
        elif base is None and name not in METHODS and name not in known_methods():
            rule = "unknown method; known: " + ", ".join(known_methods())
            rule += f"; for a variant of a method under another name, write method = NAME in [methods.{name}]"
            problems.append(Problem(f"methods.{name}", name, rule, nearest(name, known_methods())))
        elif isinstance(section, Mapping) and (base is None or (isinstance(base, str) and base in METHODS)):
            problems += _option_problems(name, base or name, section)
    if spec is not None and not problems:
        for name in spec.methods:
            problems += _budget_problems(name, spec)
        problems += space_problems(spec)
    return problems


def _family_problem(field: str, name: str) -> Problem | None:
    """Return why a name with a colon, such as peft:miss, is not a method; None if it is one."""
    if ":" not in name:
        return None
    try:
        get_method(name)
    except AdapterError as error:
        return Problem(field, name, str(error))
    return None


def _variant_problems(name: str, base: object) -> list[Problem]:
    if isinstance(base, str) and (problem := _family_problem(f"methods.{name}.method", base)):
        return [problem]
    if not isinstance(base, str) or base not in METHODS:
        return [unknown(f"methods.{name}.method", str(base), "method that takes a budget", tuple(METHODS))]
    if name in known_methods() and name != base:
        return [Problem(f"methods.{name}.method", base, f"{name} is a method itself; give the variant another name")]
    if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name) is None:
        rule = "a variant's name has small letters, digits, '.', '+' and '-'"
        return [Problem(f"methods.{name}", name, rule)]
    return []


def _option_problems(name: str, base: str, section: Mapping[str, Any]) -> list[Problem]:
    shared = MethodSection.model_fields
    options = {k: v for k, v in section.items() if k not in shared}
    field = f"methods.{name}"
    problems = []
    method = METHODS.get(base)
    if method is not None:
        for key in {method.capacity_field, "rank"} & options.keys():
            value = options.pop(key)
            rule = "is decided by the budget; to pin it, write capacity"
            problems.append(Problem(f"{field}.{key}", value, rule, f"capacity = {value}"))
    own_options = option_names(base)
    everything = sorted({*shared, *own_options})
    rule = f"unknown key; known: {', '.join(everything)}"
    for key in [k for k in options if k not in own_options]:
        problems.append(Problem(f"{field}.{key}", options.pop(key), rule, intended_key(key, everything)))
    if method is not None:
        try:
            TypeAdapter(method.config).validate_python({method.capacity_field: method.min_capacity, **options})
        except ValidationError as error:
            problems += option_problems([dict(e) for e in error.errors(include_url=False)], field)
        else:
            try:  # counting needs 8, not 8.0
                method.config.from_options(method.min_capacity, options)
            except AdapterError as error:
                problems.append(Problem(field, None, str(error)))
    return problems


def _budget_problems(name: str, spec: Sections) -> list[Problem]:
    section = spec.methods[name]
    field = f"methods.{name}"
    problems = []
    references = spec.budgets.references()
    for label in section.budgets or ():
        if label not in references:
            problems.append(unknown(f"{field}.budgets", label, "budget", references))
    if isinstance(section.capacity, tuple) and section.budgets is not None:
        rule = "a list of capacities makes its own budgets; leave one out"
        problems.append(Problem(f"{field}.budgets", list(section.budgets), rule))
    if not has_budget(spec.base(name)):
        for key in ("budgets", "allocation", "capacity"):
            if getattr(section, key) is not None:
                problems.append(Problem(f"{field}.{key}", getattr(section, key), f"{name} has no budget"))
    if published_lr(spec.base(name)) is None and section.lr is not None:
        problems.append(Problem(f"{field}.lr", section.lr.model_dump(exclude_defaults=True), f"{name} trains nothing"))
    return problems


def space_problems(spec: Sections) -> list[Problem]:
    """Return the problems of the search space: unknown names, and values that a method or the training refuses."""
    problems = []
    trained = [name for name in spec.methods if name != NO_TRAINING]
    everything = sorted({k for name in trained for k in searchable(spec.base(name))})
    for key in spec.search.space:
        if key == "lr":
            rule = "is searched always; its range is search.lr or methods.NAME.lr"
            problems.append(Problem("search.space.lr", None, rule))
        elif key not in everything:
            problems.append(unknown(f"search.space.{key}", key, "hyperparameter of these methods", everything))
    for name, section in spec.methods.items():
        field = f"methods.{name}.space"
        if name not in trained and section.space:
            problems.append(Problem(field, None, f"{name} trains nothing"))
            continue
        for key in section.space or ():
            if key not in (known := searchable(spec.base(name))):
                problems.append(unknown(f"{field}.{key}", key, f"hyperparameter of {name}", known))
    problems = problems or batch_problems(spec)
    if problems:
        return problems
    problem_of: dict[str, Problem] = {}
    for name in trained:
        for d in dimensions(name, spec):
            own = d.name in (spec.methods[name].space or {})
            where = f"methods.{name}.space.{d.name}" if own else f"search.space.{d.name}"
            if d.name == "epochs" and spec.search.pruner != "none":
                rule = "cannot be searched with a pruner, which would stop long trials in favour of short ones: it "
                rule += "compares trials at the same epoch, at which the learning rate of a long trial is still high"
                problem_of.setdefault(where, Problem(where, None, rule, 'search.pruner = "none"'))
            for value in d.ends:
                message = _refused(spec, name, d.name, value)
                if message is not None:
                    problem_of.setdefault(f"{where}={value}", Problem(where, value, message))
    return list(problem_of.values())


def _refused(spec: Sections, name: str, key: str, value: Value) -> str | None:
    """Return the rule that a searched value of a method breaks; None if it is valid."""
    try:
        if key in TRAIN_FIELDS:
            settings = TrainSettings.model_validate({**spec.train.model_dump(), key: value})
            if isinstance(value, bool | str) and not isinstance(getattr(settings, key), str):  # true, "0.1"
                return "must be a number"
        else:
            method, options = METHODS[spec.base(name)], {**spec.methods[name].options, key: value}
            TypeAdapter(method.config).validate_python({method.capacity_field: method.min_capacity, **options})
    except ValidationError as error:
        return rule_of(dict(error.errors(include_url=False)[0]))
    return None


def name_problems(spec: Sections) -> list[Problem]:
    """Return the problems of names in `confirm.question` and `resources.priority` that are not in the sweep."""
    names: list[str | float] = [*spec.methods, *spec.budgets.references(), *spec.data.datasets, *spec.data.train_size]
    for name, section in spec.methods.items():
        if isinstance(section.capacity, tuple):
            names += [capacity_reference(name, c, spec.budgets.count) for c in section.capacity]
    kinds = "method, budget, data set or training size"
    problems = [
        unknown("resources.priority", str(name), kinds, [str(n) for n in names])
        for name in spec.resources.priority
        if name not in names
    ]
    question, with_budget = spec.confirm.question, [m for m in spec.methods if spec.base(m) in METHODS]
    if question is not None and question not in [EVERY_METHOD, *with_budget]:
        problems.append(unknown("confirm.question", question, "method with a budget", [*with_budget, EVERY_METHOD]))
    return problems
