"""A figure as inline SVG: scales with the page, follows its light or dark colours, says its numbers on hover."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape

import matplotlib as mpl
import pyarrow as pa
from matplotlib.figure import Figure

from analysis.figures import drawing
from analysis.styles import STYLES, in_order, places, style


def colour_variables(dark: bool) -> str:
    """CSS custom properties for the methods' colours, for a light or a dark page."""
    shown = {m: look.dark if dark else look.colour for m, look in STYLES.items()}
    return " ".join(f"--m-{method}: {colour};" for method, colour in shown.items())


def inline_svg(figure: Figure, name: str, label: str, tips: Mapping[str, str] | None = None) -> str:
    """SVG markup to stand in an HTML page.

    Args:
        figure: to draw.
        name: prefix of its ids, unique in the page.
        label: what a screen reader says.
        tips: artist id -> text shown on hover.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Type": None, "Format": None},
        )
    return embedded(buffer.getvalue(), name, label, tips)


def embedded(text: str, name: str, label: str, tips: Mapping[str, str] | None = None) -> str:
    """SVG as matplotlib wrote it, made to stand in an HTML page; arguments as of `inline_svg`."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    for artist, tip in (tips or {}).items():
        text = text.replace(f'<g id="{artist}">', f'<g id="{artist}" class="tip"><title>{escape(tip)}</title>')
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)([^")]+)', rf"\1{name}-\2", text)
    return _themed(text)


def _themed(text: str) -> str:
    """Fixed colours to CSS variables with the fixed colour as fall-back."""
    variables = {drawing.INK: "--ink", drawing.MUTED: "--muted", drawing.GRID: "--grid", drawing.PAPER: "--paper"}
    variables |= {look.colour.lower(): f"--m-{method}" for method, look in STYLES.items()}
    pattern = "|".join(re.escape(colour) for colour in variables)
    return re.sub(
        rf"(?<=: )({pattern})\b", lambda m: f"var({variables[m[1].lower()]}, {m[1]})", text, flags=re.IGNORECASE
    )


def scaling_tips(curve: pa.Table) -> dict[str, str]:
    """Hover texts of `plots.draw_scaling`'s points: method, parameters, score, interval, seeds."""
    tips = {}
    rows = curve.to_pylist()
    for index, panel in enumerate(places(curve)):
        mine = [
            r for r in rows if (r["sweep"], r["model"], r["dataset"], r["train_size"]) == panel and r["kind"] == "curve"
        ]
        for method in in_order({r["method"] for r in mine}):
            points = sorted((r for r in mine if r["method"] == method), key=lambda r: r["adapter_params"])
            for i, r in enumerate(points):
                interval = "" if r["low"] is None else f" [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
                tips[f"point:{index}:{method}:{i}"] = (
                    f"{style(method).name} at {r['reference']}: {r['adapter_params']:,} parameters, "
                    f"{100 * r['mean']:.1f} %{interval}, {r['n']} seeds"
                )
    return tips
