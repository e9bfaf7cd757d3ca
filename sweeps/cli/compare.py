"""The verbs that compare: `compare` (methods, over seeds), `mcnemar` (two checkpoints), `tables` (for papers)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeps.cli.options import Json, Set, Source, store_of
from sweeps.cli.printing import emit, out, print_json, print_named, print_sheet
from sweeps.errors import Problem, SpecError, unknown


def compare(
    source: Source,
    overrides: Set = None,
    baseline: Annotated[str, typer.Option(help="What each method is compared with: lora, full, ...")] = "lora",
    points: Annotated[
        list[float] | None, typer.Option("--points", help="True difference, in points, to plan seeds for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Methods against each other over seeds: differences, groups, mean ranks, averages, seeds needed."""
    from analysis.statistics.groups import groups, mean_ranks
    from analysis.statistics.planning import DIFFERENCES, seeds_table
    from analysis.statistics.scaling import comparisons, curve
    from analysis.tables.results import averages, compared, grouped, ranks, seeds
    from analysis.words.figures import conclude_groups, conclude_ranks

    store = store_of(source, overrides)
    wrong = [p for p in points or () if not 0.0 < p < 100.0]
    if wrong:
        raise SpecError([Problem("--points", wrong[0], "is a difference in points, above 0 and below 100")])
    methods = store.table("cells").column("method").unique().to_pylist()
    if methods and baseline not in methods:
        raise SpecError([unknown("--baseline", baseline, "method of this sweep", sorted(methods))])
    asked = tuple(p / 100 for p in points) if points else DIFFERENCES
    table, letters, ranked = comparisons(store, baseline), groups(store), mean_ranks(store)
    says = [s for s in (conclude_groups(letters.to_pylist()), conclude_ranks(ranked.to_pylist())) if s]

    def answer() -> dict[str, Any]:
        return {
            "comparisons": table.to_pylist(),
            "groups": letters.to_pylist(),
            "mean_ranks": ranked.to_pylist(),
            "averages": [r for r in curve(store).to_pylist() if r["dataset"] is None],
            "seeds_needed": seeds_table(store, baseline, asked).to_pylist(),
            "says": says,
        }

    def draw() -> None:
        if table.num_rows == 0 and letters.num_rows == 0:
            out.print("nothing to compare yet: no two methods are confirmed at one budget")
            return
        found = (
            compared(store, baseline),
            grouped(store),
            ranks(store),
            averages(store),
            seeds(store, baseline, asked),
        )
        for sheet in found:
            if sheet.rows:
                print_sheet(sheet)
        for said in says:
            out.print(said)

    emit(as_json, answer, draw)


def mcnemar(
    source: Source,
    a: Annotated[str, typer.Argument(help="Trial id (or its beginning) of one checkpoint.")],
    b: Annotated[str, typer.Argument(help="Trial id (or its beginning) of the other.")],
    also: Annotated[
        list[Path] | None, typer.Option("--also", help="A further sweep, where B may be; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """McNemar's exact test of two fixed checkpoints on the same test examples. It says nothing of their methods."""
    from analysis.statistics.mcnemar import checkpoint_sentence, compare_checkpoints

    row = compare_checkpoints(store_of(source, also=also), a, b).to_pylist()[0]
    says = checkpoint_sentence(row)
    names = ("both_right", "only_a", "only_b", "both_wrong")
    counts = ", ".join(f"{row[k]:,} {k.replace('_', ' ')}" for k in names)
    words = (
        f"A  {row['a']}  {row['label_a']}\n"
        f"B  {row['b']}  {row['label_b']}\n"
        f"{row['n_examples']:,} test examples of {row['dataset']}: {counts}\n{says}"
    )
    emit(as_json, lambda: {**row, "says": says}, lambda: out.print(words))


def tables(
    source: Source,
    names: Annotated[list[str] | None, typer.Argument(help="Tables of the report; none lists them.")] = None,
    form: Annotated[str, typer.Option("--format", help="markdown or latex.")] = "markdown",
    x: Annotated[str, typer.Option("--x", help="Cost of the fits and the front.")] = "adapter_params",
    as_json: Json = False,
) -> None:
    """Tables of the report as Markdown or LaTeX; `report` writes all of them into report_tables/."""
    from analysis.report.tables import pick, sheets
    from analysis.tables.export import form_of

    write = form_of(form)
    store = store_of(source)
    found = pick(store, names, x) if names else list(sheets(store, x).values())
    if as_json:
        print_json([{"name": s.name, "title": s.title, "header": s.header, "rows": s.cells} for s in found])
    elif names:
        sys.stdout.write("\n".join(write(sheet) for sheet in found))
    else:
        print_named({s.name: f"{len(s.rows):4d} rows  {s.title}" for s in found})
