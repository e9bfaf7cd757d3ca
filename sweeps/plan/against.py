"""Compares a plan with its paper: the numbers of parameters of its cells, and the settings that differ.

The published settings come from the `[published]` table of the sweep file. The published numbers come with the package
(`analysis.findings.published`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from analysis.findings.published.publications import publication, publication_names, published_reference
from analysis.format import Row
from randlora.methods.registry import METHODS
from sweeps.plan.plan import Plan
from sweeps.spec.cell import Cell
from sweeps.spec.spec import SweepSpec
from trainables.models.families import FUSED

Differences = dict[str, tuple[Any, Any]]
"""Settings that differ, by name: the value in the plan, and the value in the published form."""

_SECTIONS = ("protocol", "model", "data", "train", "evaluate")
_NOT_COMPARED = ("data.datasets", "data.skip_bad")
"""Settings that say which data this machine has, and nothing about the experiment."""


@dataclass(frozen=True)
class Compared:
    """The comparison of one method at one budget with the published cell that has the nearest number of parameters.

    Attributes:
        method: the method.
        budget: the name of the budget; None if the method has none.
        cells: the number of cells in the plan that this row stands for, one for each data set and size.
        count: the number of parameters that the method trains here.
        percent: `count` in percent of all parameters, the trained ones included, as the paper counts.
        setting: the published cell, such as "randlora-6"; None if the paper does not have this method.
        published_count, published_percent: the paper's numbers; None if it does not give them.
        difference: (count - published_count) / published_count; None if one of them is missing.
        settings: the method's settings that differ.
    """

    method: str
    budget: str | None
    cells: int
    count: int | None
    percent: float | None
    setting: str | None = None
    published_count: int | None = None
    published_percent: float | None = None
    difference: float | None = None
    settings: Differences = field(default_factory=dict)


@dataclass(frozen=True)
class Against:
    """The comparison of a plan with its published form.

    Attributes:
        rows: one for each method and budget of the plan.
        settings: settings of the whole sweep that differ.
    """

    rows: tuple[Compared, ...]
    settings: Differences

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, for JSON."""
        return asdict(self)


def against(plan: Plan, published: Plan) -> Against:
    """Compare a plan with the plan of its file's published form. Both must have the same data sets."""
    groups: dict[tuple[str, str | None], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.method, cell.reference), []).append(cell)
    points = [point for name in publication_names() for point in publication(name).points if published_reference(point)]
    rows = tuple(_compared(cells, plan, published, points) for cells in groups.values())
    return Against(rows, _differences(_sweep_settings(plan), _sweep_settings(published)))


def _compared(cells: list[Cell], plan: Plan, published: Plan, points: list[Row]) -> Compared:
    """Compare the cells of one method and budget with the nearest published cell."""
    cell = cells[0]
    percent = None
    if cell.count is not None and cell.model_params:
        percent = 100 * cell.count / (cell.model_params + cell.count)
    ours = Compared(cell.method, cell.reference, len(cells), cell.count, percent)
    theirs = [c for c in published.cells if c.method == cell.method]
    if not theirs:
        return ours
    near = min(theirs, key=lambda c: abs((c.count or 0) - (cell.count or 0)))
    count, share = _published_count(near, points)
    return replace(
        ours,
        setting=near.reference,
        published_count=count,
        published_percent=share,
        difference=None if count is None or cell.count is None else (cell.count - count) / count,
        settings=_differences(_method_settings(cell, plan.spec), _method_settings(near, published.spec)),
    )


def _published_count(cell: Cell, points: list[Row]) -> tuple[int | None, float | None]:
    """Return the number of parameters and the percentage that `points` have for a cell of a published form."""
    place = (cell.model.removesuffix(FUSED), cell.method)
    of_method = [point for point in points if (point["model"], point["method"]) == place]
    exact = [point for point in of_method if published_reference(point) == cell.reference]
    if not exact and len({published_reference(point) for point in of_method}) == 1:
        exact = of_method  # the paper has one setting of this method, and does not name it by its capacity
    count = next((p["adapter_params"] for p in exact if p.get("adapter_params") is not None), None)
    return count, next((p["percent"] for p in exact if p.get("percent") is not None), None)


def _method_settings(cell: Cell, spec: SweepSpec) -> dict[str, Any]:
    """Return the settings of a cell's method."""
    section = spec.methods[cell.method]
    capacities = sorted(set(cell.capacities.values()))
    dimensions = {d.name: f"searched, from {dict(cell.published).get(d.name)}" for d in cell.dimensions}
    return {
        "capacity": capacities[0] if len(capacities) == 1 else capacities or None,
        "learning rate": cell.lr_centre,
        "tuning trials": cell.tune_trials,
        "seeds": cell.confirm_seeds,
        "micro_batch_size": section.micro_batch_size or spec.train.micro_batch_size,
        **(METHODS[cell.base].options if cell.base in METHODS else {}),
        **section.options,
        **dimensions,
    }


def _sweep_settings(plan: Plan) -> dict[str, Any]:
    """Return the settings of the whole sweep, by their keys in the sweep file."""
    tree = plan.spec.model_dump(mode="json", include=set(_SECTIONS))
    return {name: value for name, value in _flat(tree) if name not in _NOT_COMPARED}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf of a tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Differences:
    both = {**ours, **theirs}
    return {name: (ours.get(name), theirs.get(name)) for name in both if ours.get(name) != theirs.get(name)}
