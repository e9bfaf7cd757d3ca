"""What a doubling of the rank, and of the parameters, adds to the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.drawing.picture import BESIDE, MOST_PANELS, Picture, rows_with_key
from analysis.findings.finding import Finding
from analysis.findings.rank.numbers import CONTRAST, PARAMETERS, RANK, effects, idle_cells, scores_by_rank
from analysis.findings.shared import SEEDS, verdict_as
from analysis.format import Row, change_text, p_text
from analysis.sheets.columns import columns_of
from analysis.sheets.sheet import Column, Sheet, number
from analysis.store.store import Store
from analysis.styles import Place, place_of, place_text, style
from analysis.verdict.runs import score_name
from analysis.verdict.verdicts import NOT_KNOWN

_DOUBLED = {
    RANK: "rank, parameters equal",
    PARAMETERS: "parameters, rank equal",
    CONTRAST: "the difference of these two slopes",
}
_RANGE = "range, cells and seeds"
_SLOPES = {"higher": "above zero", "lower": "below zero", "not distinguishable": "not distinguishable from zero"}


def rank_sheet(store: Store) -> Sheet:
    """Return the table of what a doubling of the rank, and of the parameters, adds to the score."""
    rows = effects(store).to_pylist()
    return Sheet(
        "rank_effects",
        "Rank against parameters",
        columns_of(
            rows,
            Column("doubled", lambda r: _DOUBLED[r["effect"]], label=True),
            Column("over", _scope, label=True),
            Column("points per doubling [corrected]", lambda r: change_text(r, "slope"), "number"),
            Column("the slope is", lambda r: verdict_as(r, _SLOPES)),
            number("p, corrected (Holm)", "p_holm", p_text),
            number("from", "least", group=_RANGE),
            number("to", "most", group=_RANGE),
            number("cells", "cells", group=_RANGE),
            replace(SEEDS, group=_RANGE),
        ),
        rows,
        "Each row is a slope: the points of the test score that one doubling adds. It is fitted for each seed. The "
        "first rows compare methods of one budget, and double the rank. The next rows compare budgets of methods "
        "whose rank stays the same, and double the parameters. The last rows are the first slope minus the second. "
        "The rank of a method is the largest that its update can have. Methods differ in more than rank, so variants "
        "of one method are the cleaner evidence. The t tests over seeds account for the choice of rates, and Holm's "
        "correction covers this table. These tests are separate from the comparisons, whose verdict on two methods of "
        f"one budget may differ.{idle_text(idle_cells(store))}",
    )


def _scope(r: Row) -> str:
    return f"variants of {style(r['scope']).name}" if r["scope"] else "all methods"


LEAST_RANKS = 3
"""Ranks at one budget from which there is a figure: two are the comparison of two methods, which the report has."""


def rank_pictures(store: Store) -> list[Picture]:
    """Draw score against the rank of the update, for the places where some budget has `LEAST_RANKS` ranks."""
    from analysis.findings.rank.figure import draw_ranks

    table, score = scores_by_rank(store), score_name(store)
    ranks_by_budget: dict[tuple[Place, str], set[float]] = {}
    for r in table.to_pylist():
        ranks_by_budget.setdefault((place_of(r), r["reference"]), set()).add(r["update_rank"])
    enough = list(dict.fromkeys(place for (place, _), ranks in ranks_by_budget.items() if len(ranks) >= LEAST_RANKS))
    if not enough:
        return []
    label = f"{score.capitalize()} against the rank of the update, at equal trainable parameters"
    caption = (
        "At equal trainable parameters (paler: fewer). The axis is the largest rank that the update of a weight can "
        "have, mean over the target weights. Bars are 95 % t intervals over seeds, lines connect variants of one "
        f"method at one budget.{BESIDE}{idle_text(idle_cells(store))}"
    )
    says = conclude_rank_effects(effects(store).to_pylist())
    figure = draw_ranks(rows_with_key(table, place_of, enough[:MOST_PANELS]), score=score)
    return [Picture("rank", figure, label, caption, says)]


def conclude_rank_effects(rows: Sequence[Row]) -> str:
    """Return sentences on what doubling the rank and doubling the parameters add, for the first place.

    Args:
        rows: rows of `rank.effects`.
    """
    if not rows:
        return "No budget has updates of different rank."
    first = rows[0]
    place = [r for r in rows if place_of(r) == place_of(first)]
    where = place_text(first["dataset"] or "the mean over data sets", first["train_size"])
    every = len({(*place_of(r)[:2], first["dataset"] and r["dataset"], r["train_size"]) for r in rows})
    where += f" (the first of {every} in the table)" if every > 1 else ""
    sentences = [_effect_text(place, effect) for effect in (RANK, PARAMETERS, CONTRAST)]
    text = f"On {where}: {' '.join(filter(None, sentences))}"
    if any(r["verdict"] == NOT_KNOWN for r in place):
        return f"{text} Not tested: what the choice of rates adds is not known."
    if all(r["p_holm"] is None for r in place):
        return f"{text} Not tested: that takes two seeds or more, and a spread between them."
    return text


def idle_text(rows: Sequence[Row]) -> str:
    """Return a sentence on the cells of `rank.idle_cells`, which were left out; "" if there are none."""
    each = [f"{style(r['method']).name} at {r['reference']} ({r['dof']:,} of {r['count']:,})" for r in rows]
    return f" Left out, since more than a tenth of their parameters can't act: {', '.join(each)}." if each else ""


def _effect_text(rows: Sequence[Row], effect: str) -> str:
    """Return a sentence on the points that one effect adds, over all methods and over the variants of one."""
    effect_rows = sorted((r for r in rows if r["effect"] == effect), key=lambda r: r["scope"] is not None)
    if not effect_rows:
        return ""
    begins = {
        RANK: "Doubling the rank at equal parameters adds",
        PARAMETERS: "Doubling the parameters at equal rank adds",
        CONTRAST: "The rank adds more than the parameters do by",
    }
    tested = any(r["p_holm"] is not None for r in rows)
    additions = []
    for r in effect_rows:
        additions.append(f"{change_text(r, 'slope')} points over {_scope(r)}{_slope_verdict(r) if tested else ''}")
    return f"{begins[effect]} {' and '.join(additions)}."


def _slope_verdict(row: Row) -> str:
    """Return a bracket that says if a slope is not distinguishable from zero, or could not be tested; else ""."""
    if row["p_holm"] is None:
        return " (not tested)" if row["verdict"] == NOT_KNOWN else " (not tested: no spread between seeds)"
    return " (not distinguishable from zero)" if row["verdict"] == "not distinguishable" else ""


FINDING = Finding(
    "rank", ("rank_effects",), lambda store, _: [rank_sheet(store)], lambda store, _: rank_pictures(store)
)
