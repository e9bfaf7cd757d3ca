"""Fits of score against a cost: crossings, the cost of a score, areas, and their figure."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from analysis.drawing.picture import BESIDE, Picture, first_panels
from analysis.findings.finding import Finding
from analysis.findings.fits.measured import axis
from analysis.findings.fits.pareto import pareto_front
from analysis.findings.fits.readings import area_table, band_table, crossing_sentence, crossing_table, needed_table
from analysis.findings.shared import DIFFERENCE
from analysis.format import Row, change_text, percent, quantity, score_text, with_interval
from analysis.sheets.columns import METHOD, columns_of
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.store.store import Store
from analysis.styles import style
from analysis.verdict.question import ASKED, Question, question, question_names, rows_of_question
from analysis.verdict.runs import score_name

FITS = ("crossings", "budget_needed", "areas")
"""Names of the tables of `fit_sheets`."""


GIVEN = (
    "Intervals and shares of draws are over seeds, given the chosen learning rates. They leave out that another rate "
    "might "
    "have been chosen, so they are somewhat too narrow."
)
"""What the heads of all columns mean that end in 'given the rates'; said once, under the first table."""


def _estimate(r: Row) -> str:
    """Return a cost that was read off a curve with its interval, or why there is none."""
    if r["value"] is None:
        return str(r["note"])
    if r["share"] is None:
        return quantity(r["value"])
    return with_interval(
        quantity(r["value"]), quantity(r["low"]) or "below range", quantity(r["high"]) or "above range"
    )


def _mean(r: Row) -> str:
    return str(r["note"]) if r["value"] is None else score_text(r, "value")


READING_COLUMNS: tuple[tuple[Column, ...], ...] = (
    (
        Column("against", lambda r: style(r["baseline"]).name),
        Column("crosses at [95 %, given the rates]", _estimate, "number"),
        number("in range, % of draws", "share", percent),
    ),
    (
        text("goal", "goal"),
        number("score, %", "target", percent),
        Column("needs [95 %, given the rates]", _estimate, "number"),
    ),
    (
        number("from", "from_x"),
        number("to", "to_x"),
        Column("mean score, % [95 %, given the rates]", _mean, "number"),
        Column("less the baseline's, points [95 %, given the rates]", lambda r: change_text(r, *DIFFERENCE), "number"),
    ),
)
"""Of crossings, of costs that a score needs, of areas."""


def fit_sheets(store: Store, x: str) -> list[Sheet]:
    """Return the tables of crossings, needed budgets and areas of the fits against a cost."""
    label = axis(x).label
    tables: tuple[tuple[str, pa.Table], ...] = (
        (f"Where curves cross, in {label}", crossing_table(store, x)),
        (f"What a score costs, in {label}", needed_table(store, x)),
        ("Mean score over the range (area under the curve, log axis)", area_table(store, x)),
    )
    return [
        Sheet(name, title, columns_of(rows := table.to_pylist(), METHOD, *columns), rows, note)
        for name, (title, table), columns, note in zip(FITS, tables, READING_COLUMNS, (GIVEN, "", ""), strict=True)
    ]


def fit_pictures(store: Store, x: str) -> list[Picture]:
    cost = axis(x).label
    bands = band_table(store, x)
    if bands.num_rows == 0:
        return []
    crossings = crossing_table(store, x)
    return [fitted_picture("fits", pareto_front(store, x), bands, crossings, cost, store)]


def fitted_picture(
    stem: str, points: pa.Table, bands: pa.Table, crossings: pa.Table, cost: str, store: Store
) -> Picture:
    """Draw fitted curves against a cost or against training examples."""
    from analysis.findings.fits.figure import draw_fits

    score, shown = score_name(store), first_panels(bands)
    label = f"Isotonic fits of {score} against {cost} with simultaneous bands, crossings marked"
    caption = (
        f"Isotonic fits (never falling) of mean {score} against {cost}. Bands are simultaneous: each is a 95 % band "
        "over seeds of one whole curve, given the chosen learning rates. A shaded column is the interval of a "
        f"crossing.{BESIDE}"
    )
    says = conclude_crossings(crossings.to_pylist(), cost.split(" (", maxsplit=1)[0], question(store))
    figure = draw_fits(points, shown, crossings, score=score)
    return Picture(stem, figure, label, caption, says)


def conclude_crossings(rows: Sequence[Row], axis: str, asked: Question = ASKED) -> str:
    """Say where the fitted curves of the question's methods cross.

    Args:
        rows: rows of `readings.crossing_table`.
        axis: the cost in words.
        asked: the sweep's question.
    """
    (a, b), crossing_rows = question_names(asked), rows_of_question(rows, asked)
    if not crossing_rows:
        return f"No conclusion on a crossing of {a} and {b}: they do not both have three points of different cost."
    if len(crossing_rows) == 1:
        return crossing_sentence(crossing_rows[0])
    settled = sum(r["value"] is not None and r["low"] is not None and r["high"] is not None for r in crossing_rows)
    open_ended = sum(r["value"] is not None for r in crossing_rows) - settled
    none = [r for r in crossing_rows if r["value"] is None]
    parts = []
    if settled:
        parts.append(
            f"cross in range in {settled} of {len(crossing_rows)} panels, the 95 % interval over seeds inside it"
        )
    if open_ended:
        parts.append(f"may cross in {open_ended}, where the interval leaves the range")
    if none:
        above = sum("above throughout" in r["note"] for r in none)
        below = sum("below throughout" in r["note"] for r in none)
        sides = [f"{a} above throughout in {above}"] if above else []
        sides += [f"below throughout in {below}"] if below else []
        parts.append(f"show no lasting crossing in {len(none)}{' (' + ', '.join(sides) + ')' if sides else ''}")
    fits = f"The isotonic fits of {a} and {b} against {axis} {'; '.join(parts)}"
    return f"{fits}: a description given the chosen rates, not a test."


FINDING = Finding(
    "more", FITS, lambda store, view: fit_sheets(store, view.x), lambda store, view: fit_pictures(store, view.x)
)
