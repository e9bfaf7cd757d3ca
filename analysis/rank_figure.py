"""Score against the rank of the update: the figure, its sentence, and the table of what a doubling brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis import scaling, vega
from analysis.drawing import COLUMN_INCHES, PAPER, STYLE, Tips, new_figure
from analysis.fit_plots import legend
from analysis.methods import in_order, place_text, style
from analysis.picture import Picture, few_panels, panel_of, place_of, width_of
from analysis.plots import place_title
from analysis.rank_effects import PARAMETERS, RANK, effects, points
from analysis.sheets import Column, Sheet, change, columns_of, p_text, percent, quantity, ranged
from analysis.store import Store

Row = dict[str, Any]

LEAST_RANKS = 3
"""Ranks at one budget from which there is a figure: two are the comparison of two methods, which the report has."""


def picture(store: Store) -> list[Picture]:
    """The figure of the panels with enough ranks at one budget; none where no panel has."""
    found = points(store)
    rows = [r for place in _places(found) for r in found.to_pylist() if place_of(r) == place]
    if not rows:
        return []
    shown, tips = few_panels(pa.Table.from_pylist(rows, schema=found.schema)), Tips()
    score = scaling.score_name(store)
    says = conclude(effects(store).to_pylist())
    chart = vega.chart(
        [
            vega.point(
                panel_of(r),
                r["base"],
                r["update_rank"],
                r["mean"],
                low=r["low"],
                high=r["high"],
                reference=r["reference"],
                seeds=r["n"],
                line=r["reference"],
                note=r["method"] if r["method"] != r["base"] else None,
            )
            for r in shown.to_pylist()
        ],
        title="Score against the rank of the update",
        description=says,
        x="largest rank of the update",
        y=f"{score} (%)",
        band=False,
    )
    caption = (
        "At equal trainable parameters (paler: fewer). The axis is the largest rank that the update of a weight can "
        "have, mean over the target weights; bars are 95 % t intervals over seeds, lines join variants of one method "
        "at one budget."
    )
    label = f"{score.capitalize()} against the rank of the update, at equal trainable parameters"
    figure = draw_ranks(shown, tips=tips, score=score)
    return [Picture("rank", "rank", figure, label, caption, says, tips, chart, width_of(shown))]


def _places(found: pa.Table) -> list[tuple[str, str, str | None, str]]:
    """Panels in which some budget has `LEAST_RANKS` ranks."""
    ranks: dict[tuple[Any, ...], set[float]] = {}
    for r in found.to_pylist():
        ranks.setdefault((*place_of(r), r["reference"]), set()).add(r["update_rank"])
    return list(dict.fromkeys(key[:4] for key, values in ranks.items() if len(values) >= LEAST_RANKS))


def draw_ranks(table: pa.Table, *, columns: int = 2, tips: Tips | None = None, score: str = "test accuracy") -> Figure:
    """Score against the largest rank of the update, one panel per data set and training size.

    Args:
        table: from `rank_effects.points`; not empty.
        columns: most panels in a row.
        tips: gets what every marker says.
        score: what is measured, in words.

    Raises:
        ValueError: no row.
    """
    rows = table.to_pylist()
    if not rows:
        raise ValueError("no rank to draw: the table has no row")
    tips = Tips() if tips is None else tips
    places = list(dict.fromkeys(place_of(r) for r in rows))
    across = min(columns, len(places))
    down = -(-len(places) // across)
    bases = in_order({r["base"] for r in rows})
    named = 0.17 * -(-len(bases) // (4 * across))  # inches of the legend
    with mpl.rc_context(STYLE):
        width, height = COLUMN_INCHES * across, 2.3 * down + named + 0.25
        figure = new_figure(width, height)
        grid = figure.subplots(down, across, squeeze=False)
        figure.subplots_adjust(
            left=0.5 / width,
            right=1 - 0.12 / width,
            bottom=0.42 / height,
            top=1 - (named + 0.35) / height,
            wspace=0.2,
            hspace=0.5,
        )
        for index, axes in enumerate(grid.flat):
            if index >= len(places):
                axes.set_visible(False)
                continue
            _panel(axes, [r for r in rows if place_of(r) == places[index]], tips)
            axes.set_title(place_title(places[index][2] or "", places[index][3]), loc="left", fontweight="bold")
            if index % across == 0:
                axes.set_ylabel(f"{score} (%)")
        legend(figure, bases, 4 * across)
        return figure


def _panel(axes: Any, rows: Sequence[Row], tips: Tips) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=10))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("largest rank of the update")
    ranks = [r["update_rank"] for r in rows]
    axes.set_xlim(min(ranks) / 2.1, max(ranks) * 1.35)  # room for the budgets' names
    references = list(dict.fromkeys(r["reference"] for r in sorted(rows, key=lambda r: r["budget"])))
    for k, reference in enumerate(references):
        alpha = 0.35 + 0.65 * (k + 1) / len(references)
        mine = [r for r in rows if r["reference"] == reference]
        for base in reversed(in_order({r["base"] for r in mine})):
            _line(axes, [r for r in mine if r["base"] == base], alpha, tips)


def _line(axes: Any, rows: Sequence[Row], alpha: float, tips: Tips) -> None:
    """The variants of one method at one budget."""
    look = style(rows[0]["base"])
    rows = sorted(rows, key=lambda r: r["update_rank"])
    if len(rows) > 1:
        x, y = [r["update_rank"] for r in rows], [100 * r["mean"] for r in rows]
        axes.plot(x, y, color=look.colour, alpha=alpha, linewidth=1.2)
        axes.annotate(
            rows[0]["reference"],
            (x[0], y[0]),
            xytext=(-4, 0),
            textcoords="offset points",
            fontsize=6,
            color=look.colour,
            alpha=alpha,
            ha="right",
            va="center",
        )
    for r in rows:
        x, y = r["update_rank"], 100 * r["mean"]
        if r["low"] is not None:
            axes.vlines(x, 100 * r["low"], 100 * r["high"], color=look.colour, linewidth=1.0, alpha=0.6 * alpha)
        spread = ranged(percent(r["mean"]), percent(r["low"]), percent(r["high"]))
        said = (
            f"{style(r['method']).name} at {r['reference']}: rank {quantity(r['update_rank'])}, "
            f"{quantity(r['adapter_params'])} parameters, {spread} %, {r['n']} seed{'s' * (r['n'] > 1)}"
        )
        axes.plot(
            [x],
            [y],
            marker=look.marker or "o",
            color=look.colour,
            alpha=alpha,
            markeredgecolor=PAPER,
            markeredgewidth=0.5,
            linestyle="none",
            zorder=3,
            gid=tips.add(said),
        )


def conclude(rows: Sequence[Row]) -> str:
    """What a doubling of rank and of parameters brings, in one place or the mean over data sets.

    Args:
        rows: of `rank_effects.effects`.
    """
    if not rows:
        return "No budget has updates of different rank."
    first = rows[0]
    place = [r for r in rows if all(r[k] == first[k] for k in ("sweep", "model", "dataset", "train_size"))]
    where = place_text(first["dataset"] or "the mean over data sets", first["train_size"])
    said = [_brings(place, effect) for effect in (RANK, PARAMETERS)]
    text = f"On {where}, {'; '.join(filter(None, said))}."
    untested = [r for r in place if r["p_holm"] is None]
    if untested:
        return f"{text} Not tested: that takes two seeds or more."
    return f"{text} {_tested([r for r in place if r['verdict'] == 'not distinguishable'])}"


def _brings(rows: Sequence[Row], effect: str) -> str:
    """One effect over all methods, and over the variants of one."""
    mine = sorted((r for r in rows if r["effect"] == effect), key=lambda r: r["scope"] is not None)
    if not mine:
        return ""
    held = "the rank at equal parameters" if effect == RANK else "the parameters at equal rank"
    whose = [f"over {'variants of ' + style(r['scope']).name if r['scope'] else 'all methods'}" for r in mine]
    return f"doubling {held} brings, in points, " + " and ".join(
        f"{change(r, 'slope')} {named}" for r, named in zip(mine, whose, strict=True)
    )


def _tested(silent: Sequence[Row]) -> str:
    given = "paired over seeds, Holm-corrected, given the chosen rates"
    if not silent:
        return f"All differ from zero ({given})."
    named = ", ".join(r["effect"] + (f" ({style(r['scope']).name})" if r["scope"] else "") for r in silent)
    return f"Not distinguishable from zero: {named} ({given})."


def sheet(store: Store) -> Sheet:
    """Rank against parameters."""
    rows = effects(store).to_pylist()
    return Sheet(
        "rank_effects",
        "Rank against parameters",
        columns_of(
            rows,
            Column("doubled", lambda r: "rank, parameters equal" if r["effect"] == RANK else "parameters, rank equal"),
            Column("over", lambda r: f"variants of {style(r['scope']).name}" if r["scope"] else "all methods"),
            Column("from", lambda r: quantity(r["least"]), "number"),
            Column("to", lambda r: quantity(r["most"]), "number"),
            Column("cells", lambda r: str(r["cells"]), "number"),
            Column("seeds", lambda r: str(r["n"]), "number"),
            Column("points [95 %]", lambda r: change(r, "slope"), "number"),
            Column("p, Holm", lambda r: p_text(r["p_holm"]), "number"),
            Column("verdict", lambda r: r["verdict"], "verdict"),
        ),
        rows,
        "Slopes of the test score per doubling, fitted for each seed: over the methods of one budget, each budget with "
        "a level of its own; over the budgets of methods whose rank stays, each method with a level of its own. The "
        "rank is the largest that an update can have. Methods differ in more than rank: variants of one method are the "
        "cleaner evidence. t tests over seeds, Holm-corrected over this table, given the chosen rates.",
    )
