"""The verbs that read, show and compare results, and `import`, which makes results from published numbers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.format import plural, visible
from analysis.sheets.data import TABLE_FILES, sheet_values
from analysis.sheets.sheet import sheet_of
from analysis.sheets.terminal import print_sheet
from sweeps.cli.options import Json, Set, Source, folder_of, store_of
from sweeps.cli.printing import emit, err, out, print_files, print_json, print_table, print_weak
from sweeps.errors import Problem, SpecError, unknown
from trainables.errors import first_line

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis import Store

Also = Annotated[
    list[Path] | None, typer.Option(help="Results folder or sweep file of another sweep to read too. Repeatable.")
]
Cost = Annotated[str, typer.Option("--x", help="Cost that scores are drawn against: seconds_train, saved_bytes, ...")]

_NEAR = 0.05  # of a number of parameters
_WEAK_LINES, _NAMED = 3, 2  # lines of weak evidence that `best` prints, and cells that each names
FORMATS = ("table", *TABLE_FILES)
_OF_SUFFIX = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}


def best(
    source: Source,
    at: Annotated[
        str | None, typer.Option(help="Show one budget: its label (lora-4), or a number of parameters for the nearest.")
    ] = None,
    overrides: Set = None,
    all_notes: Annotated[bool, typer.Option("--all-notes", help="Print all weak evidence.")] = False,
    as_json: Json = False,
) -> None:
    """Print the results: the answer, scores with intervals, what to take at each budget, and what is weak evidence."""
    from analysis.findings.decisions.numbers import decisions
    from analysis.findings.results.numbers import results_table

    store = store_of(source, overrides)
    if at is None:
        emit(as_json, lambda: results_table(store).to_pylist(), lambda: print_best(store, all_notes=all_notes))
        return
    references = _budgets_at(store, at)

    def answer() -> dict[str, Any]:
        rows = results_table(store).to_pylist()
        taken = [r for r in decisions(store).to_pylist() if r["reference"] in references]
        return {"budgets": references, "decisions": taken, "cells": [r for r in rows if r["reference"] in references]}

    emit(as_json, answer, lambda: print_best(store, references, all_notes=all_notes))


def _budgets_at(store: Store, asked: str) -> list[str]:
    """Return the labels of the budgets that the user means: one name, or all nearest to a number of parameters.

    Raises:
        SpecError: there is no such budget.
    """
    table = store.sql("select distinct reference, budget from cells where budget is not null order by budget")
    budgets = [(r["reference"], r["budget"]) for r in table.to_pylist()]  # a label has another number in each model
    names = {name for name, _ in budgets}
    if asked in names:
        return [asked]
    number = asked.replace(",", "").replace("_", "")
    if not number.isdecimal() or int(number) < 1 or not budgets:
        raise SpecError([unknown("--at", asked, "budget", names)])
    least = min(abs(budget / int(number) - 1) for _, budget in budgets)
    nearest = list(dict.fromkeys(name for name, budget in budgets if abs(budget / int(number) - 1) == least))
    if least > _NEAR:
        err.print(f"no budget within {_NEAR:.0%} of {int(number):,}; the nearest: {', '.join(nearest)}", style="yellow")
    return nearest


def print_best(store: Store, references: Sequence[str] | None = None, *, all_notes: bool = False) -> None:
    """Print the answer, the results table, what to take and what would change it, and weak evidence.

    Args:
        store: the results.
        references: the budgets to show; None for all, with the answer over all of them.
        all_notes: whether to print all weak evidence, and not only the first lines.
    """
    from analysis.findings.answer.answer import conclusion_of, more_seeds
    from analysis.findings.decisions.numbers import decisions
    from analysis.findings.decisions.terminal import print_decisions
    from analysis.findings.results.terminal import print_results_table
    from analysis.findings.weak import weak_evidence
    from analysis.store.columns import PLACE

    def asked(rows: list[Any]) -> list[Any]:
        return [r for r in rows if references is None or r["reference"] is None or r["reference"] in references]

    conclusion = None if references is not None else conclusion_of(store)
    if conclusion is not None:
        out.print(conclusion.answer, style="bold")
        for text in filter(None, (conclusion.budgets, conclusion.later)):
            out.print(text)
        out.print()
    print_results_table(store, out, references)
    print_decisions(asked(decisions(store).to_pylist()), out)
    if conclusion is not None:
        places = set(zip(*(store.table("cells").column(name).to_pylist() for name in PLACE), strict=True))
        reasons = conclusion.reasons if len(places) > 1 else ""
        if rest := " ".join(filter(None, (reasons, conclusion.limits))):
            out.print(f"\n{rest}")
    signs = asked(store.table("signs").to_pylist())
    all_weak = weak_evidence(signs, len(signs))
    short = all_weak if all_notes else weak_evidence(signs, _NAMED)[:_WEAK_LINES]
    if short:
        out.print()
    print_weak(short)
    if short != all_weak:
        hidden = len(all_weak) - _WEAK_LINES
        more = f"{plural(hidden, 'more note')}, and every cell by name" if hidden > 0 else "Every cell by name"
        out.print(f"  {more}: type this command again with --all-notes.", style="dim")
    if "imported" not in (store.spec() or {}) and (advice := more_seeds(store)):
        out.print(f"\n{advice}")


def report(
    source: Source,
    overrides: Set = None,
    x: Cost = "adapter_params",
    overlay: Annotated[
        str | None, typer.Option(help="Published curve to draw beside this sweep's: fig1-clip, ...")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the figures and tables of a sweep, and write report.html, which needs no other file."""
    from analysis.report.page import write_report
    from sweeps.engine.verifying import receipt_of

    folder = folder_of(source, overrides)
    paths = dict(write_report(folder, x=x, overlay=overlay, receipt=receipt_of(folder)))
    emit(as_json, lambda: {k: str(v) for k, v in paths.items()}, lambda: print_files(paths))


def query(
    source: Source,
    sql: Annotated[
        str, typer.Argument(help="SQL over the tables and views, or the name of one: best, scaling, cost, ...")
    ],
    also: Also = None,
    form: Annotated[str | None, typer.Option("--format", help="table, csv, json, parquet or arrow.")] = None,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; its suffix names the format.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="The same as --format csv.")] = False,
    as_json: Json = False,
) -> None:
    """Run read-only SQL (DuckDB) over the results tables of one or more sweeps. The column `sweep` names the sweep."""
    kind = _format(form, to, csv=csv, as_json=as_json)
    store = store_of(source, also=also)
    table = store.table(sql) if sql.isidentifier() else store.sql_apart(sql)
    if to is not None:
        to.write_bytes(_bytes(table, kind))
        rows = table.num_rows
        summary = {"path": str(to), "rows": rows}
        emit(as_json, lambda: summary, lambda: out.print(f"wrote {plural(rows, 'row')} to {to}"))
    elif kind == "table":
        print_table(table)
    elif kind in ("json", "csv"):
        text = _bytes(table, kind).decode()
        sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    else:
        sys.stdout.buffer.write(_bytes(table, kind))


def _bytes(table: pa.Table, kind: str) -> bytes:
    """Return an Arrow table as a file of a format of `TABLE_FILES`.

    Raises:
        SpecError: columns share a name or have a type, and this format can't store that.
    """
    import pyarrow as pa

    names = Counter(table.column_names)
    twice = [name for name, count in names.items() if count > 1] if kind == "json" else []
    if twice:
        rule = "is the name of several columns, and JSON can store only one; give each another name: ... as NAME"
        raise SpecError([Problem("column", name, rule, "--format csv") for name in twice])
    try:
        return TABLE_FILES[kind](table)
    except pa.ArrowException as error:
        rule = f"can't hold these columns ({first_line(error)}); cast them: select NAME::varchar as NAME"
        raise SpecError([Problem("--format", kind, rule, "csv")]) from error


def _format(form: str | None, to: Path | None, *, csv: bool, as_json: bool) -> str:
    """Return the format that the options ask for. Raise SpecError if they contradict each other."""
    if form is not None and form not in FORMATS:
        raise SpecError([unknown("--format", form, "format", FORMATS)])
    by_option: dict[str, Any] = {
        "--format": form,
        "--csv": "csv" if csv else None,
        "--json": "json" if as_json else None,
    }
    asked = {option: kind for option, kind in by_option.items() if kind}
    if len(set(asked.values())) > 1:
        raise SpecError([Problem(" and ".join(asked), None, "ask for different formats; give one")])
    by_suffix = None if to is None else _OF_SUFFIX.get(to.suffix.lower())
    kind = next(iter(asked.values()), by_suffix)
    if to is not None and kind is None:
        raise SpecError([Problem("--to", str(to), "its suffix names no format", ", ".join(_OF_SUFFIX))])
    if to is not None and kind == "table":
        rule = "is only for a terminal; choose another format for a file"
        raise SpecError([Problem("--format", kind, rule, ", ".join(FORMATS[1:]))])
    if to is not None and by_suffix not in (None, kind):
        raise SpecError([Problem("--to", str(to), f"its suffix says {by_suffix}, and {next(iter(asked))} {kind}")])
    if to is None and kind in ("parquet", "arrow") and sys.stdout.isatty():
        rule = "cannot be shown on a terminal; write it to a file, or send it to a pipe"
        raise SpecError([Problem("--format", kind, rule, "--to FILE")])
    if to is not None and to.is_dir():
        raise SpecError([Problem("--to", str(to), "is a folder; give a file")])
    return str(kind or "table")


def compare(
    source: Source,
    overrides: Set = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The method that all others are compared with: lora, full, ...; default: as in `best`."),
    ] = None,
    points: Annotated[
        list[float] | None,
        typer.Option("--points", help="Print how many seeds detect a true difference of this many points. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare all methods with one: differences at each budget, with p values and effect sizes.

    The command also prints averages over budgets, how differences change with the budget, groups of methods that are
    not distinguishable, and how many seeds would detect a difference.
    """
    from analysis.findings.answer.answer import conclusion_of, runs_failed, unlike
    from analysis.findings.comparisons.finding import changes_sheet
    from analysis.findings.comparisons.numbers import changes
    from analysis.findings.comparisons.sheet import comparisons_sheet
    from analysis.findings.groups import conclude_groups, groups_sheet
    from analysis.findings.scaling.finding import averages_sheet
    from analysis.findings.scaling.numbers import curve
    from analysis.findings.seeds import DIFFERENCES, seeds_sheet, seeds_table
    from analysis.verdict.comparisons import comparisons
    from analysis.verdict.groups import groups
    from analysis.verdict.looks import preliminary_words
    from analysis.verdict.question import question

    store = store_of(source, overrides)
    wrong = [p for p in points or () if not 0.0 < p < 100.0]
    if wrong:
        raise SpecError([Problem("--points", wrong[0], "is a difference in points, above 0 and below 100")])
    methods = store.table("cells").column("method").unique().to_pylist()
    if baseline is not None and methods and baseline not in methods:
        raise SpecError([unknown("--baseline", baseline, "method of this sweep", sorted(methods))])
    baseline = baseline or question(store).baseline
    differences = tuple(p / 100 for p in points) if points else DIFFERENCES
    table = comparisons(store, baseline)
    letters = groups(store)
    says = [preliminary_words(table) + conclude_groups(letters.to_pylist()), *runs_failed(store), *unlike(store)]
    if baseline == question(store).baseline:
        says.insert(0, conclusion_of(store).answer)

    def answer() -> dict[str, Any]:
        return {
            "comparisons": table.to_pylist(),
            "changes": changes(store, baseline).to_pylist(),
            "groups": letters.to_pylist(),
            "averages": [r for r in curve(store).to_pylist() if r["dataset"] is None],
            "seeds_needed": seeds_table(store, baseline, differences).to_pylist(),
            "says": says,
        }

    def draw() -> None:
        if table.num_rows == 0 and letters.num_rows == 0:
            out.print("nothing to compare yet: no two methods are confirmed at one budget")
            return
        for sentence in says:
            out.print(sentence)
        out.print()
        for sheet in (
            comparisons_sheet(store, baseline),
            changes_sheet(store, baseline),
            groups_sheet(store),
            averages_sheet(store),
            seeds_sheet(store, baseline, differences),
        ):
            if sheet.rows:
                print_sheet(sheet, out)
                out.print()

    emit(as_json, answer, draw)


def tables(
    source: Source,
    names: Annotated[
        list[str] | None, typer.Argument(help="Tables to print; without names the command lists the tables.")
    ] = None,
    form: Annotated[str | None, typer.Option("--format", help="markdown (default), latex or csv.")] = None,
    x: Cost = "adapter_params",
    as_json: Json = False,
) -> None:
    """Print tables of the report as Markdown, LaTeX or CSV. `report` writes all of them into report_tables/."""
    from analysis.findings.all import pick, sheets
    from analysis.findings.finding import View
    from analysis.findings.fits.measured import axis
    from analysis.sheets.forms import form_of

    if as_json and form is not None:
        raise SpecError([Problem("--format and --json", form, "ask for different formats; give one")])
    axis(x)  # an unknown one is an error, also where no table depends on it
    write = form_of(form or "markdown")
    store = store_of(source)
    sheets_to_print = pick(store, names, View(x)) if names else list(sheets(store, View(x)).values())
    if as_json:
        print_json([sheet_values(sheet) for sheet in sheets_to_print])
    elif names:
        sys.stdout.write("\n".join(write(sheet) for sheet in sheets_to_print))
    elif not sheets_to_print:
        out.print("no table yet: there are no results to show")
    else:
        print_sheet(sheet_of(("", "", ""), [(s.name, f"{len(s.rows):4d} rows", s.title) for s in sheets_to_print]), out)


def import_results(
    source: Annotated[
        str, typer.Argument(help="paper (numbers published with RandLoRA), peft (its comparison), or csv.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="For paper: which figures and tables, default all. For peft: JSON files, or folders of them. "
            "For csv: CSV files."
        ),
    ] = None,
    to: Annotated[Path, typer.Option("--to", help="Results folder to write.")] = Path("results/imported"),
    as_json: Json = False,
) -> None:
    """Write a results folder from published numbers, to query and draw them together with your own results.

    A CSV file has a header with the columns method, and score (a fraction) or percent. These columns may be there too:
    model, dataset, train_size, reference (the budget, lora-8), parameters, lr, source.
    """
    from analysis.imports.csv_table import import_csv
    from analysis.imports.importing import import_peft, import_published

    left_out: list[str] = []
    if source == "paper":
        import_published(to, names or ())
    elif source == "peft":
        _, left_out = import_peft(to, [Path(name) for name in names or ()])
    elif source == "csv":
        import_csv(to, [Path(name) for name in names or ()])
    else:
        raise SpecError([unknown("source", source, "source", ("paper", "peft", "csv"))])
    for line in () if as_json else left_out:
        out.print(f"left out  {line}")
    emit(
        as_json,
        lambda: {"path": str(to), "left_out": left_out},
        lambda: out.print(f"wrote {to}; next: sweeps report {to}"),
    )
