"""Checks of a whole sweep file, section against section."""

from __future__ import annotations

from sweeps.errors import Problem, unknown
from sweeps.spec.sections import Sections


def priority_problems(spec: Sections) -> list[Problem]:
    """Names in `resources.priority` that no cell of the sweep can have."""
    names: list[str | float] = [*spec.methods, *spec.budgets.references(), *spec.data.datasets, *spec.data.train_size]
    kinds = "method, budget, data set or training size"
    return [
        unknown("resources.priority", str(name), kinds, [str(n) for n in names])
        for name in spec.resources.priority
        if name not in names
    ]
