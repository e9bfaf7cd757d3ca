"""The verb `power`, and the lines of `plan` and `estimate` on the difference that a sweep will be able to detect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.errors import StoreError
from analysis.format import plural
from analysis.sheets.sheet import sheet_of
from analysis.sheets.terminal import print_sheet
from sweeps.cli.options import Json, Scale, Set, Spec, holds_sweep, load, store_of
from sweeps.cli.printing import emit, out
from sweeps.errors import Problem, SpecError

if TYPE_CHECKING:
    from analysis.prospects import Design, Detectable, Pilot
    from sweeps.plan.plan import Plan

Like = Annotated[
    Path | None,
    typer.Option(
        "--like",
        help="Results of a similar sweep. How much its scores vary says which differences this one can detect. "
        "Default: this sweep's own results.",
    ),
]
SEEDS = (2, 3, 5, 8, 10, 15, 20, 30)
NOT_KNOWN = (
    "not known yet: name the results of a similar sweep with --like, or run this one first with two seeds and ask again"
)


def power(spec: Spec, like: Like = None, overrides: Set = None, scale: Scale = None, as_json: Json = False) -> None:
    """Print the smallest difference between methods that a sweep can detect, for several numbers of seeds.

    It needs to know how much scores vary: from a similar sweep (--like), or from this sweep's own finished trials.
    """
    planned = load(spec, overrides, scale).with_sizes(download=False)
    outlook = prospects(planned, like)
    if outlook is None:
        raise SpecError([Problem("--like", None, f"the smallest detectable difference is {NOT_KNOWN}")])
    curve = list(_curve(outlook))

    def draw() -> None:
        columns = list(dict.fromkeys(design.examples for design, _ in curve))
        now = outlook.design.examples
        heads = ["seeds", *(_examples(count) for count in columns)]
        for name, where in (("each", "at one budget"), ("mean", "in the mean over budgets and data sets")):
            values = [getattr(least, name) for _, least in curve]
            if not any(values):
                continue
            by = {(d.seeds, d.examples): value for (d, _), value in zip(curve, values, strict=True)}
            rows = [[str(n), *(_points(by[n, m]) for m in columns)] for n in dict.fromkeys(d.seeds for d, _ in curve)]
            title = f"smallest difference that is detected 4 times in 5, in points, {where}"
            print_sheet(sheet_of(heads, rows, title), out)
            out.print(
                _limit({d.seeds: value for (d, _), value in zip(curve, values, strict=True) if d.examples == now}, now)
            )
        print_prospects(outlook)

    rows = [{"seeds": d.seeds, "val_examples": d.examples, **asdict(least)} for d, least in curve]
    emit(as_json, lambda: {**outlook.as_dict(), "curve": rows}, draw)


@dataclass(frozen=True)
class Prospects:
    """The differences that a planned sweep will detect, and those after some changes of it.

    Attributes:
        like: the results folder whose variances are used.
        pilot: the variances.
        design: the properties of the plan on which the differences depend.
        least: the smallest detectable differences.
        changes: changes of the design by name, each with its smallest detectable differences.
    """

    like: Path
    pilot: Pilot
    design: Design
    least: Detectable
    changes: tuple[tuple[str, Detectable], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        changes = [{"change": name, **asdict(least)} for name, least in self.changes]
        return {"like": str(self.like), "design": asdict(self.design), **asdict(self.least), "changes": changes}


def prospects(plan: Plan, like: Path | None) -> Prospects | None:
    """Return the differences that a plan will detect, from the variances of earlier results.

    Args:
        plan: the plan.
        like: the results folder of a similar sweep; None for the plan's own results.

    Returns:
        The differences; None if the plan's own results do not have the variances.

    Raises:
        SpecError: `like` has no results, or these do not have the variances.
    """
    from analysis.prospects import Pilot

    folder = plan.spec.folder if like is None else like
    if like is None and not holds_sweep(folder):
        return None
    try:
        store = store_of(folder)
        pilot = Pilot(store)
    except StoreError:
        if like is None:  # the folder is damaged: `sweeps run` says why
            return None
        raise
    design = _design(plan, pilot)
    least = None if design is None else pilot.detectable(design)
    if design is None or least is None or least.each is None:
        if like is None:
            return None
        rule = "does not say how much scores vary: both sweeps need two methods at one budget, with two seeds or more"
        raise SpecError([Problem("--like", str(like), rule)])
    changes = tuple((name, pilot.detectable(other)) for name, other in _changes(design, pilot))
    return Prospects(store.path, pilot, design, least, changes)


def _design(plan: Plan, pilot: Pilot) -> Design | None:
    """Return the properties of a plan on which its detectable differences depend; None if it compares nothing."""
    from analysis.prospects import Design
    from analysis.verdict.question import question_among

    spec = plan.spec
    cells = [cell for cell in plan.feasible if cell.reference is not None]
    methods = {cell.method for cell in cells}
    question = question_among(methods, spec.confirm.question)
    focus, baseline = question.focus, question.baseline
    baseline_places = Counter(
        (cell.dataset, cell.train_size, cell.reference) for cell in cells if cell.method == baseline
    )
    pairs = [c for c in cells if c.method in ((focus,) if focus else methods) and c.method != baseline]
    pairs = [c for c in pairs if (c.dataset, c.train_size, c.reference) in baseline_places]
    if not pairs:
        return None
    in_question = {c.method for c in pairs} if question.every else {focus} if focus else set()
    rows_of_means = Counter((c.method, c.train_size) for c in pairs if c.method in in_question)
    search = spec.search
    example_counts = [c.val_examples for c in pairs if c.val_examples]
    return Design(
        seeds=len(spec.confirm.seeds),
        maximum=spec.confirm.max_seeds,
        rows=len(pairs),
        means=sum(rows > 1 for rows in rows_of_means.values()),  # a mean of one row is that row
        reruns=(search.rerun_rates, search.rerun_seeds) if search.reruns else (0, 0),
        rates=search.rates if search.allowance is None else None,
        examples=min(example_counts) if example_counts and pilot.tells_examples else None,
    )


def _seeds(design: Design, seeds: int) -> Design:
    """Return the design with another number of seeds. If more seeds may be added later, that number changes too."""
    return replace(design, seeds=seeds, maximum=None if design.maximum is None else seeds)


def _changes(design: Design, pilot: Pilot) -> Iterator[tuple[str, Design]]:
    """Yield changes of a design that may help, each as (name, design)."""
    yield f"{2 * design.seeds} seeds", _seeds(design, 2 * design.seeds)
    if not pilot.tunes:
        return
    if design.examples is not None:
        more = 4 * design.examples
        yield f"{more:,} validation examples", replace(design, examples=more)
    if design.reruns and min(design.reruns) > 0:
        rates, seeds = design.reruns
        yield f"search.rerun_seeds = {2 * seeds}", replace(design, reruns=(rates, 2 * seeds))
    else:
        yield "search.rerun_rates = 2, rerun_seeds = 2", replace(design, reruns=(2, 2))
    if design.rates is not None:
        more = 2 * design.rates
        trials = more + (design.reruns[0] * design.reruns[1] if design.reruns else 0)
        yield f"{more} learning rates (search.trials = {trials})", replace(design, rates=more)


def _curve(outlook: Prospects) -> Iterator[tuple[Design, Detectable]]:
    """Yield designs with other numbers of seeds and validation examples, each with its detectable differences."""
    design = outlook.design
    counts: list[int | None] = [design.examples]
    if design.examples is not None:
        counts = [max(1, design.examples // 4), design.examples, 4 * design.examples, 16 * design.examples]
    for seeds in sorted({*SEEDS, design.seeds} - {1}):
        for examples in counts:
            other = replace(_seeds(design, seeds), examples=examples)
            yield other, outlook.pilot.detectable(other)


def _limit(by_seeds: Mapping[int, float | None], examples: int | None) -> str:
    """Return a line on the number of seeds from which on more hardly help; "" if more seeds always help.

    Args:
        by_seeds: the smallest detectable difference by number of seeds.
        examples: the number of validation examples; None if it is not known.
    """
    known_values = {seeds: value for seeds, value in by_seeds.items() if value is not None}
    enough = min(
        (seeds for seeds, value in known_values.items() if value <= 1.05 * min(known_values.values())), default=None
    )
    if enough is None or enough == max(known_values):
        return ""
    of = f"With {examples:,} validation examples more" if examples is not None else "More"
    return f"  {of} than {enough} seeds hardly help: the choice of learning rates limits the difference.\n"


def print_prospects(outlook: Prospects | None) -> None:
    """Print the difference that a sweep will detect, and which change would help most."""
    if outlook is None:
        out.print(f"detects   {NOT_KNOWN}")
        return
    design, least = outlook.design, outlook.least
    with_what = plural(design.seeds, "seed")
    if design.examples is not None:
        with_what = f"{plural(design.examples, 'validation example')} and {with_what}"
    mean = "" if least.mean is None else f", {_points(least.mean)} in the mean over budgets and data sets"
    out.print(
        f"detects   with {with_what} a difference of about {_points(least.each)} points at one budget{mean} "
        f"(4 times in 5; variances from {outlook.like}, {plural(outlook.pilot.seeds, 'seed')})."
    )
    alternatives = [f"{_points(other.each)} with {name}" for name, other in outlook.changes]
    best, most = min(outlook.changes, key=lambda change: change[1].each or 1.0)
    helps = (
        "None of these helps." if (most.each or 1.0) > 0.95 * (least.each or 0.0) else f"What would help most: {best}."
    )
    out.print(f"          At one budget it would be {', '.join(alternatives)}. {helps}")


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}" if value < 1 else "100+"


def _examples(count: int | None) -> str:
    return "difference" if count is None else f"{count:,} validation examples"
