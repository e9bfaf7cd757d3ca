"""From a specification to cells: every method solved for every budget, on every data set and training size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from analysis.store.tables import cells_table
from sweeps.budget.solver import Neighbour, Solution
from sweeps.budget.solving import Shapes, Solved, rank_problems, solutions, update_rank
from sweeps.errors import Problem, SpecError
from sweeps.plan.checks import check_adapters, counted
from sweeps.search.points import check_sampler
from sweeps.spec.cell import Cell
from sweeps.spec.methods import has_budget, published_lr
from sweeps.spec.search_space import dimensions, published
from sweeps.spec.sections import MethodSection
from sweeps.spec.space import Space
from sweeps.spec.spec import SweepSpec
from sweeps.spec.task_checks import task_problems, with_towers
from trainables.data.registry import check_dataset
from trainables.data.text.registry import TEXT_FORMS
from trainables.errors import DataError
from trainables.models.loading import ModelError, default_targets, target_shapes
from trainables.models.shapes import model_kind

PATH_FORMS = {"local", "folder", "parquet", "arrow", *TEXT_FORMS}
"""Schemes of model and data ids that name a path."""


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep, infeasible ones included."""

    spec: SweepSpec
    cells: tuple[Cell, ...]

    @property
    def feasible(self) -> tuple[Cell, ...]:
        """The cells that will run."""
        return tuple(cell for cell in self.cells if cell.feasible)

    @property
    def n_trials(self) -> int:
        """Trials of a complete run: the allowance and the CONFIRM seeds of feasible cells."""
        return sum(cell.tune_trials + cell.confirm_seeds for cell in self.feasible)

    def table(self) -> pa.Table:
        """The cells as an Arrow table (schema: docs/tables.md, `cells`)."""
        return cells_table([cell.row() for cell in self.cells])

    @classmethod
    def from_spec(cls, spec: SweepSpec) -> Plan:
        """Solve every cell. Shapes are taken on the meta device: no weights are read, no accelerator is touched.

        Raises:
            SpecError: unknown model, data set or target, or no feasible cell at all.
        """
        problems = _data_problems(spec)
        shapes: Shapes = {}
        targets: tuple[str, ...] = ()
        try:
            kind = model_kind(spec.model.id)
            spec = with_towers(spec, kind)
            problems += task_problems(spec, kind)
            targets = spec.model.targets or tuple(default_targets(spec.model.id))
            shapes = target_shapes(spec.model.id, targets, spec.model.adapt or "both")
        except ModelError as error:
            problems.append(Problem("model.id", None, str(error)))  # the message has the value
        except ValueError as error:  # a target pattern that matches nothing; the message lists the nearest names
            problems.append(Problem("model.targets", list(targets), str(error)))
        else:
            problems += rank_problems(spec, shapes)
        if problems:
            raise SpecError(problems)
        cells = tuple(_cells(spec, targets, shapes))
        matched = [cell for cell in cells if has_budget(cell.base)]
        if not any(cell.feasible for cell in matched or cells):
            reasons = "; ".join(f"{cell.label}: {cell.reason}" for cell in matched or cells)
            raise SpecError([Problem("budgets", None, f"no cell is feasible: {reasons}", _lever(cells))])
        plan = cls(spec, tuple(counted(cell, spec) for cell in cells))
        check_sampler(spec.search.sampler, plan.studies())
        plan.check_training()
        check_adapters(spec.model.id, plan.feasible)
        return plan

    def studies(self) -> list[tuple[str, Space, int]]:
        """Label, space and number of the sampler's points of every cell that is tuned."""
        search = self.spec.search
        fixed = search.reruns + len(search.warm_start)
        return [(c.label, c.space, c.tune_trials - fixed) for c in self.feasible if c.space and c.tune_trials]

    def check_training(self) -> None:
        """Build one trial, so that training settings that contradict each other stop the sweep; raises `SpecError`."""
        cell = self.feasible[0]
        try:
            cell.trial("CONFIRM", cell.lr_centre, (0, 0, 0), self.spec.train)
        except ValidationError as error:
            messages = [e["msg"].removeprefix("Value error, ") for e in error.errors(include_url=False)]
            raise SpecError([Problem("train", None, message) for message in messages]) from error


def _data_problems(spec: SweepSpec) -> list[Problem]:
    problems = []
    for name in spec.data.datasets:
        try:
            check_dataset(name, spec.data.train_size, spec.protocol)
        except DataError as error:
            problems.append(Problem("data.datasets", None, str(error)))  # the message has the value
    return problems


def _cells(spec: SweepSpec, targets: tuple[str, ...], shapes: Shapes) -> list[Cell]:
    cells = []
    for name, section in spec.methods.items():
        for solved in solutions(name, section, spec, shapes):
            for dataset in spec.data.datasets:
                for size in spec.data.train_size:
                    cells.append(_cell(spec, (targets, shapes), name, section, dataset, size, solved))
    return cells


def _absolute(name: str) -> str:
    """A path in a model or data id, made absolute: workers run in other folders."""
    scheme, colon, path = name.partition(":")
    return f"{scheme}:{Path(path).resolve()}" if colon and scheme in PATH_FORMS else name


def _cell(
    spec: SweepSpec,
    adapted: tuple[tuple[str, ...], Shapes],
    name: str,
    section: MethodSection,
    dataset: str,
    size: str | float,
    solved: Solved,
) -> Cell:
    targets, shapes = adapted
    answer = solved.answer
    solution = answer if isinstance(answer, Solution) else None
    around = answer if answer is not None else None
    low, high, centre = _lr_range(name, section, spec)
    options = tuple(sorted(section.options.items()))
    space = dimensions(name, section, spec) if centre is not None and spec.protocol != "paper" else ()
    allocation = solution.allocation if solution else None
    key: list[object] = [
        spec.model.id,
        spec.model.adapt,
        targets,
        dataset,
        size,
        name,
        options,
        solved.reference,
        section.allocation,
    ]
    if spec.model.image_size is not None:
        key.append(spec.model.image_size)
    if spec.base(name) != name:
        key.append(spec.base(name))
    digest = hashlib.sha256(json.dumps(key, default=str).encode()).hexdigest()[:6]
    words = [name, solved.reference, dataset.rpartition("/")[2].replace(":", "-"), str(size)]
    return Cell(
        cell_id="_".join([w for w in words if w] + [digest]),
        sweep=spec.name,
        model=_absolute(spec.model.id),
        adapt=spec.model.adapt or "both",
        targets=targets,
        dataset=_absolute(dataset),
        train_size=size,
        method=name,
        options=options,
        reference=solved.reference,
        budget=solved.budget,
        allocation=allocation,
        capacity=solution.capacity if solution else None,
        capacities=tuple(solution.capacities.items()) if solution else (),
        count=solution.count if solution else None,
        residual=solution.residual if solution else None,
        feasible=solved.reason is None,
        reason=solved.reason,
        below=_neighbour(around.below if around else None),
        above=_neighbour(around.above if around else None),
        lr_low=low,
        lr_high=high,
        lr_centre=centre,
        tune_trials=0 if centre is None or spec.protocol == "paper" else spec.search.trials,
        confirm_seeds=1 if centre is None else len(spec.confirm.seeds),  # nothing trains, nothing varies
        protocol=spec.protocol,
        image_size=spec.model.image_size,
        epochs=(spec.data.epochs_of(dataset, size) or spec.train.epochs) if centre is not None else None,
        dimensions=space,
        published=published(name, section, spec, space, max(solution.capacities.values()) if solution else None),
        skip_bad=spec.data.skip_bad,
        evaluate=spec.evaluate,
        update_rank=update_rank(spec.base(name), shapes, solution.capacities if solution else {}, section.options),
        base=spec.base(name),
    )


def _lr_range(
    name: str, section: MethodSection, spec: SweepSpec
) -> tuple[float, float, float] | tuple[None, None, None]:
    centre = published_lr(spec.base(name))
    if centre is None:
        return None, None, None
    if section.lr is not None and section.lr.low is not None and section.lr.high is not None:
        return section.lr.low, section.lr.high, (section.lr.low * section.lr.high) ** 0.5
    if section.lr is not None and section.lr.centre is not None:
        centre = section.lr.centre
    half = 10 ** (spec.search.lr.decades / 2)
    return centre / half, centre * half, centre


def _neighbour(neighbour: Neighbour | None) -> dict[str, int] | None:
    return None if neighbour is None else {"capacity": neighbour.capacity, "count": neighbour.count}


def _lever(cells: Sequence[Cell]) -> str | None:
    counts = [n["count"] for cell in cells for n in (cell.below, cell.above) if n is not None]
    budgets = [cell.budget for cell in cells if cell.budget is not None]
    if not counts or not budgets:
        return None
    best = min(counts, key=lambda count: min(abs(count - budget) for budget in budgets))
    return f"budgets.params = [{best}]"
