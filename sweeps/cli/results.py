"""The verbs that read results: `query`, `analyze`, `import`; `cli_compare` has those that compare."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import typer

from sweeps.cli import printing
from sweeps.cli.printing import out
from sweeps.errors import Problem, SpecError, unknown

if TYPE_CHECKING:
    from analysis import Store

Source = Annotated[Path, typer.Argument(help="Sweep file, or a results folder.", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set search.trials=6.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]

FORMATS = ("table", "csv", "json", "parquet", "arrow")
_OF_SUFFIX = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}


def attach(
    app: typer.Typer,
    verb: Callable[[Callable[..., int | None]], Callable[..., None]],
    folder_of: Callable[[Path, list[str] | None], Path],
) -> None:
    """Add the verbs; `verb` turns bad input into its exit code, `folder_of` finds the results of a file or folder."""

    @app.command()
    @verb
    def query(
        source: Source,
        sql: Annotated[
            str, typer.Argument(help="SQL over the tables and views, or the name of one: best, scaling, cost, ...")
        ],
        also: Annotated[
            list[Path] | None, typer.Option("--also", help="A further sweep to read beside it; may be repeated.")
        ] = None,
        form: Annotated[str | None, typer.Option("--format", help="table, csv, json, parquet or arrow.")] = None,
        to: Annotated[Path | None, typer.Option("--to", help="File to write; its suffix names the format.")] = None,
        csv: Annotated[bool, typer.Option("--csv", help="The same as --format csv.")] = False,
        as_json: Json = False,
    ) -> None:
        """Read-only SQL over the results tables (DuckDB) of one sweep or several, told apart by the column `sweep`."""
        from analysis import open_store

        kind = _format(form, to, csv=csv, as_json=as_json)
        store = open_store(folder_of(source, None), *(folder_of(more, None) for more in also or ()))
        table = _answer(store, sql)
        if to is not None:
            to.write_bytes(printing.as_bytes(table, kind))
            out.print(f"wrote {table.num_rows} row(s) to {to}", highlight=False, markup=False)
        elif kind == "table":
            printing.print_table(table)
        elif kind in ("json", "csv"):
            (printing.print_csv if kind == "csv" else _print_json)(table)
        else:
            sys.stdout.buffer.write(printing.as_bytes(table, kind))

    @app.command()
    @verb
    def analyze(
        kind: Annotated[str, typer.Argument(help="spectrum, cka or landscape.")],
        source: Source,
        overrides: Set = None,
        address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: one of its own.")] = None,
        cpus: Annotated[float, typer.Option(help="CPUs of a task.", min=0)] = 1,
        examples: Annotated[int | None, typer.Option(help="cka, landscape: examples at most.")] = None,
        points: Annotated[int | None, typer.Option(help="landscape: points of a row and of an edge.")] = None,
        force: Annotated[bool, typer.Option("--force", help="Compute again what is there.")] = False,
        upload: Annotated[
            str | None, typer.Option(help="Copy the tables there at the end, beside the sweep's: s3://BUCKET/FOLDER.")
        ] = None,
        as_json: Json = False,
    ) -> int | None:
        """Diagnostics of kept weights, as Ray tasks; needs [keep] adapters = "confirm" and full = true.

        Stopped, the same command goes on. The results are tables (`sweeps query`) and figures (`sweeps report`).
        """
        from analysis import open_store
        from analysis.diagnostics.analyze import analyze as run_diagnostic
        from analysis.store.remote import Location
        from sweeps.engine.analyze import ray_tasks
        from sweeps.records.upload import Upload, check_same

        folder = folder_of(source, overrides)
        location = None if upload is None else Location.of(upload)
        if location is not None:
            check_same(location, folder)
        execute = ray_tasks(address, cpus=cpus, progress=not as_json)
        store = open_store(folder)
        table, paths, says = run_diagnostic(store, kind, execute=execute, force=force, examples=examples, points=points)
        if as_json:
            printing.print_json({"says": says, "rows": table.num_rows, "paths": {k: str(v) for k, v in paths.items()}})
        else:
            out.print(says, highlight=False, markup=False)
            printing.print_paths(paths)
        missing = None if location is None else Upload(folder, location, note=lambda _: None).once()
        if missing:
            printing.err.print(f"{missing}; the same command tries again", style="red", markup=False)
        return 1 if missing else None

    @app.command("import")
    @verb
    def import_results(
        source: Annotated[
            str, typer.Argument(help="paper (numbers published with RandLoRA), peft (its comparison), or csv.")
        ],
        names: Annotated[
            list[str] | None, typer.Argument(help="paper: which, default all; peft: JSON files; csv: files.")
        ] = None,
        to: Annotated[Path, typer.Option("--to", help="Results folder to make.")] = Path("results/imported"),
        as_json: Json = False,
    ) -> None:
        """Make a results folder of numbers from elsewhere, to query and draw beside ours.

        A CSV file has a header: method, and score (a fraction) or percent; and what is known of model, dataset,
        train_size, reference (lora-8), parameters, lr, source.
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
        if as_json:
            printing.print_json({"path": str(to), "left_out": left_out})
            return
        for line in left_out:
            out.print(f"left out  {line}", highlight=False, markup=False)
        out.print(f"wrote {to}; next: sweeps report {to}", highlight=False)


def _answer(store: Store, sql: str) -> pa.Table:
    """The rows of a query, or of the table or view that one word names."""
    return store.table(sql) if sql.isidentifier() else store.sql(sql)


def _print_json(table: pa.Table) -> None:
    printing.print_json(table.to_pylist())


def _format(form: str | None, to: Path | None, *, csv: bool, as_json: bool) -> str:
    """The one format that the options ask for; a binary one needs a file, or a pipe."""
    if form is not None and form not in FORMATS:
        raise SpecError([unknown("--format", form, "format", FORMATS)])
    said: dict[str, Any] = {"--format": form, "--csv": "csv" if csv else None, "--json": "json" if as_json else None}
    asked = {option: kind for option, kind in said.items() if kind}
    if len(set(asked.values())) > 1:
        raise SpecError([Problem(" and ".join(asked), None, "ask for different formats; give one")])
    by_suffix = None if to is None else _OF_SUFFIX.get(to.suffix.lower())
    kind = next(iter(asked.values()), by_suffix)
    if to is not None and kind is None:
        raise SpecError([Problem("--to", str(to), "its suffix names no format", ", ".join(_OF_SUFFIX))])
    if to is None and kind in ("parquet", "arrow") and sys.stdout.isatty():
        raise SpecError([Problem("--format", kind, "is not for a terminal; send it on, or into a file", "--to FILE")])
    if to is not None and to.is_dir():
        raise SpecError([Problem("--to", str(to), "is a folder; give a file")])
    return str(kind or "table")
