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
from matplotlib.figure import Figure

from analysis.figures import drawing
from analysis.figures.drawing import COLUMN_INCHES, INK, MUTED, PAPER, STYLE, new_figure
from analysis.styles import in_order, place_of, style
from analysis.tables.diagnostics import CORNERS

LEAST = 1e-6
"""What a logarithm begins at."""
SHARES = 101
"""Points of a mean spectrum, from the largest singular value to the last."""

SPECTRA = pa.schema([("method", pa.string()), ("share", pa.float64()), ("relative", pa.float64())])
ERRORS = pa.schema([("method", pa.string()), ("lora_rank", pa.int64()), ("error", pa.float64()), ("n", pa.int64())])
ALIGNMENT = pa.schema([("method", pa.string()), ("depth", pa.int64()), ("cka", pa.float64()), ("n", pa.int64())])


def spectra(spectrum: pa.Table) -> pa.Table:
    """Singular values over the largest, `relative`, at shares (0 to 1) of their number: means over updates.

    Args:
        spectrum: rows of the table `spectrum`; updates that are zero have none.
    """
    rows, found = spectrum.to_pylist(), []
    at = np.linspace(0, 1, SHARES)
    for method in in_order({r["method"] for r in rows}):
        curves = [np.asarray(r["singular_values"]) for r in rows if r["method"] == method and r["spectral"] > 0]
        if curves:
            mean = np.mean([np.interp(at, np.linspace(0, 1, len(c)), c / c.max()) for c in curves], axis=0)
            found += [{"method": method, "share": s, "relative": v} for s, v in zip(at, mean, strict=True)]
    return pa.Table.from_pylist(found, schema=SPECTRA)


def errors(approximation: pa.Table) -> pa.Table:
    """Relative error by form and parameters (as LoRA rank), the mean over `n` weights.

    Args:
        approximation: rows of the table of that name.
    """
    points: dict[tuple[str, int], list[float]] = defaultdict(list)
    for r in approximation.to_pylist():
        points[r["form"], r["lora_rank"]].append(r["error"])
    keys = [
        (form, rank) for form in in_order({f for f, _ in points}) for rank in sorted(r for f, r in points if f == form)
    ]
    found = [
        {"method": form, "lora_rank": rank, "error": float(np.mean(points[form, rank])), "n": len(points[form, rank])}
        for form, rank in keys
    ]
    return pa.Table.from_pylist(found, schema=ERRORS)


def alignment(cka: pa.Table) -> pa.Table:
    """CKA by block, each method at its largest budget: the mean over `n` cells.

    Args:
        cka: rows of the table of that name; those without a number are left out.
    """
    rows, found = [r for r in cka.to_pylist() if r["cka"] is not None], []
    for method in in_order({r["method"] for r in rows}):
        mine = [r for r in rows if r["method"] == method]
        most = max(r["adapter_params"] or 0 for r in mine)
        depth: dict[int, list[float]] = defaultdict(list)
        for r in mine:
            if (r["adapter_params"] or 0) == most:
                depth[r["depth"]].append(r["cka"])
        found += [
            {"method": method, "depth": d, "cka": float(np.mean(v)), "n": len(v)} for d, v in sorted(depth.items())
        ]
    return pa.Table.from_pylist(found, schema=ALIGNMENT)


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
    keys = [place_of(r) for r in table.to_pylist()]
    return [table.filter(pa.array([k == place for k in keys])) for place in dict.fromkeys(keys)]


def draw_landscape(table: pa.Table) -> Figure:
    """The training loss over the plane of one place as contours, the three models marked."""
    xs, ys, shown = _heights(table)
    with mpl.rc_context(STYLE):
        figure = new_figure(COLUMN_INCHES, 3.0)
        axes = figure.add_axes((0.13, 0.14, 0.7, 0.8))
        filled = axes.contourf(xs, ys, shown, levels=14, cmap="Greys")
        axes.contour(xs, ys, shown, levels=14, colors=INK, linewidths=0.3)
        for method, (x, y) in CORNERS.items():
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
        for corner, (method, (x, y)) in enumerate(CORNERS.items()):
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
    """A figure of a diagnostic: the stem of its files, and what the report prints under it."""

    stem: str
    figure: Figure
    says: str


def write(found: Sequence[Drawing], folder: Path, kind: str) -> dict[str, Path]:
    """Save figures into `diagnostics/`: PNG, SVG, PDF, and the sentence; returns file name -> path.

    What an earlier run of the kind left there is taken away: it may have had more figures, or files of another form.
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
    return paths
