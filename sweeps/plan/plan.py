"""Makes the cells of a sweep file: every method at every budget, on every data set and training size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from analysis.sheets.html import ROWS, notebook_html, show_arrow_tables
from analysis.sheets.sheet import sheet_of
from analysis.store.tables import to_table
from analysis.styles import short_name
from randlora.adapted.freedom import degrees
from sweeps.budget.currencies import Currency, Shapes
from sweeps.budget.solving import rank_problems, reached_by_all, solutions, update_rank
from sweeps.errors import Problem, SpecError
from sweeps.plan.base_model import BaseModelInfo
from sweeps.plan.checks import check_adapters, check_batches, with_allowed_trials
from sweeps.plan.costs import (
    ModelCosts,
    OnModel,
    computing_costs,
    currencies,
    memory_problems,
    model_costs,
    own_currency,
    with_costs,
)
from sweeps.plan.split_sizes import sized
from sweeps.records.locks import as_begun, as_begun_in_its_folder
from sweeps.search.points import check_sampler
from sweeps.search.stages import CellState
from sweeps.spec.cell import Cell
from sweeps.spec.methods import has_budget, published_lr
from sweeps.spec.search_space import dimensions, published
from sweeps.spec.solution import Answer, Infeasible, Solution
from sweeps.spec.space import Space
from sweeps.spec.spec import SweepSpec
from sweeps.spec.task_checks import task_problems, with_towers
from trainables.config import NO_TRAINING, contrastive
from trainables.data.registry import check_dataset, on_disk
from trainables.data.splits import kept_rows
from trainables.errors import DataError, MissingDataError
from trainables.models.families import ModelError


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep, also infeasible ones. Make it with `Plan.from_spec`.

    Attributes:
        spec: the sweep file.
        cells: the cells.
        asked: facts about the base model, as far as they were computed; None for a plan that is made from cells.
        costs: computes the costs of methods on the base model, by data set; None until a budget or `with_costs` needs
            it.
    """

    spec: SweepSpec
    cells: tuple[Cell, ...]
    asked: BaseModelInfo | None = field(default=None, repr=False, compare=False)
    costs: Mapping[str, ModelCosts] | None = field(default=None, repr=False, compare=False)

    @property
    def base_model(self) -> BaseModelInfo:
        """Return facts about the base model."""
        return self.asked or BaseModelInfo(self.spec.model.id)

    def __repr__(self) -> str:
        left_out = len(self.cells) - len(self.feasible)
        less = f", {left_out} infeasible" if left_out else ""
        return f"<Plan {self.spec.name}: {len(self.cells)} cells{less}, {self.n_trials} trials on {self.spec.model.id}>"

    def _repr_html_(self) -> str:
        """Return the cells as an HTML table for notebooks."""
        show_arrow_tables()
        columns = ("method", "budget", "data", "size", "rank", "parameters", "learning rates", "trials", "left out")
        rows = [_shown(cell, str(self.trials_of(cell)) if cell.feasible else "") for cell in self.cells[:ROWS]]
        return notebook_html(sheet_of(columns, rows, repr(self)[1:-1]), len(self.cells) - len(rows))

    @property
    def feasible(self) -> tuple[Cell, ...]:
        """Return the cells that will run."""
        return tuple(cell for cell in self.cells if cell.feasible)

    @property
    def n_trials(self) -> int:
        """Return the number of trials of a complete run: the allowance and the CONFIRM seeds of feasible cells."""
        return sum(self.trials_of(cell) for cell in self.feasible)

    def trials_of(self, cell: Cell) -> int:
        """Return the number of trials of a complete run of one feasible cell."""
        return CellState(cell, self.spec).planned()

    def table(self) -> pa.Table:
        """Return the cells as an Arrow table (columns: docs/tables.md, `cells`)."""
        return to_table("cells", [cell.row() for cell in self.cells])

    def with_sizes(self, *, download: bool) -> Plan:
        """Return the plan with the sizes of its cells' splits.

        Args:
            download: whether to download data sets. Otherwise only data sets that are files on this machine are read.

        Raises:
            SpecError: a searched batch is larger than a training split.
        """
        here = {c.cell_id for c in self.feasible if download or on_disk(c.dataset)}
        for cell in self.cells:
            if cell.cell_id in here:
                check_batches(cell, self.spec)
        return replace(self, cells=tuple(sized(c) if c.cell_id in here else c for c in self.cells))

    def with_costs(self) -> Plan:
        """Return the plan with memory, operations and saved bytes of its cells.

        Each method and capacity takes about a second.

        Raises:
            ModelError: the model's image processor can't be read.
        """
        if not self.cells:
            return self
        costs = self.costs or model_costs(self.spec, self.base_model, self.cells[0].targets)
        with computing_costs():
            return replace(self, cells=tuple(with_costs(c, costs[c.dataset]) for c in self.cells), costs=costs)

    def with_resources(self, **changes: Any) -> Plan:
        """Return the plan with other values in `[resources]`. These change when and where trials run, not which."""
        resources = self.spec.resources.model_copy(update=changes)
        return replace(self, spec=self.spec.model_copy(update={"resources": resources}))

    def as_begun(self, stored: Mapping[str, Any] | None) -> Plan:
        """Return the plan with the rules that its results were begun with (`locks.as_begun`).

        Args:
            stored: the identity of the results (`spec.json`); None for a new folder.
        """
        spec = as_begun(self.spec, stored)
        return replace(self, spec=spec, cells=tuple(replace(cell, evaluate=spec.evaluate) for cell in self.cells))

    def with_trials(self) -> Plan:
        """Return the plan with the number of TUNE trials of each cell. For an allowance in samples, data is read.

        Raises:
            SpecError: the allowance is enough for too few or too many trials, or the sampler can't search with them.
        """
        plan = replace(self, cells=tuple(with_allowed_trials(cell, self.spec) for cell in self.cells))
        check_sampler(plan.spec.search.sampler, plan.studies())
        return plan

    def reachable_budgets(self) -> dict[str, str]:
        """Return the nearest budget that all methods reach, for each budget that some method does not reach.

        Returns:
            The new budget as a line of a sweep file, by the name of the old one. Budgets without one are left out.
        """
        references = self.spec.budgets.references()
        missed = [
            r for r in references if any(c.reference == r and not c.feasible and not c.absent for c in self.cells)
        ]
        if not missed:
            return {}
        model, cell = self.base_model, self.cells[0]
        shapes = model.target_shapes(cell.targets, cell.adapt)
        currency = currencies(self.spec, model, cell.targets)[cell.dataset]
        reachable = {r: reached_by_all(self.spec, shapes, model.method_shapes, r, currency) for r in missed}
        return {reference: budget for reference, budget in reachable.items() if budget is not None}

    @classmethod
    def from_spec(cls, spec: SweepSpec, *, available: bool = False) -> Plan:
        """Make and solve all cells of a sweep file. Reads no weights and touches no accelerator.

        Results that were begun without a local fit (`search.refine`) go on without one. Results whose evaluated rows
        were drawn by the data set's folder (`evaluate.rows_by`) go on with these rows.

        Args:
            spec: the sweep file, from `SweepSpec.load`.
            available: whether data may be missing. Then call `inputs.available`, which leaves it out and calls
                `with_trials`.

        Raises:
            SpecError: the model, a data set or a target is unknown, or no cell is feasible. It has all problems.
        """
        problems = _data_problems(spec, available=available)
        spec = as_begun_in_its_folder(spec)
        model = BaseModelInfo(spec.model.id)
        shapes: Shapes = {}
        targets: tuple[str, ...] = ()
        try:
            spec = with_towers(spec, model.kind)
            problems += task_problems(spec, model.kind)
            targets = spec.model.targets or model.default_targets
            shapes = model.target_shapes(targets, spec.model.adapt or "both")
        except ModelError as error:
            problems.append(Problem("model.id", None, str(error)))  # the message has the value
        except ValueError as error:  # a target pattern that matches nothing; the message lists the nearest names
            problems.append(Problem("model.targets", list(targets), str(error)))
        else:
            problems += rank_problems(spec, shapes, model.method_shapes)
            problems += memory_problems(spec, model)
        if problems:
            raise SpecError(problems)
        counted = currencies(spec, model, targets)
        costs = {dataset: each.costs for dataset, each in counted.items() if isinstance(each, OnModel)}
        with computing_costs(shown=bool(costs)):
            cells = tuple(_cells(spec, model, targets, shapes, counted))
        matched = [cell for cell in cells if has_budget(cell.base)]
        if not any(cell.feasible for cell in matched or cells):
            reasons = "; ".join(f"{cell.label}: {cell.reason}" for cell in matched or cells)
            raise SpecError([Problem("budgets", None, f"no cell is feasible: {reasons}", _nearest_budget(spec, cells))])
        adapted = sum(rows * columns for rows, columns in shapes.values())
        cells = tuple(replace(cell, model_params=model.size, target_params=adapted) for cell in cells)
        plan = cls(spec, cells, model, costs or None)
        if not available:
            plan = plan.with_trials()
        if spec.budgets.shows_costs:
            plan = plan.with_costs()
        plan.check_training()
        check_adapters(model, plan.feasible, plan.spec)
        return plan

    def studies(self) -> list[tuple[str, Space, int]]:
        """Return label, search space and number of the sampler's points of every tuned cell."""
        search = self.spec.search
        fixed = search.reruns + len(search.warm_start)  # points of the local fit may become the sampler's
        return [(c.label, c.space, c.tune_trials - fixed) for c in self.feasible if c.space and c.tune_trials]

    def check_training(self) -> None:
        """Make a trial configuration of each method, so that contradicting settings stop the sweep.

        Raises:
            SpecError: settings contradict each other.
        """
        for cell in {c.method: c for c in reversed(self.feasible)}.values():
            try:
                cell.trial("CONFIRM", cell.lr_centre, (0, 0, 0), self.spec.train)
            except ValidationError as error:
                messages = [e["msg"].removeprefix("Value error, ") for e in error.errors(include_url=False)]
                raise SpecError([Problem("train", None, message) for message in messages]) from error


def _shown(cell: Cell, trials: str) -> tuple[str, ...]:
    """Return the row of a cell in a notebook's table."""
    sizes = sorted(set(cell.capacities.values()))
    rank = "" if not sizes else f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    rates = "" if cell.lr_low is None else f"{cell.lr_low:.2g} to {cell.lr_high:.2g}"
    count = "" if cell.count is None else f"{cell.count:,}"
    left_out = "" if cell.feasible else (cell.reason or "infeasible")
    return (
        cell.method,
        cell.reference or "",
        short_name(cell.dataset),
        str(cell.train_size),
        rank,
        count,
        rates,
        trials,
        left_out,
    )


def _data_problems(spec: SweepSpec, *, available: bool) -> list[Problem]:
    problems = []
    for name in spec.data.datasets:
        try:
            check_dataset(name, spec.data.train_size, spec.protocol, kept_rows(spec.train, spec.evaluate))
        except DataError as error:
            if available and isinstance(error, MissingDataError):
                continue
            problems.append(Problem("data.datasets", None, str(error)))  # the message has the value
    return problems


def _cells(
    spec: SweepSpec, model: BaseModelInfo, targets: tuple[str, ...], shapes: Shapes, counted: Mapping[str, Currency]
) -> list[Cell]:
    """Make the cells. `counted` is what budgets limit, by data set."""
    cells = []
    for name, section in spec.methods.items():
        solved = {  # data sets that share a currency are solved once
            currency: solutions(
                name, spec, shapes, model.method_shapes, currency, own_currency(currency, section.micro_batch_size)
            )
            for currency in dict.fromkeys(counted.values())
        }
        cells += [
            _cell(spec, targets, shapes, name, *solved[counted[dataset]][k], dataset, size)
            for k in range(len(solved[counted[spec.data.datasets[0]]]))
            for dataset in spec.data.datasets
            for size in spec.data.train_size
        ]
    return cells


def _cell(
    spec: SweepSpec,
    targets: tuple[str, ...],
    shapes: Shapes,
    name: str,
    reference: str | None,
    solution: Answer | None,
    dataset: str,
    size: str | float,
) -> Cell:
    """Make one cell."""
    base = spec.base(name)
    options = spec.methods[name].options
    low, high, centre = _lr_range(name, spec)
    trains = centre is not None
    tuned = trains and spec.protocol != "paper"
    seeds_vary = trains and not spec.confirm.seeds_are_fixed
    space = dimensions(name, spec) if tuned else ()
    capacities = solution.capacities if isinstance(solution, Solution) else {}
    freedom = degrees(base, shapes, capacities, options) if capacities else None
    epochs = spec.data.epochs_of(dataset, size) or spec.train.epochs
    start = () if isinstance(solution, Infeasible) else published(name, spec, space, capacities, shapes, epochs)
    return Cell(
        cell_id=_cell_id(spec, targets, name, reference, dataset, size),
        sweep=spec.name,
        model=spec.model.id,
        adapt=spec.model.adapt or "both",
        targets=targets,
        dataset=dataset,
        train_size=size,
        method=name,
        base=base,
        options=tuple(sorted(options.items())),
        reference=reference,
        solution=solution,
        update_rank=update_rank(base, shapes, capacities, options),
        dof=None if freedom is None else freedom.count,
        dof_measured=None if freedom is None else freedom.measured,
        dof_at_most=None if freedom is None else freedom.at_most,
        lr_low=low,
        lr_high=high,
        lr_centre=centre,
        dimensions=space,
        published=start,
        tune_trials=spec.search.trials if tuned else 0,
        confirm_seeds=len(spec.confirm.seeds) if seeds_vary else 1,
        epochs=epochs if trains else None,
        micro_batch_size=spec.methods[name].micro_batch_size,
        protocol=spec.protocol,
        keep=kept_rows(spec.train, spec.evaluate),
        image_size=spec.model.image_size,
        skip_bad=spec.data.skip_bad,
        evaluate=spec.evaluate,
        negatives=_negatives(spec, name),
    )


def _negatives(spec: SweepSpec, name: str) -> int | None:
    """Return the number of pairs that the contrastive loss compares at once; None if there is no such loss."""
    method = spec.base(name)
    if not contrastive(spec.model.adapt, method) or method == NO_TRAINING:
        return None
    train = spec.train
    part = (spec.methods[name].micro_batch_size or train.micro_batch_size) if train.negatives == "part" else None
    return min(part or train.global_batch_size, train.global_batch_size)


def _cell_id(
    spec: SweepSpec, targets: tuple[str, ...], name: str, reference: str | None, dataset: str, size: str | float
) -> str:
    """Return a cell's id: its names, and a digest of all settings that distinguish it from other cells."""
    section = spec.methods[name]
    options = tuple(sorted(section.options.items()))
    model = spec.model
    key: list[object] = [
        model.id,
        model.adapt,
        targets,
        dataset,
        size,
        name,
        options,
        reference,
        section.allocation,
    ]
    if model.image_size is not None:  # newer settings are in the key only if they are set, so that old ids stay
        key.append(model.image_size)
    if spec.base(name) != name:
        key.append(spec.base(name))
    digest = hashlib.sha256(json.dumps(key, default=str).encode()).hexdigest()[:6]
    words = [name, reference, dataset.partition("?")[0].rpartition("/")[2].replace(":", "-"), str(size)]
    return "_".join([w for w in words if w] + [digest])


def _lr_range(name: str, spec: SweepSpec) -> tuple[float, float, float] | tuple[None, None, None]:
    """Return low end, high end and centre of a method's learning rates; None for each if it does not train."""
    centre = published_lr(spec.base(name))
    section_range = spec.methods[name].lr
    if centre is None:
        return None, None, None
    if section_range is not None and section_range.low is not None and section_range.high is not None:
        return section_range.low, section_range.high, (section_range.low * section_range.high) ** 0.5
    if section_range is not None and section_range.centre is not None:
        centre = section_range.centre
    half = 10 ** (spec.search.lr.decades / 2)
    return centre / half, centre * half, centre


def _nearest_budget(spec: SweepSpec, cells: Sequence[Cell]) -> str | None:
    """Return the nearest budget that some cell reaches, as a line of a sweep file; None if there is none."""
    answers = [cell.solution for cell in cells if cell.solution is not None]
    counts = [n.count for answer in answers for n in (answer.below, answer.above) if n is not None]
    budgets = [answer.budget for answer in answers]
    if not counts or not budgets or spec.budgets.count not in ("parameters", "dof"):
        return None
    best = min(counts, key=lambda count: min(abs(count - budget) for budget in budgets))
    return f"budgets.params = [{best}]"
