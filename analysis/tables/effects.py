"""The report's tables of effects: whether a difference changes with the budget, what rank and parameters bring."""

from __future__ import annotations

from functools import partial

from analysis.format import Row, change_text, p_text
from analysis.statistics import rank_effects as slopes
from analysis.statistics.differences import changes
from analysis.statistics.scaling import question
from analysis.store.store import Store
from analysis.styles import style
from analysis.tables.results import SEEDS, VERDICT
from analysis.tables.sheet import METHOD, Column, Sheet, columns_of, number, text
from analysis.words.conclusions import idle_text

_DOUBLED = {
    slopes.RANK: "rank, parameters equal",
    slopes.PARAMETERS: "parameters, rank equal",
    slopes.CONTRAST: "rank less parameters",
}
_ENDS = {"difference at the one, points [95 %]": "at_least", "at the other": "at_most"}


def _end(name: str, r: Row) -> str:
    return change_text(r, name, f"{name}_low", f"{name}_high")


def changed(store: Store, baseline: str | None = None) -> Sheet:
    """Whether the difference of the question's method to a baseline changes with the budget."""
    rows = changes(store, baseline).to_pylist()
    return Sheet(
        "changes",
        f"Does the difference to {style(baseline or question(store).baseline).name} change with the budget?",
        columns_of(
            rows,
            METHOD,
            text("from", "least"),
            text("to", "most"),
            *(Column(head, partial(_end, end), "number") for head, end in _ENDS.items()),
            Column("change, points [95 %]", change_text, "number"),
            SEEDS,
            number("p, Holm", "p_holm", p_text),
            VERDICT,
        ),
        rows,
        "The difference at the largest matched budget that every data set has, less that at the smallest, seed by "
        "seed; higher: it rises with the budget, lower: it falls. The test is that of the comparisons, the choice of "
        "the four rates included; the mean over data sets comes first, then Holm's steps over them: a family of its "
        "own.",
        strong=lambda r: r["dataset"] is None,
    )


def rank_effects(store: Store) -> Sheet:
    """What a doubling of the rank, and of the parameters, brings."""
    rows = slopes.effects(store).to_pylist()
    return Sheet(
        "rank_effects",
        "Rank against parameters",
        columns_of(
            rows,
            Column("doubled", lambda r: _DOUBLED[r["effect"]]),
            Column("over", lambda r: f"variants of {style(r['scope']).name}" if r["scope"] else "all methods"),
            number("from", "least"),
            number("to", "most"),
            number("cells", "cells"),
            SEEDS,
            Column("points [95 %]", lambda r: change_text(r, "slope"), "number"),
            number("p, Holm", "p_holm", p_text),
            VERDICT,
        ),
        rows,
        "Slopes of the test score per doubling, fitted for each seed: over the methods of one budget, each budget with "
        "a level of its own; over the budgets of methods whose rank stays, each method with a level of its own. The "
        "rank is the largest that an update can have. Methods differ in more than rank: variants of one method are the "
        "cleaner evidence. The last rows are the one slope less the other. t tests over seeds, the choice of rates "
        "included, Holm-corrected over this table, data sets included: a family apart from the comparisons, whose "
        f"verdict on two methods of one budget may differ.{idle_text(slopes.idle(store))}",
    )
