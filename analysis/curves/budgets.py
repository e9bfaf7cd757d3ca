"""Score against a cost of one's choice, from a results folder: fits with bands, crossings, budgets needed, areas.

Every function returns an Arrow table. The cost is one of `AXES`; a cell's cost is its median over the confirmed runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.curves import fits
from analysis.curves.fit_rows import AREA, BAND, CROSSING, FIT, NEED, band_rows, fit_rows
from analysis.curves.fits import FEWEST_POINTS, Curve, Kind
from analysis.errors import StoreError, nearest
from analysis.statistics.scaling import BASELINE, FOCUS
from analysis.store.store import Store
from analysis.styles import size_key, style

Row = dict[str, Any]
Place = tuple[str, str, str, str]
Seed = tuple[int | None, int | None, int | None]


@dataclass(frozen=True)
class Axis:
    """A cost: its name in words, and the SQL that computes it from a confirmed trial."""

    label: str
    sql: str


AXES: dict[str, Axis] = {
    "adapter_params": Axis("trainable adapter parameters", "adapter_params"),
    "stored_bytes": Axis(
        "bytes beside the base model (trained tensors in float32, frozen bases, starting points)",
        "coalesce(stored_bytes, 0) + 4 * adapter_params",
    ),
    "peak_memory_bytes": Axis("peak memory, bytes", "peak_memory_bytes"),
    "seconds_train": Axis("training time, seconds", "seconds_train"),
    "seconds_total": Axis("time of a whole trial, seconds", "seconds_total"),
    "device_hours": Axis("device-hours of a whole trial", "seconds_total / 3600"),
}

KINDS: tuple[Kind, ...] = ("isotonic", "power law", "sigmoid")
NEAR_FULL = 0.99
"""The default target: this share of full fine-tuning's score."""

_PLACE = [("sweep", pa.string()), ("model", pa.string()), ("dataset", pa.string()), ("train_size", pa.string())]
FITS, BANDS = pa.schema([*_PLACE, *FIT]), pa.schema([*_PLACE, *BAND])
CROSSINGS, NEEDED, AREAS = (pa.schema([*_PLACE, *columns]) for columns in (CROSSING, NEED, AREA))


def axis(x: str) -> Axis:
    """A cost by name. Raises StoreError for an unknown one, with the known ones."""
    if x not in AXES:
        raise StoreError(f"unknown axis {x!r}; {nearest(x, AXES)}")
    return AXES[x]


@dataclass(frozen=True)
class Measured:
    """A method's curve in one place.

    Attributes:
        curve: the points that can be drawn on a log axis, over the seeds that all of them have.
        seeds: those seeds, in the order of the curve's columns.
    """

    curve: Curve
    seeds: tuple[Seed, ...]

    def on(self, seeds: Sequence[Seed]) -> Curve:
        """The curve over some of its seeds."""
        index = [self.seeds.index(s) for s in seeds]
        return Curve(self.curve.x, self.curve.scores[:, index])


def measured(store: Store, x: str = "adapter_params") -> dict[tuple[Place, str], Measured]:
    """Curves by place and method, of methods with at least three budgets of different, positive cost."""
    cells: dict[tuple[Place, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for run in confirmed_runs(store, x):
        if run["budget"] is not None:
            cells[place_of(run), run["method"]][run["cell_id"]].append(run)
    found = {}
    for key, points in cells.items():
        one = _curve(list(points.values()))
        if one is not None:
            found[key] = one
    return dict(sorted(found.items(), key=_order))


def _order(item: tuple[tuple[Place, str], Measured]) -> tuple[Any, ...]:
    (place, method), _ = item
    return (*place[:3], size_key(place[3]), style(method).order, method)


def confirmed_runs(store: Store, x: str) -> list[Row]:
    """The confirmed, scored trials with their place, seeds and `cost`."""
    query = f"""
        select sweep, model, dataset, train_size, method, cell_id, budget, data_seed, init_seed, basis_seed, test_score,
               {axis(x).sql} as cost
        from confirmed where test_score is not null
        order by sweep, model, dataset, train_size, method, budget, data_seed, init_seed, basis_seed
    """  # noqa: S608  the expression is one of ours
    return list(store.remember(("confirmed runs with cost", x), lambda: store.sql(query)).to_pylist())


def _curve(points: list[list[Row]]) -> Measured | None:
    usable: list[tuple[float, dict[Seed, float]]] = []
    for runs in points:
        costs = [r["cost"] for r in runs if r["cost"] is not None and r["cost"] > 0]
        if costs:
            scores = {(r["data_seed"], r["init_seed"], r["basis_seed"]): r["test_score"] for r in runs}
            usable.append((float(np.median(costs)), scores))
    usable.sort(key=lambda point: point[0])
    # two budgets of one cost (peak memory often is): the better-known rule is one point a cost, so keep the last
    distinct = [p for p, later in zip(usable, [*usable[1:], None], strict=True) if later is None or later[0] > p[0]]
    if len(distinct) < FEWEST_POINTS:
        return None
    seeds = tuple(s for s in distinct[0][1] if all(s in scores for _, scores in distinct))
    if not seeds:
        return None
    table = np.array([[scores[s] for s in seeds] for _, scores in distinct], dtype=float)
    return Measured(Curve(np.array([cost for cost, _ in distinct]), table), seeds)


def fit_table(store: Store, x: str = "adapter_params", kinds: Sequence[Kind] = KINDS) -> pa.Table:
    """Fits of every method's curve; columns `FITS`. A form with too few points, or that does not settle, has no row."""
    rows = [
        _named(place) | {"method": method, "x": x} | row
        for (place, method), one in measured(store, x).items()
        for row in fit_rows(one.curve, kinds)
    ]
    return pa.Table.from_pylist(rows, schema=FITS)


def band_table(store: Store, x: str = "adapter_params", kind: Kind = "isotonic", points: int = 60) -> pa.Table:
    """The fitted curves on a grid of `points` costs, with bootstrap bands over seeds; columns `BANDS`."""
    rows = [
        _named(place) | {"method": method, "x": x} | row
        for (place, method), one in measured(store, x).items()
        for row in band_rows(one.curve, kind, points)
    ]
    return pa.Table.from_pylist(rows, schema=BANDS)


def crossing_table(
    store: Store, x: str = "adapter_params", *, baseline: str = BASELINE, focus: str | None = None
) -> pa.Table:
    """Where each method's curve crosses `baseline`'s, over the seeds both have; columns `CROSSINGS`.

    Args:
        focus: this method alone; default every method with enough budgets.
    """
    return store.remember(("crossings", x, baseline, focus), lambda: _crossings(store, x, baseline, focus))


def _crossings(store: Store, x: str, baseline: str, focus: str | None) -> pa.Table:
    curves = measured(store, x)
    rows = []
    for (place, method), one in curves.items():
        other = curves.get((place, baseline))
        if method == baseline or other is None or (focus is not None and method != focus):
            continue
        shared = [s for s in one.seeds if s in other.seeds]
        if shared:
            estimate = fits.crossing(one.on(shared), other.on(shared))
            row = {"method": method, "baseline": baseline, "x": x, "seeds": len(shared)}
            rows.append(_named(place) | row | vars(estimate))
    return pa.Table.from_pylist(rows, schema=CROSSINGS)


def needed_table(store: Store, x: str = "adapter_params", target: float | None = None) -> pa.Table:
    """The cost that each method needs for a score; columns `NEEDED`.

    Args:
        target: a fraction. Default: two goals per place, 99 % of full fine-tuning's mean score where there is one, and
            LoRA's best mean score. A goal taken from data is held fixed in the bootstrap.
    """
    curves = measured(store, x)
    full: dict[Place, list[float]] = defaultdict(list)
    for run in confirmed_runs(store, x):
        if run["method"] == "full":
            full[place_of(run)].append(run["test_score"])
    rows = []
    for (place, method), one in curves.items():
        goals: list[tuple[str, float]] = []
        if target is not None:
            goals = [(f"{100 * target:g} %", target)]
        else:
            if place in full:
                goals.append(
                    (f"{100 * NEAR_FULL:g} % of full fine-tuning's score", NEAR_FULL * float(np.mean(full[place])))
                )
            if (place, BASELINE) in curves and method != BASELINE:
                goals.append((f"{style(BASELINE).name}'s best score", float(curves[place, BASELINE].curve.mean.max())))
        for goal, value in goals:
            row = {"method": method, "x": x, "goal": goal, "target": value, "seeds": one.curve.seeds}
            rows.append(_named(place) | row | vars(fits.needed(one.curve, value)))
    return pa.Table.from_pylist(rows, schema=NEEDED)


def area_table(store: Store, x: str = "adapter_params") -> pa.Table:
    """Mean score over log cost, per place in the range that FOCUS and BASELINE (else all methods) share; `AREAS`."""
    curves = measured(store, x)
    rows = []
    for place in dict.fromkeys(place for place, _ in curves):
        mine = {m: c.curve for (p, m), c in curves.items() if p == place}
        core = [c for m, c in mine.items() if m in (FOCUS, BASELINE)] or list(mine.values())
        low, high = max(c.x[0] for c in core), min(c.x[-1] for c in core)
        if low >= high:
            continue
        for method, curve in mine.items():
            row = {"method": method, "x": x, "from_x": float(low), "to_x": float(high), "seeds": curve.seeds}
            rows.append(_named(place) | row | vars(fits.area(curve, float(low), float(high))))
    return pa.Table.from_pylist(rows, schema=AREAS)


def crossing_sentence(row: Row) -> str:
    """What a row of `crossing_table`, or of `size_fits.crossing_table`, says: no more than its interval allows."""
    a, b = style(row["method"]).name, style(row["baseline"]).name
    where = AXES[row["x"]].label.split(",")[0] if row["x"] in AXES else "training examples"
    if row["value"] is None:
        seen = row["note"].replace(": above throughout", f", {a}'s lies above throughout")
        seen = seen.replace(": below throughout", f", {a}'s lies below throughout")
        return f"{a}'s curve and {b}'s: {seen} (isotonic fits against {where}; a description, not a test)."
    at, low, high = (None if v is None else f"{v:,.0f}" if v >= 1000 else f"{v:.3g}" for v in _numbers(row))
    if row["share"] is None:
        return f"{a}'s curve crosses {b}'s at {at} {where}, seen on one seed, so without an interval."
    seen = f"the crossing is in {100 * row['share']:.0f} % of resamples"
    if low is None or high is None:
        ends = f"{low or 'below the range'} to {high or 'above the range'}"
        return f"Whether {a}'s curve crosses {b}'s is not settled: seen at {at} {where}, 95 % interval {ends}; {seen}."
    return f"{a}'s curve crosses {b}'s at {at} {where}, 95 % interval {low} to {high}; {seen}."


def _numbers(row: Row) -> tuple[float | None, float | None, float | None]:
    return row["value"], row["low"], row["high"]


def place_of(run: Row) -> Place:
    """(sweep, model, data set, training size) of a row."""
    return run["sweep"], run["model"], run["dataset"], run["train_size"]


def _named(place: Place) -> Row:
    return dict(zip(("sweep", "model", "dataset", "train_size"), place, strict=True))
