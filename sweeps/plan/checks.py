"""What a plan is checked for beyond the sweep file: adapters that attach, and an allowance that holds some trials."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from analysis.format import plural
from randlora import Adapted, attach
from randlora.errors import AdapterError, ExportError
from randlora.files.peft_export import peft_form
from randlora.methods.registry import METHODS
from sweeps.errors import Problem, SpecError
from sweeps.plan.split_sizes import split_sizes
from sweeps.spec.batch_sizes import FIELD as BATCH_SIZES
from sweeps.spec.batch_sizes import batch_sizes
from sweeps.spec.methods import has_budget
from sweeps.spec.search import MOST_TRIALS
from sweeps.spec.search_space import split_extra
from sweeps.spec.space import Extra, extra_of
from trainables.data.images.batches import samples_per_epoch

if TYPE_CHECKING:
    from sweeps.spec.cell import Cell
    from sweeps.spec.spec import SweepSpec


def check_adapters(module: nn.Module, cells: Sequence[Cell]) -> None:
    """Attach every method, on the meta device, so that what a method refuses stops the sweep here.

    Of each method the largest cell is built, without a search and at each end of what it searches.

    Args:
        module: the base model on the meta device.
        cells: the feasible cells.

    Raises:
        SpecError: targets or options that a method cannot take; a search that changes the number of parameters.
    """
    problems = []
    for name in dict.fromkeys(cell.method for cell in cells if has_budget(cell.base)):
        cell = max((c for c in cells if c.method == name), key=lambda c: c.count or 0)
        try:
            built = {_count(module, cell, point) for point in _corners(cell)}
        except AdapterError as error:
            problems.append(Problem(f"methods.{name}", None, str(error)))
            continue
        if len(built) > 1:
            names = ", ".join(d.name for d in cell.dimensions)
            rule = f"searching {names} changes the number of parameters: {', '.join(map(str, sorted(built)))}"
            problems.append(Problem(f"methods.{name}.space", None, rule))
        elif built != {cell.count}:
            raise AssertionError(f"{cell.label}: predicted {cell.count} parameters, built {built}; please report this")
    if problems:
        raise SpecError(problems)


def _count(module: nn.Module, cell: Cell, point: Extra) -> int:
    """Parameters of the adapter that a cell builds with these options."""
    with _built(module, cell, point) as adapted:
        return adapted.count()


@contextlib.contextmanager
def _built(module: nn.Module, cell: Cell, point: Extra) -> Iterator[Adapted]:
    """The adapter of a cell on a model, taken off again."""
    capacities = cell.capacities
    options = {**dict(cell.options), **split_extra(cell.method, point)[0]}
    config = METHODS[cell.base].config.from_options(max(capacities.values()), options)
    adapted = attach(module, config, list(capacities), capacities=capacities)
    try:
        yield adapted
    finally:
        adapted.detach()


def peft_forms(module: nn.Module, cells: Sequence[Cell]) -> dict[str, str]:
    """By cell, in which form PEFT can hold what it trains: "itself", "lora" (as a LoRA that computes the same), or why
    it can't. Cells without an adapter are left out."""
    forms: dict[str, str] = {}
    known: dict[str, str] = {}  # cells that differ in their data alone are built once
    for cell in cells:
        if cell.feasible and has_budget(cell.base):
            key = repr((cell.base, cell.capacities, cell.options, cell.published))
            if key not in known:
                try:
                    with _built(module, cell, cell.published) as adapted:
                        known[key] = peft_form(adapted)
                except ExportError as error:
                    known[key] = str(error).partition(";")[0]
            forms[cell.cell_id] = known[key]
    return forms


def peft_words(module: nn.Module, cells: Sequence[Cell]) -> list[str]:
    """Say how `peft_forms` exports the methods, a line for each form."""
    forms = peft_forms(module, cells)
    lines: dict[str, dict[str, dict[str, None]]] = {}  # by form and method the budgets, each once, in order
    for cell in cells:
        if (form := forms.get(cell.cell_id)) is not None:
            lines.setdefault(form, {}).setdefault(cell.method, {})[cell.reference or ""] = None
    said = {"itself": "can be exported", "lora": "can be exported as a LoRA that computes the same"}
    every = {m: sum(len(found.get(m, ())) for found in lines.values()) for found in lines.values() for m in found}
    return [
        "; ".join(m if len(refs) == every[m] else f"{m} at {', '.join(refs)}" for m, refs in found.items())
        + f": {said.get(form, f'cannot be exported, {form}')}"
        for form, found in lines.items()
    ]


def _corners(cell: Cell) -> list[Extra]:
    """The cell without a search, and each searched option at each end of its range."""
    points: list[Extra] = [cell.published]
    for d in cell.dimensions:
        points += [extra_of({**dict(cell.published), d.name: value}) for value in d.ends]
    return list(dict.fromkeys(points))


def check_batches(cell: Cell, spec: SweepSpec) -> None:
    """Raise SpecError if a searched batch is larger than the cell's training split, which holds no such batch."""
    largest, (examples, _, _) = max(batch_sizes(spec), default=0), split_sizes(cell)
    if cell.dimensions and largest > examples:
        rule = f"is more than the {examples} training examples of {cell.dataset}, {cell.train_size}"
        raise SpecError([Problem(BATCH_SIZES, largest, rule, str(examples))])


def counted(cell: Cell, spec: SweepSpec) -> Cell:
    """The cell with the trials that its allowance is; of samples, as many as they are unpruned."""
    allowance = spec.search.allowance
    if allowance is None or not cell.feasible or not cell.tune_trials or cell.space is None:
        return cell
    least = spec.search.least
    n, _, _ = split_sizes(cell)
    train = cell.settings(spec.train)
    samples = samples_per_epoch(n, train.global_batch_size, train.min_batches_per_epoch)
    longest = cell.space.epochs or train.epochs
    trials = allowance.samples // (samples * longest)
    if trials < least:
        rule = f"is {plural(trials, 'trial')} of {samples * longest} samples for {cell.label}, and {least} are needed"
        enough = f"samples = {least * samples * longest}"
        raise SpecError([Problem("search.allowance.samples", allowance.samples, rule, enough)])
    if trials > MOST_TRIALS:
        rule = f"is {trials:,} trials for {cell.label}, and {MOST_TRIALS:,} are allowed"
        enough = f"samples = {MOST_TRIALS * samples * longest}"
        raise SpecError([Problem("search.allowance.samples", allowance.samples, rule, enough)])
    return replace(cell, tune_trials=trials, epoch_samples=samples, allowance_samples=allowance.samples)
