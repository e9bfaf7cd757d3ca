"""The ranking: all methods at the only budget of a sweep, the best first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from analysis.drawing.picture import Picture, first_panels, margin_text
from analysis.findings.comparisons.finding import band_meaning
from analysis.findings.comparisons.numbers import difference_curves
from analysis.findings.finding import Finding
from analysis.findings.scaling.numbers import curve, one_budget
from analysis.format import Row
from analysis.store.store import Store
from analysis.styles import place_of, style
from analysis.verdict.looks import margin_of
from analysis.verdict.question import ASKED, Question, question, question_names
from analysis.verdict.runs import score_name
from analysis.verdict.verdicts import NOT_KNOWN, TESTED_VERDICTS


def ranking_pictures(store: Store) -> list[Picture]:
    """Draw scores and differences at the only budget, instead of curves of a single point."""
    from analysis.findings.ranking.figure import draw_ranking

    score, table = score_name(store), curve(store)
    if table.num_rows == 0 or not one_budget(store):
        return []
    compared = difference_curves(store)
    asked_question = question(store)
    margin = margin_of(store)
    label = f"{score.capitalize()} of every method at the one budget, the best first"
    caption = (
        f"{score.capitalize()} over seeds with pointwise 95 % t intervals, the best mean on top, which is no verdict."
    )
    if compared.num_rows:
        caption += f" Right: the paired difference from {question_names(asked_question)[1]} with "
        caption += f"{band_meaning(compared.to_pylist())}.{margin_text(margin)}"
    caption += " Hollow: methods without a budget. An arrow stands for a value, or an arrow's head for the end of an "
    caption += "interval, that lies beyond the panel."
    figure = draw_ranking(first_panels(table), compared, score=score, margin=margin)
    says = conclude_ranking(compared.to_pylist(), asked_question)
    return [Picture("ranking", figure, label, caption, says)]


def conclude_ranking(rows: Sequence[Row], asked: Question = ASKED) -> str:
    """Count how often a method is higher and lower than the baseline at the only budget.

    Args:
        rows: rows of `comparisons.numbers.difference_curves`.
        asked: the sweep's question.
    """
    single_rows = [r for r in rows if r["dataset"]]
    counts, among = Counter(r["verdict"] for r in single_rows), len({place_of(r) for r in single_rows})
    if not counts:
        return f"No method shares a confirmed seed with {question_names(asked)[1]}, so nothing is compared."
    verdict_counts = ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in (*TESTED_VERDICTS, "not testable", NOT_KNOWN) if counts[verdict]
    )
    over = "" if among == 1 else f", {len(single_rows)} comparisons in {among} places"
    return f"Corrected verdicts against {style(single_rows[0]['baseline']).name}{over}: {verdict_counts}."


FINDING = Finding("answer", pictures=lambda store, _: ranking_pictures(store), live=True)
