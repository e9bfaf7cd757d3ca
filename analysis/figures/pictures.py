"""Every figure of the report: drawn, with its caption, its one-sentence conclusion and what its markers say.

A figure without enough budgets, sizes or numbers is left out. The numbers come from tables that other functions return.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from analysis.curves import measured, pareto, readings
from analysis.curves.measured import EXAMPLES, axis
from analysis.figures import drawing, fits, tuning
from analysis.figures.differences import draw_differences
from analysis.figures.forest import draw_forest
from analysis.figures.rank import draw_ranks
from analysis.figures.ranking import draw_ranking
from analysis.figures.scaling import MOST_BANDS, draw_scaling
from analysis.figures.svg import Picture
from analysis.format import Row
from analysis.statistics import rank_effects, scaling
from analysis.statistics.best_rates import rate_ratios
from analysis.statistics.differences import changes, difference_curves
from analysis.statistics.looks import margin_of
from analysis.statistics.publications.published import overlaid
from analysis.statistics.tuning import best_of_n, rates, sharpness
from analysis.store.store import Store
from analysis.styles import Place, place_of, place_text, short_name, style
from analysis.tables.console import conclusion
from analysis.words.absent import absent_data
from analysis.words.conclusions import (
    conclude_rank_effects,
    idle_text,
    preliminary_words,
    question_names,
    rows_of_question,
)
from analysis.words.figures import (
    band_meaning,
    conclude_crossings,
    conclude_differences,
    conclude_effort,
    conclude_expected,
    conclude_front,
    conclude_overlay,
    conclude_ranking,
    conclude_rate_ratios,
    conclude_rates,
    conclude_sharpness,
    conclude_sizes,
)
from analysis.words.verdicts import LATER_MEANS

K = TypeVar("K")
MOST_PANELS = 8
MOST_SIZE_FIGURES = 4
MOST_RATE_FIGURES = 6
MOST_EXPECTED = 4
MOST_ROWS = 60
"""Most panels or rows of a figure, and most figures of a section; the tables below them have all."""
BESIDE = " A marker that would cover another one stands beside it."
LEAST_RANKS = 3
"""Ranks at one budget from which there is a figure: two are the comparison of two methods, which the report has."""


def pictures(store: Store, x: str = "adapter_params", overlay: str | None = None) -> list[Picture]:
    """Return all figures of the report, in the order of the page.

    Args:
        store: the results.
        x: the cost of the fits and the Pareto front.
        overlay: a published curve to draw beside the first panel; default none.

    Raises:
        StoreError: an unknown cost or published curve.
    """
    all_pictures = _scaling(store)
    all_pictures += _differences(store)
    all_pictures += _forest(store)
    all_pictures += _rank(store)
    all_pictures += _overlay(store, overlay)
    all_pictures += _fits(store, x)
    all_pictures += _front(store, x)
    all_pictures += _sizes(store)
    all_pictures += _size_fits(store)
    all_pictures += _rates(store)
    all_pictures += tuning_pictures(store)
    absent_text = "".join(f" {line}." for line in absent_data(store.table("signs").to_pylist()))
    return [replace(p, caption=p.caption + absent_text) for p in all_pictures] if absent_text else all_pictures


def live_picture_functions() -> tuple[Callable[[Store], list[Picture]], ...]:
    """Return the functions that draw the figures of a running sweep."""
    return _scaling, _differences, _rates


def save(drawn: Iterable[Picture], folder: Path) -> dict[str, Path]:
    """Write figures into a results folder's `figures/`: PNG, SVG and PDF; returns file name -> path."""
    paths: dict[str, Path] = {}
    for picture in drawn:
        paths |= drawing.save(picture.figure, folder / "figures", picture.stem)
    return paths


def _scaling(store: Store) -> list[Picture]:
    score, curve = scaling.score_name(store), scaling.curve(store)
    if curve.num_rows == 0:
        return []
    if scaling.one_budget(store):
        return [_ranking(store, curve, score)]
    label = f"{score.capitalize()} against trainable parameters, a curve per method with 95 % bands"
    caption = (
        f"{score.capitalize()} against trainable adapter parameters (log axis): means over seeds with pointwise 95 % t "
        "intervals, given the chosen learning rates. Intervals are bands, or bars if a point has fewer than three "
        "seeds, a method has one point, or a "
        f"panel more than {MOST_BANDS} curves. Dashed lines have no budget, and an arrow points to one far from the "
        "curves. The upper axis is the LoRA rank of a budget. Point at a marker for its numbers, press a name in the "
        f"legend to hide its method.{BESIDE}"
    )
    figure = draw_scaling(curve, columns=2, score=score)
    return [Picture("scaling_curve", "scaling", figure, label, caption, conclusion(store))]


def _ranking(store: Store, curve: pa.Table, score: str) -> Picture:
    """Draw scores and differences at the only budget, instead of curves of a single point."""
    compared = difference_curves(store)
    asked_question = scaling.question(store)
    margin = margin_of(store)
    label = f"{score.capitalize()} of every method at the one budget, the best first"
    caption = (
        f"{score.capitalize()} over seeds with pointwise 95 % t intervals, the best mean on top, which is no verdict."
    )
    if compared.num_rows:
        caption += f" Right: the paired difference from {question_names(asked_question)[1]} with "
        caption += f"{band_meaning(compared.to_pylist())}.{_margin_text(margin)}"
    caption += " Hollow: methods without a budget. An arrow stands for a value, or an arrow's head for the end of an "
    caption += "interval, that lies beyond the panel."
    figure = draw_ranking(_first_panels(curve), compared, score=score, margin=margin)
    return Picture("ranking", "scaling", figure, label, caption, conclude_ranking(compared.to_pylist(), asked_question))


def _differences(store: Store) -> list[Picture]:
    """Draw the paired difference of every method to the baseline against the budget."""
    table, score = difference_curves(store).filter(pc.field("budget") > 0), scaling.score_name(store)  # a log axis
    if table.num_rows == 0 or scaling.one_budget(store):
        return []
    shown, margin = _first_panels(table), margin_of(store)
    asked_question = scaling.question(store)
    focus, name = question_names(asked_question)
    shapes = (
        "The bars are" if asked_question.focus is None else f"The band (of {focus}) and the bars (of the others) are"
    )
    label = f"{score.capitalize()}: difference from {name} at the same budget, with simultaneous 95 % bands"
    caption = f"{score.capitalize()}: paired difference from {name} at the same budget, in points. "
    caption += f"{shapes} {band_meaning(table.to_pylist())}. {name} is the zero line.{_margin_text(margin)}{BESIDE}"
    figure = draw_differences(shown, score=score, focus=asked_question.focus, margin=margin)
    says = preliminary_words(scaling.comparisons(store))
    says += conclude_differences(table.to_pylist(), changes(store).to_pylist(), asked_question)
    return [Picture("differences", "scaling", figure, label, caption, says)]


def _forest(store: Store) -> list[Picture]:
    """Draw every difference of the methods in question and their means, if there are several data sets."""
    asked_question, table = scaling.question(store), scaling.comparisons(store)
    known = asked_question.focus is not None or asked_question.every
    question_rows = rows_of_question(table.to_pylist(), asked_question) if known else []
    several = len({r["dataset"] for r in question_rows if r["dataset"]}) > 1
    if not several or len(question_rows) > MOST_ROWS or all(r["low"] is None for r in question_rows):
        return []
    focus, name = question_names(asked_question)
    score = scaling.score_name(store)
    margin = margin_of(store)
    label = f"{score.capitalize()}: {focus} minus {name}, a row per data set and budget, and per mean"
    caption = (
        f"{score.capitalize()}: {focus} minus {name}, paired, in points. Each has an interval, which includes the "
        "choice of learning rates, and its verdict. Both are corrected for the number of comparisons: an interval "
        f"leaves out zero exactly if its verdict is higher or lower. Diamonds are means.{_margin_text(margin)}"
    )
    caption += f" {LATER_MEANS}." if any(r["added"] for r in question_rows) else ""
    figure = draw_forest(pa.Table.from_pylist(question_rows, schema=table.schema), score=score, margin=margin)
    return [Picture("forest", "scaling", figure, label, caption, conclusion(store))]


def _rank(store: Store) -> list[Picture]:
    """Score against the rank of the update, in the panels where some budget has `LEAST_RANKS` ranks."""
    table, score = rank_effects.points(store), scaling.score_name(store)
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
        f"method at one budget.{BESIDE}{idle_text(rank_effects.idle_cells(store))}"
    )
    says = conclude_rank_effects(rank_effects.effects(store).to_pylist())
    figure = draw_ranks(_rows_with_key(table, place_of, enough[:MOST_PANELS]), score=score)
    return [Picture("rank", "rank", figure, label, caption, says)]


def _overlay(store: Store, overlay: str | None) -> list[Picture]:
    if overlay is None:
        return []
    score = scaling.score_name(store)
    ours, theirs, title = overlaid(store, overlay)
    if not any(r["kind"] == "curve" and r["adapter_params"] for r in [*ours.to_pylist(), *theirs.to_pylist()]):
        return []
    label = "Published curves, dashed, beside the curves of this sweep"
    caption = (
        f"Dashed, hollow markers: published numbers ({overlay}), read off a figure where no table gives them; other "
        "model, data and protocol unless said otherwise. Nothing is tested against them."
    )
    says = conclude_overlay(ours.to_pylist(), theirs.to_pylist())
    figure = fits.draw_overlay(ours, theirs, title, score=score)
    return [Picture("overlay", "overlay", figure, label, caption, says)]


def _fits(store: Store, x: str) -> list[Picture]:
    cost = axis(x).label
    bands = readings.band_table(store, x)
    if bands.num_rows == 0:
        return []
    crossings = readings.crossing_table(store, x)
    return [_fitted("fits", "fits", pareto.front(store, x), bands, crossings, cost, store)]


def _fitted(
    stem: str, kind: str, points: pa.Table, bands: pa.Table, crossings: pa.Table, cost: str, store: Store
) -> Picture:
    """Draw fitted curves against a cost or against training examples."""
    score, shown = scaling.score_name(store), _first_panels(bands)
    label = f"Isotonic fits of {score} against {cost} with simultaneous bands, crossings marked"
    caption = (
        f"Isotonic fits (never falling) of mean {score} against {cost}. Bands are simultaneous: each is a 95 % band "
        "over seeds of one whole curve, given the chosen learning rates. A shaded column is the interval of a "
        f"crossing.{BESIDE}"
    )
    says = conclude_crossings(crossings.to_pylist(), cost.split(" (", maxsplit=1)[0], scaling.question(store))
    figure = fits.draw_fits(points, shown, crossings, score=score)
    return Picture(stem, kind, figure, label, caption, says)


def _front(store: Store, x: str) -> list[Picture]:
    score, everything = scaling.score_name(store), pareto.front(store, x)
    if len({r["cost"] for r in everything.to_pylist() if r["cost"] > 0}) < 2:
        return []
    shown = _first_panels(everything)
    label = f"{score.capitalize()} against cost; a stepped line connects the cells that no other beats"
    caption = "Every confirmed cell. For each pale one there is a cell that costs no more and scores no less."
    caption += fits.at_no_cost(shown) + BESIDE
    says = conclude_front(everything.to_pylist())
    figure = fits.draw_front(shown, score=score)
    return [Picture("pareto", "pareto", figure, label, caption, says)]


def _sizes(store: Store) -> list[Picture]:
    score, table = scaling.score_name(store), measured.size_curves(store)
    label = f"{score.capitalize()} against the number of training examples, a line per method and budget"
    compared = scaling.comparisons(store).to_pylist() if table.num_rows else []
    drawn: list[Picture] = []
    several = len({(r["sweep"], r["model"]) for r in table.to_pylist()}) > 1
    for sweep, model, dataset in _keys(table, _data_key)[:MOST_SIZE_FIGURES]:
        compared_rows = [
            r for r in compared if r["sweep"] == sweep and r["model"] == model and dataset in (None, r["dataset"])
        ]
        caption = (
            f"On {short_name(dataset) if dataset else 'the mean over data sets'}"
            f"{f', {model} in {sweep}' if several else ''}: one line per method and budget (paler is smaller). Bands "
            "are pointwise 95 % t intervals of the largest budget. The numbers of training examples stand under the "
            f"sizes.{BESIDE}"
        )
        says = conclude_sizes(compared_rows, scaling.question(store))
        figure = fits.draw_sizes(_rows_with_key(table, _data_key, [(sweep, model, dataset)]), score=score)
        drawn.append(Picture(_numbered("data_size", len(drawn)), "sizes", figure, label, caption, says))
    return drawn


def _size_fits(store: Store) -> list[Picture]:
    """Draw fits over training examples for every budget of the first (sweep, model, data set or mean)."""
    bands = readings.band_table(store, EXAMPLES, points=40)
    if bands.num_rows == 0:
        return []
    first = _keys(bands, _data_key)[:1]
    budgeted = _rows_with_key(bands, _data_key, first).filter(pc.field("reference").is_valid())
    if budgeted.num_rows == 0:
        return []
    # a panel is a budget, so points go without their training size
    points = _rows_with_key(measured.point_table(store), _data_key, first).drop_columns(["train_size"])
    crossings = _rows_with_key(readings.crossing_table(store, EXAMPLES), _data_key, first)
    return [_fitted("data_size_fits", "sizes", points, budgeted, crossings, "training examples", store)]


def _rates(store: Store) -> list[Picture]:
    table, parity = rates(store), store.table("parity").to_pylist()
    drawn: list[Picture] = []
    for place in _keys(table, _tuning_place)[:MOST_RATE_FIGURES]:
        place_rates, where = _rows_with_key(table, _tuning_place, [place]), place_text(*place[1:])
        if place_rates["mean_val"].null_count == place_rates.num_rows:
            continue
        label = f"Validation score against learning rate on {where}"
        caption = (
            f"Stage TUNE on {where}: validation score against learning rate, one line per budget (darker is "
            "larger). Stars are the chosen learning rates."
        )
        says = conclude_rates([r for r in parity if _tuning_place(r) == place])
        stem, figure = _numbered("learning_rates", len(drawn)), tuning.draw_rates(place_rates)
        drawn.append(Picture(stem, "rates", figure, label, caption, says))
    return drawn


def tuning_pictures(store: Store) -> list[Picture]:
    """Draw what describes the search, per place: expected bests of n rates, the rates' sharpness, their ratios."""
    table = best_of_n(store)
    sharp = sharpness(store)
    score = scaling.score_name(store)
    drawn: list[Picture] = []
    shown_places = [
        p
        for p in _keys(table, _tuning_place)
        if max(r["n"] for r in _rows_with_key(table, _tuning_place, [p]).to_pylist()) > 1
    ]
    for i, place in enumerate(shown_places[:MOST_EXPECTED]):
        place_rows, where = _rows_with_key(table, _tuning_place, [place]).to_pylist(), place_text(*place[1:])
        budgets = tuning.budgets_of(place_rows)[:MOST_PANELS]
        shown = pa.Table.from_pylist([r for r in place_rows if r["reference"] in (*budgets, None)], schema=table.schema)
        label = f"Expected best validation score against learning rates tried on {where}"
        caption = (
            f"Stage TUNE on {where}: the validation score that the best of n learning rates, drawn at random from "
            "those tried, is expected to have (Tang et al. 2020; a grid is no random sample, and n even points would "
            "do better), a panel per budget; methods without a budget are dashed in each. If a line still rises at "
            "its end, more tuning would have helped. If lines cross, another method would have come first with "
            f"another number of learning rates.{BESIDE}"
        )
        figure, says = tuning.draw_expected(shown), conclude_expected(place_rows, scaling.question(store))
        drawn.append(Picture(_numbered("expected_best", i), "expected", figure, label, caption, says))
        if shown["test"].null_count < shown.num_rows:
            label = f"Expected {score} against learning rates tried on {where}"
            caption = (
                "The expected test score if only n learning rates had been tried. Test scores are known at the chosen "
                "rate alone. So this is the confirmed score minus the validation points that are lost by trying only "
                "n rates. Bands are pointwise 95 % intervals over seeds, which include the noise of validation."
            )
            figure, says = tuning.draw_expected(shown, score), conclude_effort(place_rows)
            drawn.append(Picture(_numbered("tuning_effort", i), "effort", figure, label, caption, says))
        flat = _rows_with_key(sharp, _tuning_place, [place])
        if flat.num_rows:
            label = f"Decades of learning rate within a point of the best on {where}"
            caption = (
                "How exactly a learning rate must be met: the decades around the best rate in which the validation "
                "score is at most a point lower, interpolated between the rates tried. Pale: the range ends before. "
                f"There is no band, as this describes noisy scores.{BESIDE}"
            )
            figure, says = tuning.draw_sharpness(flat), conclude_sharpness(flat.to_pylist())
            drawn.append(Picture(_numbered("sharpness", i), "sharpness", figure, label, caption, says))
    return drawn + _rate_ratios(store)


def _rate_ratios(store: Store) -> list[Picture]:
    """Draw best learning rates over the baseline's, a figure per data set and size."""
    table = rate_ratios(store)
    drawn: list[Picture] = []
    for place in _keys(table, _tuning_place)[:MOST_RATE_FIGURES]:
        place_rows, where = _rows_with_key(table, _tuning_place, [place]), place_text(*place[1:])
        baseline = style(place_rows["baseline"][0].as_py()).name
        label = f"Best learning rate divided by that of {baseline} on {where}, a row per cell with its interval"
        caption = (
            f"Stage TUNE on {where}: the best learning rate of each cell, divided by that of {baseline}. Both are tops "
            "of local fits to validation scores. Bars are 95 % intervals. A bar that ends in an arrow's head is open "
            "there: the scores do not say how far it goes. A pale marker means that one of the two best rates lies at "
            "an end of the rates that were tried. Nothing is corrected for the number of rows."
        )
        if place_rows.num_rows > MOST_ROWS:
            caption += f" The table has all {place_rows.num_rows} rows, the figure the first {MOST_ROWS}."
        figure = tuning.draw_rate_ratios(place_rows.slice(0, MOST_ROWS))
        stem = _numbered("rate_ratio", len(drawn))
        drawn.append(Picture(stem, "ratios", figure, label, caption, conclude_rate_ratios(place_rows.to_pylist())))
    return drawn


def _first_panels(table: pa.Table) -> pa.Table:
    """Return the rows of the first panels. The tables below a figure have all rows."""
    keys = sorted(_keys(table, place_of), key=lambda k: (k[0], k[1], k[2] is not None))  # the means first, as drawn
    return _rows_with_key(table, place_of, keys[:MOST_PANELS])


def _keys(table: pa.Table, key: Callable[[Row], K]) -> list[K]:
    """Return the rows' keys in order of first appearance."""
    return list(dict.fromkeys(map(key, table.to_pylist())))


def _rows_with_key(table: pa.Table, key: Callable[[Row], K], among: Collection[K]) -> pa.Table:
    """Return the rows whose key is one of `among`."""
    return table.filter(pa.array([key(r) in among for r in table.to_pylist()], pa.bool_()))


def _margin_text(margin: float | None) -> str:
    """Return a sentence on the grey strip of a figure of differences, or "" without a margin."""
    return "" if margin is None else f" Grey: within the margin of {100 * margin:g} points, which counts as none."


def _numbered(stem: str, before: int) -> str:
    """Return the stem of one of several figures, numbered from the second on."""
    return f"{stem}_{before + 1}" if before else stem


def _data_key(row: Row) -> tuple[str, str, str | None]:
    return row["sweep"], row["model"], row["dataset"]


def _tuning_place(row: Row) -> tuple[str, str, str]:
    return row["sweep"], row["dataset"], row["train_size"]
