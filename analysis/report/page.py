"""One self-contained HTML page per results folder, and its figures: the question, the answer, and all the evidence.

The page makes no request (its policy forbids it), follows light and dark, prints, and reads on a phone. Every number
comes from a function that returns a table; `report_tables` says how tables are shown, `pictures` holds the figures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from analysis.figures import pictures, svg
from analysis.figures.picture import Picture
from analysis.format import duration
from analysis.report import tables as report_tables
from analysis.report.diagnostics import diagnostics
from analysis.statistics import scaling
from analysis.statistics.groups import groups, mean_ranks
from analysis.store.schemas import SCHEMA_VERSION
from analysis.store.store import Store, open_store
from analysis.styles import place_text, size_text, style
from analysis.tables import evidence as evidence_sheets
from analysis.tables import export
from analysis.tables.evidence import parity_rows, tuning_says
from analysis.tables.sheet import Sheet
from analysis.words.conclusions import conclude, conclude_gap
from analysis.words.figures import conclude_groups, conclude_ranks

Row = dict[str, Any]

QUESTION = (
    "When LoRA falls short of full fine-tuning, is it the number of trainable parameters or the rank of the update? "
    "LoRA and RandLoRA train equally many parameters; LoRA's update has low rank, RandLoRA's has full rank."
)
_CALLED = {"at": "last run started", "trial": "trial function"}
_NOT_SHOWN = {"ev", "name", "cells", "versions", "pid", "started"}


def write_report(folder: str | Path, *, x: str = "adapter_params", overlay: str | None = None) -> dict[str, Path]:
    """Draw the figures of a results folder, write its tables for papers, and its report.html.

    Args:
        folder: the results folder.
        x: the cost of the fits and of the Pareto front, one of `measured.AXES`.
        overlay: name of a published curve (`published.names()`) to draw beside the first panel.

    Returns:
        What was written, file name -> path: figures ('scaling_curve.png', '.svg', '.pdf', '.vl.json' and so on, only
        those there is something to draw in), tables ('results.md', 'results.tex' and so on), and 'report'.

    Raises:
        StoreError: a folder that holds no sweep, an unknown cost or published curve.
    """
    store = open_store(folder)
    drawn, sheets = pictures.pictures(store, x, overlay), report_tables.sheets(store, x, overlay)
    paths = pictures.save(drawn, store.path)
    paths |= export.save(sheets.values(), store.path) if sheets else {}
    page = store.path / "report.html"
    temporary = page.with_suffix(".html.tmp")
    temporary.write_text(render(store, x=x, overlay=overlay, drawn=drawn, sheets=sheets), encoding="utf-8")
    temporary.replace(page)
    return {**paths, "report": page}


def render(
    store: Store,
    *,
    x: str = "adapter_params",
    overlay: str | None = None,
    drawn: Sequence[Picture] | None = None,
    sheets: Mapping[str, Sheet] | None = None,
) -> str:
    """The page as text; `x` and `overlay` as of `write_report`, `drawn` and `sheets` where they are at hand."""
    drawn = pictures.pictures(store, x, overlay) if drawn is None else drawn
    sheets = report_tables.sheets(store, x, overlay) if sheets is None else sheets
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "method": lambda v: style(v).name,
        "colour": lambda v: style(v).colour if v else "transparent",  # of methods that have no variable
        "moment": lambda v: "" if v is None else f"{v:%Y-%m-%d %H:%M} UTC",
        "duration": duration,
        "size": size_text,
        "place": lambda r: place_text(r["dataset"] or "all data sets", r["train_size"]),
        "bracketed": _bracketed,
    }
    environment.filters |= filters
    script = resources.files("analysis.report").joinpath("templates", "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = {"pictures": pictures.kinds(drawn), "sheets": sheets, "script": Markup(script), "digest": digest}  # noqa: S704
    return environment.get_template("report.html.j2").render(**facts(store), **shown, overlay=overlay)


def _bracketed(text: str) -> Markup:
    """A cell with its interval set off."""
    return Markup(re.sub(r"(\[[^\]]*\])$", r'<span class="i">\1</span>', str(escape(text))))  # noqa: S704  escaped


def facts(store: Store) -> dict[str, Any]:
    """What the page says beside its tables and figures."""
    trials = store.table("trials")
    answer, _, given = conclude(scaling.comparisons(store)).partition(" (paired over")
    coverage = store.table("coverage").to_pylist()
    parity = parity_rows(store)
    confirm = store.sql("select count(*) as n from last_attempts where stage = 'CONFIRM' and test_score is not null")
    imported = (store.spec() or {}).get("imported")
    return {
        "title": ", ".join(store.names),
        "now": datetime.now(UTC),
        "question": QUESTION,
        "answer": answer,
        "given": f"(paired over{given}" if given else "",
        "gap": conclude_gap(scaling.comparisons(store, baseline="full")),
        "groups_say": conclude_groups(groups(store).to_pylist()),
        "ranks_say": conclude_ranks(mean_ranks(store).to_pylist()),
        "setting": _setting(store),
        "parity_says": _parity_says(parity),
        "edges": sum(bool(r["edge"]) for r in parity),
        "under_tuned": [r for r in parity if r["under_tuned"]],
        "test_looks": confirm.column("n")[0].as_py(),
        "superseded": store.table("superseded").num_rows,
        "failed_for_good": sum(r["failed"] for r in coverage),
        "missing": sum(r["missing"] for r in coverage),
        "planned": sum(r["tune_planned"] + r["confirm_planned"] for r in coverage if r["feasible"]),
        "attempts": trials.num_rows,
        "totals": _totals(store),
        "damaged": [str(d) for d in store.damaged],
        "imported": imported if isinstance(imported, dict) else None,
        "diagnostics": diagnostics(store),
        "provenance": _provenance(store),
        "spec": _pretty(store.spec()),
        "protocol": store.protocol,
        "folder": store.path.name,
        "schema_version": SCHEMA_VERSION,
        "most_failures": evidence_sheets.MOST_FAILURES,
        "light": svg.colour_variables(dark=False),
        "dark": svg.colour_variables(dark=True),
    }


def _rows(store: Store, query: str) -> list[Row]:
    return list(store.sql(query).to_pylist())


def _setting(store: Store) -> list[Row]:
    """What was compared, one row per sweep."""
    return _rows(
        store,
        """
        select sweep, string_agg(distinct model, ', ') as models, string_agg(distinct adapt, ', ') as adapt,
               string_agg(distinct dataset, ', ') as datasets, string_agg(distinct train_size, ', ') as sizes,
               count(distinct method) as methods, count(distinct reference) as budgets,
               coalesce(format('{:,} training examples for tuning', max(allowance_samples)),
                        format('{} tuning trials', max(tune_trials))) as tuning,
               max(confirm_seeds) as seeds, count(*) filter (feasible) as cells
        from cells group by all order by sweep
    """,
    )


def _parity_says(parity: list[Row]) -> list[str]:
    """Sentences on the three parities, each true of the rows as they are."""
    said = []
    budgeted = [r for r in parity if r["residual_fraction"] is not None]
    if budgeted:
        worst = max(budgeted, key=lambda r: abs(r["residual_fraction"]))
        said.append(
            "Parameters: the largest distance of a count from its budget is "
            f"{100 * abs(worst['residual_fraction']):.2f} % ({style(worst['method']).name} at {worst['reference']})."
        )
    built = [r for r in parity if r["count_holds"] is not None and r["count"] is not None]
    wrong = [r for r in built if not r["count_holds"]]
    if wrong:
        said.append(
            f"Counts: {len(wrong)} cell(s) built another number of parameters than the solver predicted; see the table."
        )
    elif built:
        said.append(f"Counts: in all {len(built)} cells with a predicted count the built module has exactly that many.")
    tuned = [r for r in parity if r["allowance"]]
    if tuned:
        said += tuning_says(tuned)
        widths = sorted({round(r["decades"], 2) for r in tuned if r["decades"] is not None})
        if widths:
            same = (
                f"{widths[0]:g} decades wide for every method"
                if len(widths) == 1
                else f"{widths[0]:g} to {widths[-1]:g} decades wide: NOT equal"
            )
            said.append(f"Rates: the ranges are {same}.")
    epochs = sorted({r["epochs"] for r in tuned if r["epochs"] is not None})
    if epochs:
        same = (
            f"every confirmed run trained {epochs[0]} epochs"
            if len(epochs) == 1
            else f"runs trained {epochs[0]} to {epochs[-1]} epochs: NOT equal"
        )
        said.append(f"Data and steps: {same}.")
    return said


def _totals(store: Store) -> Row:
    found = _rows(
        store,
        """
        select sum(seconds_total) as seconds, min(started_at) as first, max(ended_at) as last,
               sum(seconds_total) filter (status = 'failed') as seconds_failed,
               sum(seconds_total - coalesce(seconds_train, 0) - coalesce(seconds_eval, 0))
                 filter (status = 'finished') / nullif(count(*) filter (status = 'finished'), 0) as overhead
        from trials
    """,
    )
    return found[0]


def _provenance(store: Store) -> list[tuple[str, str]]:
    """Facts on what ran: from the journal's `sweep` events and the trial rows."""
    rows: list[tuple[str, str]] = []
    runs = store.events("sweep")
    if runs:
        rows.append(("runs of the sweep", str(len(runs))))
        shown = {key: value for key, value in runs[-1].items() if key not in _NOT_SHOWN}
        rows += [(_CALLED.get(key, key.replace("_", " ")), _text(value)) for key, value in shown.items()]
    trials = store.table("trials")
    for column in ("git_commit", "device", "precision", "backend", "host"):
        values = sorted(v for v in trials.column(column).unique().to_pylist() if v is not None)
        if values:
            rows.append((f"{column.replace('_', ' ')} of trials", ", ".join(values)))
    seeds = sorted(v for v in store.table("confirmed").column("data_seed").unique().to_pylist() if v is not None)
    if seeds:
        rows.append(("CONFIRM seeds", ", ".join(str(v) for v in seeds)))
    versions = [v for v in trials.column("versions").unique().to_pylist() if v is not None] or [
        json.dumps(run["versions"]) for run in runs[-1:] if "versions" in run
    ]
    rows += [
        ("versions" if len(versions) == 1 else f"versions ({i})", _text(json.loads(v)))
        for i, v in enumerate(versions, 1)
    ]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value) or "none"
    return "none" if value is None else str(value)


def _pretty(spec: Mapping[str, Any] | None) -> str | None:
    return None if spec is None else json.dumps(spec, indent=2, ensure_ascii=False)
