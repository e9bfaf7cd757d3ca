"""Each method against full fine-tuning."""

from __future__ import annotations

import pyarrow as pa

from analysis.findings.comparisons.sheet import difference_columns
from analysis.findings.finding import Finding
from analysis.sheets.sheet import Sheet
from analysis.store.store import Store
from analysis.styles import in_order, place_of, style
from analysis.verdict.comparisons import comparisons
from analysis.verdict.looks import preliminary_words
from analysis.verdict.question import ASKED, Question, question
from analysis.verdict.verdicts import NO_CONCLUSION, inconclusive, interval_text


def gaps_sheet(store: Store) -> Sheet:
    """Return the table of comparisons with full fine-tuning, for each method that has a budget."""
    rows = comparisons(store, baseline="full").to_pylist()
    return Sheet(
        "full_fine_tuning",
        "Each method against full fine-tuning",
        difference_columns(rows, ratio=False),
        rows,
        "The columns are those of the comparisons at equal budgets. The correction for multiple comparisons covers the "
        "rows of this table.",
        folded=True,
    )


_MOST = 4  # methods that are named


def conclude_gap(compared: pa.Table, asked: Question = ASKED) -> str | None:
    """Return a sentence on the methods' distance to full fine-tuning at their largest budgets.

    The result is None if the distance is not known. With several data sets the sentence is about their mean.

    Args:
        compared: the table `comparisons.comparisons(store, baseline="full")`.
        asked: the sweep's question.
    """
    rows = [r for r in compared.to_pylist() if r["budget"] is not None]
    means = [r for r in rows if r["dataset"] is None]
    rows = means or rows
    places = {place_of(r) for r in rows}
    parts = []
    several = in_order({r["method"] for r in rows})[:_MOST]
    for method in several if asked.focus is None else (asked.baseline, asked.focus):
        method_rows = [r for r in rows if r["method"] == method]
        if not method_rows or len(places) != 1:
            continue
        top = max(method_rows, key=lambda r: r["budget"])
        word = NO_CONCLUSION if inconclusive(top) else top["verdict"]
        parts.append(f"{style(method).name} ({top['reference']}) {interval_text(top)}, {word}")
    if not parts:
        return None
    where = f", in the mean over {means[0]['n_datasets']} data sets" if means else ""
    return (
        f"{preliminary_words(compared)}Against full fine-tuning{where}, each at its largest budget: {'; '.join(parts)}."
    )


def gap_says(store: Store) -> list[str]:
    """Return the sentence of `conclude_gap` on a store, or [] if the distance is not known."""
    sentence = conclude_gap(comparisons(store, baseline="full"), question(store))
    return [] if sentence is None else [sentence]


FINDING = Finding("comparisons", ("full_fine_tuning",), lambda store, _: [gaps_sheet(store)], says=gap_says)
