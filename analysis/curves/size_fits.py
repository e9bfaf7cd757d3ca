"""Score against training images: fits with bands, crossings, images needed, areas; as `budgets` does for parameters.

A curve is one method at one budget over the training sizes of a sweep. Its x is the number of examples in an epoch
(median over the confirmed runs), so that shots and fractions stand on one axis. A sweep over several data sets also has
curves of the mean over its data sets (`dataset` null), at the mean of their examples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.curves import fits
from analysis.curves.budgets import KINDS, Measured
from analysis.curves.fit_rows import AREA, BAND, CROSSING, FIT, NEED, band_rows, fit_rows
from analysis.curves.fits import FEWEST_POINTS, Curve, Kind
from analysis.statistics.scaling import BASELINE
from analysis.store.store import Store
from analysis.styles import style

Row = dict[str, Any]
Line = tuple[str, str, str | None, str | None]
"""Which curves are compared: (sweep, model, data set or None for their mean, budget or None without one)."""
Seed = tuple[int | None, int | None, int | None]

X = "images"
"""The cost's name in the tables of this module."""

_PLACE = [("sweep", pa.string()), ("model", pa.string()), ("dataset", pa.string()), ("reference", pa.string())]
POINTS = pa.schema(
    [*_PLACE, ("method", pa.string()), ("train_size", pa.string()), ("cost", pa.float64()), ("score", pa.float64())]
)
FITS, BANDS = pa.schema([*_PLACE, *FIT]), pa.schema([*_PLACE, *BAND])
CROSSINGS, NEEDED, AREAS = (pa.schema([*_PLACE, *columns]) for columns in (CROSSING, NEED, AREA))

_RUNS = """
select sweep, model, dataset, train_size, method, reference, data_seed, init_seed, basis_seed, test_score,
       samples / nullif(epochs, 0) as images
from confirmed where test_score is not null and method <> 'zero-shot'
order by sweep, model, dataset, train_size, method, reference, data_seed, init_seed, basis_seed
"""


def _runs(store: Store) -> list[Row]:
    return list(store.remember("runs with their examples", lambda: store.sql(_RUNS)).to_pylist())


def images(store: Store) -> dict[tuple[str, str, str | None, str], float]:
    """(sweep, model, data set or None for the mean, training size) -> examples in an epoch, where known."""
    known: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for run in _runs(store):
        if run["images"]:
            known[run["sweep"], run["model"], run["dataset"], run["train_size"]].append(run["images"])
    found: dict[tuple[str, str, str | None, str], float] = {k: float(np.median(v)) for k, v in known.items()}
    means: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for (sweep, model, _, size), value in found.items():
        means[sweep, model, size].append(value)
    return found | {(s, m, None, size): float(np.mean(v)) for (s, m, size), v in means.items() if len(v) > 1}


def measured(store: Store) -> dict[tuple[Line, str], Measured]:
    """Curves by line and method, of at least three sizes with different, known numbers of examples."""
    return store.remember("data-size curves", lambda: _measured(store))


def _measured(store: Store) -> dict[tuple[Line, str], Measured]:
    at = images(store)
    scores: dict[tuple[Line, str], dict[str, dict[Seed, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in _runs(store):
        line = (run["sweep"], run["model"], run["dataset"], run["reference"])
        seed = (run["data_seed"], run["init_seed"], run["basis_seed"])
        scores[line, run["method"]][run["train_size"]][seed] = run["test_score"]
    everything = dict(scores) | _means(scores)
    found = {}
    for (line, method), by_size in everything.items():
        cost = {at[line[0], line[1], line[2], s]: s for s in by_size if (line[0], line[1], line[2], s) in at}
        if len(cost) < FEWEST_POINTS:
            continue
        x = sorted(cost)
        shared = [seed for seed in by_size[cost[x[0]]] if all(seed in by_size[cost[c]] for c in x)]
        if shared:
            table = np.array([[by_size[cost[c]][seed] for seed in shared] for c in x], dtype=float)
            found[line, method] = Measured(Curve(np.array(x), table), tuple(shared))
    return dict(sorted(found.items(), key=lambda item: (_order(item[0][0]), style(item[0][1]).order, item[0][1])))


def _means(
    scores: dict[tuple[Line, str], dict[str, dict[Seed, float]]],
) -> dict[tuple[Line, str], dict[str, dict[Seed, float]]]:
    """Per seed the mean over all data sets of a sweep, of what is confirmed on each of them."""
    datasets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (sweep, model, dataset, _), _ in scores:
        datasets[sweep, model].add(dataset or "")
    found: dict[tuple[Line, str], dict[str, dict[Seed, float]]] = {}
    for sweep, model, reference, method in dict.fromkeys((*line[:2], line[3], m) for line, m in scores):
        names = datasets[sweep, model]
        tables = [scores.get(((sweep, model, name, reference), method)) for name in names]
        if len(names) < 2 or any(t is None for t in tables):
            continue
        whole = [t for t in tables if t is not None]
        found[(sweep, model, None, reference), method] = {
            size: {seed: float(np.mean([t[size][seed] for t in whole])) for seed in first}
            for size in whole[0]
            if all(size in t for t in whole)
            and (first := [s for s in whole[0][size] if all(s in t[size] for t in whole)])
        }
    return found


def point_table(store: Store) -> pa.Table:
    """The points that the fits go through; columns `POINTS`."""
    names = {(*key[:3], value): key[3] for key, value in images(store).items()}
    rows = [
        _named(line)
        | {"method": method, "train_size": names[line[0], line[1], line[2], float(x)]}
        | {"cost": float(x), "score": float(score)}
        for (line, method), one in measured(store).items()
        for x, score in zip(one.curve.x, one.curve.mean, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=POINTS)


def fit_table(store: Store, kinds: Sequence[Kind] = KINDS) -> pa.Table:
    """Fits of every curve; columns `FITS`. A form with too few sizes, or that does not settle, has no row."""
    rows = [
        _named(line, method) | row
        for (line, method), one in measured(store).items()
        for row in fit_rows(one.curve, kinds)
    ]
    return pa.Table.from_pylist(rows, schema=FITS)


def band_table(store: Store, kind: Kind = "isotonic", points: int = 40, references: Sequence[str] = ()) -> pa.Table:
    """The fitted curves on a grid of numbers of images, with bootstrap bands over seeds; columns `BANDS`.

    Args:
        references: only these budgets and methods without one; none means all.
    """
    rows = [
        _named(line, method) | row
        for (line, method), one in measured(store).items()
        if not references or line[3] is None or line[3] in references
        for row in band_rows(one.curve, kind, points)
    ]
    return pa.Table.from_pylist(rows, schema=BANDS)


def crossing_table(store: Store, baseline: str = BASELINE) -> pa.Table:
    """The number of images from which a method is on the other side of `baseline` at its budget; `CROSSINGS`."""
    curves = measured(store)
    rows = []
    for (line, method), one in curves.items():
        other = curves.get((line, baseline))
        shared = [] if other is None else [s for s in one.seeds if s in other.seeds]
        if method != baseline and other is not None and shared and line[3] is not None:
            estimate = fits.crossing(one.on(shared), other.on(shared))
            rows.append(_named(line, method) | {"baseline": baseline, "seeds": len(shared)} | vars(estimate))
    return pa.Table.from_pylist(rows, schema=CROSSINGS)


def needed_table(store: Store, target: float | None = None) -> pa.Table:
    """The images that each method needs at a budget for a score; columns `NEEDED`.

    Args:
        target: a fraction. Default: LoRA's best mean score at the same budget. It is held fixed in the bootstrap.
    """
    curves = measured(store)
    rows = []
    for (line, method), one in curves.items():
        goal, value = (f"{100 * target:g} %", target) if target is not None else ("", None)
        if target is None and method != BASELINE and line[3] is not None and (line, BASELINE) in curves:
            goal, value = f"{style(BASELINE).name}'s best score", float(curves[line, BASELINE].curve.mean.max())
        if value is not None:
            row = {"goal": goal, "target": value, "seeds": one.curve.seeds}
            rows.append(_named(line, method) | row | vars(fits.needed(one.curve, value)))
    return pa.Table.from_pylist(rows, schema=NEEDED)


def area_table(store: Store) -> pa.Table:
    """Mean score over the log of the number of images, in the range that all curves of a line share; `AREAS`."""
    curves = measured(store)
    rows = []
    for line in dict.fromkeys(line for line, _ in curves):
        mine = {m: c.curve for (k, m), c in curves.items() if k == line}
        low, high = max(float(c.x[0]) for c in mine.values()), min(float(c.x[-1]) for c in mine.values())
        for method, curve in mine.items() if low < high else ():
            row = {"from_x": low, "to_x": high, "seeds": curve.seeds}
            rows.append(_named(line, method) | row | vars(fits.area(curve, low, high)))
    return pa.Table.from_pylist(rows, schema=AREAS)


def _named(line: Line, method: str | None = None) -> Row:
    named: Row = dict(zip(("sweep", "model", "dataset", "reference"), line, strict=True))
    return named if method is None else named | {"method": method, "x": X}


def _order(line: Line) -> tuple[Any, ...]:
    """The mean first; budgets by their number, methods without one last."""
    digits = "".join(c for c in line[3] or "" if c.isdigit())
    return line[0], line[1], line[2] is not None, line[2] or "", line[3] is None, int(digits or 0), line[3] or ""
