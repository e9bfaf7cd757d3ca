"""Figures of the diagnostics, drawn from tables that `spectrum`, `cka` and `landscape` computed. Needs no torch.

The numbers that the figures show, means over weights, cells and data sets, are tables of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa

from analysis.drawing.charts import COLUMN_INCHES, DOTS, INK, MUTED, PAPER, SMALL, STYLE, Chart, save
from analysis.findings.diagnostics.sheets import CORNERS, INTRUDER
from analysis.format import Row
from analysis.styles import in_order, place_of, style

LEAST = 1e-6
"""What a logarithm begins at."""
_MOST_NAMED = 12
"""With more methods, names stand beside the marks instead of in a legend."""
SHARES = 101
"""Points of a mean spectrum, from the largest singular value to the last."""


def mean_spectra(spectrum: pa.Table) -> list[Row]:
    """Return each method's mean spectrum: singular values over the largest, at shares (0 to 1) of their number.

    Args:
        spectrum: rows of the table `spectrum`; updates that are zero have none.
    """
    rows, points = spectrum.to_pylist(), list[Row]()
    at = np.linspace(0, 1, SHARES)
    for method in in_order({r["method"] for r in rows}):
        curves = [np.asarray(r["singular_values"]) for r in rows if r["method"] == method and r["spectral"] > 0]
        if curves:
            mean = np.mean([np.interp(at, np.linspace(0, 1, len(c)), c / c.max()) for c in curves], axis=0)
            points += [{"method": method, "share": s, "relative": v} for s, v in zip(at, mean, strict=True)]
    return points


def mean_errors(approximation: pa.Table, target: str = "trained") -> list[Row]:
    """Return the relative `error` by form (`method`) and parameters (`lora_rank`), as means over `n` weights.

    Args:
        approximation: rows of the table of that name; those without a `target` are of trained updates.
        target: of which updates.
    """
    rows = [r | {"method": r["form"]} for r in approximation.to_pylist() if (r.get("target") or "trained") == target]
    return _means(rows, "lora_rank", "error")


def mean_cka(cka: pa.Table) -> list[Row]:
    """Return the CKA by layer (`depth`) for each method at its largest budget, as means over `n` cells.

    Args:
        cka: rows of the table of that name; those without a number are left out.
    """
    rows = [r for r in cka.to_pylist() if r["cka"] is not None]
    largest: dict[str, int] = defaultdict(int)
    for r in rows:
        largest[r["method"]] = max(largest[r["method"]], r["adapter_params"] or 0)
    return _means([r for r in rows if (r["adapter_params"] or 0) == largest[r["method"]]], "depth", "cka")


def _means(rows: Sequence[Row], at: str, value: str) -> list[Row]:
    """Return the mean of the column `value` by method and the column `at`, over `n` rows."""
    values: dict[tuple[str, int], list[float]] = defaultdict(list)
    for r in rows:
        values[r["method"], r[at]].append(r[value])
    return [
        {"method": method, at: x, value: float(np.mean(values[method, x])), "n": len(values[method, x])}
        for method in in_order({m for m, _ in values})
        for x in sorted(x for m, x in values if m == method)
    ]


def draw_spectrum(table: pa.Table, approximation: pa.Table) -> Chart:
    """Draw mean singular values over the largest (left), and errors for full fine-tuning's update (right)."""
    points = mean_errors(approximation)
    curves = [
        {"method": r["method"], "share": 100 * r["share"], "relative": max(r["relative"], LEAST)}
        for r in mean_spectra(table)
    ]
    with mpl.rc_context(STYLE):
        count = 2 if points else 1
        figure = Chart(COLUMN_INCHES * count, 2.7)
        left, *right = figure.subplots(1, count, squeeze=False)[0]
        _lines(left, curves, "share", "relative", marker=None, linestyle="-")
        left.set_yscale("log")
        left.yaxis.set_major_formatter("{x:g}")
        left.set_ylim(1e-4, 1.5)
        left.set_xlabel("singular value, % of all")
        left.set_ylabel("relative to the largest")
        left.legend(loc="lower left")
        for axes in right:
            _lines(axes, points, "lora_rank", "error", markeredgecolor=PAPER)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_ylim(0, 1.05)
            axes.set_xlabel("parameters, as LoRA rank")
            axes.set_ylabel("relative error")
            axes.legend(loc="lower left")
        figure.tight_layout()
        return figure


def mean_intruders(intruders: pa.Table) -> list[Row]:
    """Return the mean number of intruders of a weight for each method, budget (`reference`) and `threshold`.

    Args:
        intruders: rows of the table `intruders`.
    """
    cells: dict[tuple[str, str | None, int], list[Any]] = defaultdict(list)
    for r in intruders.to_pylist():
        key = r["method"], r["reference"], r["adapter_params"] or 0
        cells[key].append(np.asarray(r["cosines"][: r["counted"]]))
    order = in_order({method for method, _, _ in cells})
    return [
        {
            "method": key[0],
            "reference": key[1],
            "threshold": at,
            "intruders": float(np.mean([(c < at).sum() for c in cosines])),
        }
        for key, cosines in sorted(cells.items(), key=lambda cell: (order.index(cell[0][0]), cell[0][2]))
        for at in np.linspace(0, 1, SHARES)
    ]


def draw_intruders(table: pa.Table) -> Chart:
    """Draw the mean number of intruders of a weight against the threshold: a panel per budget, a line per method.

    Methods without a budget (full fine-tuning) are in every panel.
    """
    rows = mean_intruders(table)
    budgets = list(dict.fromkeys(r["reference"] for r in rows if r["reference"])) or [None]
    with mpl.rc_context(STYLE):
        figure = Chart(COLUMN_INCHES * len(budgets), 2.7)
        for axes, budget in zip(figure.subplots(1, len(budgets), squeeze=False)[0], budgets, strict=True):
            shown = [r for r in rows if r["reference"] in (budget, None)]
            _lines(axes, shown, "threshold", "intruders", marker=None)
            axes.axvline(INTRUDER, color=MUTED, linewidth=0.6, linestyle=":")
            axes.set_xlim(0, 1)
            axes.set_xlabel("threshold of the largest cosine")
            axes.set_ylabel("intruders of a weight")
            if budget:
                axes.set_title(budget)
            axes.legend(loc="upper left")
        figure.tight_layout()
        return figure


def draw_retention(table: pa.Table, label: str, scale: float = 1.0) -> Chart:
    """Draw the mean test score against the mean change by training: a mark per method and budget.

    Args:
        table: rows with `change`.
        label: the label of the changes.
        scale: what changes are multiplied by.
    """
    cells: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for r in table.to_pylist():
        if r["score"] is not None:
            cells[r["method"], r["reference"]].append(r)
    with mpl.rc_context(STYLE):
        figure = Chart(COLUMN_INCHES, 2.7)
        axes = figure.add_axes((0.17, 0.17, 0.8, 0.77))
        for method in in_order({m for m, _ in cells}):
            look, budgets = style(method), [rows for (m, _), rows in cells.items() if m == method]
            x = [scale * float(np.mean([r["change"] for r in rows])) for rows in budgets]
            y = [100 * float(np.mean([r["score"] for r in rows])) for rows in budgets]
            marks: dict[str, Any] = {"color": look.colour, "marker": look.marker or "*", "label": look.name}
            axes.plot(x, y, linestyle="none", markeredgecolor=PAPER, **marks)
        axes.axvline(0.0, color=MUTED, linewidth=0.6)
        axes.set_xlabel(label)
        axes.set_ylabel("test score (%)")
        axes.legend(loc="best")
        return figure


def predicted_rates(table: pa.Table) -> dict[str, list[Row]]:
    """Return for each prediction the rows of the table `curvature` that have it, with its value as `predicted`."""
    found: dict[str, list[Row]] = {"1 / sharpness": [], "rate of the first step": []}
    for r in table.to_pylist():
        if r["sharpness"] is not None and r["sharpness"] > 0:
            found["1 / sharpness"].append(r | {"predicted": 1 / r["sharpness"]})
        if r["first_rate"] is not None:
            found["rate of the first step"].append(r | {"predicted": r["first_rate"]})
    return found


def draw_curvature(table: pa.Table) -> Chart:
    """Draw each cell's chosen learning rate against what the curvature at its start predicts: two panels."""
    predictions = predicted_rates(table)
    methods = in_order({r["method"] for rows in predictions.values() for r in rows})
    with mpl.rc_context(STYLE):
        figure = Chart(COLUMN_INCHES * len(predictions), 2.9)
        panels = figure.subplots(1, len(predictions), sharey=True, squeeze=False)[0]
        for axes, (name, rows) in zip(panels, predictions.items(), strict=True):
            for method in methods:
                look, of_method = style(method), [r for r in rows if r["method"] == method]
                marks: dict[str, Any] = {"color": look.colour, "marker": look.marker or "*", "label": look.name}
                x, y = [r["predicted"] for r in of_method], [r["lr"] for r in of_method]
                axes.plot(x, y, linestyle="none", markeredgecolor=PAPER, **marks)
                for r in of_method if len(methods) > _MOST_NAMED else ():
                    axes.annotate(look.name, (r["predicted"], r["lr"]), (2, 2), textcoords="offset points", fontsize=4)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel(name)
        panels[0].set_ylabel("chosen learning rate")
        if len(methods) <= _MOST_NAMED:
            panels[-1].legend(loc="best")
        return figure


def draw_cka(table: pa.Table) -> Chart:
    """Draw CKA with full fine-tuning against depth, a line per method at its largest budget."""
    rows = mean_cka(table)
    with mpl.rc_context(STYLE):
        figure = Chart(COLUMN_INCHES, 2.7)
        axes = figure.add_axes((0.15, 0.16, 0.82, 0.78))
        _lines(axes, rows, "depth", "cka")
        axes.set_xlabel("layer: attention and MLP of every block")
        axes.set_ylabel("CKA with full fine-tuning")
        if rows:
            axes.legend(loc="lower left")
        return figure


def _lines(axes: Any, rows: Sequence[Row], x: str, y: str, **look: Any) -> None:
    """Draw a line per method with its markers, dotted for a method without a budget."""
    for method in dict.fromkeys(r["method"] for r in rows):
        line, look_of_method = [r for r in rows if r["method"] == method], style(method)
        dashes = "-" if look_of_method.marker else DOTS
        drawn = {
            "color": look_of_method.colour,
            "marker": look_of_method.marker,
            "linestyle": dashes,
            "label": look_of_method.name,
        }
        axes.plot([r[x] for r in line], [r[y] for r in line], **drawn | look)


def split_by_place(table: pa.Table) -> list[pa.Table]:
    """Return the rows of each place as a table, in order of first appearance."""
    keys = [place_of(r) for r in table.to_pylist()]
    return [table.filter(pa.array([k == place for k in keys])) for place in dict.fromkeys(keys)]


def draw_landscape(table: pa.Table) -> Chart:
    """Draw the training loss over the plane of one place as contours, with the three models marked."""
    xs, ys, shown = _heights(table)
    with mpl.rc_context(STYLE):
        figure = Chart(COLUMN_INCHES, 3.0)
        axes = figure.add_axes((0.13, 0.14, 0.7, 0.8))
        filled = axes.contourf(xs, ys, shown, levels=14, cmap="Greys")
        axes.contour(xs, ys, shown, levels=14, colors=INK, linewidths=0.3)
        for method, (x, y) in CORNERS.items():
            look = style(method)
            axes.plot([x], [y], marker=look.marker or "*", color=look.colour, markeredgecolor=PAPER, markersize=8)
            axes.annotate(
                look.name, (x, y), xytext=(4, 5), textcoords="offset points", fontsize=SMALL, color=look.colour
            )
        axes.grid(visible=False)
        bar = figure.colorbar(filled, ax=axes, fraction=0.05)
        bar.set_label("log10 loss")
        return figure


def draw_surface(table: pa.Table) -> Chart:
    """Draw the training loss over the plane of one place as a surface, with the three models and the edges."""
    xs, ys, shown = _heights(table)
    with mpl.rc_context(STYLE):
        figure = Chart(COLUMN_INCHES, 3.2)
        axes: Any = figure.add_axes((0.0, 0.04, 0.9, 0.94), projection="3d")
        grid_x, grid_y = np.meshgrid(xs, ys)
        axes.computed_zorder = False  # the models stand on the surface, not inside it
        axes.plot_surface(
            grid_x, grid_y, shown, cmap="Greys", rstride=1, cstride=1, edgecolor=INK, linewidth=0.2, zorder=1
        )
        edges = [
            r for r in table.to_pylist() if r["kind"] == "edge" and r["split"] == "train" and r["loss"] is not None
        ]
        for pair in sorted({(r["a"], r["b"]) for r in edges}):
            line = sorted((r for r in edges if (r["a"], r["b"]) == pair), key=lambda r: r["t"])
            heights = _log([r["loss"] for r in line])
            axes.plot([r["x"] for r in line], [r["y"] for r in line], heights, color=MUTED, linewidth=0.9, zorder=2)
        for corner, (method, (x, y)) in enumerate(CORNERS.items()):
            at = next((r for r in edges if corner in (r["a"], r["b"]) and (r["x"], r["y"]) == (x, y)), None)
            if at is not None:
                look, height = style(method), float(_log([at["loss"]])[0])
                axes.plot(
                    [x], [y], [height], look.marker or "*", color=look.colour, markeredgecolor=PAPER,
                    markersize=8, zorder=3, label=look.name,
                )  # fmt: skip
        axes.view_init(elev=32, azim=-60)
        axes.tick_params(labelsize=SMALL, pad=-2)
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
        axes.set_zlabel("log10 loss", labelpad=-4)
        if edges:
            axes.legend(loc="upper left", fontsize=SMALL)
        return figure


def _heights(table: pa.Table) -> tuple[list[float], list[float], Any]:
    """Return the ticks of both axes and log10 of the training loss (y, x), masked if it was not finite."""
    rows = [r for r in table.to_pylist() if r["kind"] == "plane" and r["split"] == "train"]
    xs, ys = sorted({r["x"] for r in rows}), sorted({r["y"] for r in rows})
    level = {(r["x"], r["y"]): r["loss"] for r in rows}
    losses = np.array([[level[x, y] for x in xs] for y in ys], dtype=float)  # None becomes NaN
    return xs, ys, np.ma.masked_invalid(_log(losses))


def _log(losses: Any) -> Any:
    return np.log10(np.maximum(np.asarray(losses, dtype=float), LEAST))


@dataclass(frozen=True)
class Drawing:
    """A figure of a diagnostic: the stem of its files, and what the report prints under it."""

    stem: str
    figure: Chart
    says: str


def write_drawings(drawings: Sequence[Drawing], folder: Path, kind: str) -> dict[str, Path]:
    """Save figures into `diagnostics/`: PNG, SVG, PDF, and the sentence; returns file name -> path.

    What an earlier run of the kind left there is taken away: it may have had more figures, or files of another form.
    """
    place = folder / "diagnostics"
    for old in place.glob(f"{kind}*"):
        if old.suffix in (".png", ".svg", ".pdf", ".txt", ".json"):
            old.unlink()
    paths: dict[str, Path] = {}
    for drawn in drawings:
        paths |= save(drawn.figure, place, drawn.stem)
        text = place / f"{drawn.stem}.txt"
        text.write_text(drawn.says + "\n", encoding="utf-8")
        paths[text.name] = text
    return paths
