"""The verbs before a run: `plan`, `estimate`, `budget`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from analysis.format import duration, freedom, quantity
from sweeps.cli.options import Available, Json, Scale, Set, Source, Spec, load, store_of
from sweeps.cli.printing import emit, err, out, print_rows, print_table, print_weak
from sweeps.cli.status import used_hours
from sweeps.errors import Problem, SpecError, unknown

if TYPE_CHECKING:
    from sweeps.budget.reach import Shapes
    from sweeps.plan.estimate import Estimate
    from sweeps.plan.plan import Plan
    from sweeps.spec.cell import Cell

_TOWERS = ("vision", "both", "all")


def plan(
    spec: Spec, overrides: Set = None, scale: Scale = None, available: Available = False, as_json: Json = False
) -> None:
    """List the cells: solved ranks, counts, residuals, infeasible cells. Starts nothing."""
    from sweeps.plan.checks import peft_forms
    from sweeps.plan.packing import packing_of

    planned = load(spec, overrides, scale, available=available).with_sizes(download=False)

    def answer() -> dict[str, Any]:
        counted: dict[str, Any] = {"trials": planned.n_trials, "allowance": planned.spec.search.given}
        counted |= {"margin": planned.spec.confirm.margin, "max_seeds": planned.spec.confirm.max_seeds}
        weak, packing = weak_of(planned), packing_of(planned)
        return {
            "cells": planned.table().to_pylist(),
            **counted,
            "weak": weak,
            "packing": packing,
            "instead": planned.instead(),
            "peft": peft_forms(planned.cells),
        }

    emit(as_json, answer, lambda: print_plan(planned))


def estimate(
    spec: Source,
    overrides: Set = None,
    scale: Scale = None,
    available: Available = False,
    compare: Annotated[bool, typer.Option("--compare", help="The last run's estimate against what it took.")] = False,
    as_json: Json = False,
) -> None:
    """Time, accelerator-hours, memory, disk and money of a sweep, from a short probe of every method."""
    from analysis.statistics.sizing.estimates import foresight
    from sweeps.plan.estimate import estimate_plan
    from trainables.models.loading import check_weights

    if compare:
        table = foresight(store_of(spec, overrides, scale=scale))
        if as_json or table.num_rows:
            emit(as_json, table.to_pylist, lambda: print_table(table, "estimate against actual, last run"))
        else:
            out.print("no run of this sweep was estimated (`sweeps run` without --quiet does)")
        return
    planned = load(spec, overrides, scale, available=available)
    check_weights(planned.spec.model.id)
    sized = planned.with_sizes(download=True)  # data that can't be had is refused, as a run does
    answer = estimate_plan(sized, used_hours=used_hours(sized.spec.folder))
    if answer.unknown and not answer.methods:
        raise SpecError([Problem(f"methods.{m}", None, f"no estimate: {why}") for m, why in answer.unknown.items()])
    emit(as_json, answer.as_dict, lambda: _print_estimate(answer, planned))


def budget(
    model: Annotated[str | None, typer.Option(help="Model: open_clip:ARCH, local:DIR, hf:ORG/NAME, ...")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="In its place weights, OUTxIN: 4096x4096.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="The budget as LoRA's count at this rank.", min=1)] = None,
    params: Annotated[int | None, typer.Option(help="The budget as a number of parameters.", min=1)] = None,
    percent: Annotated[
        float | None,
        typer.Option(
            help="In percent of the model's parameters (a file's [budgets] percent is of the adapted weights)."
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="The budget as the count of --method at this rank.", min=1)] = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="Target weights, repeated or with commas; default: the family's.")
    ] = None,
    adapt: Annotated[str | None, typer.Option(help="CLIP: vision or both towers; else all; default: both.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method, also peft:NAME, prompt:NAME; peft:all; default: ours.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every allocation, where else auto's choice stands.")] = False,
    as_json: Json = False,
) -> None:
    """The budget solver alone: what every method trains at a budget, or at the count of one's rank. No weights."""
    from sweeps.budget.solver import ALLOCATIONS, budget_table

    if adapt is not None and adapt not in _TOWERS:
        raise SpecError([unknown("--adapt", adapt, "choice", _TOWERS)])
    chosen = _chosen(method)
    shapes, whole = _weights(model, shape, targets, adapt)
    own = _own_shapes(model, shapes)
    aims = {"--lora-rank": lora_rank, "--params": params, "--percent": percent, "--rank": rank}
    asked, reference = _budget_of({n: v for n, v in aims.items() if v is not None}, shapes, whole, chosen, own)
    if rank is not None and chosen is not None and "lora" not in chosen:
        chosen = [*chosen, "lora"]
    allocations = ALLOCATIONS if every else ("auto",)
    answer = budget_table(shapes, asked, reference, methods=chosen, allocations=allocations, own=own)
    answer["model_parameters"] = whole
    for row in answer["methods"]:
        row["percent"] = 100 * row["count"] / whole
    emit(as_json, lambda: answer, lambda: _print_budget(model or ", ".join(shape or ()), answer, bool(method)))


def _weights(
    model: str | None, shape: list[str] | None, targets: list[str] | None, adapt: str | None
) -> tuple[dict[str, tuple[int, int]], int]:
    """The target weights' shapes by name, and the parameters of the whole model, or of the shapes."""
    from trainables.models.shapes import default_targets, model_size, target_shapes

    if (model is None) == (shape is None):
        given = "both" if model else "neither"
        raise SpecError([Problem("--model", given, "give a model, or in its place shapes", "--shape 4096x4096")])
    if model is not None:
        named = [each for given in targets or () for each in re.split(r",(?![^\[]*\])", given)]  # no comma in [q,v]
        found = target_shapes(model, named or list(default_targets(model)), adapt or "both")
        return dict(found), model_size(model)
    for option, value in {"--targets": ",".join(targets or ()), "--adapt": adapt}.items():
        if value:
            rule = "names weights of a model; --shape is the weights"
            raise SpecError([Problem(option, value, rule, "--model ID")])
    sides = [re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text) for text in shape or ()]
    for text, match in zip(shape or (), sides, strict=True):
        if match is None:
            rule = "is no shape of a weight, OUTxIN, each side below 1,000,000"
            raise SpecError([Problem("--shape", text, rule, "4096x4096")])
    shapes = {f"weight{i}": (int(m[1]), int(m[2])) for i, m in enumerate(sides) if m is not None}
    return shapes, sum(rows * columns for rows, columns in shapes.values())


def _own_shapes(model: str | None, shapes: Mapping[str, tuple[int, int]]) -> Callable[[str], Shapes]:
    """What a method counts on: the weights, or the place of prompts in a model."""
    from randlora.methods.registry import get_method
    from trainables.models.shapes import method_shapes

    def own(name: str) -> Shapes:
        if model is not None:
            return method_shapes(name, model, shapes)
        if get_method(name).prompts:
            raise SpecError([Problem("--method", name, "has its place in a CLIP", "--model open_clip:ViT-B-32")])
        return shapes

    return own


def _budget_of(
    given: Mapping[str, Any],
    shapes: Shapes,
    whole: int,
    chosen: Sequence[str] | None,
    own: Callable[[str], Shapes],
) -> tuple[int, str]:
    """The budget in parameters, and its name."""
    from randlora.methods.registry import get_method
    from sweeps.budget.solver import reference_budget, solve_pinned

    if len(given) != 1:
        said = ", ".join(given) or "none"
        raise SpecError(
            [Problem("budget", said, "give exactly one of --lora-rank, --params, --percent, --rank", "--lora-rank 8")]
        )
    ((name, value),) = given.items()
    if name == "--params":
        return value, f"params-{value}"
    if name == "--percent":
        if not 0 < value <= 100:
            raise SpecError([Problem("--percent", value, "is above 0 and at most 100", "1")])
        return max(1, round(whole * value / 100)), f"percent-{value:g}"
    if name == "--rank":
        if chosen is None or len(chosen) != 1:
            raise SpecError([Problem("--rank", value, "is of one method", f"--method randlora --rank {value}")])
        entry, on = get_method(chosen[0]), own(chosen[0])
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
    """The methods that `budget_table` lists; None: all of ours."""
    from randlora.errors import AdapterError
    from randlora.methods.bridge.kinds import KINDS, PREFIX
    from randlora.methods.registry import get_method

    if not names:
        return None
    whole = f"{PREFIX}all" in names
    chosen = [name for name in names if name != f"{PREFIX}all"] + ([PREFIX + kind for kind in KINDS] if whole else [])
    for name in chosen:
        try:
            get_method(name)
        except AdapterError as error:
            raise SpecError([Problem("--method", name, str(error))]) from error
    return chosen


def weak_of(plan: Plan) -> list[str]:
    """What will be weak in the results, as far as it is known before a run."""
    from analysis.words.weak import weak_evidence

    return weak_evidence(vars(cell.row()) for cell in plan.cells if cell.feasible or cell.absent)


def print_header(plan: Plan) -> None:
    """One line on what is about to run."""
    spec, left_out = plan.spec, len(plan.cells) - len(plan.feasible)
    allowance = spec.search.allowance
    tune = str(spec.search.trials) if allowance is None else f"{allowance.samples:,} samples"
    out.print(
        Text(spec.name, "bold"),
        f": {len(plan.feasible)} cells, {plan.n_trials} trials "
        f"({tune} to tune and {len(spec.confirm.seeds)} to confirm per cell) on {spec.model.id}",
        f"; {left_out} infeasible cell(s) left out, see `sweeps plan`" if left_out else "",
        sep="",
    )


def precision_words(plan: Plan) -> list[str]:
    """That this machine is slow at the precision asked for, if it is."""
    from trainables.runtime import slow_bf16

    if plan.spec.train.precision != "bf16" or not slow_bf16():
        return []
    return ['no bf16 products on this processor: train.precision = "fp32" is many times faster here']


def print_plan(plan: Plan) -> None:
    """The cells with their solutions; the infeasible ones with the reason and the nearest reachable counts."""
    from sweeps.plan.checks import peft_words

    print_weak(weak_of(plan))
    for line in precision_words(plan):
        out.print(f"bf16      {line}")
    if plan.spec.description:
        out.print(plan.spec.description, style="dim")
    rows = [
        {
            "method": cell.method,
            "reference": cell.reference or "",
            "data": cell.dataset,
            "size": str(cell.train_size),
            "budget": quantity(cell.budget),
            "capacity": _ranks(_built(cell)),
            "allocation": cell.allocation or "",
            "rank": "" if cell.update_rank is None else f"{cell.update_rank:.4g}",
            "count": quantity(cell.count),
            "dof": freedom(cell.dof, cell.dof_measured, cell.dof_at_most),
            "residual": _residual(cell.residual, cell.budget),
            "lr": "" if cell.lr_low is None or cell.lr_high is None else f"{cell.lr_low:.1e} .. {cell.lr_high:.1e}",
            "trials": str(cell.tune_trials + cell.confirm_seeds) if cell.feasible else "left out",
        }
        for cell in plan.cells
    ]
    title = f"{plan.spec.name}: {len(plan.feasible)} cells, {plan.n_trials} trials"
    print_rows(list(rows[0]) if rows else [], [list(row.values()) for row in rows], title)
    for name, why in {cell.dataset: cell.absent for cell in plan.cells if cell.absent}.items():
        out.print(f"no data   {name}: {why}")
    for line in _left_out(plan.cells):
        out.print(f"left out  {line}")
    for reference, budget in plan.instead().items():
        out.print(f"budget    not every method reaches {reference}; all reach {budget}")
    if plan.spec.budgets.count == "dof":
        out.print("budgets   at equal degrees of freedom in place of trainable parameters")
    for line in peft_words(plan.cells):
        out.print(f"PEFT      {line}")
    confirm = plan.spec.confirm
    if confirm.margin is not None:
        out.print(f"margin    differences below {100 * confirm.margin:g} points count as none")
    if confirm.question is not None:
        out.print(f"question  {confirm.question}")
    if confirm.max_seeds is not None:
        out.print(f"seeds     {len(confirm.seeds)} of at most {confirm.max_seeds}, the level spread over them")
    _print_packing(plan)


def _left_out(cells: Sequence[Cell]) -> Iterator[str]:
    """What can't be built and why, a line for all data sets and sizes that share the reason."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in (c for c in cells if not c.feasible and not c.absent):
        around = ", ".join(_near(n) for n in (cell.below, cell.above) if n)
        why = f": {cell.reason}" + (f" (reachable: {around})" if around else "")
        found.setdefault((f"{cell.method} {cell.reference}", why), []).append(cell)
    for (name, why), mine in found.items():
        yield (mine[0].label if len(mine) == 1 else f"{name}, {len(mine)} data sets or sizes") + why


def _print_packing(plan: Plan) -> None:
    """Which methods' trials share a worker, and why others do not; nothing where none were asked to."""
    from sweeps.plan.packing import packing_words

    for line in packing_words(plan):
        out.print(line)


def _print_budget(model: str, answer: Mapping[str, Any], asked: bool) -> None:
    rows = []
    for m in answer["methods"]:
        residual = _residual(m["residual"], answer["budget"])
        near = [_near(m["below"]), _near(m["above"])]
        counted = [quantity(m["count"]), f"{m['percent']:.3g}", freedom(m["dof"], m["dof_measured"], m["dof_at_most"])]
        rows.append([m["method"], m["chosen"], _ranks(m["ranks"]), *counted, residual, *near])
    header = ["method", "allocation", "capacity", "count", "% of all", "dof", "residual", "below", "above"]
    print_rows(header, rows, f"{model}: {answer['reference']} = {answer['budget']:,} trainable parameters")
    for m in answer["methods"]:
        if asked and not m["feasible"]:
            out.print(f"infeasible  {m['method']}, {m['allocation']}: {m['reason']}; {m['lever']}")


def _print_estimate(estimate: Estimate, plan: Plan) -> None:
    header = ["method", "seconds/trial", "trials", "minutes of one slot"]
    rows = [
        [p.method, f"{p.seconds_per_trial:.1f}", str(p.trials), f"{p.seconds_total / 60:.1f}"] for p in estimate.methods
    ]
    print_rows(header, rows, "estimate, from a probe of every method")
    print_estimate_line(estimate)
    words = (
        f"{estimate.accelerator_hours:.3g} accelerator-hours; disk about {estimate.disk_bytes / 2**20:.0f} MiB, "
        f"{estimate.kept_bytes / 2**20:.0f} MiB of them kept weights; "
        f"peak memory of a trial about {estimate.memory_bytes / 2**20:.0f} MiB"
    )
    if estimate.shared_bytes:  # what workers on the CPU share
        shared, together = (n / 2**20 for n in (estimate.shared_bytes, estimate.together_bytes))
        words += f", {shared:.0f} MiB of them one base model for all workers; "
        words += f"{together:.0f} MiB for {estimate.concurrent}"
    out.print(words)
    _print_packing(plan)


def print_estimate_line(estimate: Estimate) -> None:
    """How long it will take, in one line, and which limits will end it."""
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
        err.print(f"it will stop before its end: {limit}", style="yellow")


def _residual(residual: int | None, budget: int | None) -> str:
    return "" if residual is None or not budget else f"{residual / budget:+.2%}"


def _ranks(ranks: Any) -> str:
    """One rank, or each distinct rank with the number of layers that have it."""
    if isinstance(ranks, Mapping):
        values: Sequence[int] = sorted(ranks.values())
        distinct = sorted(set(values))
        return " ".join(f"{r}x{values.count(r)}" if len(distinct) > 1 else str(r) for r in distinct)
    return str(ranks)


def _built(cell: Cell) -> dict[str, int]:
    """The capacities that a cell's adapter is built with."""
    from randlora.methods.registry import get_method
    from trainables.models.shapes import target_shapes

    if not cell.capacities:
        return {}
    entry = get_method(cell.base)
    shapes = target_shapes(cell.model, cell.targets, cell.adapt) if entry.legal else {}
    return entry.built(shapes, dict(cell.capacities), **dict(cell.options))


def _near(neighbour: Any) -> str:
    return "" if neighbour is None else f"{neighbour['count']:,} at {neighbour['capacity']}"
