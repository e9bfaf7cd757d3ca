"""Figures of the diagnostics; each draws tables that `spectrum`, `cka` and `landscape` computed. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from analysis.figures import drawing, vega
from analysis.figures.diagnostic_numbers import CORNERS, LEAST, PLACES, alignment, errors, spectra
from analysis.figures.drawing import COLUMN_INCHES, INK, MUTED, PAPER, STYLE, new_figure
from analysis.styles import style

Row = dict[str, Any]


def draw_spectrum(table: pa.Table, approximation: pa.Table) -> Figure:
    """Left: mean singular values over the largest, per method; right: errors for full fine-tuning's update."""
    curves, points = spectra(table).to_pylist(), errors(approximation).to_pylist()
    with mpl.rc_context(STYLE):
        wide = bool(points)
        figure = new_figure(COLUMN_INCHES * (2 if wide else 1), 2.7)
        axes = figure.subplots(1, 2 if wide else 1, squeeze=False)[0]
        for method in dict.fromkeys(r["method"] for r in curves):
            line = [r for r in curves if r["method"] == method]
            values = [max(r["relative"], LEAST) for r in line]
            axes[0].plot([100 * r["share"] for r in line], values, color=style(method).colour, label=style(method).name)
        axes[0].set_yscale("log")
        axes[0].set_ylim(1e-4, 1.5)
        axes[0].set_xlabel("singular value, % of all")
        axes[0].set_ylabel("relative to the largest")
        axes[0].legend(loc="lower left")
        if wide:
            for form in dict.fromkeys(r["method"] for r in points):
                line, look = [r for r in points if r["method"] == form], style(form)
                ranks, found = [r["lora_rank"] for r in line], [r["error"] for r in line]
                axes[1].plot(
                    ranks, found, color=look.colour, marker=look.marker, markeredgecolor=PAPER, label=look.name
                )
            axes[1].set_xscale("log", base=2)
            axes[1].set_ylim(0, 1.05)
            axes[1].set_xlabel("parameters, as LoRA rank")
            axes[1].set_ylabel("relative error")
            axes[1].legend(loc="lower left")
        figure.tight_layout()
        return figure


def draw_cka(table: pa.Table) -> Figure:
    """CKA with full fine-tuning against depth, a line per method at its largest budget."""
    rows = alignment(table).to_pylist()
    with mpl.rc_context(STYLE):
        figure = new_figure(COLUMN_INCHES, 2.7)
        axes = figure.add_axes((0.15, 0.16, 0.82, 0.78))
        for method in dict.fromkeys(r["method"] for r in rows):
            line, look = [r for r in rows if r["method"] == method], style(method)
            at, values = [r["depth"] for r in line], [r["cka"] for r in line]
            dashes = "-" if look.marker else (0, (1.2, 1.6))
            axes.plot(at, values, color=look.colour, marker=look.marker, linestyle=dashes, label=look.name)
        axes.set_xticks(sorted({r["depth"] for r in rows}))
        axes.set_xlabel("block")
        axes.set_ylabel("CKA with full fine-tuning")
        if rows:
            axes.legend(loc="lower left")
        return figure


def planes(table: pa.Table) -> list[pa.Table]:
    """The rows of each place, in order of first appearance."""
    rows = table.to_pylist()
    keys = [tuple(r[k] for k in ("sweep", "model", "dataset", "train_size")) for r in rows]
    return [
        table.take(pa.array([i for i, k in enumerate(keys) if k == place], pa.int64())) for place in dict.fromkeys(keys)
    ]


def draw_landscape(table: pa.Table) -> Figure:
    """The training loss over the plane of one place as contours, the three models marked."""
    xs, ys, shown = _heights(table)
    with mpl.rc_context(STYLE):
        figure = new_figure(COLUMN_INCHES, 3.0)
        axes = figure.add_axes((0.13, 0.14, 0.7, 0.8))
        filled = axes.contourf(xs, ys, shown, levels=14, cmap="Greys")
        axes.contour(xs, ys, shown, levels=14, colors=INK, linewidths=0.3)
        for method, (x, y) in zip(CORNERS, PLACES, strict=True):
            look = style(method)
            axes.plot([x], [y], marker=look.marker or "*", color=look.colour, markeredgecolor=PAPER, markersize=8)
            axes.annotate(look.name, (x, y), xytext=(4, 5), textcoords="offset points", fontsize=6.8, color=look.colour)
        axes.grid(visible=False)
        bar = figure.colorbar(filled, ax=axes, fraction=0.05)
        bar.set_label("log10 loss")
        return figure


def draw_surface(table: pa.Table) -> Figure:
    """The training loss over the plane of one place as a surface, the three models and the edges on it."""
    xs, ys, shown = _heights(table)
    with mpl.rc_context(STYLE):
        figure = new_figure(COLUMN_INCHES, 3.2)
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
        for corner, (method, (x, y)) in enumerate(zip(CORNERS, PLACES, strict=True)):
            at = next((r for r in edges if corner in (r["a"], r["b"]) and (r["x"], r["y"]) == (x, y)), None)
            if at is not None:
                look, height = style(method), float(_log([at["loss"]])[0])
                axes.plot(
                    [x], [y], [height], look.marker or "*", color=look.colour, markeredgecolor=PAPER,
                    markersize=8, zorder=3, label=look.name,
                )  # fmt: skip
        axes.view_init(elev=32, azim=-60)
        axes.tick_params(labelsize=6, pad=-2)
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
        axes.set_zlabel("log10 loss", labelpad=-4)
        if edges:
            axes.legend(loc="upper left", fontsize=6.8)
        return figure


def _heights(table: pa.Table) -> tuple[list[float], list[float], Any]:
    """Ticks of both axes and log10 of the training loss (y, x); gaps where it was not finite."""
    rows = [r for r in table.to_pylist() if r["kind"] == "plane" and r["split"] == "train"]
    xs, ys = sorted({r["x"] for r in rows}), sorted({r["y"] for r in rows})
    level = {(r["x"], r["y"]): r["loss"] for r in rows}
    found = np.array([[level[x, y] for x in xs] for y in ys], dtype=float)  # None becomes NaN
    return xs, ys, np.ma.masked_invalid(_log(found))


def _log(losses: Any) -> Any:
    return np.log10(np.maximum(np.asarray(losses, dtype=float), LEAST))


@dataclass(frozen=True)
class Drawing:
    """A figure of a diagnostic: the stem of its files, what the report prints under it, and its Vega-Lite form."""

    stem: str
    figure: Figure
    says: str
    chart: vega.Spec | None = None


def write(found: Sequence[Drawing], folder: Path, kind: str) -> dict[str, Path]:
    """Save figures into `diagnostics/`: PNG, SVG, PDF, Vega-Lite, and the sentence; returns file name -> path.

    What an earlier run of the kind left there is taken away: it may have had more.
    """
    place = folder / "diagnostics"
    for old in place.glob(f"{kind}*"):
        if old.suffix in (".png", ".svg", ".pdf", ".txt", ".json"):
            old.unlink()
    paths: dict[str, Path] = {}
    for one in found:
        paths |= drawing.save(one.figure, place, one.stem)
        text = place / f"{one.stem}.txt"
        text.write_text(one.says + "\n", encoding="utf-8")
        paths[text.name] = text
        if one.chart is not None:
            chart = place / f"{one.stem}.vl.json"
            vega.save(one.chart, chart)
            paths[chart.name] = chart
    return paths
