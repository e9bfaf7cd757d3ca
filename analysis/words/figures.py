"""The sentence under each figure of the report, made from the numbers that the figure shows.

No sentence claims more than was tested. If nothing was tested, the sentence says that it is a description. The sentence
of the scaling curve is made by `conclusions.conclude`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.curves.measured import AXES
from analysis.curves.readings import crossing_sentence
from analysis.format import Row, change_text, listed, plural, points
from analysis.statistics.inference import NOT_KNOWN
from analysis.statistics.runs import UNTRAINED
from analysis.statistics.scaling import Question
from analysis.store.sql.views import RISING
from analysis.styles import in_order, place_of, size_key, size_text, style
from analysis.words.conclusions import ASKED, question_names, rows_of_question
from analysis.words.verdicts import TESTED_VERDICTS

_MOST_NAMED = 8
"""A sentence on more methods than this names only the lowest and the highest."""
SURE = 0.95
"""A cell is said to be on a front if it is there in at least this share of the draws."""
_GIVEN = "Holm-corrected, the choice of rates included"
_MOST = 4  # cells named in a sentence; more are counted


def conclude_differences(rows: Sequence[Row], changes: Sequence[Row] = (), asked: Question = ASKED) -> str:
    """Describe the differences of the question's methods, and count the bands that exclude zero.

    Args:
        rows: rows of `differences.difference_curves`.
        changes: rows of `differences.changes`. If all are of one sweep, model and size, the first one gets a sentence.
        asked: the sweep's question.
    """
    (a, b), all_rows = question_names(asked), rows_of_question(rows, asked)
    single_rows, means = [r for r in all_rows if r["dataset"]], [r for r in all_rows if not r["dataset"] and r["band"]]
    if not single_rows:
        return f"No difference of {a} and {b}: nowhere are both confirmed with a common seed."
    gaps = [r["difference"] for r in single_rows]
    kinds = (
        "budgets"
        if len({(r["sweep"], r["dataset"], r["train_size"]) for r in single_rows}) == 1
        else "budgets and places"
    )
    kinds = kinds if asked.focus is not None else "comparisons"
    range_seen = f"{points(min(gaps))} to {points(max(gaps))} points over {len(single_rows)} {kinds}"
    text = f"{a[0].upper()}{a[1:]} minus {b} at the same budget: {range_seen}"
    verdicts = Counter(r["verdict"] for r in single_rows)
    verdicts_text = ", ".join(f"{verdict} at {count}" for verdict, count in verdicts.most_common())
    banded = [r for r in single_rows if r["band"]]
    if not banded:
        why = "There is no band, because there is one seed or no spread between seeds."
        return f"{text}. Verdicts: {verdicts_text}. {why}"
    apart, of_means = (sum(r["low"] > 0 or r["high"] < 0 for r in part) for part in (banded, means))
    text += (
        f". Corrected verdicts: {verdicts_text}. The simultaneous 95 % band excludes zero at {apart} of {len(banded)}"
    )
    text += f", and that of the mean over data sets at {of_means} of {len(means)}" if means else ""
    return f"{text}.{_changed(changes)}"


def _changed(rows: Sequence[Row]) -> str:
    """Return a sentence on whether the difference changes with the budget; "" if there are several places."""
    if len({(r["sweep"], r["model"], r["train_size"]) for r in rows}) != 1 or rows[0]["difference"] is None:
        return ""
    row = rows[0]
    where = f" in the mean over {row['n_datasets']} data sets" if row["dataset"] is None else ""
    observed = f"{points(row['at_least'])} points at {row['least']} and {points(row['at_most'])} at {row['most']}"
    direction = {"higher": "it rises", "lower": "it falls"}.get(row["verdict"], row["verdict"])
    return f" The difference is {observed}{where}. Its change is {change_text(row)} points: {direction}."


def conclude_ranking(rows: Sequence[Row], asked: Question = ASKED) -> str:
    """Count how often a method is higher and lower than the baseline at the only budget.

    Args:
        rows: rows of `differences.difference_curves`.
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


def band_meaning(rows: Sequence[Row]) -> str:
    """Return what the bands of `differences.difference_curves` mean: how many differences they cover at once."""
    band_kinds = " or ".join(sorted({r["band"] for r in rows if r["band"]})) or "none: one seed, or no spread"
    count = rows[0]["family"]
    what_holds = "the difference lies in its own" if count == 1 else f"all {count} differences lie in theirs at once"
    return f"simultaneous 95 % intervals over seeds ({band_kinds}): with that confidence {what_holds}"


def conclude_crossings(rows: Sequence[Row], axis: str, asked: Question = ASKED) -> str:
    """Say where the fitted curves of the question's methods cross.

    Args:
        rows: rows of `readings.crossing_table`.
        axis: the cost in words.
        asked: the sweep's question.
    """
    (a, b), crossing_rows = question_names(asked), rows_of_question(rows, asked)
    if not crossing_rows:
        return f"No conclusion on a crossing of {a} and {b}: they do not both have three points of different cost."
    if len(crossing_rows) == 1:
        return crossing_sentence(crossing_rows[0])
    settled = sum(r["value"] is not None and r["low"] is not None and r["high"] is not None for r in crossing_rows)
    open_ended = sum(r["value"] is not None for r in crossing_rows) - settled
    none = [r for r in crossing_rows if r["value"] is None]
    parts = []
    if settled:
        parts.append(
            f"cross in range in {settled} of {len(crossing_rows)} panels, the 95 % interval over seeds inside it"
        )
    if open_ended:
        parts.append(f"may cross in {open_ended}, where the interval leaves the range")
    if none:
        above = sum("above throughout" in r["note"] for r in none)
        below = sum("below throughout" in r["note"] for r in none)
        sides = [f"{a} above throughout in {above}"] if above else []
        sides += [f"below throughout in {below}"] if below else []
        parts.append(f"show no lasting crossing in {len(none)}{' (' + ', '.join(sides) + ')' if sides else ''}")
    fits = f"The isotonic fits of {a} and {b} against {axis} {'; '.join(parts)}"
    return f"{fits}: a description given the chosen rates, not a test."


def conclude_front(rows: Sequence[Row]) -> str:
    """Name the cells that no other beats in score and cost, and say how sure that is.

    Args:
        rows: rows of `pareto.front`.
    """
    on = [r for r in rows if r["on_front"]]
    if not on:
        return "No confirmed cell has this cost."
    cost = AXES[on[0]["x"]].label.split(" (")[0]
    if all(r["front_share"] is None or r["method"] == UNTRAINED for r in on):
        counts = Counter(r["method"] for r in on)
        cells_text = ", ".join(f"{style(m).name} ({plural(counts[m], 'cell')})" for m in in_order(set(counts)))
        return (
            f"No other cell scores more at less cost ({cost}) than those of: {cells_text}. With one seed it is not "
            "known how sure that is."
        )
    single = [r for r in on if r["front_share"] is None]
    sure = [r for r in on if r not in single and r["front_share"] >= SURE]
    unsure = [r for r in on if r not in single and r["front_share"] < SURE]
    text = f"No other cell scores more at less cost ({cost}) than these: {_cells(sure) or 'none'}. "
    text += f"A cell is named if that holds in at least {100 * SURE:.0f} % of draws from t distributions over seeds, "
    text += "given the chosen rates."
    text += f" These hold it in fewer draws: {_cells(unsure, share=True)}." if unsure else ""
    text += f" These hold it with one seed, so it is not known how sure that is: {_cells(single)}." if single else ""
    return text


def conclude_sizes(rows: Sequence[Row], asked: Question = ASKED) -> str:
    """Count the verdicts on the question's methods for each training size.

    Args:
        rows: rows of `scaling.comparisons` for the sweep and the data sets that the figure shows.
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
    named = [f"{_cell(r)} ({r['under_tuned']})" for r in poor[:_MOST]]
    uncounted = f" and {len(poor) - _MOST} more" if len(poor) > _MOST else ""
    others_text = "; the others show no sign of it" if len(poor) < len(tuned) else ""
    named_text = (
        f"In {len(poor)} of {len(tuned)} tuned cells more tuning might have helped: {', '.join(named)}{uncounted}"
    )
    return f"{named_text}{others_text}; nothing is tested."


def conclude_overlay(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """Say how far the published curves lie from ours at overlapping parameter counts. Nothing is tested.

    Args:
        ours, theirs: rows as in `scaling.curve`, each of one place; `theirs` are published.
    """
    parts = []
    for method in in_order({r["method"] for r in ours} & {r["method"] for r in theirs}):
        our_points, published = (_counts_and_means(rows, method) for rows in (ours, theirs))
        if not our_points or not published:
            continue
        inside = {x: y for x, y in our_points.items() if min(published) <= x <= max(published)}
        if not inside:
            continue
        at = np.interp(np.log(list(inside)), np.log(list(published)), list(published.values()))
        gaps = np.asarray(list(inside.values())) - at
        low, high = points(float(gaps.min())), points(float(gaps.max()))
        parts.append(f"{style(method).name} {low if low == high else f'{low} to {high}'} points")
    same = {(r["model"], r["dataset"]) for r in ours} & {(r["model"], r["dataset"]) for r in theirs}
    caveat = "" if same else "; model or data differ, so heights do not compare, shapes at most"
    if not parts:
        return f"The published counts and ours do not overlap, so no distance is given{caveat}; nothing is tested."
    return f"Our score minus the published one, where counts overlap: {'; '.join(parts)}{caveat}; nothing is tested."


def conclude_groups(rows: Sequence[Row]) -> str:
    """Count how often each method is above every other, from rows of `groups.groups`."""
    blocks: dict[tuple[Any, ...], list[Row]] = {}
    for r in rows:
        blocks.setdefault((r["sweep"], r["model"], r["dataset"], r["train_size"], r["reference"]), []).append(r)
    if not blocks:
        return "No budget has two confirmed methods, so there is nothing to group."
    if all(r["tested"] == 0 for r in rows):
        why = "Without common seeds, a spread between them, and knowing what the choice of rates adds,"
        why = "With one seed" if all(r["n"] < 2 for r in rows) else why
        return f"{why} no two methods can be tested: all of them are in group 'a'."
    alone = Counter(b[0]["method"] for b in blocks.values() if [r for r in b if "a" in r["group"]] == b[:1])
    blind = sum(all(r["tested"] == 0 for r in b) for b in blocks.values())
    shared = len(blocks) - alone.total() - blind
    parts = [
        f"{style(m).name} is above every other method at {_of_all(alone[m], blocks)}" for m in in_order(set(alone))
    ]
    if shared:
        parts.append(f"no single method is above all others at {_of_all(shared, blocks)}")
    if blind:
        parts.append(f"nothing can be tested at {_of_all(blind, blocks)}")
    if len({k[:4] for k in blocks}) == 1 and len(blocks) <= _MOST:
        return " ".join(f"{key[4]}: {_leaders(block)}." for key, block in blocks.items())
    return f"Of {len(blocks)} budgets and data sets at which methods are compared: {'; '.join(parts)}."


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
        f"points lower, mean of {len(lost)} cells; most in {_cell(cells[worst][1])}, {100 * lost[worst]:.1f}: a "
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


def conclude_rate_ratios(rows: Sequence[Row]) -> str:
    """Say how much larger the best learning rates of each method are than the baseline's.

    Args:
        rows: rows of `best_rates.rate_ratios` for one data set and training size; not empty.
    """
    methods = in_order({r["method"] for r in rows})
    ratios = {m: sorted((r for r in rows if r["method"] == m), key=lambda r: r["ratio"]) for m in methods}
    if len(methods) > _MOST_NAMED:
        methods = sorted(methods, key=lambda m: ratios[m][0]["ratio"])
        methods = [methods[0], max(methods, key=lambda m: ratios[m][-1]["ratio"])]
    parts, named = [], list[Row]()
    for method in methods:
        ends = ratios[method] if len(ratios[method]) == 1 else [ratios[method][0], ratios[method][-1]]
        numbers = " to ".join(f"{r['ratio']:.3g}{'*' if r['at_edge'] else ''}" for r in ends)
        parts.append(f"{style(method).name} {numbers}")
        named += ends
    among = f" (the lowest and the highest of {len(ratios)} methods)" if len(ratios) > _MOST_NAMED else ""
    at_edge = any(r["at_edge"] for r in named)
    edge = " * One of the two best rates lies at an end of the rates that were tried." if at_edge else ""
    clear = sum(
        (r["ratio_low"] is not None and r["ratio_low"] > 1) or (r["ratio_high"] is not None and r["ratio_high"] < 1)
        for r in rows
    )
    return (
        f"Best learning rate divided by that of {style(rows[0]['baseline']).name}: {', '.join(parts)}{among}. In "
        f"{clear} of {plural(len(rows), 'cell')} the whole interval lies on one side of 1. Nothing is tested.{edge}"
    )


def _leaders(block: Sequence[Row]) -> str:
    """Name the methods of one budget that are above all others."""
    if all(r["tested"] == 0 for r in block):
        return "nothing can be tested"
    first_letters = set(block[0]["group"])
    alike = [r for r in block if first_letters & set(r["group"])]
    rest = [r for r in block if r not in alike]
    first, *others = [style(r["method"]).name for r in alike]
    clear = all(set(r["group"]) & set(other["group"]) for r in alike for other in alike)
    clear = clear and not any(set(r["group"]) & set(other["group"]) for r in alike for other in rest)
    if not clear:  # some of these methods are themselves told apart, or are like a method below
        return f"{first} is not distinguishable from {listed(others)}"
    if not others:
        return f"{first} is above {'every other method' if len(block) > 2 else style(block[1]['method']).name}"
    below = " and above every other method" if rest else ""
    return f"{listed([first, *others])} are not distinguishable{below}"


def _of_all(count: int, blocks: Mapping[Any, Any]) -> str:
    return f"all {count}" if count == len(blocks) > 1 else str(count)


def _cells(rows: Sequence[Row], share: bool = False) -> str:
    if len({(r["sweep"], r["dataset"], r["train_size"]) for r in rows}) > 1 or len(rows) > 2 * _MOST:
        counts = Counter(r["method"] for r in rows)
        return ", ".join(f"{style(m).name} ({plural(counts[m], 'cell')})" for m in in_order(set(counts)))
    return ", ".join(_cell(r) + (f" ({100 * r['front_share']:.0f} %)" if share else "") for r in rows)


def _cell(row: Mapping[str, Any]) -> str:
    return f"{style(row['method']).name}{' at ' + row['reference'] if row['reference'] else ''}"


def _counts_and_means(rows: Sequence[Row], method: str) -> dict[int, float]:
    means = {
        r["adapter_params"]: r["mean"]
        for r in rows
        if r["method"] == method and r["kind"] == "curve" and r["adapter_params"] and r["mean"] is not None
    }
    return dict(sorted(means.items()))
