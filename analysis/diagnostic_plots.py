"""Figures of the diagnostics; each draws tables that `spectrum`, `cka` and `landscape` computed. Needs no torch."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from analysis import drawing
from analysis.drawing import COLUMN_INCHES, INK, PAPER, STYLE, new_figure
from analysis.methods import in_order, style

Row = dict[str, Any]


def draw_spectrum(table: pa.Table, approximation: pa.Table) -> Figure:
    """Left: mean singular values over the largest, per method; right: errors for full fine-tuning's update."""
    rows = table.to_pylist()
    with mpl.rc_context(STYLE):
        wide = approximation.num_rows > 0
        figure = new_figure(COLUMN_INCHES * (2 if wide else 1), 2.7)
        axes = figure.subplots(1, 2 if wide else 1, squeeze=False)[0]
        for method in in_order({r["method"] for r in rows}):
            curves = [_scaled(r["singular_values"]) for r in rows if r["method"] == method and r["spectral"] > 0]
            if curves:
                at = np.linspace(0, 1, 101)
                mean = np.mean([np.interp(at, np.linspace(0, 1, len(c)), c) for c in curves], axis=0)
                axes[0].plot(100 * at, np.maximum(mean, 1e-6), color=style(method).colour, label=style(method).name)
        axes[0].set_yscale("log")
        axes[0].set_ylim(1e-4, 1.5)
        axes[0].set_xlabel("singular value, % of all")
        axes[0].set_ylabel("relative to the largest")
        axes[0].legend(loc="lower left")
        if wide:
            points: dict[tuple[str, int], list[Row]] = defaultdict(list)
            for r in approximation.to_pylist():
                points[r["form"], r["lora_rank"]].append(r)
            for form in ("lora", "randlora"):
                ranks = sorted(rank for f, rank in points if f == form)
                mean_error = [np.mean([r["error"] for r in points[form, rank]]) for rank in ranks]
                look = style(form)
                axes[1].plot(
                    ranks, mean_error, color=look.colour, marker=look.marker, markeredgecolor=PAPER, label=look.name
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
    rows = table.to_pylist()
    with mpl.rc_context(STYLE):
        figure = new_figure(COLUMN_INCHES, 2.7)
        axes = figure.add_axes((0.15, 0.16, 0.82, 0.78))
        for method in in_order({r["method"] for r in rows}):
            most = max(r["adapter_params"] or 0 for r in rows if r["method"] == method)
            depth: dict[int, list[float]] = defaultdict(list)
            for r in rows:
                if r["method"] == method and (r["adapter_params"] or 0) == most:
                    depth[r["depth"]].append(r["cka"])
            look = style(method)
            values = [float(np.mean(depth[d])) for d in sorted(depth)]
            dashes = "-" if look.marker else (0, (1.2, 1.6))
            axes.plot(sorted(depth), values, color=look.colour, marker=look.marker, linestyle=dashes, label=look.name)
        axes.set_xticks(sorted({r["depth"] for r in rows}))
        axes.set_xlabel("residual block")
        axes.set_ylabel("CKA with full fine-tuning")
        axes.legend(loc="lower left")
        return figure


def draw_landscape(table: pa.Table) -> Figure:
    """The loss over the plane as contours, the three models marked."""
    rows = [r for r in table.to_pylist() if r["kind"] == "plane"]
    first = next((r["sweep"], r["model"], r["dataset"], r["train_size"]) for r in rows)
    rows = [r for r in rows if (r["sweep"], r["model"], r["dataset"], r["train_size"]) == first]
    xs, ys = sorted({r["x"] for r in rows}), sorted({r["y"] for r in rows})
    level = {(r["x"], r["y"]): r["loss"] for r in rows}
    z = np.array([[level[x, y] for x in xs] for y in ys])
    with mpl.rc_context(STYLE):
        figure = new_figure(COLUMN_INCHES, 3.0)
        axes = figure.add_axes((0.13, 0.14, 0.7, 0.8))
        shown = np.log10(np.maximum(z, 1e-6))
        filled = axes.contourf(xs, ys, shown, levels=14, cmap="Greys")
        axes.contour(xs, ys, shown, levels=14, colors=INK, linewidths=0.3)
        for method, (x, y) in zip(("lora", "randlora", "full"), ((0, 0), (1, 0), (0.5, 1)), strict=True):
            look = style(method)
            axes.plot([x], [y], marker=look.marker or "*", color=look.colour, markeredgecolor=PAPER, markersize=8)
            axes.annotate(look.name, (x, y), xytext=(4, 5), textcoords="offset points", fontsize=6.8, color=look.colour)
        axes.grid(visible=False)
        bar = figure.colorbar(filled, ax=axes, fraction=0.05)
        bar.set_label("log10 loss")
        return figure


def write(figure: Figure, folder: Path, stem: str, says: str) -> dict[str, Path]:
    """Save a figure into `diagnostics/` with the sentence that the report prints under it."""
    place = folder / "diagnostics"
    paths = drawing.save(figure, place, stem)
    text = place / f"{stem}.txt"
    text.write_text(says + "\n", encoding="utf-8")
    return {**paths, text.name: text}


def _scaled(values: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    found = np.asarray(values, dtype=float)
    return np.asarray(found / found.max())
