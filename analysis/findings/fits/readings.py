"""Tables that are read off curves: isotonic fits with bands, crossings, the cost of a score, and areas.

The first columns of each table name the curve (`measured.line_columns`). `x` is a cost of `measured.AXES`, or
`EXAMPLES`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from analysis.findings.fits.isotonic import NO_INTERVAL, area, crossing, isotonic, needed, seed_areas
from analysis.findings.fits.isotonic import band as fits_band
from analysis.findings.fits.measured import (
    EXAMPLES,
    Line,
    Measured,
    axis_words,
    costed_runs,
    line_columns,
    measured_curves,
)
from analysis.format import Row, quantity
from analysis.store.columns import INT, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import place_of, style
from analysis.verdict.inference import paired_difference
from analysis.verdict.question import question

NEAR_FULL = 0.99
"""The default target: this share of full fine-tuning's score."""

_ESTIMATE = [*typed(REAL, "value", "low", "high", "share"), ("note", TEXT)]
BAND = [*typed(TEXT, "method", "x"), *typed(REAL, "at", "score", "low", "high"), ("band", TEXT)]
CROSSING = [*typed(TEXT, "method", "baseline", "x"), ("seeds", INT), *_ESTIMATE]
NEED = [*typed(TEXT, "method", "x", "goal"), ("target", REAL), ("seeds", INT), *_ESTIMATE]
AREA = [*typed(TEXT, "method", "x"), *typed(REAL, "from_x", "to_x"), ("seeds", INT), *_ESTIMATE]
AREA += [("baseline", TEXT), *typed(REAL, "difference", "difference_low", "difference_high")]


def readings_table(rows: Sequence[Row], x: str, columns: Sequence[tuple[str, pa.DataType]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([*typed(TEXT, *line_columns(x)), *columns]))


def _named_curves(store: Store, x: str) -> Iterator[tuple[Row, Line, Measured]]:
    """Yield for each curve the columns that name it, its line, and the curve."""
    for (line, method), measured in measured_curves(store, x).items():
        yield dict(zip(line_columns(x), line, strict=True)) | {"method": method, "x": x}, line, measured


def by_line(store: Store, x: str) -> dict[Line, list[tuple[Row, Measured]]]:
    """Group the curves by line. Each curve comes with the columns that name it."""
    lines: dict[Line, list[tuple[Row, Measured]]] = defaultdict(list)
    for named, line, measured in _named_curves(store, x):
        lines[line].append((named, measured))
    return lines


def band_table(store: Store, x: str = "adapter_params", points: int = 60) -> pa.Table:
    """Return the isotonic fits on a logarithmic grid of `points`, with 95 % bands over seeds; columns `BAND`.

    The column `band` is 'simultaneous' if there is a band (it covers the whole curve), else null.
    """
    rows = []
    for named, _, measured in _named_curves(store, x):
        at = np.geomspace(measured.curve.x[0], measured.curve.x[-1], points)
        scores = isotonic(measured.curve.x, measured.curve.mean, at)
        band = fits_band(measured.curve, at)
        for i in range(points):
            row = named | {"at": float(at[i]), "score": float(scores[i])}
            if band is not None:
                row |= {"low": float(band[0][i]), "high": float(band[1][i]), "band": "simultaneous"}
            rows.append(row)
    return readings_table(rows, x, BAND)


@remembered
def crossing_table(store: Store, x: str = "adapter_params") -> pa.Table:
    """Return where each method's curve crosses the baseline's, on the seeds that both have; columns `CROSSING`."""
    baseline = question(store).baseline
    rows = []
    for named, line, measured in _named_curves(store, x):
        base = measured_curves(store, x).get((line, baseline))
        shared = [s for s in measured.seeds if s in base.seeds] if base is not None else []
        if named["method"] != baseline and line[3] is not None and base is not None and shared:
            estimate = crossing(measured.on(shared), base.on(shared))
            rows.append(named | {"baseline": baseline, "seeds": len(shared)} | vars(estimate))
    return readings_table(rows, x, CROSSING)


def needed_table(store: Store, x: str = "adapter_params", target: float | None = None) -> pa.Table:
    """Return the cost, or the number of examples, that each method needs to reach a score; columns `NEED`.

    Args:
        store: the results.
        x: the cost, or `EXAMPLES`.
        target: the score, a fraction. Default: the baseline's best mean score, and against a cost also 99 % of full
            fine-tuning's mean score. A target that is taken from data counts as exact.
    """
    full: dict[Line, list[float]] = defaultdict(list)
    for run in costed_runs(store, x) if x != EXAMPLES else ():
        if run["method"] == "full":
            full[place_of(run)].append(run["test_score"])
    rows = []
    for named, line, measured in _named_curves(store, x):
        goals = [] if target is None else [(f"{100 * target:g} %", target)]
        if target is None and line in full:
            goals.append((f"{100 * NEAR_FULL:g} % of full fine-tuning's score", NEAR_FULL * float(np.mean(full[line]))))
        baseline = question(store).baseline
        base = measured_curves(store, x).get((line, baseline))
        if target is None and base is not None and named["method"] != baseline and line[3] is not None:
            goals.append((f"{style(baseline).name}'s best score", float(base.curve.mean.max())))
        for goal, value in goals:
            row = {"goal": goal, "target": value, "seeds": measured.curve.seeds}
            rows.append(named | row | vars(needed(measured.curve, value)))
    return readings_table(rows, x, NEED)


def area_table(store: Store, x: str = "adapter_params") -> pa.Table:
    """Return each curve's mean score over log x, in a range that several curves share; columns `AREA`.

    Against a cost the range is the common range of the question's two methods, if they have curves. Otherwise it is
    the common range of all curves of the line. `difference` is the area minus that of the baseline, paired by seed.
    """
    asked_question = question(store)
    rows = []
    for line, line_curves in by_line(store, x).items():
        core = [
            measured
            for named, measured in line_curves
            if x != EXAMPLES and named["method"] in (asked_question.focus, asked_question.baseline)
        ]
        spans = [measured.curve.x for measured in core or [measured for _, measured in line_curves]]
        low, high = max(float(at[0]) for at in spans), min(float(at[-1]) for at in spans)
        base = measured_curves(store, x).get((line, asked_question.baseline))
        for named, measured in line_curves if low < high else ():
            row = {"from_x": low, "to_x": high, "seeds": measured.curve.seeds} | vars(area(measured.curve, low, high))
            if base is not None and base is not measured:
                row |= area_difference(measured, base, low, high) | {"baseline": asked_question.baseline}
            rows.append(named | row)
    return readings_table(rows, x, AREA)


def area_difference(one: Measured, base: Measured, low: float, high: float) -> Row:
    a, b = ({} if (areas := seed_areas(m.curve, low, high)) is None else dict(zip(m.seeds, areas, strict=True))
            for m in (one, base))  # fmt: skip
    difference = paired_difference(a, b)
    if difference is None:
        return {}
    return {"difference": difference.mean, "difference_low": difference.low, "difference_high": difference.high}


def crossing_sentence(row: Row) -> str:
    """Return a sentence on a row of `crossing_table` that claims no more than its interval allows."""
    a = style(row["method"]).name
    b = style(row["baseline"]).name
    where = axis_words(row["x"])
    if row["value"] is None:
        observed = row["note"].replace(": above throughout", f", {a}'s lies above throughout")
        observed = observed.replace(": below throughout", f", {a}'s lies below throughout")
        return f"{a}'s curve and {b}'s: {observed} (isotonic fits against {where}; a description, not a test)."
    at, low, high = (quantity(row[name]) for name in ("value", "low", "high"))
    if row["share"] is None:
        why = "without spread between seeds" if row["note"] == NO_INTERVAL else "on one seed"
        return f"{a}'s curve crosses {b}'s at {at} {where}, seen {why}, so without an interval."
    observed = f"the crossing is in {100 * row['share']:.0f} % of draws"
    if not low or not high:
        ends = f"{low or 'below the range'} to {high or 'above the range'}"
        return f"{a}'s curve may cross {b}'s at {at} {where}, 95 % interval {ends}; {observed}."
    return f"{a}'s curve crosses {b}'s at {at} {where}, 95 % interval {low} to {high}; {observed}."
