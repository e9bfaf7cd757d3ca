"""Best learning rates divided by the baseline's, a row per cell with its interval."""

from __future__ import annotations

import matplotlib as mpl
import pyarrow as pa

from analysis.drawing.charts import COLUMN_INCHES, INK, SMALL, STYLE, Chart, dot, log_ticks, panels
from analysis.findings.tuning.figure import rows_of_one_place
from analysis.format import Row
from analysis.styles import cut, in_order, style

_RATIO_ROW = 0.17
"""Inches of a row of `draw_rate_ratios`."""


def draw_rate_ratios(table: pa.Table) -> Chart:
    """Draw each cell's best learning rate over the baseline's with its interval, a row per cell.

    A bar that ends in an arrow's head has an open end: the scores do not say how far it goes.

    Args:
        table: from `rate_ratio.rate_ratios`, of one data set and training size; not empty.

    Raises:
        ValueError: no row, or several data sets or sizes.
    """
    rows = rows_of_one_place(table, "ratios of learning rates")
    methods = in_order({r["method"] for r in rows})
    rows.sort(key=lambda r: (methods.index(r["method"]), r["budget"] or 0))
    baseline = style(rows[0]["baseline"])
    names = [cut(" ".join(filter(None, (style(r["method"]).name, r["reference"]))), 30) for r in rows]
    known = [r[end] for r in rows for end in ("ratio", "ratio_low", "ratio_high") if r[end] is not None]
    low, high = min(1.0, *known) / 1.5, max(1.0, *known) * 1.5
    with mpl.rc_context(STYLE):
        figure, [spot] = panels(
            1,
            1,
            (COLUMN_INCHES, _RATIO_ROW * len(rows) + 0.1),
            extra=(0.0, 0.5),
            margins=(0.2 + 0.06 * max(map(len, names)), 0.12, 0.45, 0.1),  # a character is at most 0.06 inches wide
            gaps=(0, 0),
        )
        axes = figure.add_subplot(spot)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.axvline(1.0, color=baseline.colour, linewidth=1.2)
        for level, r in enumerate(rows):
            look = style(r["method"])
            open_below, open_above = r["ratio_low"] is None, r["ratio_high"] is None
            ends = low if open_below else r["ratio_low"], high if open_above else r["ratio_high"]
            axes.hlines(level, *ends, color=look.colour, linewidth=1.3, alpha=0.7)
            for is_open, edge, head in ((open_below, low, "<"), (open_above, high, ">")):
                if is_open:
                    axes.plot(edge, level, marker=head, markersize=3.2, color=look.colour, clip_on=False)
            dot(axes, r["method"], r["ratio"], level, _ratio_text(r), alpha=0.4 if r["at_edge"] else 1.0)
        axes.set_yticks(range(len(rows)), labels=names, fontsize=SMALL, color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        log_ticks(axes.xaxis, low, high)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(f"best learning rate / that of {baseline.name}")
        return figure


def _ratio_text(row: Row) -> str:
    """Return what a marker of `draw_rate_ratios` says."""
    low, high = ("open" if row[end] is None else f"{row[end]:.3g}" for end in ("ratio_low", "ratio_high"))
    where = f" at {row['reference']}" if row["reference"] else ""
    edge = "; one of the two lies at an end of the rates tried" if row["at_edge"] else ""
    name, baseline = style(row["method"]).name, style(row["baseline"]).name
    return f"{name}{where}: {row['ratio']:.3g} times {baseline}'s best rate, 95 % interval {low} to {high}{edge}"
