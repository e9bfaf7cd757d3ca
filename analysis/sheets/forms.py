"""The forms in which a sheet is written to a file: Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from analysis.errors import StoreError, nearest
from analysis.sheets.data import sheet_csv
from analysis.sheets.latex import latex
from analysis.sheets.markdown import markdown
from analysis.sheets.sheet import Sheet

FORMS: dict[str, tuple[str, Callable[[Sheet], str]]] = {
    "markdown": (".md", markdown),
    "latex": (".tex", latex),
    "csv": (".csv", sheet_csv),
}
"""Form -> (suffix, writer)."""

FOLDER = "report_tables"
"""Where a results folder keeps them; `tables/` holds the Parquet parts."""


def save(sheets: Iterable[Sheet], folder: Path) -> dict[str, Path]:
    """Write every sheet in every form into a results folder's `report_tables/`; returns 'NAME.SUFFIX' -> path."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    paths = {}
    for sheet in sheets:
        for suffix, form in FORMS.values():
            path = place / f"{sheet.name}{suffix}"
            path.write_text(form(sheet), encoding="utf-8")
            paths[path.name] = path
    return paths


def form_of(name: str) -> Callable[[Sheet], str]:
    """Return a form by name. Raises StoreError if it is unknown; the error lists the known ones."""
    if name not in FORMS:
        raise StoreError(f"unknown form {name!r} of a table; {nearest(name, FORMS)}")
    return FORMS[name][1]
