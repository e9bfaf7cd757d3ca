"""Checks of a whole sweep file, section against section."""

from __future__ import annotations

from collections.abc import Iterator

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


def seconds_problems(spec: Sections) -> Iterator[Problem]:
    """What of a sweep file does not go with an allowance in seconds."""
    allowance, search, resources = spec.search.allowance, spec.search, spec.resources
    if allowance is None or allowance.seconds is None or spec.protocol == "paper":
        return
    if search.sampler == "grid":
        rule = "a grid is fixed by its number of points, which an allowance in seconds does not give"
        yield Problem("search.sampler", search.sampler, rule, "qmc")
    if resources.pack != 1:
        rule = "the share of a packed trial depends on how many others run, so seconds would buy some cells more"
        yield Problem(
            "resources.pack", resources.pack, f"{rule} than others under search.allowance.seconds", "pack = 1"
        )
