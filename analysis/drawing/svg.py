"""A figure as inline SVG: scales with the page, follows its light or dark colours, says its numbers on hover."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape, unescape

import matplotlib as mpl

from analysis.drawing.charts import GRID, INK, MUTED, PAPER, Chart
from analysis.styles import SPARE_COLOURS, STYLES, style

_VARIABLES = {look.colour.lower(): (f"--m-{method}", look.colour, look.dark) for method, look in STYLES.items()}
_VARIABLES |= {light.lower(): (f"--m-spare-{k}", light, dark) for k, (light, dark) in enumerate(SPARE_COLOURS)}
"""Colour of a method in lower case -> its CSS custom property, its colour on a light page and on a dark one."""


def colour_variables(dark: bool) -> str:
    """Return CSS custom properties for the methods' colours, for a light or a dark page."""
    return " ".join(f"{name}: {on_dark if dark else light};" for name, light, on_dark in _VARIABLES.values())


def colour(method: str) -> str:
    """Return a method's colour in CSS, which follows the page's light or dark colours."""
    shown = style(method).colour
    return f"var({_VARIABLES[shown.lower()][0]}, {shown})"


def inline_svg(figure: Chart, name: str, label: str) -> str:
    """Return SVG markup for an HTML page, with hover texts of its markers. Arguments as in `embedded`."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Type": None, "Format": None},
        )
    marks = {"data-method": figure.parts, "data-key": figure.keys, "class": dict.fromkeys(figure.tips, "tip")}
    return embedded(buffer.getvalue(), name, label, figure.tips, marks)


def embedded(
    text: str,
    name: str,
    label: str,
    tips: Mapping[str, str] | None = None,
    marks: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Return matplotlib's SVG, changed so that it can stand in an HTML page.

    Args:
        text: the SVG.
        name: prefix of its ids, unique in the page.
        label: what a screen reader says.
        tips: artist id -> text shown on hover.
        marks: attribute -> artist id -> its value.
    """

    def group(match: re.Match[str]) -> str:
        artist = unescape(match[1])
        attributes = "".join(f' {key}="{escape(of[artist])}"' for key, of in (marks or {}).items() if artist in of)
        tip = f"<title>{escape(tips[artist])}</title>" if tips and artist in tips else ""
        return f'<g id="{match[1]}"{attributes}>{tip}'

    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    text = re.sub(r'<g id="([^"]+)">', group, text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)([^")]+)', rf"\1{name}-\2", text)
    return _themed(text)


def _themed(text: str) -> str:
    """Replace fixed colours by CSS variables, with the fixed colour as fall-back."""
    variables = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}
    variables |= {shown: name for shown, (name, _, _) in _VARIABLES.items()}
    pattern = "|".join(re.escape(colour) for colour in variables)
    return re.sub(
        rf"(?<=: )({pattern})\b", lambda m: f"var({variables[m[1].lower()]}, {m[1]})", text, flags=re.IGNORECASE
    )
