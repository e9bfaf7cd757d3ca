"""The table of what to take at each budget."""

from __future__ import annotations

from analysis.findings.decisions.numbers import decisions
from analysis.findings.decisions.words import best_text, would_change
from analysis.findings.finding import Finding
from analysis.findings.shared import LONG
from analysis.format import duration, score_text
from analysis.sheets.columns import BUDGET, columns_of
from analysis.sheets.sheet import Column, Sheet, number
from analysis.store.store import Store


def decisions_sheet(store: Store) -> Sheet:
    """Return the table of what to take at each budget, and what would change that."""
    rows = decisions(store).to_pylist()
    several = any(len(r["best"]) > 1 for r in rows)
    legend = "Score, parameters and training time are those of the first method that a row names." if several else ""
    return Sheet(
        "decisions",
        "What to take at each budget",
        columns_of(
            rows,
            BUDGET,
            number("parameters", "adapter_params"),
            Column("best method", best_text),
            Column("test score, % [95 %]", score_text, "number"),
            number("training time of a run", "seconds", duration, "training time"),
            Column("the next best method, and how sure", would_change, "long"),
        ),
        rows,
        "A difference can be detected if a study like this one finds it in four of five repetitions. This accounts for "
        "the correction for multiple comparisons and for the choice of learning rate.",
        legend,
        folded=len(rows) > LONG,
    )


FINDING = Finding("answer", ("decisions",), lambda store, _: [decisions_sheet(store)])
