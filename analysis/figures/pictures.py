"""Every figure of the report: drawn, said in one sentence, with what its markers say and its Vega-Lite form.

A figure without enough budgets, sizes or numbers is left out. The numbers come from tables that other functions return.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.curves import measured, pareto, readings, sizes
from analysis.curves.measured import AXES, EXAMPLES, axis
from analysis.figures import drawing, evidence_pictures, svg, vega
from analysis.figures import fits as fit_plots
from analysis.figures import rank as rank_figure
from analysis.figures import rates as rate_plots
from analysis.figures import scaling as plots
from analysis.figures.drawing import Tips
from analysis.figures.picture import Picture, few_panels, fit_picture, panel_of, place_of, width_of
from analysis.statistics import scaling, tuning
from analysis.statistics.published import overlaid
from analysis.store.store import Store
from analysis.styles import place_text, places, style
from analysis.words import figures as say
from analysis.words.conclusions import conclude

Row = dict[str, Any]

MOST_SIZE_FIGURES, MOST_RATE_FIGURES = 4, 6


def pictures(store: Store, x: str = "adapter_params", overlay: str | None = None) -> list[Picture]:
    """All figures in the order of the page.

    Args:
        store: the results.
        x: the cost of the fits and the Pareto front.
        overlay: a published curve to draw beside the first panel; default none.

    Raises:
        StoreError: an unknown cost or published curve.
    """
    found = [*_scaling(store), *rank_figure.picture(store), *evidence_pictures.ranks(store)]
    found += [*_overlay(store, overlay), *_fits(store, x), *_front(store, x), *_sizes(store), *_size_fits(store)]
    return [*found, *_rates(store), *evidence_pictures.expected(store)]


def save(found: Iterable[Picture], folder: Path) -> dict[str, Path]:
    """Write figures into a results folder's `figures/`: PNG, SVG, PDF, and Vega-Lite; returns file name -> path."""
    paths: dict[str, Path] = {}
    for picture in found:
        paths |= drawing.save(picture.figure, folder / "figures", picture.stem)
        if picture.chart is not None:
            path = folder / "figures" / f"{picture.stem}.vl.json"
            vega.save(picture.chart, path)
            paths[path.name] = path
    return paths


def _scaling(store: Store) -> list[Picture]:
    score = scaling.score_name(store)
    curve = scaling.curve(store)
    if curve.num_rows == 0:
        return []
    panels = places(curve)
    rows = [
        vega.point(
            panel_of(r),
            r["method"],
            r["adapter_params"] if r["kind"] == "curve" else None,
            r["mean"],
            low=r["low"],
            high=r["high"],
            reference=r["reference"],
            seeds=r["n"],
        )
        for panel in panels
        for r in curve.to_pylist()
        if place_of(r) == panel
    ]
    label = f"{score.capitalize()} against trainable parameters, a curve per method with 95 % bands"
    caption = (
        f"{score.capitalize()} against trainable adapter parameters (log axis). Points are means over seeds, bands "
        "95 % t intervals; dashed lines are methods without a budget. The upper axis gives the LoRA rank that defines "
        "each budget. Point at a marker, or tap it, for its numbers."
    )
    says = conclude(scaling.comparisons(store))
    columns = 1 if len(panels) == 1 else 2
    chart = vega.chart(
        rows,
        title="Score against trainable parameters",
        description=says,
        x=AXES["adapter_params"].label,
        y=f"{score} (%)",
    )
    figure = plots.draw_scaling(curve, columns=columns, score=score)
    tips = svg.scaling_tips(curve)
    return [
        Picture("scaling_curve", "scaling", figure, label, caption, says, tips, chart, 42 if columns == 1 else None)
    ]


def _fits(store: Store, x: str) -> list[Picture]:
    cost = axis(x).label
    bands, points = few_panels(readings.band_table(store, x)), pareto.front(store, x)
    if bands.num_rows == 0:
        return []
    crossings = readings.crossing_table(store, x)
    return [fit_picture("fits", "fits", points, bands, crossings, cost, scaling.score_name(store))]


def _front(store: Store, x: str) -> list[Picture]:
    score = scaling.score_name(store)
    everything = pareto.front(store, x)
    if len({r["cost"] for r in everything.to_pylist() if r["cost"] > 0}) < 2:
        return []
    front, tips = few_panels(everything), Tips()
    figure = fit_plots.draw_front(front, tips=tips, score=score)
    says = say.conclude_front(everything.to_pylist())
    rows = [
        vega.point(
            panel_of(r),
            r["method"],
            r["cost"],
            r["score"],
            reference=r["reference"],
            seeds=r["n"],
            note="on the front" if r["on_front"] else f"beaten by {r['beaten_by']}",
        )
        for r in front.to_pylist()
        if r["cost"] > 0
    ]
    cost = AXES[x].label
    chart = vega.chart(rows, title=f"Score against {cost}", description=says, x=cost, y=f"{score} (%)", joined=False)
    label = f"{score.capitalize()} against cost; the cells that no other beats are joined"
    caption = "Every confirmed cell; pale ones are beaten by a cell that costs no more and scores no less."
    return [Picture("pareto", "pareto", figure, label, caption, says, tips, chart, width_of(front))]


def _sizes(store: Store) -> list[Picture]:
    score = scaling.score_name(store)
    found = []
    compared = scaling.comparisons(store).to_pylist() if _size_tables(store) else []
    for index, table in enumerate(_size_tables(store)[:MOST_SIZE_FIGURES]):
        tips, rows = Tips(), table.to_pylist()
        first = rows[0]
        mine = [r for r in compared if r["sweep"] == first["sweep"] and r["model"] == first["model"]]
        says = say.conclude_sizes([r for r in mine if first["dataset"] in (None, r["dataset"])])
        where = first["dataset"] or "the mean over data sets"
        shown = [
            vega.point(
                where,
                r["method"],
                r["images"] or r["position"] + 1,
                r["mean"],
                low=r["low"],
                high=r["high"],
                reference=r["reference"],
                seeds=r["n"],
                note=r["train_size"],
                line=r["reference"],
            )
            for r in rows
            if r["method"] != "zero-shot"
        ]
        chart = vega.chart(
            shown,
            title=f"Score against training size: {where}",
            description=says,
            x="training examples",
            y=f"{score} (%)",
        )
        caption = (
            f"On {where}: one line per method and budget (paler is smaller); band: 95 % t interval of the largest "
            "budget. Under the sizes, the examples of an epoch."
        )
        stem = f"data_size{'' if index == 0 else f'_{index + 1}'}"
        figure = fit_plots.draw_sizes(table, tips=tips, score=score)
        label = f"{score.capitalize()} against the number of training examples, a line per method and budget"
        found.append(Picture(stem, "sizes", figure, label, caption, says, tips, chart, 34))
    return found


def _size_fits(store: Store) -> list[Picture]:
    """Fits over training examples, of every budget, in the panels of the first (sweep, model, data set or mean)."""
    bands = readings.band_table(store, EXAMPLES, points=40)
    if bands.num_rows == 0:
        return []
    first = next((r["sweep"], r["model"], r["dataset"]) for r in bands.to_pylist())
    budgeted = [r for r in _of(bands, first) if r["reference"] is not None]
    if not budgeted:
        return []
    points = pa.Table.from_pylist(_of(measured.point_table(store), first), schema=measured.POINTS)
    turns = readings.crossing_table(store, EXAMPLES)
    crossings = pa.Table.from_pylist(_of(turns, first), schema=turns.schema)
    shown = few_panels(pa.Table.from_pylist(budgeted, schema=bands.schema))
    return [
        fit_picture(
            "data_size_fits",
            "sizes",
            _unsized(points),
            shown,
            crossings,
            "training examples",
            scaling.score_name(store),
        )
    ]


def _unsized(points: pa.Table) -> pa.Table:
    """Points whose panel is a budget, not a size."""
    return points.drop_columns(["train_size"])


def _rates(store: Store) -> list[Picture]:
    table = tuning.rates(store)
    parity = store.table("parity").to_pylist()
    keys = list(dict.fromkeys((r["sweep"], r["dataset"], r["train_size"]) for r in table.to_pylist()))
    found = []
    for index, key in enumerate(keys[:MOST_RATE_FIGURES]):
        mine = [r for r in table.to_pylist() if (r["sweep"], r["dataset"], r["train_size"]) == key]
        if all(r["mean_val"] is None for r in mine):
            continue
        tips, where = Tips(), place_text(key[1], key[2])
        says = say.conclude_rates([r for r in parity if (r["sweep"], r["dataset"], r["train_size"]) == key])
        figure = rate_plots.draw_rates(pa.Table.from_pylist(mine, schema=table.schema), tips=tips)
        rows = [
            vega.point(
                style(r["method"]).name,
                r["method"],
                r["lr"],
                r["mean_val"],
                low=r["min_val"],
                high=r["max_val"],
                reference=r["reference"],
                line=r["reference"],
                note="chosen" if r["chosen"] else None,
            )
            for r in sorted(mine, key=lambda r: style(r["method"]).order)
            if r["mean_val"] is not None
        ]
        title = f"Validation score against learning rate: {where}"
        chart = vega.chart(
            rows, title=title, description=says, x="learning rate", y="validation score (%)", columns=3, band=False
        )
        caption = (
            f"Stage TUNE on {where}: validation score against learning rate, one line per budget (darker is "
            "larger), stars the choices."
        )
        stem = f"learning_rates{'' if index == 0 else f'_{index + 1}'}"
        found.append(
            Picture(
                stem,
                "rates",
                figure,
                f"Validation score against learning rate on {where}",
                caption,
                says,
                tips,
                chart,
            )
        )
    return found


def _overlay(store: Store, overlay: str | None) -> list[Picture]:
    score = scaling.score_name(store)
    if overlay is None:
        return []
    ours, theirs, title = overlaid(store, overlay)
    tips = Tips()
    figure = fit_plots.draw_overlay(ours, theirs, title, tips=tips, score=score)
    says = say.conclude_overlay(ours.to_pylist(), theirs.to_pylist())
    rows = [
        vega.point(
            "",
            r["method"],
            r["adapter_params"],
            r["mean"],
            reference=r["reference"],
            seeds=r["n"],
            note=whose,
            line=whose,
        )
        for table, whose in ((ours, "this sweep"), (theirs, title))
        for r in table.to_pylist()
        if r["kind"] == "curve" and r["adapter_params"]
    ]
    if not rows:
        return []
    caption = (
        f"Dashed, hollow markers: published numbers ({overlay}), read off a figure where no table gives them; other "
        "model, data and protocol unless said otherwise. Nothing is tested against them."
    )
    chart = vega.chart(
        rows, title=f"Beside {title}", description=says, x=AXES["adapter_params"].label, y=f"{score} (%)", dashes=title
    )
    label = "Published curves, dashed, beside the curves of this sweep"
    return [Picture("overlay", "overlay", figure, label, caption, says, tips, chart, 36)]


def _of(table: pa.Table, first: tuple[str, str, str | None]) -> list[Row]:
    return [r for r in table.to_pylist() if (r["sweep"], r["model"], r["dataset"]) == first]


def _size_tables(store: Store) -> list[pa.Table]:
    table = sizes.size_curves(store)
    keys = dict.fromkeys((r["sweep"], r["model"], r["dataset"]) for r in table.to_pylist())
    found = []
    for sweep, model, dataset in keys:
        same = pc.is_null(table["dataset"]) if dataset is None else pc.equal(table["dataset"], dataset)
        chosen = pc.and_(pc.and_(pc.equal(table["sweep"], sweep), pc.equal(table["model"], model)), same)
        found.append(table.filter(pc.fill_null(chosen, False)))
    return found


def kinds(found: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Pictures by section."""
    return {kind: [p for p in found if p.kind == kind] for kind in dict.fromkeys(p.kind for p in found)}
