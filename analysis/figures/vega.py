"""Figures as Vega-Lite (JSON): the numbers of the table inside, tooltips, a legend that picks methods, zoom.

`STEM.vl.json` opens in JupyterLab, the Vega editor, Observable or `altair.Chart.from_json` without any other file. The
specification is plain JSON, so nothing is needed to write it; tests hold it against Vega-Lite's schema and draw it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.styles import in_order, style

Row = dict[str, Any]
Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
"""Names the format; nothing reads the address."""
PICK = "pick"
PICKING: Spec = {"name": PICK, "select": {"type": "point", "fields": ["method"]}, "bind": "legend"}
"""A legend that picks methods."""
_SHAPES = {
    "o": "circle",
    "s": "square",
    "p": "triangle-right",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
}


def point(panel: str, method: str, x: float | None, score: float, **more: Any) -> Row:
    """A measured number. `more`: low, high (fractions), reference, seeds, note. Scores become percent."""
    return _row("rule" if x is None else "point", panel, method, x, score, more)


def fitted(panel: str, method: str, x: float, score: float, **more: Any) -> Row:
    """A number on a fitted curve, drawn as line and band without a marker."""
    return _row("fit", panel, method, x, score, more)


def _row(role: str, panel: str, method: str, x: float | None, score: float, more: Mapping[str, Any]) -> Row:
    scaled = {k: 100 * more[k] for k in ("low", "high") if more.get(k) is not None}
    others = {k: v for k, v in more.items() if k not in ("low", "high") and v is not None}
    row: Row = {"role": role, "panel": panel, "key": method, "method": style(method).name, "score": 100 * score}
    return row | ({} if x is None else {"x": x}) | scaled | others


def chart(
    rows: Sequence[Row],
    *,
    title: str,
    description: str,
    x: str,
    y: str = "test accuracy (%)",
    joined: bool = True,
    band: bool = True,
    dashes: str | None = None,
    columns: int = 2,
    log: bool = True,
) -> Spec:
    """A chart of scores against a logarithmic cost; horizontal lines far below the curves are left out.

    Args:
        rows: from `point` and `fitted`; not empty.
        title, description: shown, and said to screen readers.
        x, y: titles of the axes.
        joined: join a method's points with a line, one for each `line` that rows name.
        band: shade from low to high.
        dashes: the `line` that is drawn dashed.
        columns: panels in a row.
        log: the cost is on a logarithmic axis; else it is a small whole number.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("no chart to make: there is no row")
    rows = _without_far_lines(rows)
    keys = in_order({r["key"] for r in rows})
    panels = list(dict.fromkeys(r["panel"] for r in rows))
    fits = any(r["role"] == "fit" for r in rows)
    layers = []
    if band and any("low" in r for r in rows if r["role"] == ("fit" if fits else "point")):
        layers.append(
            _layer("area", "fit" if fits else "point", {"y": _y(y, "low"), "y2": {"field": "high"}}, band=True)
        )
    if any(r["role"] == "rule" for r in rows):
        layers.append(_layer("rule", "rule", {"y": _y(y)}, tooltip=True, across=True))
    if fits or joined:
        dashed = {"condition": {"test": f"datum.line === {json.dumps(dashes)}", "value": [4, 2]}, "value": [1, 0]}
        layers.append(
            _layer("line", "fit" if fits else "point", {"y": _y(y)} | ({"strokeDash": dashed} if dashes else {}))
        )
    layers.append(_layer("point", "point", {"y": _y(y), "shape": shapes(keys)}, tooltip=True))
    shared: Spec = {"color": colours(keys)}
    small = max((r["x"] for r in rows if "x" in r), default=1.0) <= 1.0  # learning rates, not counts
    ticks = {"format": ".0e" if small else "~s", "grid": False}
    axis: Spec = {"field": "x", "type": "quantitative", "title": x, "axis": ticks if log else {"tickMinStep": 1}}
    axis["scale"] = {"type": "log", "nice": False, "padding": 12} if log else {"zero": False, "padding": 12}
    for layer in layers:
        if layer["mark"]["type"] != "rule":
            layer["encoding"]["x"] = axis
    picked: list[Spec] = [PICKING]
    if len(panels) == 1:  # panels with scales of their own can't share a zoom
        picked.append({"name": "zoom", "select": "interval", "bind": "scales"})
    layers[-1]["params"] = picked
    layered: Spec = {"layer": layers, "encoding": shared}
    spec: Spec = {"$schema": SCHEMA, "title": title, "description": description}
    spec["data"] = {"values": [{k: v for k, v in r.items() if k != "key"} for r in rows]}
    if len(panels) == 1:
        return spec | {"width": 480, "height": 320} | layered
    facet: Spec = {"field": "panel", "type": "nominal", "sort": panels, "title": None}
    layered |= {"width": 320, "height": 220}
    return spec | {"facet": facet, "columns": columns, "spec": layered, "resolve": {"scale": {"y": "independent"}}}


def _without_far_lines(rows: Sequence[Row]) -> list[Row]:
    """Rows but for horizontal lines so far below the curves (zero-shot) that they would flatten them."""
    scores = [r["score"] for r in rows if r["role"] != "rule"]
    if not scores:
        return list(rows)
    low = min(scores) - max(max(scores) - min(scores), 2.0)
    return [r for r in rows if r["role"] != "rule" or r["score"] >= low]


def _layer(
    mark: str, role: str, encoding: Spec, *, tooltip: bool = False, band: bool = False, across: bool = False
) -> Spec:
    looks: dict[str, Spec] = {
        "area": {"type": "area"},
        "line": {"type": "line"},
        "point": {"type": "point", "filled": True, "size": 60},
        "rule": {"type": "rule", "strokeDash": [5, 3]},
    }
    full = 0.15 if band else 1.0
    found: Spec = {"transform": [{"filter": _filter(role, band)}], "mark": looks[mark], "encoding": dict(encoding)}
    found["encoding"]["opacity"] = {"condition": {"param": PICK, "value": full}, "value": full / 8}
    if mark in ("line", "area"):
        found["encoding"]["detail"] = [{"field": "line", "type": "nominal"}]
    if tooltip:
        found["encoding"]["tooltip"] = [
            {"field": name, "type": kind, "title": called} | ({"format": form} if form else {})
            for name, kind, called, form in (
                ("method", "nominal", "method", ""),
                ("reference", "nominal", "budget", ""),
                *(() if across else (("x", "quantitative", "x", ",.4~r"),)),
                ("score", "quantitative", "score, %", ".1f"),
                ("low", "quantitative", "95 % from", ".1f"),
                ("high", "quantitative", "95 % to", ".1f"),
                ("seeds", "quantitative", "seeds", ""),
                ("note", "nominal", "note", ""),
            )
        ]
    return found


def _filter(role: str, band: bool) -> str:
    return f"datum.role === '{role}'" + (" && isValid(datum.low)" if band else "")


def _y(title: str, field: str = "score") -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False}}


def save(spec: Spec, path: Path) -> None:
    """Write a chart as a file of its own."""
    path.write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def colours(keys: Iterable[str]) -> Spec:
    """The colour channel, with the legend, of these methods."""
    looks = [style(k) for k in in_order(set(keys))]
    scale = {"domain": [s.name for s in looks], "range": [s.colour for s in looks]}
    return {
        "field": "method",
        "type": "nominal",
        "title": None,
        "scale": scale,
        "legend": {"orient": "top", "symbolOpacity": 1},
    }


def shapes(keys: Iterable[str]) -> Spec:
    """The shape channel of these methods."""
    found = in_order(set(keys))
    scale = {"domain": [style(k).name for k in found], "range": [shape(k) for k in found]}
    return {"field": "method", "type": "nominal", "legend": None, "scale": scale}


def shape(method: str) -> str:
    """A method's marker."""
    return _SHAPES.get(style(method).marker or "", "cross")
