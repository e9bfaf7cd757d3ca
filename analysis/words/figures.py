"""One sentence per figure of the report, made from the numbers it shows, never stronger than what was tested.

The main curve's sentence is `conclusions.conclude`. Where nothing was tested, the sentence says that it describes.
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
from analysis.words.conclusions import ASKED, names_of, of_question
from analysis.words.verdicts import SAID

SURE = 0.95
"""Share of the draws from which a cell is said to be on a front."""
_GIVEN = "Holm-corrected, the choice of rates included"
_MOST = 4  # cells named in a sentence; more are counted


def conclude_differences(rows: Sequence[Row], changes: Sequence[Row] = (), asked: Question = ASKED) -> str:
    """The differences of the question's methods, how many of their bands exclude zero, and whether they change.

    Args:
        rows: of `differences.difference_curves`.
        changes: of `differences.changes`; a sentence on the first, where all are of one sweep, model and size.
    """
    (a, b), all_rows = names_of(asked), of_question(rows, asked)
    mine, means = [r for r in all_rows if r["dataset"]], [r for r in all_rows if not r["dataset"] and r["band"]]
    if not mine:
        return f"No difference of {a} and {b}: nowhere are both confirmed with a common seed."
    gaps = [r["difference"] for r in mine]
    what = "budgets" if len({(r["sweep"], r["dataset"], r["train_size"]) for r in mine}) == 1 else "budgets and places"
    what = what if asked.focus is not None else "comparisons"
    seen = f"{points(min(gaps))} to {points(max(gaps))} points over {len(mine)} {what}"
    text = f"{a[0].upper()}{a[1:]} minus {b} at the same budget: {seen}"
    verdicts = Counter(r["verdict"] for r in mine)
    said = ", ".join(f"{verdict} at {count}" for verdict, count in verdicts.most_common())
    banded = [r for r in mine if r["band"]]
    if not banded:
        return f"{text}. Verdicts: {said}. There is no band, because there is one seed or no spread between seeds."
    apart, of_means = (sum(r["low"] > 0 or r["high"] < 0 for r in part) for part in (banded, means))
    text += f". Corrected verdicts: {said}. The simultaneous 95 % band excludes zero at {apart} of {len(banded)}"
    text += f", and that of the mean over data sets at {of_means} of {len(means)}" if means else ""
    return f"{text}.{_changed(changes)}"


def _changed(rows: Sequence[Row]) -> str:
    """Whether the difference changes with the budget, of one data set or the mean over several."""
    if len({(r["sweep"], r["model"], r["train_size"]) for r in rows}) != 1 or rows[0]["difference"] is None:
        return ""
    row = rows[0]
    where = f" in the mean over {row['n_datasets']} data sets" if row["dataset"] is None else ""
    seen = f"{points(row['at_least'])} points at {row['least']} and {points(row['at_most'])} at {row['most']}"
    said = {"higher": "it rises", "lower": "it falls"}.get(row["verdict"], row["verdict"])
    return f" The difference is {seen}{where}. Its change is {change_text(row)} points: {said}."


def conclude_ranking(rows: Sequence[Row], asked: Question = ASKED) -> str:
    """How often a method is higher and lower than the baseline at the one budget.

    Args:
        rows: of `differences.difference_curves`.
    """
    mine = [r for r in rows if r["dataset"]]
    counts, among = Counter(r["verdict"] for r in mine), len({place_of(r) for r in mine})
    if not counts:
        return f"No method shares a confirmed seed with {names_of(asked)[1]}, so nothing is compared."
    found = ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in (*SAID, "not testable", NOT_KNOWN) if counts[verdict]
    )
    over = "" if among == 1 else f", {len(mine)} comparisons in {among} places"
    return f"Corrected verdicts against {style(mine[0]['baseline']).name}{over}: {found}."


def held_at_once(rows: Sequence[Row]) -> str:
    """Say of which kind the intervals of differences are; `rows` of `differences.difference_curves`."""
    given = " or ".join(sorted({r["band"] for r in rows if r["band"]})) or "none: one seed, or no spread"
    count = rows[0]["family"]
    every = "the difference lies in its own" if count == 1 else f"all {count} differences lie in theirs at once"
    return f"simultaneous 95 % intervals over seeds ({given}): with that confidence {every}"


def conclude_crossings(rows: Sequence[Row], axis: str, asked: Question = ASKED) -> str:
    """Where the fitted curves of the question's methods cross.

    Args:
        rows: of `readings.crossing_table`. axis: the cost in words.
    """
    (a, b), mine = names_of(asked), of_question(rows, asked)
    if not mine:
        return f"No conclusion on a crossing of {a} and {b}: they do not both have three points of different cost."
    if len(mine) == 1:
        return crossing_sentence(mine[0])
    settled = sum(r["value"] is not None and r["low"] is not None and r["high"] is not None for r in mine)
    seen = sum(r["value"] is not None for r in mine) - settled
    none = [r for r in mine if r["value"] is None]
    parts = []
    if settled:
        parts.append(f"cross in range in {settled} of {len(mine)} panels, the 95 % interval over seeds inside it")
    if seen:
        parts.append(f"may cross in {seen}, where the interval leaves the range")
    if none:
        above = sum("above throughout" in r["note"] for r in none)
        below = sum("below throughout" in r["note"] for r in none)
        sides = [f"{a} above throughout in {above}"] if above else []
        sides += [f"below throughout in {below}"] if below else []
        parts.append(f"show no lasting crossing in {len(none)}{' (' + ', '.join(sides) + ')' if sides else ''}")
    fits = f"The isotonic fits of {a} and {b} against {axis} {'; '.join(parts)}"
    return f"{fits}: a description given the chosen rates, not a test."


def conclude_front(rows: Sequence[Row]) -> str:
    """Which cells no other beats in score and cost, and how sure that is.

    Args:
        rows: of `pareto.front`.
    """
    on = [r for r in rows if r["on_front"]]
    if not on:
        return "No confirmed cell has this cost."
    cost = AXES[on[0]["x"]].label.split(" (")[0]
    if all(r["front_share"] is None or r["method"] == UNTRAINED for r in on):
        counts = Counter(r["method"] for r in on)
        said = ", ".join(f"{style(m).name} ({plural(counts[m], 'cell')})" for m in in_order(set(counts)))
        return (
            f"No other cell scores more at less cost ({cost}) than those of: {said}. With one seed it is not known how "
            "sure that is."
        )
    single = [r for r in on if r["front_share"] is None]
    sure = [r for r in on if r not in single and r["front_share"] >= SURE]
    unsure = [r for r in on if r not in single and r["front_share"] < SURE]
    text = f"No other cell scores more at less cost ({cost}) than these: {_cells(sure) or 'none'}. "
    text += f"A cell is named if that holds in at least {100 * SURE:.0f} % of the draws of a bootstrap over seeds, "
    text += "given the chosen rates."
    text += f" These hold it in fewer draws: {_cells(unsure, share=True)}." if unsure else ""
    text += f" These hold it with one seed, so it is not known how sure that is: {_cells(single)}." if single else ""
    return text


def conclude_sizes(rows: Sequence[Row], asked: Question = ASKED) -> str:
    """The question's methods at the same budgets, by training size.

    Args:
        rows: of `scaling.comparisons`, of the sweep and data sets that the figure shows.
    """
    a, b = names_of(asked)
    mine = [r for r in of_question(rows, asked) if r["reference"] and r["dataset"]]
    if not mine:
        return f"No conclusion about {a} and {b} by training size: nowhere are both confirmed with a common seed."
    what = "budgets" if len({r["dataset"] for r in mine}) == 1 else "budgets and data sets"
    parts = []
    for size in sorted({r["train_size"] for r in mine}, key=size_key):
        verdicts = Counter(r["verdict"] for r in mine if r["train_size"] == size)
        words = [f"{v} at {verdicts[v]}" for v in (*SAID, "not testable", NOT_KNOWN) if verdicts[v]]
        parts.append(f"{size_text(size)}: {', '.join(words)} of {verdicts.total()}")
    return (
        f"{a[0].upper()}{a[1:]} against {b} at the same budget, {what} by training size: {'; '.join(parts)} "
        "(Holm-corrected as in the table of comparisons, the choice of learning rates included)."
    )


def conclude_rates(rows: Sequence[Row]) -> str:
    """Whether anything says that a cell of this place would have gained from more tuning.

    Args:
        rows: of the view `parity`, of one sweep, data set and training size.
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
    more = f" and {len(poor) - _MOST} more" if len(poor) > _MOST else ""
    rest = "; the others show no sign of it" if len(poor) < len(tuned) else ""
    said = f"In {len(poor)} of {len(tuned)} tuned cells more tuning might have helped: {', '.join(named)}{more}"
    return f"{said}{rest}; nothing is tested."


def conclude_overlay(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """How far the published curves lie from ours where their counts overlap; never a test.

    Args:
        ours, theirs: rows like `scaling.curve`'s, each of one place.
    """
    parts = []
    for method in in_order({r["method"] for r in ours} & {r["method"] for r in theirs}):
        mine, published = (_line(rows, method) for rows in (ours, theirs))
        if not mine or not published:
            continue
        inside = {x: y for x, y in mine.items() if min(published) <= x <= max(published)}
        if not inside:
            continue
        at = np.interp(np.log(list(inside)), np.log(list(published)), list(published.values()))
        gaps = np.asarray(list(inside.values())) - at
        low, high = points(float(gaps.min())), points(float(gaps.max()))
        parts.append(f"{style(method).name} {low if low == high else f'{low} to {high}'} points")
    same = {(r["model"], r["dataset"]) for r in ours} & {(r["model"], r["dataset"]) for r in theirs}
    other = "" if same else "; model or data differ, so heights do not compare, shapes at most"
    if not parts:
        return f"The published counts and ours do not overlap, so no distance is given{other}; nothing is tested."
    return f"Our score minus the published one, where counts overlap: {'; '.join(parts)}{other}; nothing is tested."


def conclude_groups(rows: Sequence[Row]) -> str:
    """How often each method is in the first group, from rows of `groups.groups`."""
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
    """Whether another allowance would have ordered the question's two methods otherwise, and whose curve still rises.

    Args:
        rows: of `tuning.best_of_n`, of one data set and training size.
    """
    curves: dict[tuple[str, str | None], dict[int, float]] = {}
    for r in rows:
        curves.setdefault((r["method"], r["reference"]), {})[r["n"]] = r["expected"]
    focus = asked.focus
    base = asked.baseline
    a, b = names_of(asked)
    both = [r for m, r in curves if m == focus and (base, r) in curves]
    parts = []
    least = min((len(curves[m, r]) for m in (focus, base) for r in both if m), default=0)
    if focus is not None and least > 1:
        ahead = [sum(curves[focus, r][n] > curves[base, r][n] for r in both) for n in (1, least)]
        parts.append(
            f"with one learning rate {a}'s expected best validation score would be above {b}'s at {ahead[0]} of "
            f"{len(both)} budgets, with {least} learning rates at {ahead[1]}"
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
    """What half of the learning rates would have cost in expected test score.

    Args:
        rows: of `tuning.best_of_n`, of one data set and training size.
    """
    cells: dict[str, dict[int, Row]] = {}
    for r in (r for r in rows if r["test"] is not None):
        cells.setdefault(r["cell_id"], {})[r["n"]] = r
    lost = {i: c[len(c)]["test"] - c[(len(c) + 1) // 2]["test"] for i, c in cells.items() if len(c) > 1}
    if not lost:
        return "No conclusion on tuning effort: no confirmed cell tried two learning rates."
    most = max(lost, key=lambda i: lost[i])
    return (
        f"With half of the learning rates the expected test score would be {100 * np.mean(list(lost.values())):.1f} "
        f"points lower, mean of {len(lost)} cells; most in {_cell(cells[most][1])}, {100 * lost[most]:.1f}: a "
        "description, nothing is tested."
    )


def conclude_sharpness(rows: Sequence[Row]) -> str:
    """How wide the range of good rates is, by method.

    Args:
        rows: of `tuning.sharpness`, of one data set and training size; not empty.
    """
    parts = []
    for method in in_order({r["method"] for r in rows}):
        mine = [r for r in rows if r["method"] == method]
        least = "at least " if sum(r["open"] for r in mine) * 2 >= len(mine) else ""
        parts.append(f"{style(method).name} {least}{float(np.median([r['decades'] for r in mine])):.1f}")
    return (
        f"Decades of learning rate whose score is within a point of the best (a decade is a factor of ten; median over "
        f"budgets): {', '.join(parts)}; nothing is tested."
    )


def _leaders(block: Sequence[Row]) -> str:
    """Say which methods of one budget are above all others."""
    if all(r["tested"] == 0 for r in block):
        return "nothing can be tested"
    best = [style(r["method"]).name for r in block if "a" in r["group"]]
    below = " and above every other method" if len(best) < len(block) else ""
    if len(best) == 1:
        return f"{best[0]} is above {'every other method' if len(block) > 2 else style(block[1]['method']).name}"
    return f"{listed(best)} are not distinguishable{below}"


def _of_all(count: int, blocks: Mapping[Any, Any]) -> str:
    return f"all {count}" if count == len(blocks) > 1 else str(count)


def _cells(rows: Sequence[Row], share: bool = False) -> str:
    if len({(r["sweep"], r["dataset"], r["train_size"]) for r in rows}) > 1 or len(rows) > 2 * _MOST:
        counts = Counter(r["method"] for r in rows)
        return ", ".join(f"{style(m).name} ({plural(counts[m], 'cell')})" for m in in_order(set(counts)))
    return ", ".join(_cell(r) + (f" ({100 * r['front_share']:.0f} %)" if share else "") for r in rows)


def _cell(row: Mapping[str, Any]) -> str:
    return f"{style(row['method']).name}{' at ' + row['reference'] if row['reference'] else ''}"


def _line(rows: Sequence[Row], method: str) -> dict[int, float]:
    found = {
        r["adapter_params"]: r["mean"]
        for r in rows
        if r["method"] == method and r["kind"] == "curve" and r["adapter_params"] and r["mean"] is not None
    }
    return dict(sorted(found.items()))
