"""The figures of mean ranks over data sets and of what tuning was expected to bring, for the report."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from analysis.figures import evidence_plots, vega
from analysis.figures.drawing import INK, Tips
from analysis.figures.picture import MOST_PANELS, Picture
from analysis.statistics import tuning
from analysis.statistics.groups import mean_ranks
from analysis.store.store import Store
from analysis.styles import budget_order, in_order, place_text, style
from analysis.words import figures as say

Row = dict[str, Any]

MOST_EXPECTED = 4
"""Figures of expected bests; the table has all."""


def ranks(store: Store) -> list[Picture]:
    """Mean ranks over data sets, where there are several."""
    table = mean_ranks(store)
    says = say.conclude_ranks(table.to_pylist())
    if says is None:
        return []
    kept = evidence_plots.rank_places(table.to_pylist())[:MOST_PANELS]
    rows = [r for r in table.to_pylist() if (r["sweep"], r["model"], r["train_size"]) in kept]
    tips = Tips()
    figure = evidence_plots.draw_ranks(pa.Table.from_pylist(rows, schema=table.schema), tips=tips)
    caption = (
        "Mean ranks by test score over data sets, a row per budget; methods confirmed on every data set. The bar "
        "reaches from the first one as far as Nemenyi's critical difference: what lies in it is not distinguishable "
        "from the first. It is drawn where there are three methods and three data sets."
    )
    label = "Mean ranks of the methods over data sets at each budget"
    width = 30 if len(kept) == 1 else None
    return [Picture("mean_ranks", "ranks", figure, label, caption, says, tips, _ranks_chart(rows, kept, says), width)]


def _ranks_chart(rows: list[Row], places: list[evidence_plots.Place], says: str) -> vega.Spec:
    titles = {place: evidence_plots.rank_title(place, places) for place in places}
    keys = in_order({r["method"] for r in rows})
    budgets = sorted({r["reference"] for r in rows}, key=budget_order)
    best: dict[tuple[str, str], float] = {}
    values: list[Row] = []
    for r in rows:
        panel = titles[r["sweep"], r["model"], r["train_size"]]
        best[panel, r["reference"]] = min(best.get((panel, r["reference"]), r["mean_rank"]), r["mean_rank"])
        names = ("reference", "mean_rank", "methods", "datasets", "p_friedman", "critical_difference")
        row = budgets.index(r["reference"])
        level = row + evidence_plots.APART * (keys.index(r["method"]) - (len(keys) - 1) / 2)
        values.append({"panel": panel, "method": style(r["method"]).name, "row": row, "level": level})
        values[-1] |= {k: r[k] for k in names}
    for value in values:
        first = best[value["panel"], value["reference"]]
        reach = value["critical_difference"]
        if reach is not None and value["mean_rank"] == first:
            value |= {"from": first, "to": first + reach, "top": value["row"] - 0.36, "bottom": value["row"] + 0.36}
    ticks: vega.Spec = {"values": list(range(len(budgets))), "labelExpr": f"{json.dumps(budgets)}[datum.value]"}
    y: vega.Spec = {"field": "level", "type": "quantitative", "title": "budget", "axis": ticks | {"grid": False}}
    y |= {"scale": {"domain": [-0.5, len(budgets) - 0.5], "reverse": True, "nice": False}}
    x: vega.Spec = {"field": "mean_rank", "type": "quantitative", "title": "mean rank (1 is the best)"}
    x |= {"scale": {"zero": False}, "axis": {"tickMinStep": 1}}
    tips = [
        {"field": name, "type": kind, "title": called} | ({"format": form} if form else {})
        for name, kind, called, form in (
            ("method", "nominal", "method", ""),
            ("reference", "nominal", "budget", ""),
            ("mean_rank", "quantitative", "mean rank", ".2f"),
            ("methods", "quantitative", "of methods", "d"),
            ("datasets", "quantitative", "data sets", "d"),
            ("p_friedman", "quantitative", "p, Friedman", ".3f"),
            ("critical_difference", "quantitative", "critical difference", ".2f"),
        )
    ]
    bar: vega.Spec = {
        "transform": [{"filter": "isValid(datum.to)"}],
        "mark": {"type": "rect", "color": INK, "opacity": 0.1},
        "encoding": {"y": y | {"field": "top"}, "y2": {"field": "bottom"}, "x": x | {"field": "from"}}
        | {"x2": {"field": "to"}},
    }
    marker: vega.Spec = {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
        "params": [vega.PICKING],
        "encoding": {
            "y": y,
            "x": x,
            "color": vega.colours(keys),
            "shape": vega.shapes(keys),
            "opacity": {"condition": {"param": vega.PICK, "value": 1.0}, "value": 0.12},
            "tooltip": tips,
        },
    }
    head: vega.Spec = {"$schema": vega.SCHEMA, "title": "Mean ranks over data sets", "description": says}
    head |= {"data": {"values": values}}
    layered: vega.Spec = {"width": 360, "height": 44 * len(budgets), "layer": [bar, marker]}
    if len(places) == 1:
        return head | layered
    facet = {"field": "panel", "type": "nominal", "sort": list(titles.values()), "title": None}
    return head | {"facet": facet, "columns": 2, "spec": layered}


def expected(store: Store) -> list[Picture]:
    """Expected best validation score against the rates tried, per data set and training size."""
    table = tuning.best_of_n(store)
    rows = table.to_pylist()
    keys = dict.fromkeys((r["sweep"], r["dataset"], r["train_size"]) for r in rows)
    found: list[Picture] = []
    for key in keys:
        mine = [r for r in rows if (r["sweep"], r["dataset"], r["train_size"]) == key]
        if max(r["n"] for r in mine) < 2 or len(found) == MOST_EXPECTED:
            continue
        panels = evidence_plots.budgets_of(mine)[:MOST_PANELS]
        shown = [r for r in mine if r["reference"] in (*panels, None)]
        tips, where, says = Tips(), place_text(key[1], key[2]), say.conclude_expected(mine)
        figure = evidence_plots.draw_expected(pa.Table.from_pylist(shown, schema=table.schema), tips=tips)
        points = [
            vega.point(panel or "", r["method"], r["n"], r["expected"], reference=r["reference"])
            for panel in panels
            for r in shown
            if r["reference"] in (panel, None)
        ]
        title = f"Expected best of n learning rates: {where}"
        chart = vega.chart(
            points,
            title=title,
            description=says,
            x="learning rates tried",
            y="expected best validation (%)",
            columns=3,
            log=False,
        )
        caption = (
            f"Stage TUNE on {where}: the validation score that the best of n learning rates is expected to have "
            "(Tang et al. 2020), a panel per budget; methods without a budget are dashed in each. A line still rising "
            "at its end says that more tuning would have helped; lines that cross, that with another allowance another "
            "method would have come first."
        )
        stem = f"expected_best{'' if not found else f'_{len(found) + 1}'}"
        label = f"Expected best validation score against learning rates tried on {where}"
        width = 30 if len(panels) == 1 else None
        found.append(Picture(stem, "expected", figure, label, caption, says, tips, chart, width))
    return found
