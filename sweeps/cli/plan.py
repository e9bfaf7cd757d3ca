"""The verbs before a run: `plan`, `estimate`, `budget`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from analysis.format import (
    EVERY_METHOD,
    amount,
    bytes_text,
    duration,
    freedom_text,
    listed,
    off_budget,
    plural,
    quantity,
)
from analysis.sheets.sheet import sheet_of
from analysis.sheets.terminal import print_sheet
from analysis.styles import short_names, size_text
from sweeps.cli.options import Available, Json, Scale, Set, Source, Spec, load, store_of
from sweeps.cli.power import Like, print_prospects, prospects
from sweeps.cli.printing import emit, err, out, print_table, print_weak, probing
from sweeps.errors import Problem, SpecError, unknown

if TYPE_CHECKING:
    from sweeps.budget.currencies import Shapes
    from sweeps.plan.base_model import BaseModelInfo
    from sweeps.plan.costs import ModelCosts
    from sweeps.plan.estimate import Estimate
    from sweeps.plan.plan import Plan
    from sweeps.spec.cell import Cell

_TOWERS = ("vision", "both", "all")


def plan(
    spec: Spec,
    overrides: Set = None,
    scale: Scale = None,
    available: Available = False,
    like: Like = None,
    against_paper: Annotated[
        bool,
        typer.Option("--against-paper", help="Compare a recipe's cells and settings with its [published] form."),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the cells of a sweep with their ranks and numbers of parameters, and the cells that are infeasible.

    The command trains nothing, and downloads no weights. It downloads data only if `search.allowance` counts
    samples. It reads data that is in files of this machine, and refuses it if `run` would refuse it.
    """
    if against_paper:
        _refuse_beside("--against-paper", {"--available": available, "--like": bool(like)})
        _against_paper(spec, overrides, scale, as_json=as_json)
        return
    from sweeps.packing.words import packing_of
    from sweeps.plan.checks import peft_forms
    from sweeps.plan.inputs import check_files

    planned = load(spec, overrides, scale, available=available)
    check_files(planned)
    planned = planned.with_sizes(download=False)
    detects = prospects(planned, like)

    def answer() -> dict[str, Any]:
        limits: dict[str, Any] = {"trials": planned.n_trials, "allowance": planned.spec.search.given}
        limits |= {"margin": planned.spec.confirm.margin, "max_seeds": planned.spec.confirm.max_seeds}
        weak, packing = weak_of(planned), packing_of(planned.spec, planned.feasible)
        return {
            "cells": planned.table().to_pylist(),
            **limits,
            "weak": weak,
            "packing": packing,
            "instead": planned.reachable_budgets(),
            "peft": peft_forms(planned.base_model.module, planned.cells),
            "detectable": None if detects is None else detects.as_dict(),
        }

    def draw() -> None:
        print_plan(planned)
        print_prospects(detects)

    emit(as_json, answer, draw)


def _refuse_beside(option: str, others: Mapping[str, bool]) -> None:
    """Refuse options that do nothing beside `option`.

    Raises:
        SpecError: one of `others` was given.
    """
    given = [name for name, is_given in others.items() if is_given]
    if given:
        raise SpecError([Problem(name, None, f"has no effect with {option}; leave one out") for name in given])


def _against_paper(spec: Path, overrides: list[str] | None, scale: str | None, *, as_json: bool) -> None:
    from sweeps.plan.against import against
    from sweeps.plan.plan import Plan
    from sweeps.spec.spec import SweepSpec

    planned = load(spec, overrides, scale)
    shared_overrides = [text for text in overrides or () if text.split("=")[0].strip() in ("data.datasets", "model.id")]
    compared = against(planned, Plan.from_spec(SweepSpec.load(spec, shared_overrides, "published")))
    header = ("method", "budget", "cells", "parameters", "%", "published as", "parameters", "%", "difference")

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    rows = [
        (
            row.method,
            row.budget or "",
            str(row.cells),
            number(row.count, ","),
            number(row.percent, ".3g"),
            row.setting or "not in the paper",
            number(row.published_count, ","),
            number(row.published_percent, ".3g"),
            "" if row.difference is None else f"{100 * row.difference:+.2f} %",
        )
        for row in compared.rows
    ]

    def draw() -> None:
        print_sheet(sheet_of(header, rows, f"{planned.spec.name}: here, and as published"), out)
        out.print(Text("\nsettings that differ"))
        own = [_settings(row.settings) for row in compared.rows]
        shared = [line for line in (own[0] if own else []) if all(line in lines for lines in own)]
        general = [*shared, *_settings(compared.settings)]
        for line in general or ["none"]:
            out.print(Text(f"all cells: {line}"))
        for row, lines in zip(compared.rows, own, strict=True):
            for line in lines:
                if line not in shared:
                    out.print(Text(f"{row.method} {row.budget or ''}: {line}"))
        out.print("docs/recipes.md lists the differences that no setting can remove.")

    emit(as_json, compared.as_dict, draw)


def _settings(differences: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name}: {ours}, published {theirs}" for name, (ours, theirs) in differences.items()]


def estimate(
    spec: Source,
    overrides: Set = None,
    scale: Scale = None,
    available: Available = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare the last run's estimate with what the run took.")
    ] = False,
    like: Like = None,
    as_json: Json = False,
) -> None:
    """Estimate time, accelerator-hours, memory, disk and cost of a sweep from a short probe of every method.

    The command downloads the model and the data if they are not on this machine.
    """
    from analysis.findings.estimate import estimate_table
    from sweeps.plan.estimate import estimate_plan
    from sweeps.progress.of_folder import used_hours
    from trainables.models.loading import check_weights

    if compare:
        _refuse_beside("--compare", {"--available": available, "--like": bool(like)})
        table = estimate_table(store_of(spec, overrides, scale=scale))
        if as_json or table.num_rows:
            emit(as_json, table.to_pylist, lambda: print_table(table, "estimate against actual, last run"))
        else:
            out.print("no run of this sweep was estimated (`sweeps run` without --quiet makes an estimate)")
        return
    planned = load(spec, overrides, scale, available=available)
    check_weights(planned.spec.model.id)
    sized = planned.with_sizes(download=True)  # data that can't be had is refused, as a run does
    detects = prospects(sized, like)
    with probing(quiet=as_json) as tell:
        answer = estimate_plan(sized, used_hours=used_hours(sized.spec.folder), tell=tell)
    if answer.unknown and not answer.methods:
        raise SpecError([Problem(f"methods.{m}", None, f"no estimate: {why}") for m, why in answer.unknown.items()])

    def draw() -> None:
        _print_estimate(answer, planned)
        print_prospects(detects)

    more = {"detectable": None if detects is None else detects.as_dict()}
    emit(as_json, lambda: answer.as_dict() | more, draw)


def budget(
    model: Annotated[str | None, typer.Option(help="Model: open_clip:ARCH, local:DIR, hf:ORG/NAME, ...")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Shape of a weight, in place of a model: 4096x4096 (OUTxIN). Repeatable.")
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(help="The budget: as many parameters as LoRA trains at this rank.", min=1)
    ] = None,
    params: Annotated[int | None, typer.Option(help="The budget as a number of parameters.", min=1)] = None,
    percent: Annotated[
        float | None,
        typer.Option(help="The budget in percent of the number of adapted weights."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="The budget: as many parameters as --method trains at this rank.", min=1)
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights to adapt, by the ends of their names; default: the family's. Repeatable, or with commas."
        ),
    ] = None,
    adapt: Annotated[
        str | None,
        typer.Option(help="Part of a CLIP to adapt: vision, or both towers (the default). Other models: all."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method, peft:NAME, prompt:NAME or peft:all; default: all methods of this package. Repeatable."
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="List all ways to spread ranks over layers, not only the one that auto chooses."),
    ] = False,
    costs: Annotated[
        bool,
        typer.Option(
            "--costs",
            help="Add memory (the peak of a training step), step (its operations, in forward passes of the model) and "
            "saved (the adapter's file).",
        ),
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="With --costs: examples of a training step; default: 128.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the rank and the number of parameters of every method at one budget. The command loads no weights."""
    from sweeps.budget.solver import ALLOCATIONS, budget_table
    from sweeps.plan.base_model import BaseModelInfo
    from sweeps.plan.costs import costs_on
    from trainables.config import TrainSettings

    if costs and shape and model is None:
        raise SpecError([Problem("--costs", "--shape", "needs the layers of a model", "--model open_clip:ViT-B-32")])
    if batch_size is not None and not costs:
        raise SpecError([Problem("--batch-size", batch_size, "has an effect only with --costs", "--costs")])
    if adapt is not None and adapt not in _TOWERS:
        raise SpecError([unknown("--adapt", adapt, "choice", _TOWERS)])
    chosen = _chosen(method)
    base = None if model is None else BaseModelInfo(model)
    shapes, model_parameters = _weights(base, shape, targets, adapt)
    own = _own_shapes(base, shapes)
    aims = {"--lora-rank": lora_rank, "--params": params, "--percent": percent, "--rank": rank}
    amount_of_budget, reference = _budget_of({n: v for n, v in aims.items() if v is not None}, shapes, chosen, own)
    if rank is not None and chosen is not None and "lora" not in chosen:
        chosen = [*chosen, "lora"]
    allocations = ALLOCATIONS if every else ("auto",)
    answer = budget_table(shapes, amount_of_budget, reference, methods=chosen, allocations=allocations, own=own)
    adapted = sum(rows * columns for rows, columns in shapes.values())
    answer |= {"model_parameters": model_parameters, "adapted_parameters": adapted}
    for row in answer["methods"]:
        row["percent"] = None if row["count"] is None else 100 * row["count"] / model_parameters
    if costs:
        assert base is not None
        from trainables.runtime import choose_precision, pick_device

        train = TrainSettings() if batch_size is None else TrainSettings(global_batch_size=batch_size)
        precision, _ = choose_precision(train.precision, pick_device())
        answer |= {"batch_size": train.global_batch_size, "precision": precision}
        _add_costs(answer["methods"], costs_on(base, adapt or "both", tuple(shapes), train), own)
    emit(as_json, lambda: answer, lambda: _print_budget(model or ", ".join(shape or ()), answer, bool(method)))


def _add_costs(rows: list[dict[str, Any]], costs: ModelCosts, own: Callable[[str], Shapes]) -> None:
    """Add to each row of a budget table what the method costs; None for what is not known."""
    from sweeps.plan.costs import COST_COLUMNS, computing_costs, known_costs

    with computing_costs():
        for row in rows:
            row.update(dict.fromkeys(COST_COLUMNS))
            if (ranks := row["ranks"]) is not None:
                capacities = ranks if isinstance(ranks, dict) else dict.fromkeys(own(row["method"]), ranks)
                row.update(known_costs(costs, row["method"], capacities, {}))


def _weights(
    model: BaseModelInfo | None, shape: list[str] | None, targets: list[str] | None, adapt: str | None
) -> tuple[dict[str, tuple[int, int]], int]:
    """Return the shapes of the target weights by name, and the parameters of the whole model or of the shapes."""
    if (model is None) == (shape is None):
        given = "both" if model else "neither"
        raise SpecError([Problem("--model", given, "give a model, or in its place shapes", "--shape 4096x4096")])
    if model is not None:
        patterns = [each for given in targets or () for each in re.split(r",(?![^\[]*\])", given)]  # no comma in [q,v]
        return model.target_shapes(patterns or model.default_targets, adapt or "both"), model.size
    for option, value in {"--targets": ",".join(targets or ()), "--adapt": adapt}.items():
        if value:
            rule = "names weights of a model, and --shape has no model"
            raise SpecError([Problem(option, value, rule, "--model ID")])
    sides = [re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text) for text in shape or ()]
    for text, match in zip(shape or (), sides, strict=True):
        if match is None:
            rule = "must be the shape of a weight, OUTxIN, with sides below 1,000,000"
            raise SpecError([Problem("--shape", text, rule, "4096x4096")])
    shapes = {f"weight{i}": (int(m[1]), int(m[2])) for i, m in enumerate(sides) if m is not None}
    return shapes, sum(rows * columns for rows, columns in shapes.values())


def _own_shapes(model: BaseModelInfo | None, shapes: Mapping[str, tuple[int, int]]) -> Callable[[str], Shapes]:
    """Return a function that returns the shapes a method counts on, by its name: weights, or the place of prompts."""
    from randlora.methods.registry import get_method

    def own(name: str) -> Shapes:
        if model is not None:
            return model.method_shapes(name, shapes)
        if get_method(name).prompts:
            raise SpecError([Problem("--method", name, "needs a CLIP", "--model open_clip:ViT-B-32")])
        return shapes

    return own


def _budget_of(
    given: Mapping[str, Any],
    shapes: Shapes,
    chosen: Sequence[str] | None,
    own: Callable[[str], Shapes],
) -> tuple[int, str]:
    """Return the budget in parameters, and its name. `given`: the options that name a budget."""
    from randlora.methods.registry import get_method
    from sweeps.budget.solver import reference_budget, solve_pinned

    if len(given) != 1:
        options = ", ".join(given) or "none"
        rule = "give exactly one of --lora-rank, --params, --percent, --rank"
        raise SpecError([Problem("budget", options, rule, "--lora-rank 8")])
    ((name, value),) = given.items()
    if name == "--params":
        return value, f"params-{value}"
    if name == "--percent":
        if not 0 < value <= 100:
            raise SpecError([Problem("--percent", value, "is above 0 and at most 100", "1")])
        adapted = sum(rows * columns for rows, columns in shapes.values())
        return max(1, round(adapted * value / 100)), f"percent-{value:g}"
    if name == "--rank":
        if chosen is None or len(chosen) != 1:
            rule = "is the rank of one method, so name the method"
            raise SpecError([Problem("--rank", value, rule, f"--method randlora --rank {value}")])
        entry, on = get_method(chosen[0]), own(chosen[0])
        if (refusal := entry.refuses(on)) is not None:
            raise SpecError([Problem("--method", entry.name, refusal.reason, refusal.remedy)])
        least, most = entry.min_capacity, entry.max_capacity(tuple(on.values()))
        if not least <= value <= most:
            rule = f"{entry.name} takes {least} to {most} on these weights"
            raise SpecError([Problem("--rank", value, rule, f"--rank {min(max(value, least), most)}")])
        return solve_pinned(entry.name, on, value, 1).count, f"{entry.name}-{value}"
    largest = max(min(shape) for shape in shapes.values())
    if value > largest:
        raise SpecError(
            [Problem("--lora-rank", value, "is above the largest rank of these weights", f"--lora-rank {largest}")]
        )
    return reference_budget(shapes, value), f"lora-{value}"


def _chosen(names: list[str] | None) -> list[str] | None:
    """Return the methods that `budget_table` lists; None for all of ours."""
    from randlora.errors import AdapterError
    from randlora.methods.bridge.installed import PREFIX
    from randlora.methods.bridge.kinds import KINDS
    from randlora.methods.registry import get_method

    if not names:
        return None
    all_of_peft = f"{PREFIX}all" in names
    chosen = [name for name in names if name != f"{PREFIX}all"] + (
        [PREFIX + kind for kind in KINDS] if all_of_peft else []
    )
    for name in chosen:
        try:
            get_method(name)
        except AdapterError as error:
            raise SpecError([Problem("--method", name, str(error))]) from error
    return chosen


def weak_of(plan: Plan) -> list[str]:
    """Return texts on what will be weak in the results, as far as it is known before a run."""
    from analysis.findings.weak import weak_evidence

    return weak_evidence(vars(cell.row()) for cell in plan.cells if cell.feasible or cell.absent)


def print_header(plan: Plan) -> None:
    """Print one line on what is about to run."""
    spec = plan.spec
    left_out = len(plan.cells) - len(plan.feasible)
    allowance = spec.search.allowance
    tune = str(spec.search.trials) if allowance is None else plural(allowance.samples, "sample")
    out.print(
        Text(spec.name, "bold"),
        f": {plural(len(plan.feasible), 'cell')}, {plural(plan.n_trials, 'trial')} "
        f"({tune} to tune and {len(spec.confirm.seeds)} to confirm per cell) on {spec.model.id}",
        f"; {plural(left_out, 'infeasible cell')} left out, see `sweeps plan`" if left_out else "",
        sep="",
    )


def precision_words(plan: Plan) -> list[str]:
    """Return a line if this machine is slow at the precision of the sweep; else []."""
    from trainables.runtime import slow_bf16

    if plan.spec.train.precision != "bf16" or not slow_bf16():
        return []
    return ['no bf16 products on this processor: train.precision = "fp32" is many times faster here']


def print_plan(plan: Plan) -> None:
    """Print the cells with their solutions, and the reason and the nearest reachable counts of infeasible ones."""
    from analysis.store.columns import limited  # not above: `--help` and `--version` load no pyarrow
    from sweeps.plan.checks import peft_words
    from sweeps.spec.batch_sizes import batch_sizes

    for line in precision_words(plan):
        out.print(f"bf16      {line}")
    if plan.spec.description:
        out.print(plan.spec.description, style="dim")
    names = short_names(cell.dataset for cell in plan.cells)
    rows = [
        {
            "method": cell.method,
            "budget": cell.reference or "",
            "aim": amount(cell.budget, cell.reference),
            "data": names[cell.dataset],
            "size": size_text(str(cell.train_size)),
            "capacity": _ranks(_built(plan, cell)),
            "allocation": "" if cell.solved is None else cell.solved.allocation,
            "rank": "" if cell.update_rank is None else f"{cell.update_rank:.4g}",
            "parameters": quantity(cell.count),
            "off budget": "" if cell.solved is None else _residual(cell.solved.residual, cell.solved.budget),
            "dof": freedom_text(cell.dof, cell.dof_measured, cell.dof_at_most),
            "memory": bytes_text(cell.step_memory_bytes),
            "step": passes(cell.step_flops, cell.forward_flops),
            "saved": bytes_text(cell.saved_bytes),
            "learning rates": "" if cell.space is None else f"{cell.lr_low:.1e} to {cell.lr_high:.1e}",
            "trials": _trials(plan, cell),
        }
        for cell in plan.cells
    ]
    for column in ("memory", "step", "saved"):
        if not any(row[column] for row in rows):
            rows = [{name: value for name, value in row.items() if name != column} for row in rows]
    common: list[str] = []  # the same in all rows, so it is in the title
    for column in ("data", "size"):
        if len({row[column] for row in rows}) == 1:
            common += {row.pop(column) for row in rows}
    title = f"{plan.spec.name}: {plural(len(plan.feasible), 'cell')}, {plural(plan.n_trials, 'trial')}"
    title += f"; data: {', '.join(common)}" if common else ""
    print_sheet(sheet_of(list(rows[0]) if rows else [], [list(row.values()) for row in rows], title), out)
    for note in (*capacity_notes((cell.base, _ranks(_built(plan, cell))) for cell in plan.cells), *_PLAN_NOTES):
        out.print(f"  {note}", style="dim")
    if named := [f"{name} = {each}" for each, name in names.items() if name != each]:
        out.print(f"  Data: {', '.join(named)}.", style="dim")
    for name, why in {cell.dataset: cell.absent for cell in plan.cells if cell.absent}.items():
        out.print(f"no data   {name}: {why}")
    for line in _left_out(plan.cells):
        out.print(f"left out  {line}")
    for reference, budget in plan.reachable_budgets().items():
        out.print(f"budget    not every method reaches {reference}; all reach {budget}")
    if plan.spec.budgets.count != "parameters":
        equal = limited(plan.spec.budgets.references())
        out.print(f"budgets   are equal {equal} instead of equal trainable parameters")
    for line in peft_words(plan.base_model.module, plan.cells):
        out.print(f"PEFT      {line}")
    confirm = plan.spec.confirm
    if confirm.margin is not None:
        margin = 100 * confirm.margin
        out.print(f"margin    differences below {margin:g} {'point' if margin == 1 else 'points'} count as none")
    if confirm.question is not None:
        out.print(f"question  {'every method' if confirm.question == EVERY_METHOD else confirm.question}")
    if confirm.max_seeds is not None:
        seeds, most = plural(len(confirm.seeds), "seed"), confirm.max_seeds
        none = "no more can be added, so one look has the whole level of 5 %"
        later = f"up to {most} can be added, and all looks share the level of 5 %"
        out.print(f"seeds     {seeds}; {none if most == len(confirm.seeds) else later}")
    if sizes := batch_sizes(plan.spec):
        each = listed([str(size) for size in sorted(sizes)], "or")
        out.print(f"batches   of {each} examples are searched with the learning rate; all trials see equal examples")
    _print_packing(plan)
    if weak := weak_of(plan):
        out.print()
        print_weak(weak)


_COSTS_NOTE = (
    "Memory: predicted for one training step, the base model included. Step: operations of a forward and a backward "
    "pass, in forward passes of the base model. Saved: bytes of a saved adapter."
)
_PLAN_NOTES = (
    "Rank: the largest that an update can have, mean over the weights. Off budget: in percent of the budget. dof: "
    "degrees of freedom of the update, the number of parameters that act.",
    _COSTS_NOTE,
)


def _trials(plan: Plan, cell: Cell) -> str:
    """Return the number of trials of a cell as text, or why it has none."""
    if cell.feasible:
        return str(plan.trials_of(cell))
    return "no data" if cell.absent else "infeasible"


def _left_out(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a line for each infeasible cell with the reason. Data sets and sizes with the same reason share a line."""
    by_reason: dict[tuple[str, str], list[Cell]] = {}
    for cell in (c for c in cells if not c.feasible and not c.absent):
        assert cell.solution is not None
        sides = (cell.solution.below, cell.solution.above)
        around = ", ".join(_near({"count": n.count, "capacity": n.capacity}, cell.reference) for n in sides if n)
        why = f": {cell.reason}" + (f" (reachable: {around})" if around else "")
        by_reason.setdefault((f"{cell.method} {cell.reference}", why), []).append(cell)
    for (name, why), alike in by_reason.items():
        yield (alike[0].label if len(alike) == 1 else f"{name}, {len(alike)} data sets or sizes") + why


def _print_packing(plan: Plan) -> None:
    """Print which methods' trials share a worker, and why others do not. Print nothing if packing is off."""
    from sweeps.packing.words import packing_words

    for line in packing_words(plan.spec, plan.feasible):
        out.print(line)


def _print_budget(model: str, answer: Mapping[str, Any], asked: bool) -> None:
    from sweeps.plan.costs import CLASSES

    methods, budget = answer["methods"], answer["budget"]
    with_costs = "batch_size" in answer
    rows = [
        [
            m["method"],
            m["chosen"] or "",
            _ranks(m["ranks"]),
            quantity(m["count"]),
            _residual(m["residual"], budget),
            freedom_text(m["dof"], m["dof_measured"], m["dof_at_most"]),
            *(_costs_text(m) if with_costs else ()),
            _near(m["below"]),
            _near(m["above"]),
            "" if m["feasible"] else "infeasible",
        ]
        for m in methods
    ]
    costs = ("memory", "step", "saved") if with_costs else ()
    header = ["method", "allocation", "capacity", "parameters", "off budget", "dof", *costs]
    header += ["next below", "next above", ""]
    shares = f"{100 * budget / answer['adapted_parameters']:.3g} % of the adapted weights"
    if answer["model_parameters"] != answer["adapted_parameters"]:
        shares += f", {100 * budget / answer['model_parameters']:.3g} % of the model"
    title = f"{model}: {answer['reference']} = {budget:,} trainable parameters ({shares})"
    print_sheet(sheet_of(header, rows, title), out)
    notes = [*_BUDGET_NOTES]
    if with_costs:
        notes += [
            _COSTS_NOTE,
            f"A step has {answer['batch_size']} examples and computes in {answer['precision']}, as on this machine. "
            f"The data are taken to have {CLASSES} classes.",
        ]
    for note in (*capacity_notes((row[0], row[2]) for row in rows), *notes):
        out.print(f"  {note}", style="dim")
    for m in methods:
        if asked and not m["feasible"]:
            out.print(f"infeasible  {m['method']}, {m['allocation']}: {m['reason']}; {m['lever']}")


_BUDGET_NOTES = (
    "Off budget: in percent of the budget. Infeasible: by more than 5 %, or the method cannot adapt these weights. "
    "Next below and above: the nearest numbers of parameters that one capacity for all weights gives.",
    "dof: degrees of freedom of the update, the number of parameters that act.",
)


def capacity_notes(shown: Iterable[tuple[str, str]]) -> list[str]:
    """Return a note on how to read capacities, with an example if a method has several.

    Args:
        shown: methods with their capacities, as they are printed.
    """
    note = "Capacity: the rank, or k of NoLA."
    method, mixed = next((pair for pair in shown if "x" in pair[1]), ("", ""))
    if not mixed:
        return [note]
    kind = "k" if method == "nola" else "rank"
    parts = [part.split("x") for part in mixed.split(" ")]
    return [f"{note} {mixed}: " + ", ".join(f"{kind} {r} on {plural(int(n), 'weight')}" for r, n in parts) + "."]


def _print_estimate(estimate: Estimate, plan: Plan) -> None:
    header = ["method", "seconds/trial", "trials", "minutes of one slot"]
    rows = [
        [p.method, f"{p.seconds_per_trial:.1f}", str(p.trials), f"{p.seconds_total / 60:.1f}"] for p in estimate.methods
    ]
    print_sheet(sheet_of(header, rows, "estimate, from a probe of every method"), out)
    print_estimate_line(estimate)
    words = (
        f"{estimate.accelerator_hours:.3g} accelerator-hours; disk about {estimate.disk_bytes / 2**20:.0f} MiB, "
        f"{estimate.kept_bytes / 2**20:.0f} MiB of them kept weights; "
        f"peak memory of a trial about {estimate.memory_bytes / 2**20:.0f} MiB"
    )
    if estimate.shared_bytes:  # workers on the CPU share the base model
        shared, together = (n / 2**20 for n in (estimate.shared_bytes, estimate.together_bytes))
        words += f", {shared:.0f} MiB of them one base model for all workers; "
        words += f"{together:.0f} MiB for {estimate.concurrent}"
    out.print(words)
    _print_packing(plan)


def print_estimate_line(estimate: Estimate) -> None:
    """Print in one line how long the sweep will take, and which limits will end it."""
    if estimate.trials_left == 0:
        out.print("nothing of the plan is left to run")
        return
    for method, why in estimate.unknown.items():
        err.print(f"no estimate of {method}: {why}", style="yellow")
    if not estimate.methods:
        return
    out.print(
        f"about {duration(estimate.seconds)} for {sum(m.trials for m in estimate.methods)} trials, "
        + f"{estimate.concurrent} at a time "
        + (f"in packs of up to {estimate.pack} " if estimate.pack > 1 else "")
        + (f"at a cost of about {estimate.cost:.2f} " if estimate.cost is not None else "")
        + f"(probed in {duration(estimate.probe_seconds)})"
    )
    for limit in estimate.over:
        err.print(f"a limit will stop the sweep before its end: {limit}", style="yellow")


def _residual(residual: int | None, budget: int | None) -> str:
    return "" if residual is None or not budget else off_budget(residual / budget)


def _ranks(ranks: Any) -> str:
    """Return one rank as text, or each distinct rank with the number of layers that have it; "" for None."""
    if ranks is None:
        return ""
    if isinstance(ranks, Mapping):
        values: Sequence[int] = sorted(ranks.values())
        distinct = sorted(set(values))
        return " ".join(f"{r}x{values.count(r)}" if len(distinct) > 1 else str(r) for r in distinct)
    return str(ranks)


def _built(plan: Plan, cell: Cell) -> dict[str, int]:
    """Return the capacities with which a cell's adapter is built, by weight."""
    from randlora.methods.registry import get_method

    if not cell.capacities:
        return {}
    entry = get_method(cell.base)
    shapes = plan.base_model.target_shapes(cell.targets, cell.adapt) if entry.legal else {}
    return entry.built(shapes, cell.capacities, **dict(cell.options))


def _costs_text(row: Mapping[str, Any]) -> list[str]:
    """Return memory, operations and saved bytes of a row of `budget --costs`."""
    step = passes(row["step_flops"], row["forward_flops"])
    return [bytes_text(row["step_memory_bytes"]), step, bytes_text(row["saved_bytes"])]


def passes(flops: int | None, forward: int | None) -> str:
    """Return the operations of a training step in forward passes of the base model, such as '2.04x'."""
    return "" if flops is None or not forward else f"{flops / forward:.2f}x"


def _near(neighbour: Any, reference: str | None = None) -> str:
    return "" if neighbour is None else f"{amount(neighbour['count'], reference)} at {neighbour['capacity']}"
