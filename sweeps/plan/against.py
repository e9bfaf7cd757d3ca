"""A plan beside its paper: each cell's number of parameters and the published one, and every setting that differs.

The published settings are those of the file's own `[published]` form, the published numbers those that are shipped
(`analysis.statistics.publications`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from analysis.statistics.publications.published import names, publication, reference
from randlora.methods.registry import METHODS
from sweeps.plan.plan import Plan
from sweeps.spec.cell import Cell
from sweeps.spec.spec import SweepSpec
from trainables.models.families import FUSED

Differences = dict[str, tuple[Any, Any]]
"""By the name of a setting: its value in the plan, and in the published form."""

_SECTIONS = ("protocol", "model", "data", "train", "evaluate")
_OF_NO_EXPERIMENT = ("data.datasets", "data.skip_bad")


@dataclass(frozen=True)
class Compared:
    """Cells of one method at one budget, beside the published cell of that method whose count is nearest.

    Attributes:
        cells: their number, over data sets and sizes.
        count, percent: trained parameters here, and their per cent of all with them, as the paper counts.
        setting: the published cell, such as "randlora-6"; None if the paper has none of this method.
        published_count, published_percent: as published; None if they are not.
        difference: the count less the published one, over that; None without one.
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
    """A plan beside its published form. `settings`: those of the whole sweep that differ."""

    rows: tuple[Compared, ...]
    settings: Differences

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def against(plan: Plan, published: Plan) -> Against:
    """Compare a plan with the plan of its file's published form, which has the same data sets."""
    groups: dict[tuple[str, str | None], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.method, cell.reference), []).append(cell)
    rows = tuple(_compared(cells, plan, published) for cells in groups.values())
    return Against(rows, _differences(_whole(plan), _whole(published)))


def _compared(cells: list[Cell], plan: Plan, published: Plan) -> Compared:
    cell = cells[0]
    percent = None
    if cell.count is not None and cell.model_params:
        percent = 100 * cell.count / (cell.model_params + cell.count)
    ours = Compared(cell.method, cell.reference, len(cells), cell.count, percent)
    theirs = [c for c in published.cells if c.method == cell.method]
    if not theirs:
        return ours
    near = min(theirs, key=lambda c: abs((c.count or 0) - (cell.count or 0)))
    count, share = _published_count(near)
    return Compared(
        *(cell.method, cell.reference, len(cells), cell.count, percent, near.reference),
        count,
        share,
        None if count is None or cell.count is None else (cell.count - count) / count,
        _differences(_own(cell, plan.spec), _own(near, published.spec)),
    )


def _published_count(cell: Cell) -> tuple[int | None, float | None]:
    """Parameters and per cent that are published for a cell of a published form."""
    points = [
        point
        for name in names()
        for point in publication(name).points
        if (point["model"], point["method"]) == (cell.model.removesuffix(FUSED), cell.method) and reference(point)
    ]
    exact = [point for point in points if reference(point) == cell.reference]
    if not exact and len({reference(point) for point in points}) == 1:
        exact = (
            points  # a method that is published at one setting, which the paper names otherwise than by its capacity
        )
    found = {key: [p[key] for p in exact if p.get(key) is not None] for key in ("adapter_params", "percent")}
    return next(iter(found["adapter_params"]), None), next(iter(found["percent"]), None)


def _own(cell: Cell, spec: SweepSpec) -> dict[str, Any]:
    """The settings of one method, as they hold for a cell."""
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


def _whole(plan: Plan) -> dict[str, Any]:
    tree = plan.spec.model_dump(mode="json", include=set(_SECTIONS))
    found = dict(_flat(tree))
    return {name: value for name, value in found.items() if name not in _OF_NO_EXPERIMENT}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Differences:
    both = {**ours, **theirs}
    return {name: (ours.get(name), theirs.get(name)) for name in both if ours.get(name) != theirs.get(name)}
