"""What the report shows beyond the main curve: fits, crossings, Pareto front, data-size curves, published curves,
diagnostics. Every number comes from a table; a section without enough budgets, sizes or files is left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from analysis import budgets, drawing, fit_plots, pareto, scaling, sizes, svg
from analysis.budgets import AXES, crossing_sentence
from analysis.methods import place_text
from analysis.published import published_curve
from analysis.store import Store

Row = dict[str, Any]

MOST_SIZE_FIGURES, MOST_PANELS = 4, 8
DIAGNOSTICS = "diagnostics"


def figures(store: Store, x: str = "adapter_params", overlay: str | None = None) -> dict[str, Figure]:
    """The figures of these sections by file stem, only those that there is something to draw in."""
    found: dict[str, Figure] = {}
    bands = _few_panels(budgets.band_table(store, x))
    front = pareto.front(store, x)
    if bands.num_rows:
        found["fits"] = fit_plots.draw_fits(front, bands, budgets.crossing_table(store, x))
    if len({r["cost"] for r in front.to_pylist() if r["cost"] > 0}) > 1:
        found["pareto"] = fit_plots.draw_front(_few_panels(front))
    for index, table in enumerate(_size_tables(store)[:MOST_SIZE_FIGURES]):
        found[f"data_size{'' if index == 0 else f'_{index + 1}'}"] = fit_plots.draw_sizes(table)
    if overlay is not None:
        ours, theirs, title = _overlaid(store, overlay)
        found["overlay"] = fit_plots.draw_overlay(ours, theirs, title)
    return found


def save_figures(folder: Path, drawn: Mapping[str, Figure]) -> dict[str, Path]:
    """Write them into the results folder's `figures/` as PNG, SVG and PDF."""
    paths: dict[str, Path] = {}
    for stem, figure in drawn.items():
        paths |= drawing.save(figure, folder / "figures", stem)
    return paths


def facts(
    store: Store, x: str = "adapter_params", overlay: str | None = None, drawn: Mapping[str, Figure] | None = None
) -> dict[str, Any]:
    """Values of the template more.html.j2; `drawn`: from `figures`, where they are at hand."""
    drawn = figures(store, x, overlay) if drawn is None else drawn
    pictures = {
        stem: svg.inline_svg(figure, f"more-{stem}", _LABELS[stem.split("_")[0]]) for stem, figure in drawn.items()
    }
    front = pareto.front(store, x)
    crossings = budgets.crossing_table(store, x).to_pylist()
    spec = (store.spec() or {}).get("imported")
    return {
        "x": x,
        "several": len({_place(r) for r in front.to_pylist()}) > 1,
        "x_label": AXES[x].label,
        "pictures": pictures,
        "sizes": [s for stem, s in pictures.items() if stem.startswith("data_size")],
        "fits": budgets.fit_table(store, x).to_pylist(),
        "crossings": crossings,
        "said": [_on(r) + crossing_sentence(r) for r in crossings if r["method"] == scaling.FOCUS],
        "needed": budgets.needed_table(store, x).to_pylist(),
        "areas": budgets.area_table(store, x).to_pylist(),
        "front": [r for r in front.to_pylist() if r["on_front"]],
        "imported": spec if isinstance(spec, dict) else None,
        "diagnostics": _diagnostics(store.path),
        "overlay": overlay,
    }


_LABELS = {
    "fits": "Isotonic fits of test accuracy against cost with bootstrap bands, crossings marked",
    "pareto": "Test accuracy against cost; the cells that no other beats are joined",
    "data": "Test accuracy against the number of training images, a line per method",
    "overlay": "Published curves, dashed, beside the curves of this sweep",
}


def _few_panels(table: pa.Table) -> pa.Table:
    """The rows of the first places; the tables below a figure have them all."""
    rows = table.to_pylist()
    kept = list(dict.fromkeys(_place(r) for r in rows))[:MOST_PANELS]
    return pa.Table.from_pylist([r for r in rows if _place(r) in kept], schema=table.schema)


def _on(row: Row) -> str:
    return f"On {place_text(row['dataset'], row['train_size'])}: "


def _size_tables(store: Store) -> list[pa.Table]:
    table = sizes.size_curves(store)
    keys = dict.fromkeys((r["sweep"], r["model"], r["dataset"]) for r in table.to_pylist())
    found = []
    for sweep, model, dataset in keys:
        same = pc.is_null(table["dataset"]) if dataset is None else pc.equal(table["dataset"], dataset)
        chosen = pc.and_(pc.and_(pc.equal(table["sweep"], sweep), pc.equal(table["model"], model)), same)
        found.append(table.filter(pc.fill_null(chosen, False)))
    return found


def _overlaid(store: Store, overlay: str) -> tuple[pa.Table, pa.Table, str]:
    """Our first panel (the mean over data sets where there is one) and the published curve of that name."""
    from analysis.plots import places

    curve = scaling.curve(store)
    panels = places(curve)
    rows = [r for r in curve.to_pylist() if panels and _place(r) == panels[0]]
    theirs, title = published_curve(overlay)
    return pa.Table.from_pylist(rows, schema=scaling.CURVE), theirs, title


def _place(row: Row) -> tuple[str, str, str | None, str]:
    return row["sweep"], row["model"], row["dataset"], row["train_size"]


def _diagnostics(folder: Path) -> list[Row]:
    """Figures that `sweeps analyze` left, with what they say, oldest first."""
    found = []
    for picture in sorted((folder / DIAGNOSTICS).glob("*.svg")):
        text = picture.with_suffix(".txt")
        said = text.read_text(encoding="utf-8").strip() if text.is_file() else picture.stem
        markup = picture.read_text(encoding="utf-8")
        shown = svg.embedded(markup, f"diagnostic-{picture.stem}", said)
        found.append({"svg": shown, "says": said, "wide": picture.stem == "spectrum"})
    return found
