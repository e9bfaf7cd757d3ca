"""One self-contained HTML page per results folder: the answer, the main figure and table, then all the evidence.

The page makes no request (its policy forbids it), follows light and dark, prints, and reads on a phone. Every number
comes from a function that returns a table. The page is a loop over `findings.all.FINDINGS`, section by section.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from analysis.drawing.picture import save_pictures
from analysis.drawing.svg import colour
from analysis.findings.all import Shown, show
from analysis.findings.finding import View
from analysis.format import moment
from analysis.report.facts import facts
from analysis.sheets import forms
from analysis.sheets.html import templates
from analysis.store.store import Store, open_store

_RECORD = ".report.json"
"""Names of what the last report wrote beside its page."""


def write_report(
    folder: str | Path, *, x: str = "adapter_params", overlay: str | None = None, receipt: str | None = None
) -> dict[str, Path]:
    """Draw the figures of a results folder, write its tables for papers, and its report.html.

    Args:
        folder: the results folder.
        x: the cost on the axis of the fits and of the Pareto front, one of `measured.AXES`.
        overlay: name of a published curve (`publications.publication_names()`) to draw beside the first panel.
        receipt: what `sweeps verify` says of the folder in one line; None leaves it out.

    Returns:
        The paths of the written files by name: figures ('fits.png', '.svg', '.pdf' and so on, without those that would
        be empty), tables ('results.md', '.tex', '.csv' and so on), and 'report'.

    Raises:
        StoreError: the folder holds no sweep, or the cost or the published curve is unknown.
    """
    store = open_store(folder)
    shown = show(store, View(x, overlay))
    sheets = [sheet for each in shown for sheet in each.sheets]
    paths = save_pictures((picture for each in shown for picture in each.pictures), store.path)
    paths |= forms.save(sheets, store.path) if sheets else {}
    _take_away(store.path, paths.values())
    page = store.path / "report.html"
    temporary = page.with_suffix(f".html.{os.getpid()}.tmp")  # a run that ends may write it too
    text = render(store, View(x, overlay), shown=shown, receipt=receipt)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(page)
    return {**paths, "report": page}


def _take_away(folder: Path, written: Iterable[Path]) -> None:
    """Remove figures and tables that the last report wrote and this one did not. Files of other origin stay."""
    record = folder / _RECORD
    now = sorted(path.relative_to(folder).as_posix() for path in written)
    try:
        before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []
    except (ValueError, RecursionError):
        before = []
    for name in {str(n) for n in before} - set(now):
        place, _, file = name.partition("/")
        if place in ("figures", forms.FOLDER) and "/" not in file:
            (folder / place / file).unlink(missing_ok=True)
    if now != before:
        record.write_text(json.dumps(now), encoding="utf-8")


def render(
    store: Store, view: View = View(), *, shown: Sequence[Shown] | None = None, receipt: str | None = None
) -> str:
    """Return the page as text.

    Args:
        store: the results.
        view: the cost of the fits, and the published curve.
        shown: what the findings show, if it is computed already.
        receipt: as in `write_report`.
    """
    shown = show(store, view) if shown is None else shown
    environment = templates("analysis.report")
    filters: dict[str, Any] = {"colour": lambda v: colour(v) if v else "transparent", "moment": moment}
    environment.filters |= filters
    script = resources.files("analysis.report").joinpath("templates", "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    by_section: dict[str | None, list[Shown]] = {}
    for each in shown:
        if each.sheets or each.pictures:
            by_section.setdefault(each.section, []).append(each)
    values: dict[str, Any] = {
        "sections": by_section,
        "sheets": {sheet.name: sheet for each in shown for sheet in each.sheets},
        "overlay": view.overlay,
        "receipt": receipt,
        "script": Markup(script),  # noqa: S704  ours
        "digest": digest,
    }
    return environment.get_template("report.html.j2").render(**facts(store), **values)
