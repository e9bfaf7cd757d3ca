"""The report's tables of effects: whether a difference changes with the budget, what rank and parameters bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from analysis.format import Row, change_text, p_text
from analysis.sheets.columns import METHOD, columns_of
from analysis.sheets.sheet import Column, Sheet, number
from analysis.statistics import rank_effects as slopes
from analysis.statistics.differences import changes
from analysis.statistics.scaling import question
from analysis.store.store import Store
from analysis.styles import style
from analysis.tables.results import SEEDS
from analysis.words.conclusions import idle_text
from analysis.words.verdicts import verdict_text

_DOUBLED = {
    slopes.RANK: "rank, parameters equal",
    slopes.PARAMETERS: "parameters, rank equal",
    slopes.CONTRAST: "the difference of these two slopes",
}
_ENDS = {"difference at the smallest, points [95 %]": "at_least", "difference at the largest": "at_most"}
_RANGE = "range, cells and seeds"
_SLOPES = {"higher": "above zero", "lower": "below zero", "not distinguishable": "not distinguishable from zero"}
_CHANGES = {"higher": "rises", "lower": "falls", "not distinguishable": "no change detected"}


def _end(name: str, r: Row) -> str:
    return change_text(r, name, f"{name}_low", f"{name}_high")


def _verdict(r: Row, names: Mapping[str, str]) -> str:
    verdict = verdict_text(r["verdict"])
    return names.get(verdict, verdict)


def difference_changes(store: Store, baseline: str | None = None) -> Sheet:
    """Test whether the difference between the method in question and a baseline changes with the budget."""
    rows = changes(store, baseline).to_pylist()
    return Sheet(
        "changes",
        f"Does the difference from {style(baseline or question(store).baseline).name} change with the budget?",
        columns_of(
            rows,
            METHOD,
            Column("budgets", lambda r: f"{r['least']} to {r['most']}", label=True, beneath=True),
            *(Column(head, partial(_end, end), "number") for head, end in _ENDS.items()),
            Column("change, points [corrected]", change_text, "number"),
            Column("trend", lambda r: _verdict(r, _CHANGES)),
            SEEDS,
            number("p, corrected (Holm)", "p_holm", p_text),
        ),
        rows,
        "The change is the difference at the largest budget less the difference at the smallest, seed by seed. The "
        f"test accounts for the choice of the learning rates of both methods at both budgets.{_over_data(rows)} The "
        "interval of the change has the level of its test; those of the two differences are pointwise.",
        strong=lambda r: r["dataset"] is None,
    )


def _over_data(rows: Sequence[Row]) -> str:
    """Return how several data sets are tested; "" for one."""
    if len({r["dataset"] for r in rows}) < 2:
        return ""
    return (
        " The budgets are those that every data set has. All rows are corrected together (Holm); the mean over data "
        "sets has half of the level at the first step."
    )


def _scope(r: Row) -> str:
    return f"variants of {style(r['scope']).name}" if r["scope"] else "all methods"


def rank_effects(store: Store) -> Sheet:
    """Estimate what a doubling of the rank, and of the parameters, adds to the score."""
    rows = slopes.effects(store).to_pylist()
    return Sheet(
        "rank_effects",
        "Rank against parameters",
        columns_of(
            rows,
            Column("doubled", lambda r: _DOUBLED[r["effect"]], label=True),
            Column("over", _scope, label=True),
            Column("points per doubling [corrected]", lambda r: change_text(r, "slope"), "number"),
            Column("the slope is", lambda r: _verdict(r, _SLOPES)),
            number("p, corrected (Holm)", "p_holm", p_text),
            number("from", "least", group=_RANGE),
            number("to", "most", group=_RANGE),
            number("cells", "cells", group=_RANGE),
            replace(SEEDS, group=_RANGE),
        ),
        rows,
        "Each row is a slope: the points that one doubling adds to the test score, fitted for each seed. The first "
        "rows double the rank and compare the methods of one budget. The next rows double the parameters and compare "
        "the budgets of methods whose rank stays the same. The last rows subtract the second slope from the first. The "
        "rank is the largest that an update can have. Methods differ in more than rank, so variants of one method are "
        "the cleaner evidence. The t tests over seeds account for the choice of rates, and Holm's correction covers "
        "this table. These tests are separate from the comparisons, whose "
        f"verdict on two methods of one budget may differ.{idle_text(slopes.idle_cells(store))}",
    )
