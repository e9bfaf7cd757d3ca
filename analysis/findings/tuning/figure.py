"""Figures of stage TUNE: did every method get a range of learning rates that holds its best, and enough of them?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis.drawing.charts import (
    COLUMN_INCHES,
    PAPER,
    SMALL,
    STYLE,
    Chart,
    Spot,
    band,
    clip_intervals,
    dot,
    fix_limits,
    legend,
    line_style,
    log_ticks,
    mark_bands,
    panels,
    spread_apart,
)
from analysis.format import Row, plural, score_text
from analysis.store.columns import limited
from analysis.styles import in_order, style
from analysis.verdict.runs import group_by

_ENDS = ("test_low", "test_high")


def draw_rates(rates: pa.Table) -> Chart:
    """Draw validation score against learning rate, a panel per method, a line per budget (darker is larger).

    Args:
        rates: from `tuning.rates`, of one data set and training size; not empty.

    Raises:
        ValueError: no row, or several data sets or sizes.
    """
    rows = rows_of_one_place(rates, "rates")
    methods = in_order({r["method"] for r in rows})
    with mpl.rc_context(STYLE):
        figure, each = _panels(len(methods), 1.75, (0.3, 0.22, 0.55), "validation score (%)")
        for method, axes in zip(methods, each, strict=True):
            _rates_panel(axes, method, [r for r in rows if r["method"] == method])
        return figure


def draw_expected(expected: pa.Table, test: str | None = None) -> Chart:
    """Draw the expected best score against the number of rates tried, a panel per budget, a line per method.

    Args:
        expected: from `tuning.best_of_n`, of one data set and training size; not empty. Methods without a budget are
            drawn dashed in every panel.
        test: what test scores measure, to draw the expected test score with its bands; default the validation score.

    Raises:
        ValueError: no row, or several data sets or sizes.
    """
    rows = clip_intervals(rows_of_one_place(expected, "expected bests"), "test", *_ENDS)
    budgets, value = budgets_of(rows), "test" if test else "expected"
    with mpl.rc_context(STYLE):
        figure, each = _panels(len(budgets), 1.85, (0.35, 0.5, 0.6), f"expected {test or 'best validation'} (%)")
        for budget, axes in zip(budgets, each, strict=True):
            panel_rows = [r for r in rows if r["reference"] in (budget, None) and r[value] is not None]
            _expected_lines(axes, panel_rows, value, [r for r in rows if r[value] is not None])
            axes.set_title(budget or "", loc="left", fontweight="bold", pad=3)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("learning rates tried")
        legend(figure, in_order({r["method"] for r in rows}))
        if test:
            mark_bands(figure, "pointwise")
        return figure


def budgets_of(rows: Sequence[Row]) -> list[str | None]:
    """Return the budgets by size, which are the panels; [None] if no method has a budget."""
    budget_by_name = {r["reference"]: r["budget"] for r in rows if r["reference"] is not None}
    return sorted(budget_by_name, key=lambda k: (budget_by_name[k] or 0, k)) or [None]


def rows_of_one_place(table: pa.Table, what: str) -> list[Row]:
    rows: list[Row] = table.to_pylist()
    if len({(r["sweep"], r["dataset"], r["train_size"]) for r in rows}) != 1:
        raise ValueError(f"{what} of exactly one data set and training size can be drawn in one figure")
    return rows


def _panels(count: int, height: float, room: tuple[float, float, float], label: str) -> tuple[Chart, Iterator[Any]]:
    """Return a figure and the axes of its panels, which share the y axis.

    Args:
        count: of panels. height: of a panel, in inches. label: of the y axis.
        room: height beyond the panels and above them, in inches, and between them, in panels.
    """
    beyond, above, between = room
    width = 2.1 * min(3, count) + 0.4
    figure, spots = panels(
        count, 3, (2.1, height), extra=(0.4, beyond), margins=(0.45, 0.01 * width, 0.4, above), gaps=(0.08, between)
    )

    def each() -> Iterator[Any]:
        first = None
        for spot in spots:
            axes = figure.add_subplot(spot, sharey=first)
            first = first or axes
            if spot.is_first_col():
                axes.set_ylabel(label)
            else:
                axes.tick_params(axis="y", labelleft=False)
            yield axes

    return figure, each()


def _rates_panel(axes: Any, method: str, rows: Sequence[Row]) -> None:
    look = style(method)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(look.name, loc="left", color=look.colour, fontweight="bold", pad=3)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("learning rate")
    low, high = min(r["lr"] for r in rows), max(r["lr"] for r in rows)
    axes.set_xlim(low / 1.6, high * (high / low * 2) ** 0.2)  # room for the names at the right
    cells = sorted({(r["budget"] or 0, r["reference"] or "", r["cell_id"]) for r in rows})
    for k, (_, reference, cell) in enumerate(cells):
        cell_rates = [r for r in rows if r["cell_id"] == cell and r["mean_val"] is not None]
        alpha = 0.35 + 0.65 * (k + 1) / len(cells)
        for i, line in enumerate(group_by(cell_rates, "hyperparameters").values()):
            axes.plot(
                [r["lr"] for r in line],
                [100 * r["mean_val"] for r in line],
                color=look.colour,
                alpha=alpha,
                linewidth=1.1,
                gid=f"rates:{cell}:{i}" if i else f"rates:{cell}",
            )
        for r in cell_rates:
            runs = plural(r["n"], "run") + (", chosen" if r["chosen"] else "")
            at = f"rate {r['lr']:.2g}" + (f" with {r['hyperparameters']}" if r["hyperparameters"] else "")
            tip = f"{look.name} {reference}: {at}, validation {100 * r['mean_val']:.1f} %, {runs}"
            dot(
                axes,
                method,
                r["lr"],
                100 * r["mean_val"],
                tip,
                marker="*" if r["chosen"] else ".",
                markersize=7 if r["chosen"] else 4,
                markerfacecolor=look.colour,
                markeredgecolor=PAPER if r["chosen"] else look.colour,
                markeredgewidth=0.4,
                alpha=alpha,
            )
        if cell_rates and reference and k in (0, len(cells) - 1):
            axes.annotate(
                reference,
                (cell_rates[-1]["lr"], 100 * cell_rates[-1]["mean_val"]),
                xytext=(2, 0),
                textcoords="offset points",
                fontsize=SMALL,
                color=look.colour,
                alpha=alpha,
                va="center" if len(cells) == 1 else ("bottom" if k else "top"),
                annotation_clip=False,
            )


def _expected_lines(axes: Any, rows: Sequence[Row], value: str, rows_of_all: Sequence[Row]) -> None:
    """Draw a line per method; a marker that would cover that of a method before it stands beside it.

    Args:
        axes: one panel.
        rows: the panel's rows.
        value: the column of the score.
        rows_of_all: the rows of all panels, which have one y axis.
    """
    methods = in_order({r["method"] for r in rows})
    ordered = sorted(rows, key=lambda r: (methods.index(r["method"]), r["n"]))
    spots = [Spot(r["n"], *3 * (100 * r[value],)) for r in ordered]
    drawn = (value, *(_ENDS if value == "test" else ()))
    axes.update_datalim([(r["n"], 100 * r[key]) for r in rows_of_all for key in drawn if r[key] is not None])
    fix_limits(axes, spots)
    placed = list(zip(spread_apart(axes, spots), ordered, strict=True))
    for method in reversed(methods):
        look, line = style(method), [(x, r) for x, r in placed if r["method"] == method]
        x, y = [at for at, _ in line], [100 * r[value] for _, r in line]
        with axes.figure.parts_of(method):
            axes.plot(x, y, color=look.colour, linestyle=line_style(method), lw=1.1)
            if value == "test" and all(r["test_low"] is not None for _, r in line):
                ends = [r["test_low"] for _, r in line], [r["test_high"] for _, r in line]
                band(axes, x, *ends, look.colour, 0.13)
        for at, r in line:
            where = f" at {r['reference']}" if r["reference"] else ""
            shown = score_text(r, "test", "test_low", "test_high") if value == "test" else f"{100 * r[value]:.1f}"
            tip = f"{look.name}{where}: {shown} % expected of the best of {r['n']} learning rates"
            dot(axes, method, at, 100 * r[value], tip, markersize=3.6)


def draw_sharpness(table: pa.Table) -> Chart:
    """Draw the decades of learning rate within a point of the best, against the budget (pale: a lower bound).

    Args:
        table: from `tuning.sharpness`, of one data set and training size; not empty. Methods without a budget are
            dashed lines.

    Raises:
        ValueError: no row, or several data sets or sizes.
    """
    rows = rows_of_one_place(table, "sharpness")
    budgets = sorted({r["budget"] for r in rows if r["budget"]}) or [1, 10]
    with mpl.rc_context(STYLE):
        figure, [spot] = panels(1, 1, (COLUMN_INCHES, 1.9), extra=(0, 0.35), margins=(0.5, 0.1, 0.4, 0.4), gaps=(0, 0))
        axes = figure.add_subplot(spot)
        axes.set_xscale("log")
        methods = in_order({r["method"] for r in rows})
        drawn_rows = [r | {"at": b} for m in methods for r in rows if r["method"] == m for b in _budgets(r, budgets)]
        drawn_rows.sort(key=lambda r: (methods.index(r["method"]), r["at"]))
        spots = [Spot(r["at"], *3 * (r["decades"],)) for r in drawn_rows]
        fix_limits(axes, spots)
        axes.set_ylim(bottom=0.0)
        placed = list(zip(spread_apart(axes, spots), drawn_rows, strict=True))
        for method in reversed(methods):
            look, method_points = style(method), [(x, r) for x, r in placed if r["method"] == method]
            with figure.parts_of(method):
                line = [at for at, _ in method_points], [r["decades"] for _, r in method_points]
                axes.plot(*line, color=look.colour, ls=line_style(method), lw=1.1)
            for x, r in method_points if method_points[0][1]["budget"] else method_points[-1:]:
                least = "at least " if r["open"] else ""
                where = f" at {r['reference']}" if r["reference"] else ""
                tip = f"{look.name}{where}: {least}{r['decades']:.1f} decades within a point of {100 * r['best']:.1f} %"
                dot(axes, method, x, r["decades"], tip, alpha=0.4 if r["open"] else 1.0)
        log_ticks(axes.xaxis, *axes.get_xlim())
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(limited(r["reference"] for r in rows))
        axes.set_ylabel("decades within a point")
        legend(figure, methods)
        return figure


def _budgets(row: Row, budgets: Sequence[int]) -> Sequence[int]:
    """Return the budgets at which a row is drawn: its own, or all if its method has none."""
    return [row["budget"]] if row["budget"] else budgets
