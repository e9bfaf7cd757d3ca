"""Score against the number of training examples: the curves, and the fits through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from analysis.drawing.picture import BESIDE, Picture, keys_of, numbered, rows_with_key
from analysis.findings.finding import Finding
from analysis.findings.fits.finding import READING_COLUMNS, fitted_picture
from analysis.findings.fits.measured import EXAMPLES, point_table, size_curves
from analysis.findings.fits.readings import area_table, band_table, crossing_table, needed_table
from analysis.format import Row
from analysis.sheets.columns import BUDGET, METHOD, by_size, origins
from analysis.sheets.sheet import Column, Sheet
from analysis.store.store import Store
from analysis.styles import dataset_text, short_name, size_key, size_text
from analysis.verdict.comparisons import comparisons
from analysis.verdict.question import ASKED, Question, question, question_names, rows_of_question
from analysis.verdict.runs import score_name
from analysis.verdict.verdicts import NOT_KNOWN, TESTED_VERDICTS

SIZES = ("data_sizes", "size_crossings", "size_needed", "size_areas")
"""Names of the tables of `size_sheets`."""


_DATA = Column("data", lambda r: dataset_text(r["dataset"] or "mean over data sets"), label=True, beneath=True)


def size_sheets(store: Store) -> list[Sheet]:
    """Return the tables of scores by training size, and of what the fitted curves say."""
    lines, columns = by_size(size_curves(store).to_pylist(), ("sweep", "model", "dataset", "method", "reference"))
    note, lead = (
        "Each score is a mean over seeds with its 95 % t interval, given the chosen rate.",
        [*origins(lines), _DATA, METHOD, BUDGET],
    )
    score_sheet = Sheet(SIZES[0], "Test score by training size", [*lead, *columns], lines, note, folded=len(lines) > 20)
    tables: tuple[tuple[str, pa.Table], ...] = (
        ("Where curves cross, in training examples", crossing_table(store, EXAMPLES)),
        ("Training examples that a score needs", needed_table(store, EXAMPLES)),
        ("Mean score over the range of training examples", area_table(store, EXAMPLES)),
    )
    return [score_sheet] + [
        Sheet(name, title, [*lead, *group_columns], rows, folded=len(rows) > 20)
        for name, (title, table), group_columns in zip(SIZES[1:], tables, READING_COLUMNS, strict=True)
        if (rows := table.to_pylist())
    ]


MOST_SIZE_FIGURES = 4


def size_pictures(store: Store) -> list[Picture]:
    from analysis.findings.data_sizes.figure import draw_sizes

    score, table = score_name(store), size_curves(store)
    label = f"{score.capitalize()} against the number of training examples, a line per method and budget"
    compared = comparisons(store).to_pylist() if table.num_rows else []
    drawn: list[Picture] = []
    several = len({(r["sweep"], r["model"]) for r in table.to_pylist()}) > 1
    for sweep, model, dataset in keys_of(table, _data_key)[:MOST_SIZE_FIGURES]:
        compared_rows = [
            r for r in compared if r["sweep"] == sweep and r["model"] == model and dataset in (None, r["dataset"])
        ]
        caption = (
            f"On {short_name(dataset) if dataset else 'the mean over data sets'}"
            f"{f', {model} in {sweep}' if several else ''}: one line per method and budget (paler is smaller). Bands "
            "are pointwise 95 % t intervals of the largest budget. The numbers of training examples stand under the "
            f"sizes.{BESIDE}"
        )
        says = conclude_sizes(compared_rows, question(store))
        figure = draw_sizes(rows_with_key(table, _data_key, [(sweep, model, dataset)]), score=score)
        drawn.append(Picture(numbered("data_size", len(drawn)), figure, label, caption, says))
    return drawn


def size_fit_pictures(store: Store) -> list[Picture]:
    """Draw fits over training examples for every budget of the first (sweep, model, data set or mean)."""
    bands = band_table(store, EXAMPLES, points=40)
    if bands.num_rows == 0:
        return []
    first = keys_of(bands, _data_key)[:1]
    budgeted = rows_with_key(bands, _data_key, first).filter(pc.field("reference").is_valid())
    if budgeted.num_rows == 0:
        return []
    # a panel is a budget, so points go without their training size
    points = rows_with_key(point_table(store), _data_key, first).drop_columns(["train_size"])
    crossings = rows_with_key(crossing_table(store, EXAMPLES), _data_key, first)
    return [fitted_picture("data_size_fits", points, budgeted, crossings, "training examples", store)]


def _data_key(row: Row) -> tuple[str, str, str | None]:
    return row["sweep"], row["model"], row["dataset"]


def conclude_sizes(rows: Sequence[Row], asked: Question = ASKED) -> str:
    """Count the verdicts on the question's methods for each training size.

    Args:
        rows: rows of `analysis.comparisons` for the sweep and the data sets that the figure shows.
        asked: the sweep's question.
    """
    a, b = question_names(asked)
    single_rows = [r for r in rows_of_question(rows, asked) if r["reference"] and r["dataset"]]
    if not single_rows:
        return f"No conclusion about {a} and {b} by training size: nowhere are both confirmed with a common seed."
    kinds = "budgets" if len({r["dataset"] for r in single_rows}) == 1 else "budgets and data sets"
    parts = []
    for size in sorted({r["train_size"] for r in single_rows}, key=size_key):
        verdicts = Counter(r["verdict"] for r in single_rows if r["train_size"] == size)
        words = [f"{v} at {verdicts[v]}" for v in (*TESTED_VERDICTS, "not testable", NOT_KNOWN) if verdicts[v]]
        parts.append(f"{size_text(size)}: {', '.join(words)} of {verdicts.total()}")
    return (
        f"{a[0].upper()}{a[1:]} against {b} at the same budget, {kinds} by training size: {'; '.join(parts)} "
        "(Holm-corrected as in the table of comparisons, the choice of learning rates included)."
    )


FINDING = Finding(
    "sizes",
    SIZES,
    lambda store, _: size_sheets(store),
    lambda store, _: size_pictures(store) + size_fit_pictures(store),
)
