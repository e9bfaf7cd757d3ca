"""The figures of the diagnostics as Vega-Lite: the same numbers with tooltips, a legend that picks methods, and zoom.

The surface has no chart of its own: Vega-Lite draws no third dimension, and the plane's chart has its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from analysis.figures import vega
from analysis.figures.diagnostic_numbers import CORNERS, LEAST, PLACES, alignment, errors, spectra
from analysis.figures.vega import PICK, PICKING, Spec
from analysis.styles import style

Row = dict[str, Any]

_SPLITS = {"train": "training", "val": "validation"}


def spectrum_chart(table: pa.Table, approximation: pa.Table, says: str) -> Spec:
    """Mean singular values per method; beside them the errors for full fine-tuning's update.

    Args:
        table, approximation: rows of the store's tables. says: the figure's sentence.
    """
    left: list[Row] = []
    for r in spectra(table).to_pylist():
        left.append(_named(r) | {"share": 100 * r["share"], "relative": max(r["relative"], LEAST)})
    right = [_named(r) | {k: r[k] for k in ("lora_rank", "error", "n")} for r in errors(approximation).to_pylist()]
    keys = [r["key"] for r in left + right]
    share = _axis("share", "singular value, % of all")
    relative = _axis("relative", "relative to the largest", scale={"type": "log"})
    ranks = {"values": sorted({r["lora_rank"] for r in right}), "format": "d"}
    rank = _axis("lora_rank", "parameters, as LoRA rank", scale={"type": "log", "base": 2}, axis=ranks)
    panels = [_lines(left, keys, share, relative, (("relative", "relative", ".3g"),), points=False)]
    if right:
        error = _axis("error", "relative error", scale={"domainMin": 0})
        tips = (("lora_rank", "LoRA rank", "d"), ("error", "error", ".3f"), ("n", "weights", "d"))
        panels.append(_lines(right, keys, rank, error, tips))
    panels[0]["layer"][0]["params"] = [PICKING]
    return _whole("Spectra of the updates, and what they can approximate", says, panels)


def cka_chart(table: pa.Table, says: str) -> Spec:
    """CKA with full fine-tuning against depth.

    Args:
        table: rows of the store's table. says: the figure's sentence.
    """
    rows = [_named(r) | {k: r[k] for k in ("depth", "cka", "n")} for r in alignment(table).to_pylist()]
    depth = _axis("depth", "block", axis={"tickMinStep": 1, "format": "d"})
    tips = (("depth", "block", "d"), ("cka", "CKA", ".3f"), ("n", "cells", "d"))
    panel = _lines(rows, [r["key"] for r in rows], depth, _axis("cka", "CKA with full fine-tuning"), tips)
    panel["layer"][-1]["params"] = [
        PICKING,
        {"name": "zoom", "select": {"type": "interval"}, "bind": "scales"},
    ]
    return _whole("CKA with full fine-tuning", says, [panel])


def landscape_chart(table: pa.Table, says: str) -> Spec:
    """The loss over the plane of one place, and along its edges; a switch from training to validation examples.

    Args:
        table: rows of the store's table, of one place. says: the figure's sentence.
    """
    rows = [r for r in table.to_pylist() if r["loss"] is not None]
    splits = [s for s in _SPLITS if any(r["split"] == s for r in rows)]
    chosen: Spec = {"name": "examples", "value": splits[0] if splits else "train"}
    if len(splits) > 1:
        chosen["bind"] = {"input": "radio", "options": splits, "labels": [_SPLITS[s] for s in splits]}
    only = [{"filter": "datum.split === examples"}]
    panels: list[Spec] = [
        {"width": 320, "height": 320, "layer": [_plane(rows) | {"transform": only}, *_corners()]},
    ]
    edges = [_edge(r) for r in rows if r["kind"] == "edge"]
    if edges:
        tips = (("t", "share of the way", ".2f"), ("loss", "loss", ".4g"), ("barrier", "barrier", ".4g"))
        panels.append(
            {
                "width": 320,
                "height": 320,
                "data": {"values": edges},
                "transform": only,
                "mark": {"type": "line", "point": True},
                "params": [{"name": "edge_picked", "select": {"type": "point", "fields": ["edge"]}, "bind": "legend"}],
                "encoding": {
                    "x": _axis("t", "share of the way"),
                    "y": _axis("loss", "loss", scale={"zero": False}),
                    "color": {"field": "edge", "type": "nominal", "title": None, "legend": {"orient": "top"}},
                    "opacity": {"condition": {"param": "edge_picked", "value": 1.0}, "value": 0.12},
                    "tooltip": [_tip("edge", "path"), *(_tip(*t) for t in tips)],
                },
            }
        )
    whole = _whole("Loss over the plane through the three models", says, panels)
    return whole | {"params": [chosen], "resolve": {"scale": {"color": "independent"}}}


def _plane(rows: Sequence[Row]) -> Spec:
    """The grid as rectangles around its points."""
    plane = [r for r in rows if r["kind"] == "plane"]
    half = {axis: _step([r[axis] for r in plane]) / 2 for axis in ("x", "y")}
    values = [
        {k: r[k] for k in ("split", "x", "y", "loss")}
        | {"height": math.log10(max(r["loss"], LEAST))}
        | {f"{axis}{end}": r[axis] + sign * half[axis] for axis in half for end, sign in (("0", -1), ("1", 1))}
        for r in plane
    ]
    ground = {"nice": False, "zero": False}
    return {
        "data": {"values": values},
        "mark": "rect",
        "encoding": {
            "x": _axis("x0", "x", scale=ground),
            "x2": {"field": "x1"},
            "y": _axis("y0", "y", scale=ground),
            "y2": {"field": "y1"},
            "color": {
                "field": "height",
                "type": "quantitative",
                "title": "log10 loss",
                "scale": {"scheme": "greys", "zero": False},
            },
            "tooltip": [_tip("x", "x", ".2f"), _tip("y", "y", ".2f"), _tip("loss", "loss", ".4g")],
        },
    }


def _corners() -> list[Spec]:
    """A marker and a name for each of the three models."""
    found: list[Spec] = []
    for method, (x, y) in zip(CORNERS, PLACES, strict=True):
        look = style(method)
        at = {"data": {"values": [{"x0": x, "y0": y}]}}
        place = {k: {"field": f"{k}0", "type": "quantitative"} for k in ("x", "y")}
        mark = {"type": "point", "filled": True, "size": 90, "color": look.colour, "opacity": 1}
        mark["shape"] = vega.shape(method)
        text = {"type": "text", "text": look.name, "dy": -12, "color": look.colour, "fontWeight": "bold"}
        halo = text | {"stroke": "white", "strokeWidth": 3}
        found += [at | {"mark": drawn, "encoding": place} for drawn in (mark, halo, text)]
    return found


def _edge(row: Row) -> Row:
    names = [style(CORNERS[row[k]]).name for k in ("a", "b")]
    return {"edge": " to ".join(names)} | {k: row[k] for k in ("split", "t", "loss", "barrier")}


def _step(values: Sequence[float]) -> float:
    """The distance between neighbouring ticks."""
    ticks = sorted(set(values))
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else 1.0


def _named(row: Row) -> Row:
    return {"key": row["method"], "method": style(row["method"]).name}


def _lines(
    rows: Sequence[Row],
    keys: Sequence[str],
    x: Spec,
    y: Spec,
    tips: Sequence[tuple[str, str, str]],
    *,
    points: bool = True,
) -> Spec:
    """A line per method, with markers that say their numbers.

    Args:
        keys: of all methods in the chart. points: draw markers. The parameter `PICK` fades the others.
    """
    faded = {"condition": {"param": PICK, "value": 1.0}, "value": 0.12}
    shared = {"x": x, "y": y, "color": vega.colours(keys), "opacity": faded}
    tooltip = [_tip("method", "method"), *(_tip(*t) for t in tips)]
    layers: list[Spec] = [{"mark": "line", "encoding": shared | ({} if points else {"tooltip": tooltip})}]
    if points:
        mark = {"type": "point", "filled": True, "size": 60}
        layers.append({"mark": mark, "encoding": shared | {"shape": vega.shapes(keys), "tooltip": tooltip}})
    values = [{k: v for k, v in r.items() if k != "key"} for r in rows]
    return {"width": 360, "height": 280, "data": {"values": values}, "layer": layers}


def _axis(field: str, title: str, **more: Mapping[str, Any]) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False}} | more


def _tip(field: str, title: str, form: str = "") -> Spec:
    kind: Spec = {"type": "quantitative", "format": form} if form else {"type": "nominal"}
    return {"field": field, "title": title} | kind


def _whole(title: str, says: str, panels: Sequence[Spec]) -> Spec:
    head: Spec = {"$schema": vega.SCHEMA, "title": title, "description": says}
    return head | (panels[0] if len(panels) == 1 else {"hconcat": list(panels)})
