"""All differences of the methods in question on one axis: a row per data set and budget, and one per mean."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import pyarrow as pa

from analysis.drawing.charts import (
    INK,
    MUTED,
    SMALL,
    STYLE,
    Chart,
    dot,
    horizontal_bar,
    mark_bands,
    panels,
    place_title,
)
from analysis.findings.comparisons.figure import limits, zero_line
from analysis.format import Row, change_text, plural
from analysis.styles import cut, in_order, place_text, short_name, size_key, style
from analysis.verdict.inference import OVER_DATASETS
from analysis.verdict.verdicts import LATER

ROW = 0.175
LABELS = 1.75
PANEL = 3.0
WORDS = 1.25
"""Inches: the height of a row, the width of its name, of the axis and of its verdict."""


def panel_of(row: Row) -> tuple[str, str, str]:
    """Return the panel of a difference: (sweep, model, training size)."""
    return row["sweep"], row["model"], row["train_size"]


def panels_of(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return the panels of differences, in order."""
    return sorted({panel_of(r) for r in rows}, key=lambda k: (k[0], k[1], size_key(k[2])))


def draw_forest(table: pa.Table, *, score: str, margin: float | None = None) -> Chart:
    """Draw differences from the baseline with intervals and corrected verdicts, a panel per sweep, model and size.

    Args:
        table: of `analysis.comparisons`; not empty. Rows of several methods are grouped by method.
        score: what is measured, in words.
        margin: differences within it count as none; a strip.

    Raises:
        ValueError: no row.
    """
    order = {method: at for at, method in enumerate(in_order(set(table["method"].to_pylist())))}
    rows = sorted(table.to_pylist(), key=lambda row: order[row["method"]])
    if not rows:
        raise ValueError("no difference to draw: the table has no row")
    panel_keys = panels_of(rows)
    titled = [(sweep, model, "", size) for sweep, model, size in panel_keys]
    most_rows = max(sum(panel_of(r) == place for r in rows) for place in panel_keys)
    with mpl.rc_context(STYLE):
        figure, spots = panels(
            len(panel_keys),
            1,
            (PANEL, ROW * most_rows + 0.75),
            extra=(LABELS + WORDS, 0.05),
            margins=(LABELS, WORDS, 0.5, 0.3 if len(panel_keys) > 1 else 0.08),
            gaps=(0.0, 0.75 / (ROW * most_rows)),
        )
        for index, (place, spot) in enumerate(zip(panel_keys, spots, strict=True)):
            axes = figure.add_subplot(spot)
            _panel(axes, index, [r for r in rows if panel_of(r) == place], score, margin)
            if len(panel_keys) > 1:
                axes.set_title(place_title(titled[index], titled), loc="left", fontweight="bold")
        mark_bands(figure, "corrected", "intervals")
        return figure


def _panel(axes: Any, index: int, rows: Sequence[Row], score: str, margin: float | None) -> None:
    methods = list(dict.fromkeys(r["method"] for r in rows))
    budget_count = len({r["reference"] for r in rows} - {None})
    alone = rows[0]["reference"] if budget_count == 1 else None  # a mean is of it too
    budgets = [r["reference"] or alone or _several(r["n_budgets"], budget_count) for r in rows]
    zero_line(axes, index, rows[0]["baseline"], margin)
    axes.set_xlim(*limits(rows))
    for level, (r, at) in enumerate(zip(rows, budgets, strict=True)):
        mean = r["reference"] is None
        horizontal_bar(axes, level, r, style(r["method"]).colour, 2.2 if mean else 1.3)
        dot(axes, r["method"], 100 * r["difference"], level, _marker_text(r, at), **{"marker": "D"} if mean else {})
        verdict_lines = textwrap.fill(f"{r['verdict']}{LATER if r['added'] else ''}", 22)
        axes.text(
            1.03, level, verdict_lines, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL, color=INK
        )
    for level, (above, below) in enumerate(pairwise(rows)):
        if len(methods) > 1 and above["method"] != below["method"]:
            axes.axhline(level + 0.5, color=MUTED, linewidth=0.6)
        if len(methods) == 1 and above["reference"] is not None and below["reference"] is None:
            axes.axhline(level + 0.5, color=MUTED, linewidth=0.6)
    names = [_name(r, at) if len(methods) == 1 else _short(r, at, alone) for r, at in zip(rows, budgets, strict=True)]
    axes.set_yticks(range(len(rows)), labels=names)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    who = style(methods[0]).name if len(methods) == 1 else "each method"
    axes.set_xlabel(f"{score}: {who} minus {style(rows[0]['baseline']).name} (points)")


def _several(budgets: int, most: int) -> str:
    """Return which budgets a mean is over. `most` is the largest number of budgets of any row."""
    return "all budgets" if budgets == most else f"{budgets} of {most} budgets"


def _name(row: Row, at: str) -> str:
    """Return the name of a row, such as 'digits, lora-1', or the name of a mean."""
    if row["test"] == OVER_DATASETS:
        return "data sets like these"
    return f"{cut(short_name(row['dataset'] or 'mean'), 20)}, {at}"


def _short(row: Row, at: str, alone: str | None) -> str:
    """Return a row's name in a figure of several methods, such as 'DoRA: digits, lora-1', without an only budget."""
    what = "sets like these" if row["test"] == OVER_DATASETS else cut(short_name(row["dataset"] or "mean"), 14)
    budget = "" if alone is not None or row["test"] == OVER_DATASETS else f", {at}"
    return f"{cut(style(row['method']).name, 14)}: {what}{budget}"


def _marker_text(row: Row, at: str) -> str:
    where = place_text(row["dataset"] or f"{row['n_datasets']} data sets", row["train_size"])
    what = f"{style(row['method']).name} at {at} on {where}"
    of = plural(row["n"], "data set" if row["test"] == OVER_DATASETS else "pair")
    return f"{what}: {change_text(row)} points, corrected interval, {of}; {row['verdict']}"
