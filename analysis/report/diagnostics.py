"""Figures that `sweeps analyze` left in a results folder, with their sentences and the names of their tables.

Reads files only: a figure is `diagnostics/STEM.svg`, its sentence `STEM.txt`.
"""

from __future__ import annotations

from typing import Any

from analysis.figures import svg
from analysis.store.store import Store
from analysis.tables.diagnostics import FOLDER, SHEETS, WIDE, diagnostic_sheets


def diagnostics(store: Store) -> list[dict[str, Any]]:
    """Figures with what they say: `stem`, `svg` (markup), `says`, `wide`, `sheets` (the names of their tables)."""
    there = {sheet.name for sheet in diagnostic_sheets(store)}
    found = []
    for picture in sorted((store.path / FOLDER).glob("*.svg")):
        text = picture.with_suffix(".txt")
        said = text.read_text(encoding="utf-8").strip() if text.is_file() else picture.stem
        shown = svg.embedded(picture.read_text(encoding="utf-8"), f"diagnostic-{picture.stem}", said)
        names = [f"diagnostic_{name}" for name in SHEETS.get(picture.stem, ())]
        sheets = [name for name in names if name in there]
        found.append({"stem": picture.stem, "svg": shown, "says": said, "wide": picture.stem in WIDE, "sheets": sheets})
    return found
