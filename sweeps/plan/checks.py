"""Checks a plan on the base model: adapters must attach, and an allowance in samples must be enough for some trials."""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from analysis.format import plural
from randlora import Adapted, attach
from randlora.adapted.uses import Uses, check_uses
from randlora.errors import AdapterError, ExportError
from randlora.files.peft_export import peft_form
from randlora.methods.registry import METHODS
from randlora.model.prompted import PLACE
from sweeps.errors import Problem, SpecError
from sweeps.plan.base_model import BaseModelInfo
from sweeps.plan.costs import CLASSES, ModelCosts
from sweeps.plan.split_sizes import split_sizes
from sweeps.spec.batch_sizes import FIELD as BATCH_SIZES
from sweeps.spec.batch_sizes import batch_sizes
from sweeps.spec.methods import has_budget
from sweeps.spec.search import MOST_TRIALS
from sweeps.spec.search_space import split_extra
from sweeps.spec.space import TRAIN_FIELDS, Extra, extra_of
from trainables.data.images.batches import samples_per_epoch

if TYPE_CHECKING:
    from sweeps.spec.cell import Cell
    from sweeps.spec.spec import SweepSpec


def check_adapters(model: BaseModelInfo, cells: Sequence[Cell], spec: SweepSpec) -> None:
    """Attach every method on the meta device, so that bad targets or options stop the sweep before a run.

    For each method, the adapter of the largest cell is built with its own options, and at each end of the searched
    ones. For each set of targets one forward pass on fake tensors shows whether every adapter takes part.

    Args:
        model: the base model.
        cells: the feasible cells.
        spec: the sweep file.

    Raises:
        SpecError: a method cannot take its targets or options, a searched option changes the number of parameters, or
            an adapter takes no part in the model's forward pass.
    """
    problems, module = [], model.module
    uses_of = functools.cache(functools.partial(_uses, model, spec))
    for name in dict.fromkeys(cell.method for cell in cells if has_budget(cell.base)):
        cell = max((c for c in cells if c.method == name), key=lambda c: c.count or 0)
        try:
            built = {_count(module, cell, point) for point in _corners(cell)}
            uses = uses_of(cell.adapt, tuple(name for name in cell.capacities if name != PLACE))
            if uses is not None:
                with _built(module, cell, cell.published) as adapted:
                    check_uses(adapted, uses, uses.idle)
        except AdapterError as error:
            problems.append(Problem(f"methods.{name}", None, str(error)))
            continue
        if len(built) > 1:
            names = ", ".join(d.name for d in cell.dimensions)
            rule = f"searching {names} changes the number of parameters: {', '.join(map(str, sorted(built)))}"
            problems.append(Problem(f"methods.{name}.space", None, rule))
        elif built != {cell.count} and (fixed := [d for d in cell.dimensions if d.name not in TRAIN_FIELDS]):
            names = ", ".join(d.name for d in fixed)
            rule = f"sets {names}, and the method then has {min(built)} parameters in place of the {cell.count} that "
            rule += f"were solved; one value belongs in [methods.{name}]"
            values = [f"{d.name} = {json.dumps(d.values[0])}" for d in fixed if len(d.values) == 1]
            problems.append(Problem(f"methods.{name}.space", None, rule, ", ".join(values) or None))
        elif built != {cell.count}:
            sizes = ", ".join(map(str, sorted(built)))
            rule = f"the method's count says {cell.count} parameters for {cell.label}, and {sizes} are built: "
            rule += f"count must agree with build. randlora.testing.check({name!r}) shows where they differ"
            problems.append(Problem(f"methods.{name}", None, rule))
    if problems:
        raise SpecError(problems)


def _uses(model: BaseModelInfo, spec: SweepSpec, adapt: str, weights: tuple[str, ...]) -> Uses | None:
    """Return which adapters of these weights take part in a forward pass; None if there are none, or if only a pass
    with values can tell. Then the first epoch of a trial does."""
    from trainables.training.costs import CostModel, UncountableError

    if not weights:
        return None
    side = spec.model.image_size or _side(model.module)
    costs = CostModel(model.module, model.kind, side=side, classes=CLASSES)
    trial = ModelCosts(costs, model.id, adapt, weights, spec.train).trial("lora", dict.fromkeys(weights, 1), {})
    try:
        return costs.uses(trial)
    except UncountableError:
        return None


def _side(module: nn.Module) -> int:
    """Return a side in pixels of images that a model takes. Reads no image processor, which may need a network."""
    size = getattr(getattr(module, "visual", getattr(module, "config", None)), "image_size", None) or 224
    return int(size[0] if isinstance(size, tuple | list) else size)


def _count(module: nn.Module, cell: Cell, point: Extra) -> int:
    """Return the number of parameters of a cell's adapter with these searched values."""
    with _built(module, cell, point) as adapted:
        return adapted.count()


@contextlib.contextmanager
def _built(module: nn.Module, cell: Cell, point: Extra) -> Iterator[Adapted]:
    """Attach the adapter of a cell to a model, and detach it at the end of the block."""
    capacities = cell.capacities
    options = {**dict(cell.options), **split_extra(cell.method, point)[0]}
    config = METHODS[cell.base].config_for(capacities, options)
    adapted = attach(module, config, list(capacities), capacities=capacities)
    try:
        yield adapted
    finally:
        adapted.detach()


def peft_forms(module: nn.Module, cells: Sequence[Cell]) -> dict[str, str]:
    """Return the form in which PEFT can hold each cell's adapter, by cell id.

    It is "itself", "lora" (a LoRA that computes the same), or the reason why PEFT can't. Cells without an adapter are
    left out.
    """
    forms: dict[str, str] = {}
    form_of_key: dict[str, str] = {}  # cells that differ only in their data are built once
    for cell in cells:
        if cell.feasible and has_budget(cell.base):
            key = repr((cell.base, cell.capacities, cell.options, cell.published))
            if key not in form_of_key:
                try:
                    with _built(module, cell, cell.published) as adapted:
                        form_of_key[key] = peft_form(adapted)
                except ExportError as error:
                    form_of_key[key] = str(error).partition(";")[0]
            forms[cell.cell_id] = form_of_key[key]
    return forms


def peft_words(module: nn.Module, cells: Sequence[Cell]) -> list[str]:
    """Return lines about how the methods can be exported to PEFT, one line for each form."""
    forms = peft_forms(module, cells)
    lines: dict[str, dict[str, dict[str, None]]] = {}  # by form and method: the budgets, each once, in order
    for cell in cells:
        if (form := forms.get(cell.cell_id)) is not None:
            lines.setdefault(form, {}).setdefault(cell.method, {})[cell.reference or ""] = None
    texts = {"itself": "can be exported", "lora": "can be exported as a LoRA that computes the same"}
    counts: Counter[str] = Counter()
    for by_method in lines.values():
        for method, budgets in by_method.items():
            counts[method] += len(budgets)
    return [
        "; ".join(m if len(budgets) == counts[m] else f"{m} at {', '.join(budgets)}" for m, budgets in methods.items())
        + f": {texts.get(form, f'cannot be exported, {form}')}"
        for form, methods in lines.items()
    ]


def _corners(cell: Cell) -> list[Extra]:
    """Return the cell's values without a search, and each searched option at each end of its range."""
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


def with_allowed_trials(cell: Cell, spec: SweepSpec) -> Cell:
    """Return the cell with the number of whole trials that an allowance in samples is enough for.

    Without such an allowance the cell is returned as it is.

    Raises:
        SpecError: the allowance is enough for too few or too many trials.
    """
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
