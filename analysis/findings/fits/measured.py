"""Curves out of a store: a method's score against a cost, or against the number of training examples.

A curve against a cost (`AXES`) is one method over the budgets of a place, each cell at its median cost. A curve against
examples (`EXAMPLES`) is one method at one budget over the training sizes of a sweep, each size at its examples, so that
shots and fractions stand on one axis. A sweep over several data sets also has curves of the mean over
its data sets (`dataset` null), at the mean of their examples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.errors import StoreError, nearest
from analysis.findings.fits.isotonic import FEWEST_POINTS, Curve
from analysis.findings.scaling.numbers import curve
from analysis.format import Row
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.sql.views import SECONDS
from analysis.store.store import Store, remembered
from analysis.styles import Place, budget_order, place_of, size_key, size_text, style
from analysis.verdict.runs import UNTRAINED, Seed, averaged, by_seed, group_by, shared_seeds

Line = tuple[str, str, str | None, str | None]
"""Curves with the same line are compared. It holds the values of `line_columns`; data set None is the mean over all."""
Point = tuple[float, str, Mapping[Seed, float]]
"""(cost, name of the budget or training size, score by seed)."""


@dataclass(frozen=True)
class Axis:
    """A quantity that scores are drawn against, such as a cost.

    Attributes:
        label: its name in words.
        sql: the SQL expression that computes it from a row of `confirmed`.
    """

    label: str
    sql: str


def _cell_column_sql(column: str) -> str:
    return f"(select c.{column} from cells c where c.sweep = confirmed.sweep and c.cell_id = confirmed.cell_id)"  # noqa: S608


AXES: dict[str, Axis] = {
    "adapter_params": Axis("trainable adapter parameters", "adapter_params"),
    "stored_bytes": Axis(
        "bytes beside the base model (trained tensors in float32, frozen bases, starting points)",
        "coalesce(stored_bytes, 0) + 4 * adapter_params",
    ),
    "step_memory_bytes": Axis("predicted memory of a training step, bytes", _cell_column_sql("step_memory_bytes")),
    "step_flops": Axis("training operations, per image or token", _cell_column_sql("step_flops")),
    "saved_bytes": Axis("bytes of the saved adapter", _cell_column_sql("saved_bytes")),
    "peak_memory_bytes": Axis("peak memory, bytes", "peak_memory_bytes"),
    "seconds_train": Axis("training time, seconds", "seconds_train"),
    "seconds_total": Axis("time of a whole trial, seconds", SECONDS),
    "device_hours": Axis("device-hours of a whole trial", f"{SECONDS} * coalesce(workers, 1) / 3600"),
}
"""The costs that a report can be drawn against."""
EXAMPLES = "images"
"""The `x` that means training examples, here and in `readings`. It is not a cost."""
_ONCE = "coalesce(train_examples, samples / nullif(epochs, 0))"
"""The number of different training examples. Trials of old folders did not count them; then the examples of an epoch
are taken, although an epoch may repeat a small subset."""
_ALL = AXES | {EXAMPLES: Axis("training examples", _ONCE)}

POINTS = pa.schema(
    [*typed(TEXT, "sweep", "model", "dataset", "reference", "method", "x", "train_size"), *typed(REAL, "cost", "score")]
)


def axis(x: str) -> Axis:
    """Return a cost by name. Raises StoreError if it is unknown; the error lists the known ones."""
    if x not in AXES:
        raise StoreError(f"unknown axis {x!r}; {nearest(x, AXES)}")
    return AXES[x]


def axis_label(x: str) -> str:
    """Return the name of what a curve is drawn against, without its explanation in brackets."""
    return _ALL[x].label.split(" (")[0]


def axis_words(x: str) -> str:
    """Return this name without its unit."""
    return axis_label(x).split(",")[0]


def line_columns(x: str) -> tuple[str, str, str, str]:
    """Return the columns of a `Line`: curves that agree in them are compared."""
    return (*PLACE[:3], "reference" if x == EXAMPLES else PLACE[3])


@dataclass(frozen=True)
class Measured:
    """The curve of one method.

    Attributes:
        curve: its points of positive cost, on the seeds that all points have.
        names: the budget, or training size, of each point.
        seeds: the seeds, in the order of the curve's columns.
    """

    curve: Curve
    names: tuple[str, ...]
    seeds: tuple[Seed, ...]

    def on(self, seeds: Sequence[Seed]) -> Curve:
        """Return the curve over some of its seeds."""
        index = [self.seeds.index(s) for s in seeds]
        return Curve(self.curve.x, self.curve.scores[:, index])


@remembered
def costed_runs(store: Store, x: str) -> list[Row]:
    """Return the confirmed trials that have a score, with place, seeds and `cost`."""
    sql = _ALL[x].sql if x == EXAMPLES else axis(x).sql
    query = f"""
        select sweep, model, dataset, train_size, method, reference, budget, cell_id, data_seed, init_seed, basis_seed,
               test_score, {sql} as cost
        from confirmed where test_score is not null
        order by sweep, model, dataset, train_size, method, budget, data_seed, init_seed, basis_seed
    """  # noqa: S608  the expression is one of ours
    return list(store.sql(query).to_pylist())


@remembered
def measured_curves(store: Store, x: str = "adapter_params") -> dict[tuple[Line, str], Measured]:
    """Return the curves by line and method. A curve needs at least three points of different, positive cost.

    Raises:
        StoreError: `x` is unknown.
    """
    points = _over_sizes(store) if x == EXAMPLES else _over_budgets(store, x)
    measured_curves = {
        key: measured for key, curve_points in points.items() if (measured := _curve_through(curve_points)) is not None
    }

    def order(key: tuple[Line, str]) -> tuple[Any, ...]:
        (sweep, model, dataset, last), method = key
        # the mean over data sets first; methods without a budget last
        rank = (last is None, *budget_order(last or "")) if x == EXAMPLES else size_key(last or "")
        return sweep, model, dataset is not None, dataset or "", rank, style(method).order, method

    return {key: measured_curves[key] for key in sorted(measured_curves, key=order)}


def _curve_through(points: Sequence[Point]) -> Measured | None:
    """Return the curve through points, or None if there are too few or they share no seed.

    Of several points at one cost (peak memory is often the same) the last one counts.
    """
    at = {cost: (name, scores) for cost, name, scores in points}
    costs = sorted(at)
    if len(costs) < FEWEST_POINTS:
        return None
    scores = [at[cost][1] for cost in costs]
    seeds = shared_seeds(scores)
    if not seeds:
        return None
    table = np.array([[each[seed] for seed in seeds] for each in scores], dtype=float)
    return Measured(Curve(np.array(costs), table), tuple(at[cost][0] for cost in costs), tuple(seeds))


def _over_budgets(store: Store, x: str) -> dict[tuple[Line, str], list[Point]]:
    points: dict[tuple[Line, str], list[Point]] = defaultdict(list)
    budgeted = [r for r in costed_runs(store, x) if r["budget"] is not None]
    for (*place, method, _), runs in group_by(budgeted, *PLACE, "method", "cell_id").items():
        costs = [r["cost"] for r in runs if r["cost"] is not None and r["cost"] > 0]
        if costs:
            sweep, model, dataset, size = place
            point = float(np.median(costs)), str(runs[0]["reference"]), by_seed(runs)
            points[(sweep, model, dataset, size), method].append(point)
    return points


def _over_sizes(store: Store) -> dict[tuple[Line, str], list[Point]]:
    scores: dict[tuple[Any, ...], dict[Seed, float]] = {
        key: by_seed(runs)
        for key, runs in group_by(_trained(store), *line_columns(EXAMPLES), "method", "train_size").items()
    }
    for sweep, model, reference, method, size in dict.fromkeys((*k[:2], *k[3:]) for k in scores):
        names = dict.fromkeys(k[2] for k in scores if k[:2] == (sweep, model) and k[2] is not None)
        mean = averaged([scores.get((sweep, model, name, reference, method, size), {}) for name in names])
        if len(names) > 1 and mean:
            scores[sweep, model, None, reference, method, size] = mean
    at = examples(store)
    points: dict[tuple[Line, str], list[Point]] = defaultdict(list)
    for (sweep, model, dataset, reference, method, size), seed_scores in scores.items():
        if (sweep, model, dataset, size) in at:
            point = at[sweep, model, dataset, size], size, seed_scores
            points[(sweep, model, dataset, reference), method].append(point)
    return points


def _trained(store: Store) -> list[Row]:
    return [r for r in costed_runs(store, EXAMPLES) if r["method"] != UNTRAINED]


def examples(store: Store) -> dict[Place, float]:
    """Return the number of training examples of each place: the median over the confirmed runs of all methods.

    With several data sets, the place without a data set has the mean. Places without a known number are left out.
    """
    runs_by_place = group_by([r for r in _trained(store) if r["cost"]], *PLACE)
    examples_by_place: dict[Place, float] = {
        (sweep, model, dataset, size): float(np.median([r["cost"] for r in runs]))
        for (sweep, model, dataset, size), runs in runs_by_place.items()
    }
    means: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for (sweep, model, _, size), value in examples_by_place.items():
        means[sweep, model, size].append(value)
    return examples_by_place | {
        (s, m, None, size): float(np.mean(v)) for (s, m, size), v in means.items() if len(v) > 1
    }


def point_table(store: Store) -> pa.Table:
    """Return the points of the curves against training examples; columns `POINTS`."""
    rows = [
        dict(zip(line_columns(EXAMPLES), line, strict=True))
        | {"method": method, "x": EXAMPLES, "train_size": name, "cost": float(x), "score": float(score)}
        for (line, method), measured in measured_curves(store, EXAMPLES).items()
        for x, name, score in zip(measured.curve.x, measured.names, measured.curve.mean, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=POINTS)


SIZES = pa.schema(
    [
        *typed(TEXT, "sweep", "model", "dataset"),  # dataset null: the mean over data sets
        *typed(TEXT, "method", "reference"),
        ("adapter_params", INT),
        ("train_size", TEXT),
        ("position", INT),  # 0 for the least size of the sweep
        ("images", REAL),  # training examples; null if not known
        ("n", INT),
        *typed(REAL, "mean", "low", "high"),
    ]
)


def size_curves(store: Store) -> pa.Table:
    """Return the rows of `scaling.curve` for each (sweep, model, data set) with two training sizes; columns `SIZES`."""
    at = examples(store)
    rows: list[Row] = []
    for place_rows in group_by(curve(store).to_pylist(), "sweep", "model", "dataset").values():
        sizes = sorted({r["train_size"] for r in place_rows}, key=size_key)
        if len(sizes) > 1:
            rows += [r | {"position": sizes.index(r["train_size"]), "images": at.get(place_of(r))} for r in place_rows]
    return pa.Table.from_pylist(sorted(rows, key=_order), schema=SIZES)


def size_labels(table: pa.Table) -> list[str]:
    """Return the names of the training sizes in order of position. The table has one (sweep, model, data set)."""
    text_by_position = {r["position"]: size_text(r["train_size"]) for r in table.to_pylist()}
    return [text_by_position[i] for i in sorted(text_by_position)]


def _order(r: Row) -> tuple[Any, ...]:
    place = (r["sweep"], r["model"], r["dataset"] is not None, r["dataset"] or "")
    return (*place, style(r["method"]).order, r["method"], r["adapter_params"] or 0, r["position"])
