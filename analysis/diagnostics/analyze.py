"""The diagnostics of `sweeps analyze`: compute missing units, draw the results, and make a sentence of them.

Each unit's rows are stored as soon as they are computed, so a stopped run continues. The caller decides whether this
process or Ray (`sweeps.engine.analyze`) runs the units.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
from scipy.stats import spearmanr

from analysis.diagnostics import (
    cka,
    curvature,
    full_rank,
    further,
    image_retention,
    intruders,
    landscape,
    retention,
    spectrum,
)
from analysis.diagnostics.units import Execute, Unit, compute_missing, rows_of
from analysis.diagnostics.weights import left_out_sentence
from analysis.errors import StoreError, nearest
from analysis.findings.diagnostics.figure import (
    Drawing,
    draw_cka,
    draw_curvature,
    draw_intruders,
    draw_landscape,
    draw_retention,
    draw_spectrum,
    draw_surface,
    mean_cka,
    mean_errors,
    predicted_rates,
    split_by_place,
    write_drawings,
)
from analysis.findings.diagnostics.sheets import CORNERS
from analysis.format import Row
from analysis.store.store import Store
from analysis.styles import in_order, place_text, short_names, style

KINDS = ("spectrum", "intruders", "retention", "cka", "landscape", "full_rank", "curvature", "tasks")


def plan(
    store: Store,
    kind: str,
    *,
    examples: float | None = None,
    points: int | None = None,
    tasks: Sequence[str] = (),
    include: Path | None = None,
    texts: Path | None = None,
    data: str | None = None,
) -> list[Unit]:
    """Return the units of a diagnostic. The arguments are those of `analyze`.

    Raises:
        StoreError: the kind is unknown, an argument does not belong to the kind or is too small, no trained weights are
            kept, or the kind needs full fine-tuning and none is kept.
    """
    least = {"examples": cka.LEAST if kind == "cka" else 1, "points": 3}
    if examples is not None and not (math.isfinite(examples) and (examples < 1 or examples == int(examples))):
        raise StoreError(f"examples = {examples} is neither a whole number nor a share below 1")
    if examples is not None and examples >= 1:
        examples = int(examples)  # 16.0 of a command line is 16
    numbers = {k: v for k, v in (("examples", examples), ("points", points)) if v is not None}
    for name, value in numbers.items():
        if value < least[name] and not (name == "examples" and 0 < value < 1):
            raise StoreError(f"{name} = {value} is too few; at least {least[name]}")
    others = {"task": tasks, "include": include, "texts": texts, "data": data}
    named = [*numbers, *(name for name, value in others.items() if value)]
    takes = dict.fromkeys(KINDS, ()) | {
        "retention": ("texts", "data"),
        "cka": ("examples",),
        "curvature": ("examples",),
        "landscape": ("examples", "points"),
        "tasks": ("examples", "task", "include"),
    }
    if kind not in takes:
        raise StoreError(f"unknown diagnostic {kind!r}; {nearest(kind, KINDS)}")
    if strange := [name for name in named if name not in takes[kind]]:
        raise StoreError(f"{kind} takes no {strange[0]}; leave it out")
    if kind == "retention":
        if texts is not None and data is None:
            return retention.plan(store, texts)
        if data is not None and texts is None:
            return image_retention.plan(store, data)
        raise StoreError(
            "retention needs one of two: --texts FILE, general text for a language model, or --data DATASET, other "
            "images for a CLIP"
        )
    if kind == "tasks":
        if isinstance(examples, float):
            raise StoreError(f"examples = {examples}: tasks takes a whole number of examples for each task")
        return further.plan(store, tasks=tasks, include=include, examples=examples)
    if kind == "cka":
        return cka.plan(store, examples=examples or cka.EXAMPLES)
    if kind == "curvature":
        return curvature.plan(store, examples=examples or curvature.EXAMPLES)
    if kind == "landscape":
        largest_count, side = examples or landscape.EXAMPLES, points or landscape.POINTS
        return landscape.plan(store, examples=largest_count, points=side)
    return {"spectrum": spectrum.plan, "intruders": intruders.plan, "full_rank": full_rank.plan}[kind](store)


def compute(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return the rows of one unit.

    Args:
        folder: the results folder, whose `adapters/` are read.
        unit: the unit.
        cache: holds the model and its data for all units of a process; empty at first.

    Raises:
        StoreError, TrialError, TrainablesError: the unit cannot be computed. The error names the unit.
    """
    return _ROWS[unit.table](folder, unit, cache)


_ROWS = {
    "spectrum": spectrum.rows,
    "approximation": spectrum.rows,
    "retention": retention.rows,
    "image_retention": image_retention.rows,
    "cka": cka.rows,
    "landscape": landscape.rows,
    "full_rank": full_rank.rows,
    "curvature": curvature.rows,
    "intruders": intruders.rows,
    "tasks": further.rows,
}
"""The function that computes a unit's rows, by the unit's table."""


def in_process(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
    """Run units one after another in this process, and yield each with its rows."""
    cache: dict[str, Any] = {}
    for unit in units:
        yield unit, compute(folder, unit, cache)


def analyze(
    store: Store,
    kind: str,
    *,
    execute: Execute = in_process,
    force: bool = False,
    examples: float | None = None,
    points: int | None = None,
    tasks: Sequence[str] = (),
    include: Path | None = None,
    texts: Path | None = None,
    data: str | None = None,
) -> tuple[pa.Table, dict[str, Path], str]:
    """Compute the missing units of a diagnostic, store their rows, and draw them into the folder `diagnostics/`.

    Args:
        store: the results.
        kind: one of `KINDS`.
        execute: function that runs the units: `in_process`, or `sweeps.engine.analyze.ray_tasks`.
        force: compute all units again. The newer rows replace the older ones.
        examples: for cka, curvature, landscape and tasks: largest number of examples of each split or task; below 1 a
            share.
        points: for landscape: number of points on a row of the grid, and on an edge.
        tasks: for tasks: lm-eval's names of the tasks.
        include: for tasks: a folder with the user's own task files for lm-eval.
        texts: for retention of language models: a file of general text.
        data: for retention of CLIPs: the id of another data set.

    Returns:
        The rows of this diagnostic, the files by name, and the sentence.

    Raises:
        StoreError: as `plan` and `compute`.
    """
    units = plan(store, kind, examples=examples, points=points, tasks=tasks, include=include, texts=texts, data=data)
    compute_missing(store, units, execute, force=force)
    table = rows_of(store, units, units[0].table if kind == "retention" else kind)
    if kind == "spectrum":
        approximation = rows_of(store, units, "approximation")
        says = f"{spectrum_sentence(table, approximation)} {left_out_sentence(store)}".rstrip()
        figures = [Drawing("spectrum", draw_spectrum(table, approximation), says)]
    elif kind == "intruders":
        says = f"{intruders_sentence(table)} {left_out_sentence(store)}".rstrip()
        figures = [Drawing("intruders", draw_intruders(table), says)]
    elif kind == "retention" and data is not None:
        says = image_retention_sentence(table)
        label = f"change of the zero-shot accuracy on {short_names([data])[data]}, points"
        figures = [Drawing("image-retention", draw_retention(table, label, 100.0), says)]
    elif kind == "retention":
        says = retention_sentence(table)
        label = "rise of the loss on general text, nats a token"
        figures = [Drawing("retention", draw_retention(table, label), says)]
    elif kind == "curvature":
        says = curvature_sentence(table)
        figures = [Drawing("curvature", draw_curvature(table), says)]
    elif kind == "tasks":
        return table, {}, tasks_sentence(table)
    elif kind == "full_rank":
        return table, {}, full_rank_sentence(table)
    elif kind == "cka":
        says = cka_sentence(table)
        figures = [Drawing("cka", draw_cka(table), says)]
    else:
        says, figures = landscape_sentence(table), []
        for i, plane in enumerate(split_by_place(table)):
            stem = f"landscape-{i + 1}" if i else "landscape"
            figures.append(Drawing(stem, draw_landscape(plane), landscape_sentence(plane)))
            figures.append(Drawing(f"{stem}-surface", draw_surface(plane), "The same as a surface."))
    return table, write_drawings(figures, store.path, kind), says


def spectrum_sentence(table: pa.Table, approximation: pa.Table) -> str:
    """State the mean effective rank of each method, and LoRA's and RandLoRA's errors at the top rank."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for r in table.to_pylist():
        ranks[r["method"]].append(r["effective_rank"])
    parts = [f"{style(m).name} {fmean(ranks[m]):.1f}" for m in in_order(set(ranks))]
    text = f"Effective rank of the updates, mean over target weights and budgets: {', '.join(parts)}."
    error = {(r["method"], r["lora_rank"]): r["error"] for r in mean_errors(approximation)}
    if not error:
        return text
    top = max(rank for _, rank in error)
    drawn = {(r["method"], r["lora_rank"]): r["error"] for r in mean_errors(approximation, "random")}
    beside = f"; of a random matrix {drawn['lora', top]:.2f} and {drawn['randlora', top]:.2f}"
    return (
        f"{text} Approximating full fine-tuning's update with the parameters of LoRA rank {top}: least relative error "
        f"{error['lora', top]:.2f} for rank {top} (exact), {error['randlora', top]:.2f} for RandLoRA's form (a fit, so "
        f"an upper bound){beside}. One seed per cell: a description, not a test."
    )


def intruders_sentence(table: pa.Table) -> str:
    """State the mean number of intruders of each method and budget."""
    rows = table.to_pylist()
    cells: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for r in rows:
        cells[r["method"], r["reference"]].append(r)
    order = in_order({method for method, _ in cells})
    parts = []
    for method, reference in sorted(cells, key=lambda key: (order.index(key[0]), cells[key][0]["adapter_params"] or 0)):
        at = f" at {reference}" if reference else ""
        parts.append(f"{style(method).name}{at} {fmean(r['intruders'] for r in cells[method, reference]):.2f}")
    counted, threshold = max(r["counted"] for r in rows), max(r["threshold"] for r in rows)
    return (
        f"Intruders among the {counted} leading singular vectors of a trained weight (largest cosine with one of the "
        f"base weight below {threshold:g}), mean over target weights: {', '.join(parts)}. One seed per cell: a "
        "description, not a test."
    )


def retention_sentence(table: pa.Table) -> str:
    """State how far the loss on general text rose for each method and budget, and by how much more than for LoRA."""
    rows = table.to_pylist()
    before = fmean(r["before"] for r in rows)
    return (
        f"Mean loss of a token of {rows[0]['texts']} under the base model: {before:.3f} nats. Its change by training, "
        f"mean over seeds [95 % interval, not corrected for several methods]: {_changes(table, lambda v: f'{v:+.3f}')}."
    )


def image_retention_sentence(table: pa.Table) -> str:
    """State how far the accuracy on the other data set changed for each method and budget, and less LoRA's change."""
    rows = table.to_pylist()
    before, images = fmean(r["before"] for r in rows), f"{rows[0]['images']:,} test images of {rows[0]['data']}"
    return (
        f"Zero-shot accuracy on {images} under the base model: {100 * before:.1f} %. Its change by training in points, "
        "mean over seeds [95 % interval, not corrected for several methods]: "
        f"{_changes(table, lambda v: f'{100 * v:+.1f}')}."
    )


def _changes(table: pa.Table, write: Callable[[float], str]) -> str:
    """Write the mean change of each method and budget, and how it differs from LoRA's, with intervals if there are any.

    `write`: writes one number.
    """

    def with_interval(r: Row, value: str, low: str, high: str) -> str:
        interval = "" if r[low] is None else f" [{write(r[low])}, {write(r[high])}]"
        return f"{write(r[value])}{interval}"

    parts = []
    for r in retention.changes(table):
        at = f" at {r['reference']}" if r["reference"] else ""
        text = f"{style(r['method']).name}{at} {with_interval(r, 'change', 'low', 'high')}"
        if r.get("less_lora") is not None:
            text += f", minus LoRA's {with_interval(r, 'less_lora', 'less_low', 'less_high')}"
        parts.append(text)
    return "; ".join(parts)


def curvature_sentence(table: pa.Table) -> str:
    """State how well the curvature at the start orders the chosen learning rates, as rank correlations over cells."""
    parts = []
    for name, rows in predicted_rates(table).items():
        predictions, rates = [r["predicted"] for r in rows], [r["lr"] for r in rows]
        if len(rows) >= 3 and len(set(predictions)) > 1 and len(set(rates)) > 1:
            parts.append(f"{name} {spearmanr(predictions, rates).statistic:+.2f} ({len(rows)} cells)")
    if not parts:
        return "Fewer than three cells, or cells that all chose one learning rate: nothing is compared."
    return (
        "Rank correlation (Spearman) of the chosen learning rate with what the curvature at the start predicts, over "
        f"all data sets and budgets together: {', '.join(parts)}. A description, not a test."
    )


def full_rank_sentence(table: pa.Table) -> str:
    """State which bases gave full rank in every draw, and the mean rank of the others."""
    least_mean_rank: dict[str, float] = {}
    for r in table.to_pylist():
        name = r["distribution"] + (f" (s = {r['sparsity']:.4g})" if r["distribution"] == "ternary" else "")
        name += ", sparse A" if r["sparse_a"] else ""
        least_mean_rank[name] = min(least_mean_rank.get(name, 1.0), r["mean_rank"])
    full_names = [name for name, share in least_mean_rank.items() if share == 1.0]
    lesser_names = [f"{name} {100 * share:.1f} %" for name, share in least_mean_rank.items() if share < 1.0]
    says = f"Random updates have full rank in every draw with bases {'; '.join(full_names)}." if full_names else ""
    return says + (f" Mean rank of the others, of the least shape: {'; '.join(lesser_names)}." if lesser_names else "")


def tasks_sentence(table: pa.Table) -> str:
    """State the first metric of each task for every method at its largest budget, and for the base model."""
    parts = []
    rows = table.to_pylist()
    for task in dict.fromkeys(r["task"] for r in rows):
        metric = next(r["metric"] for r in rows if r["task"] == task)
        shown = [r for r in rows if r["task"] == task and r["metric"] == metric]
        largest = {r["method"]: r for r in sorted(shown, key=lambda r: r["adapter_params"] or 0)}
        values = [f"{style(method).name} {_with_error(largest[method])}" for method in in_order(set(largest))]
        parts.append(f"{task} ({metric}): {', '.join(values)}.")
    parts.append("± is lm-eval's standard error over examples. One seed per cell: a description, not a test.")
    return " ".join(parts)


def _with_error(row: Row) -> str:
    return f"{row['value']:.3f}" + ("" if row["stderr"] is None else f" ± {row['stderr']:.3f}")


def cka_sentence(table: pa.Table) -> str:
    """State the CKA of the last layer for each method at its largest budget."""
    rows = mean_cka(table)
    if not rows:
        return "No layer's activations vary between examples, so there is no CKA."
    last = max(r["depth"] for r in rows)
    parts = [f"{style(r['method']).name} {r['cka']:.3f}" for r in rows if r["depth"] == last]
    return (
        f"CKA with full fine-tuning in the last layer, at each method's largest budget: {', '.join(parts)}. "
        "One seed per cell: a description, not a test."
    )


def landscape_sentence(table: pa.Table) -> str:
    """State the barrier heights of the three edges on training and validation examples, as means over places."""
    names = [style(m).name for m in CORNERS]
    edges: dict[tuple[str, int, int], dict[str, float | None]] = defaultdict(dict)
    rows = table.to_pylist()
    for r in rows:
        if r["kind"] == "edge":
            edges[r["split"], r["a"], r["b"]][r["unit"]] = r["barrier"]
    parts = []
    for a, b in sorted({(a, b) for _, a, b in edges}):
        barriers = [edges[which, a, b].values() for which in landscape.SPLITS if (which, a, b) in edges]
        parts.append(f"{names[a]} to {names[b]} {' and '.join(_height(values) for values in barriers)}")
    places = list(dict.fromkeys((r["dataset"], r["train_size"]) for r in rows))
    where = place_text(*places[0]) if len(places) == 1 else f"{len(places)} data sets, the mean"
    splits_text = "training and validation" if any(w == "val" for w, _, _ in edges) else "training"
    return (
        f"Loss over the plane through the three models ({where}); barrier heights on {splits_text} examples: "
        f"{', '.join(parts)}. "
        "0 means that the straight path rises nowhere above the line between its ends. One seed: a description."
    )


def _height(barriers: Iterable[float | None]) -> str:
    finite_barriers = [b for b in barriers if b is not None]
    return f"{fmean(finite_barriers):.3f}" if finite_barriers else "(not finite)"
