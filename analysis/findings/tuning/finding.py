"""Four findings on stage TUNE: learning rates, the expected best of n, test score against effort, and sharpness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from analysis.drawing.picture import BESIDE, MOST_PANELS, Picture, keys_of, numbered, rows_with_key
from analysis.findings.finding import Finding
from analysis.findings.shared import cell_name, cell_order
from analysis.findings.tuning.numbers import NEAR, best_of_n, rates, sharpness
from analysis.format import Row, percent, quantity, score_text
from analysis.sheets.columns import BUDGET, METHOD, columns_of, pivoted
from analysis.sheets.sheet import Column, Sheet, number, text
from analysis.store.sql.views import RISING
from analysis.store.store import Store
from analysis.styles import in_order, place_text, style
from analysis.verdict.question import ASKED, Question, question, question_names
from analysis.verdict.runs import score_name

AT_LEAST = "\N{GREATER-THAN OR EQUAL TO} "
COLUMNS_BESIDE = 7
"""Columns of scores that a page of 1,280 pixels has room for."""


def learning_rates_sheet(store: Store) -> Sheet:
    """Return the table of stage TUNE's validation scores, the numbers of the figures of learning rates."""
    rows = sorted(rates(store).to_pylist(), key=cell_order)
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("learning rate", lambda r: quantity(r["lr"]) + ("*" if r["chosen"] else ""), "number"),
        *([text("with", "hyperparameters", "code")] if any(r["hyperparameters"] for r in rows) else []),
        number("validation score, %", "mean_val", percent),
        number("runs", "n"),
        text("failed", "failed", "number"),
    )
    return Sheet(
        "learning_rates",
        "Validation score of each learning rate",
        columns,
        rows,
        legend="* The chosen rate.",
        folded=True,
    )


def expected_sheet(store: Store) -> Sheet:
    """Return the table of the expected best validation score if fewer rates had been tried."""
    note = (
        "Each number is the expected best validation score in % if only n of the learning rates had been tried, drawn "
        "at random (Tang et al. 2020). If a row still rises at its end, more tuning would probably have helped. A grid "
        "is not a random sample: n evenly spaced rates would do better than n random ones."
    )
    title = "Was a method under-tuned? Expected best of n rates"
    return _by_n("expected_best", title, note, best_of_n(store).to_pylist(), lambda r: percent(r["expected"]))


def effort_sheet(store: Store) -> Sheet:
    """Return the table of the expected test score if fewer rates had been tried."""
    rows = [r for r in best_of_n(store).to_pylist() if r["test"] is not None]
    note = (
        "Each number is the expected test score in %, with a pointwise 95 % interval, if only n of the learning rates "
        "had been tried. It is the confirmed score at the chosen rate minus the expected loss in validation score."
    )
    title = "Test score against tuning effort"
    return _by_n("tuning_effort", title, note, rows, lambda r: score_text(r, "test", "test_low", "test_high"))


def _by_n(name: str, title: str, note: str, rows: Sequence[Row], form: Callable[[Row], str]) -> Sheet:
    rows = sorted(pivoted(rows, ("sweep", "cell_id"), "n"), key=cell_order)

    def cell(n: int) -> Column:
        first = (n - 1) // COLUMNS_BESIDE * COLUMNS_BESIDE + 1
        group = f"n from {first} to {min(most, first + COLUMNS_BESIDE - 1)}" if first > 1 else ""
        return Column(f"n = {n}", lambda r: form(r["by"][n]) if n in r["by"] else "", "number", group)

    most = max((len(r["by"]) for r in rows), default=0)
    columns = columns_of(rows, METHOD, BUDGET, *(cell(n) for n in range(1, most + 1)))
    return Sheet(name, title, columns, rows, note, folded=True)


def sharpness_sheet(store: Store) -> Sheet:
    """Return the table of how wide the range of good learning rates is for each cell."""
    rows = sorted(sharpness(store).to_pylist(), key=cell_order)
    columns = columns_of(
        rows,
        METHOD,
        BUDGET,
        Column("decades within a point", lambda r: f"{AT_LEAST * r['open']}{r['decades']:.2f}", "number"),
        number("decades searched", "searched", lambda v: f"{v:.2f}"),
        number("best validation score, %", "best", percent),
    )
    note = (
        "Decades within a point is the width of the range of learning rates whose validation score is at most "
        f"{100 * NEAR:g} point below the best. A decade is a factor of ten. {AT_LEAST.strip()} means that the range "
        "may be wider, because no rate beyond its end was tried. The scores are noisy, so the widths are too."
    )
    return Sheet("sharpness", "How exactly the learning rate must be met", columns, rows, note, folded=True)


MOST_RATE_FIGURES = 6
MOST_EXPECTED = 4


def rate_pictures(store: Store) -> list[Picture]:
    from analysis.findings.tuning.figure import draw_rates

    table, parity = rates(store), store.table("parity").to_pylist()
    drawn: list[Picture] = []
    for place in keys_of(table, tuning_place)[:MOST_RATE_FIGURES]:
        place_rates, where = rows_with_key(table, tuning_place, [place]), place_text(*place[1:])
        if place_rates["mean_val"].null_count == place_rates.num_rows:
            continue
        label = f"Validation score against learning rate on {where}"
        caption = (
            f"Stage TUNE on {where}: validation score against learning rate, one line per budget (darker is "
            "larger). Stars are the chosen learning rates."
        )
        says = conclude_rates([r for r in parity if tuning_place(r) == place])
        stem, figure = numbered("learning_rates", len(drawn)), draw_rates(place_rates)
        drawn.append(Picture(stem, figure, label, caption, says))
    return drawn


def expected_pictures(store: Store) -> list[Picture]:
    """Draw the expected best validation score of n learning rates."""
    from analysis.findings.tuning.figure import draw_expected

    drawn = []
    for i, (where, place_rows, shown) in enumerate(_expected_places(store)):
        label = f"Expected best validation score against learning rates tried on {where}"
        caption = (
            f"Stage TUNE on {where}: the validation score that the best of n learning rates, drawn at random from "
            "those tried, is expected to have (Tang et al. 2020; a grid is no random sample, and n even points would "
            "do better), a panel per budget; methods without a budget are dashed in each. If a line still rises at "
            "its end, more tuning would have helped. If lines cross, another method would have come first with "
            f"another number of learning rates.{BESIDE}"
        )
        figure, says = draw_expected(shown), conclude_expected(place_rows.to_pylist(), question(store))
        drawn.append(Picture(numbered("expected_best", i), figure, label, caption, says))
    return drawn


def effort_pictures(store: Store) -> list[Picture]:
    """Draw the expected test score of n learning rates."""
    from analysis.findings.tuning.figure import draw_expected

    score = score_name(store)
    drawn = []
    for i, (where, place_rows, shown) in enumerate(_expected_places(store)):
        if shown["test"].null_count == shown.num_rows:
            continue
        label = f"Expected {score} against learning rates tried on {where}"
        caption = (
            "The expected test score if only n learning rates had been tried. Test scores are known at the chosen "
            "rate alone. So this is the confirmed score minus the validation points that are lost by trying only "
            "n rates. Bands are pointwise 95 % intervals over seeds, which include the noise of validation."
        )
        figure, says = draw_expected(shown, score), conclude_effort(place_rows.to_pylist())
        drawn.append(Picture(numbered("tuning_effort", i), figure, label, caption, says))
    return drawn


def sharpness_pictures(store: Store) -> list[Picture]:
    """Draw how many decades of learning rate come within a point of the best."""
    from analysis.findings.tuning.figure import draw_sharpness

    table = sharpness(store)
    drawn = []
    for i, (where, place_rows, _) in enumerate(_expected_places(store)):
        flat = rows_with_key(table, tuning_place, [tuning_place(place_rows.slice(0, 1).to_pylist()[0])])
        if flat.num_rows == 0:
            continue
        label = f"Decades of learning rate within a point of the best on {where}"
        caption = (
            "How exactly a learning rate must be met: the decades around the best rate in which the validation "
            "score is at most a point lower, interpolated between the rates tried. Pale: the range ends before. "
            f"There is no band, as this describes noisy scores.{BESIDE}"
        )
        figure, says = draw_sharpness(flat), conclude_sharpness(flat.to_pylist())
        drawn.append(Picture(numbered("sharpness", i), figure, label, caption, says))
    return drawn


def _expected_places(store: Store) -> list[tuple[str, pa.Table, pa.Table]]:
    """Return the first places where several rates were tried: name, rows of `best_of_n`, and those of its panels."""
    from analysis.findings.tuning.figure import budgets_of

    table = best_of_n(store)
    places = []
    for place in keys_of(table, tuning_place):
        rows = rows_with_key(table, tuning_place, [place])
        if max(rows["n"].to_pylist()) > 1:
            budgets = budgets_of(rows.to_pylist())[:MOST_PANELS]
            shown = rows_with_key(rows, lambda r: r["reference"], [*budgets, None])
            places.append((place_text(*place[1:]), rows, shown))
    return places[:MOST_EXPECTED]


def tuning_place(row: Row) -> tuple[str, str, str]:
    return row["sweep"], row["dataset"], row["train_size"]


_MOST = 4  # cells named in a sentence; more are counted


def conclude_rates(rows: Sequence[Row]) -> str:
    """Say which cells of a place show signs that more tuning would have helped.

    Args:
        rows: rows of the view `parity` for one sweep, data set and training size.
    """
    tuned = [r for r in rows if r["allowance"]]
    if not tuned:
        return "No cell was tuned here."
    poor = sorted((r for r in tuned if r["under_tuned"]), key=lambda r: style(r["method"]).order)
    if not poor:
        return (
            f"In none of the {len(tuned)} tuned cells does anything say that more tuning would help; nothing is tested."
        )
    named = [f"{cell_name(r)} ({r['under_tuned']})" for r in poor[:_MOST]]
    uncounted = f" and {len(poor) - _MOST} more" if len(poor) > _MOST else ""
    others_text = "; the others show no sign of it" if len(poor) < len(tuned) else ""
    named_text = (
        f"In {len(poor)} of {len(tuned)} tuned cells more tuning might have helped: {', '.join(named)}{uncounted}"
    )
    return f"{named_text}{others_text}; nothing is tested."


def conclude_expected(rows: Sequence[Row], asked: Question = ASKED) -> str:
    """Say whether fewer learning rates would have changed the order of two methods, and whose curve still rises.

    Args:
        rows: rows of `tuning.best_of_n` for one data set and training size.
        asked: the sweep's question.
    """
    curves: dict[tuple[str, str | None], dict[int, float]] = {}
    for r in rows:
        curves.setdefault((r["method"], r["reference"]), {})[r["n"]] = r["expected"]
    focus = asked.focus
    base = asked.baseline
    a, b = question_names(asked)
    shared_budgets = [r for m, r in curves if m == focus and (base, r) in curves]
    parts = []
    least = min((len(curves[m, r]) for m in (focus, base) for r in shared_budgets if m), default=0)
    if focus is not None and least > 1:
        ahead = [sum(curves[focus, r][n] > curves[base, r][n] for r in shared_budgets) for n in (1, least)]
        parts.append(
            f"with one learning rate {a}'s expected best validation score would be above {b}'s at {ahead[0]} of "
            f"{len(shared_budgets)} budgets, with {least} learning rates at {ahead[1]}"
        )
    gains = {key: curve[len(curve)] - curve[len(curve) - 1] for key, curve in curves.items() if len(curve) > 1}
    rising = Counter(m for (m, _), gain in gains.items() if gain > RISING)
    named = ", ".join(f"{style(m).name} in {rising[m]}" for m in in_order(set(rising)))
    parts.append(
        f"the last learning rate still brought more than half a point in {rising.total()} of {len(gains)} cells"
        f"{f' ({named})' if named else ''}"
        if gains
        else "no cell tried two learning rates"
    )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}: a description of stage TUNE, nothing is tested."


def conclude_effort(rows: Sequence[Row]) -> str:
    """Say how much expected test score would have been lost with half of the learning rates.

    Args:
        rows: rows of `tuning.best_of_n` for one data set and training size.
    """
    cells: dict[str, dict[int, Row]] = {}
    for r in (r for r in rows if r["test"] is not None):
        cells.setdefault(r["cell_id"], {})[r["n"]] = r
    lost = {i: c[len(c)]["test"] - c[(len(c) + 1) // 2]["test"] for i, c in cells.items() if len(c) > 1}
    if not lost:
        return "No conclusion on tuning effort: no confirmed cell tried two learning rates."
    worst = max(lost, key=lambda i: lost[i])
    return (
        f"With half of the learning rates the expected test score would be {100 * np.mean(list(lost.values())):.1f} "
        f"points lower, mean of {len(lost)} cells; most in {cell_name(cells[worst][1])}, {100 * lost[worst]:.1f}: a "
        "description, nothing is tested."
    )


def conclude_sharpness(rows: Sequence[Row]) -> str:
    """Say how wide the range of good learning rates is for each method.

    Args:
        rows: rows of `tuning.sharpness` for one data set and training size; not empty.
    """
    parts = []
    for method in in_order({r["method"] for r in rows}):
        method_rows = [r for r in rows if r["method"] == method]
        least = "at least " if sum(r["open"] for r in method_rows) * 2 >= len(method_rows) else ""
        parts.append(f"{style(method).name} {least}{float(np.median([r['decades'] for r in method_rows])):.1f}")
    return (
        f"Decades of learning rate whose score is within a point of the best (a decade is a factor of ten; median over "
        f"budgets): {', '.join(parts)}; nothing is tested."
    )


LEARNING_RATES = Finding(
    "tuning",
    ("learning_rates",),
    lambda store, _: [learning_rates_sheet(store)],
    lambda store, _: rate_pictures(store),
    live=True,
)
EXPECTED_BEST = Finding(
    "tuning", ("expected_best",), lambda store, _: [expected_sheet(store)], lambda store, _: expected_pictures(store)
)
TUNING_EFFORT = Finding(
    "tuning", ("tuning_effort",), lambda store, _: [effort_sheet(store)], lambda store, _: effort_pictures(store)
)
SHARPNESS = Finding(
    "tuning", ("sharpness",), lambda store, _: [sharpness_sheet(store)], lambda store, _: sharpness_pictures(store)
)
