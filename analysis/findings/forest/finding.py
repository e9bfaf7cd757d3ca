"""The figure of all differences of the methods in question, if there are several data sets."""

from __future__ import annotations

import pyarrow as pa

from analysis.drawing.picture import MOST_ROWS, Picture, margin_text
from analysis.findings.answer.answer import conclusion
from analysis.findings.finding import Finding
from analysis.store.store import Store
from analysis.verdict.comparisons import comparisons
from analysis.verdict.looks import margin_of
from analysis.verdict.question import question, question_names, rows_of_question
from analysis.verdict.runs import score_name
from analysis.verdict.verdicts import LATER_MEANS


def forest_pictures(store: Store) -> list[Picture]:
    """Draw every difference of the methods in question and their means, if there are several data sets."""
    from analysis.findings.forest.figure import draw_forest

    asked_question, table = question(store), comparisons(store)
    known = asked_question.focus is not None or asked_question.every
    question_rows = rows_of_question(table.to_pylist(), asked_question) if known else []
    several = len({r["dataset"] for r in question_rows if r["dataset"]}) > 1
    if not several or len(question_rows) > MOST_ROWS or all(r["low"] is None for r in question_rows):
        return []
    focus, name = question_names(asked_question)
    score = score_name(store)
    margin = margin_of(store)
    label = f"{score.capitalize()}: {focus} minus {name}, a row per data set and budget, and per mean"
    caption = (
        f"{score.capitalize()}: {focus} minus {name}, paired, in points. Each has an interval, which includes the "
        "choice of learning rates, and its verdict. Both are corrected for the number of comparisons: an interval "
        f"leaves out zero exactly if its verdict is higher or lower. Diamonds are means.{margin_text(margin)}"
    )
    caption += f" {LATER_MEANS}." if any(r["added"] for r in question_rows) else ""
    figure = draw_forest(pa.Table.from_pylist(question_rows, schema=table.schema), score=score, margin=margin)
    return [Picture("forest", figure, label, caption, conclusion(store))]


FINDING = Finding("comparisons", pictures=lambda store, _: forest_pictures(store))
