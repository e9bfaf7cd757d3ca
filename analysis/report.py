"""One self-contained HTML page per results folder, and its figures: the question, the answer, and all the evidence.

The page makes no request, follows light and dark, prints, and reads on a phone. Every number in it comes from a
function that returns a table (`scaling`, `tuning`, `console`, the views).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from analysis import drawing, more, plots, rate_plots, scaling, svg, text_tables, tuning
from analysis.conclusions import conclude, conclude_gap, points
from analysis.console import results_table
from analysis.foresight import foresight
from analysis.methods import place_text, size_text, style
from analysis.schemas import SCHEMA_VERSION
from analysis.store import Store, open_store

Row = dict[str, Any]

QUESTION = (
    "When LoRA falls short of full fine-tuning, is it the number of trainable parameters or the rank of the update? "
    "LoRA and RandLoRA train equally many parameters; LoRA's update has low rank, RandLoRA's has full rank."
)
_CALLED = {"at": "last run started", "trial": "trial function"}
_NOT_SHOWN = {"ev", "name", "cells", "versions", "pid", "started"}
MOST_FAILURES = 50
MOST_RATE_FIGURES = 6


def write_report(folder: str | Path, *, x: str = "adapter_params", overlay: str | None = None) -> dict[str, Path]:
    """Draw the figures of a results folder and write its report.html.

    Args:
        folder: the results folder.
        x: the cost of the fits and of the Pareto front, one of `budgets.AXES`.
        overlay: name of a published curve (`published.names()`) to draw beside the first panel.

    Returns:
        What was written: 'report', and where there is a score to draw 'scaling_curve.png' and so on, and the results
        table as 'results.md' and 'results.tex'.

    Raises:
        StoreError: a folder that holds no sweep.
    """
    store = open_store(folder)
    paths: dict[str, Path] = {}
    curve = scaling.curve(store)
    if curve.num_rows:
        figures = store.path / "figures"
        paths |= drawing.save(plots.draw_scaling(curve), figures, "scaling_curve")
        table = results_table(store)
        for name, text in (("results.md", text_tables.markdown(table)), ("results.tex", text_tables.latex(table))):
            paths[name] = figures / name
            paths[name].write_text(text, encoding="utf-8")
    drawn = more.figures(store, x, overlay)
    paths |= more.save_figures(store.path, drawn)
    page = store.path / "report.html"
    temporary = page.with_suffix(".html.tmp")
    temporary.write_text(render(store, x=x, overlay=overlay, drawn=drawn), encoding="utf-8")
    temporary.replace(page)
    return {**paths, "report": page}


def render(
    store: Store, *, x: str = "adapter_params", overlay: str | None = None, drawn: Mapping[str, Figure] | None = None
) -> str:
    """The page as text; `x` and `overlay` as of `write_report`, `drawn` from `more.figures` where at hand."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda v: "" if v is None else f"{100 * v:.1f}",
        "signed": lambda v: "" if v is None else f"{100 * v:+.2f} %".replace("-", "\N{MINUS SIGN}"),
        "points": lambda v: "" if v is None else points(v),
        "whole": lambda v: "" if v is None else f"{v:,}",
        "quantity": lambda v: "" if v is None else f"{v:,.0f}" if v >= 1000 else f"{v:.3g}",
        "short": lambda v: "" if v is None else f"{v:.3g}",
        "p": lambda v: "" if v is None else ("<0.001" if v < 0.001 else f"{v:.3f}"),
        "mib": lambda v: "" if v is None else f"{v / 2**20:,.0f}",
        "method": lambda v: style(v).name,
        "moment": lambda v: "" if v is None else f"{v:%Y-%m-%d %H:%M} UTC",
        "duration": _duration,
        "size": size_text,
        "place": lambda r: place_text(r["dataset"] or "all data sets", r["train_size"]),
    }
    return environment.get_template("report.html.j2").render(**facts(store), more=more.facts(store, x, overlay, drawn))


def facts(store: Store) -> dict[str, Any]:
    """Everything the page shows, as plain values and rows."""
    trials = store.table("trials")
    curve, compared = scaling.curve(store), scaling.comparisons(store)
    answer, _, given = conclude(compared).partition(" (paired over")
    given = given and f"paired over{given}"
    gaps = scaling.comparisons(store, baseline="full")
    coverage = store.table("coverage").to_pylist()
    parity = _parity(store)
    confirm = store.sql("select count(*) as n from last_attempts where stage = 'CONFIRM' and test_score is not null")
    failures = store.table("failures").to_pylist()
    return {
        "title": ", ".join(store.names),
        "now": datetime.now(UTC),
        "question": QUESTION,
        "answer": answer,
        "given": f"({given}" if given else "",
        "gap": conclude_gap(gaps),
        "setting": _setting(store),
        "scaling_figure": _scaling_figure(curve),
        "rate_figures": _rate_figures(store),
        "results": results_table(store).to_pylist(),
        "averages": [r for r in curve.to_pylist() if r["dataset"] is None],
        "compared": compared.to_pylist(),
        "gaps": gaps.to_pylist(),
        "planted": scaling.PLANTED,
        "parity": parity,
        "parity_says": _parity_says(parity),
        "edges": [r for r in parity if r["edge"]],
        "under_tuned": [r for r in parity if r["under_tuned"]],
        "test_looks": confirm.column("n")[0].as_py(),
        "superseded": store.table("superseded").num_rows,
        "infeasible": [r for r in store.table("cells").to_pylist() if not r["feasible"]],
        "several": len({(r["dataset"], r["train_size"]) for r in coverage}) > 1,
        "failed_for_good": sum(r["failed"] for r in coverage),
        "missing": sum(r["missing"] for r in coverage),
        "planned": sum(r["tune_planned"] + r["confirm_planned"] for r in coverage if r["feasible"]),
        "finished": pc.sum(pc.equal(trials.column("status"), "finished")).as_py() or 0,
        "attempts": trials.num_rows,
        "failures": failures[:MOST_FAILURES],
        "failures_more": max(0, len(failures) - MOST_FAILURES),
        "cost": _in_order(store.table("cost").to_pylist()),
        "totals": _totals(store),
        "foreseen": foresight(store).to_pylist(),
        "damaged": [str(d) for d in store.damaged],
        "provenance": _provenance(store),
        "spec": _pretty(store.spec()),
        "protocol": store.protocol,
        "folder": store.path.name,
        "schema_version": SCHEMA_VERSION,
        "light": svg.colour_variables(dark=False),
        "dark": svg.colour_variables(dark=True),
    }


def _scaling_figure(curve: pa.Table) -> str | None:
    if curve.num_rows == 0:
        return None
    columns = 1 if len(plots.places(curve)) == 1 else 2
    figure = plots.draw_scaling(curve, columns=columns)
    label = "Test accuracy against trainable parameters, a curve per method with 95 % bands; numbers in the table below"
    return svg.inline_svg(figure, "scaling", label, svg.scaling_tips(curve))


def _rate_figures(store: Store) -> list[dict[str, str]]:
    table = tuning.rates(store)
    keys = dict.fromkeys((r["sweep"], r["dataset"], r["train_size"]) for r in table.to_pylist())
    figures = []
    for i, (sweep, dataset, size) in enumerate(list(keys)[:MOST_RATE_FIGURES]):
        chosen = [
            pc.equal(table.column(c), v) for c, v in (("sweep", sweep), ("dataset", dataset), ("train_size", size))
        ]
        mine = table.filter(pc.and_(pc.and_(chosen[0], chosen[1]), chosen[2]))
        label = f"Validation accuracy against learning rate on {place_text(dataset, size)}."
        figures.append(
            {
                "caption": place_text(dataset, size),
                "svg": svg.inline_svg(rate_plots.draw_rates(mine), f"rates{i}", label),
            }
        )
    return figures


def _rows(store: Store, query: str) -> list[Row]:
    return list(store.sql(query).to_pylist())


def _setting(store: Store) -> list[Row]:
    """What was compared, one row per sweep."""
    return _rows(
        store,
        """
        select sweep, string_agg(distinct model, ', ') as models, string_agg(distinct adapt, ', ') as adapt,
               string_agg(distinct dataset, ', ') as datasets, string_agg(distinct train_size, ', ') as sizes,
               count(distinct method) as methods, count(distinct reference) as budgets, max(tune_trials) as tune_trials,
               max(confirm_seeds) as seeds, count(*) filter (feasible) as cells
        from cells group by all order by sweep
    """,
    )


def _parity(store: Store) -> list[Row]:
    rows = _rows(store, "select * from parity")
    rows.sort(key=lambda r: (r["sweep"], r["dataset"], r["train_size"], style(r["method"]).order, r["budget"] or 0))
    return rows


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
        given, used = sorted({r["allowance"] for r in tuned}), sorted({r["allowance_used"] for r in tuned})
        full = sorted({r["tune_full_length"] for r in tuned})
        equal = (
            f"every tuned cell was given {given[0]} trials"
            if len(given) == 1
            else f"cells were given {given[0]} to {given[-1]} trials"
        )
        spent = str(used[0]) if len(used) == 1 else f"{used[0]} to {used[-1]}"
        ran = str(full[0]) if len(full) == 1 else f"{full[0]} to {full[-1]}"
        said.append(f"Tuning: {equal}; {spent} were used, {ran} of them finished at full length.")
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


def _in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda r: (r["sweep"], style(r["method"]).order, r["method"], r["adapter_params"] or 0))


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


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
