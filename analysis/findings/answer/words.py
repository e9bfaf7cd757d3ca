"""Sentences on a sweep's answer to its question.

No sentence claims more than the corrected tests allow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from analysis.format import Row, amount, level_text, listed, percent, plural, points, range_text
from analysis.store.columns import limited, of_dof, of_model
from analysis.styles import budget_text, dataset_text, in_order, place_of, place_text, style
from analysis.verdict.inference import LEVEL, OVER_DATASETS
from analysis.verdict.looks import preliminary_words
from analysis.verdict.question import ASKED, Question, question_names, rows_of_question
from analysis.verdict.verdicts import (
    NO_CONCLUSION,
    NOT_KNOWN,
    TESTED_VERDICTS,
    apart_text,
    inconclusive,
    interval_text,
    missed_text,
    remedy,
    size_of,
    untested,
    verdict_text,
)

MATCHED = 0.05
"""Parameter counts that differ by more than this share are not called equal."""
_MOST = 4  # methods that are named
_LISTED = 3  # budgets whose differences are listed; more have a range
_DATASETS = "data sets"
_SIZES = "sizes"
_MODELS = "models"


@dataclass(frozen=True)
class Conclusion:
    """The answer of a sweep to its question, in sentences. All fields but the answer may be empty.

    Attributes:
        answer: the answer, in one or two sentences.
        budgets: the verdicts at the single budgets, if the answer is about their average.
        reasons: why there is no conclusion at some budgets.
        later: the results of methods, budgets and data sets that were added later.
        limits: what can be said about other data sets, and whether devices or versions differed.
        basis: how the comparisons were tested.
    """

    answer: str
    budgets: str = ""
    reasons: str = ""
    later: str = ""
    limits: str = ""
    basis: str = ""

    def __str__(self) -> str:
        sentences = (self.answer, self.budgets, self.reasons, self.later, self.limits, self.basis)
        return " ".join(filter(None, sentences))


def conclude(
    compared: pa.Table, level: float = 1 - LEVEL, unlike: Sequence[str] = (), asked: Question = ASKED
) -> Conclusion:
    """Return the answer to the sweep's question. It claims no more than the verdicts of the comparisons.

    The answer starts with 'Preliminary' while seeds are still to run. It is about the cells that were declared first.
    Cells that were added later have a sentence of their own.

    Args:
        compared: the table `analysis.comparisons`.
        level: level of the tests (`looks.level`).
        unlike: sentences on what differs besides the methods, such as devices.
        asked: the sweep's question.
    """
    (a, b), all_rows = question_names(asked), rows_of_question(compared.to_pylist(), asked)
    rows = [r for r in all_rows if not r["added"]]
    cells = [r for r in rows if r["reference"] is not None]
    mean_rows = [r for r in rows if r["reference"] is None]
    if not cells:
        return Conclusion(f"No conclusion about {a} and {b} yet: no budget at which both are confirmed on one seed.")
    early = preliminary_words(compared)
    if all(untested(r["verdict"]) for r in [*cells, *mean_rows]):
        return Conclusion(f"{early}No conclusion about {a} and {b}: {_why_untested(cells)} (observed {_range(cells)}).")
    if asked.focus is None:
        main_text, single_text, reasons = _answer_for_each(cells, mean_rows, b)
    else:
        main_text, single_text, reasons = _answer_for_one(cells, mean_rows, a, b, advise=not early)
    limits = [*_like_these([r for r in mean_rows if r["test"] == OVER_DATASETS]), *unlike]
    answer, budgets, reason_text, limit_text = (
        early + text if text else "" for text in (main_text, single_text, " ".join(reasons), " ".join(limits))
    )
    later = _later([r for r in all_rows if r["added"]], b, _places([r for r in all_rows if r["reference"] is not None]))
    return Conclusion(answer, budgets, reason_text, later, limit_text, _basis(cells, mean_rows, level))


def _later(rows: Sequence[Row], b: str, places: str) -> str:
    """Return sentences on the cells that were added later, for each method; empty if there are none.

    `places`: in what all cells of the question differ, from `_places`.
    """
    sentences = []
    for method in in_order({r["method"] for r in rows}):
        mine = [r for r in rows if r["method"] == method]
        cells = [r for r in mine if r["reference"] is not None]
        sentences += [_summary(cells, style(method).name, b, places)] if cells else []
        for row in (r for r in mine if r["reference"] is None and r["test"] != OVER_DATASETS):
            word = verdict_text(row["verdict"])
            over = _averaged([row], row["n_budgets"])
            sentences.append(f"With these, {over}, the difference is {interval_text(row)}: {word}.")
    if not sentences:
        return ""
    return (
        "Methods, budgets or data sets were added after the first declaration. They are tested separately, and marked "
        f"(later) in the tables. {' '.join(sentences)}"
    )


def _basis(cells: Sequence[Row], mean_rows: Sequence[Row], level: float) -> str:
    """Return sentences on how the comparisons were tested."""
    counts = {round(r["n"] / (r["datasets"] or 1)) for r in cells}
    seeds = f"{range_text(counts)} seed{'' if counts == {1} else 's'}"
    means = {r["method"] for r in mean_rows if r["test"] != OVER_DATASETS}
    over = "budgets" if len({r["reference"] for r in cells}) > 1 else "data sets"
    shared = f", half of it for the {'average' if len(means) == 1 else 'averages'} over {over}" if means else ""
    equal = f"compared at equal {_limit_name(cells)} and " if _largest_mismatch(cells) <= MATCHED else ""
    return (
        f"Methods are {equal}paired by seed ({seeds}). Differences account for the choice of learning rate. Verdicts "
        f"are corrected for multiple comparisons (Holm, at {level_text(level)}{shared}). The interval of a difference "
        "has the level of its test, so it excludes zero exactly if the methods are distinguishable."
    )


def _answer_for_each(cells: Sequence[Row], mean_rows: Sequence[Row], b: str) -> tuple[str, str, list[str]]:
    """Return the answer if each method is compared with the baseline.

    That is: the answer, the verdicts at single budgets if the answer is about means, and reasons for no conclusion.
    """
    means = [r for r in mean_rows if r["test"] != OVER_DATASETS]
    if means and len({(r["sweep"], r["model"], r["train_size"]) for r in cells}) == 1:
        where = _averaged(means, len({r["reference"] for r in cells}))
        answer, reasons = _sorted_by_verdict(means, _matching_text(cells), b, where)
        return answer, f"The single {_places(cells)}: {_verdicts(cells)}.", reasons
    if len({(*place_of(r), r["reference"]) for r in cells}) > 1:
        rows_by_method = [
            [r for r in cells if r["method"] == method] for method in in_order({r["method"] for r in cells})
        ]
        names = [style(mine[0]["method"]).name for mine in rows_by_method]
        sentences = [_summary(mine, name, b) for name, mine in zip(names, rows_by_method, strict=True)]
        whose = (f"{name}: {text}" for name, text in zip(names, sentences, strict=True))
        return f"{_matching_text(cells).rstrip(',')}. {' '.join(whose)}", "", _reasons(cells)
    answer, reasons = _sorted_by_verdict(cells, _matching_text(cells), b, f"at {_budget_text(cells[0], '')}")
    return answer, "", reasons


def _sorted_by_verdict(rows_of_methods: Sequence[Row], lead: str, b: str, at: str) -> tuple[str, list[str]]:
    """Return which methods are higher, lower, equivalent or not distinguishable, and reasons for no conclusion.

    Args:
        rows_of_methods: one row for each method.
        lead: the start of the first sentence.
        b: name of the baseline.
        at: words for where: a budget, or over what the rows are means.
    """
    rows_by_verdict = {verdict: [r for r in rows_of_methods if r["verdict"] == verdict] for verdict in TESTED_VERDICTS}
    sentences = [
        f"{_named(rows)} {'scores' if len(rows) == 1 else 'score'} {verdict} than {b} {at}."
        for verdict in TESTED_VERDICTS[:2]
        if (rows := rows_by_verdict[verdict])
    ]
    sentences = (
        [f"{lead} {sentences[0]}", *sentences[1:]]
        if sentences
        else [f"No conclusion: {at} no method is higher or lower than {b}."]
    )
    if rows := rows_by_verdict["equivalent"]:
        sentences.append(f"Equivalent to {b} within {percent(rows[0]['margin'])} points: {_named(rows)}.")
    if rows := [r for r in rows_by_verdict[TESTED_VERDICTS[-1]] if not inconclusive(r)]:
        sentences.append(f"Not distinguishable from {b}: {_named(rows)}.")
    reasons = []
    if rows := [r for r in rows_of_methods if inconclusive(r)]:
        reasons.append(f"No conclusion on {_named(rows)}: {_missed(rows)}")
    if rows := [r for r in rows_of_methods if untested(r["verdict"])]:
        reasons.append(f"Not tested: {_named(rows)}, since {_why_not(rows)}.")
    return " ".join(sentences), reasons


def _named(rows: Sequence[Row]) -> str:
    """Return the methods of rows at one budget with their differences, or only their number if they are many."""
    if len(rows) > _MOST:
        return f"{len(rows)} methods ({_range(rows)})"
    return listed([f"{style(r['method']).name} ({interval_text(r)})" for r in rows])


def _answer_for_one(
    cells: Sequence[Row], mean_rows: Sequence[Row], a: str, b: str, *, advise: bool
) -> tuple[str, str, list[str]]:
    """Return the answer on one method: the answer, the verdicts at single budgets, and reasons for no conclusion."""
    means = [r for r in mean_rows if r["test"] != OVER_DATASETS]
    lead, places = _matching_text(cells), _places(cells)
    if len(cells) == 1 and not means:
        return _main(cells[0], lead, a, b, f"at {_budget_text(cells[0], '')}", advise=advise), "", []
    if len(means) == 1 and len({(r["sweep"], r["model"], r["train_size"]) for r in cells}) == 1:
        main = _main(means[0], lead, a, b, _averaged(means, len({r["reference"] for r in cells})), advise=advise)
        silent = inconclusive(means[0]) and all(inconclusive(r) for r in cells)
        return main, "" if silent else _summary(cells, "It"), _reasons(cells)
    verdicts = {r["verdict"] for r in cells}
    if means:
        over = _averaged(means, len({r["reference"] for r in cells}))
        counts = f"{_verdicts(means)} ({_range(means)})"
        of_which = plural(len(means), "size, model or sweep", "sizes, models or sweeps")
        main_text = f"{lead} {a} against {b}, {over}, for {of_which}: {counts}."
        return main_text, _summary(cells, a, b), _reasons(cells)
    if all(inconclusive(r) for r in cells):
        where = _location_text(cells, len(cells), places, every="any of the")
        main_text = f"No conclusion on {a} and {b} {where}: {_missed(cells)}"
        reasons = []
    else:
        start = "There is no single answer. " if {"higher", "lower"} <= verdicts else ""
        main_text, reasons = f"{start}{lead} {_summary(cells, a, b)}", _reasons(cells)
    return main_text, "", reasons


def _main(row: Row, lead: str, a: str, b: str, where: str, *, advise: bool) -> str:
    """Return the sentence on the one difference that answers the question."""
    if row["verdict"] in TESTED_VERDICTS[:2]:
        return f"{lead} {a} scores {row['verdict']} than {b}: {interval_text(row)} {where}."
    if row["verdict"] == "equivalent":
        within = percent(row["margin"])
        return f"{lead} {a} and {b} are equivalent within {within} points: {interval_text(row)} {where}."
    if untested(row["verdict"]):
        return f"No conclusion about {a} and {b} {where} ({points(row['difference'])} points): it could not be tested."
    if not inconclusive(row):
        observed = f"{lead} {a} and {b} are not distinguishable: {interval_text(row)} {where}."
        return f"{observed} A difference of {size_of(row['detectable'])} points would be detected."
    text = f"No conclusion: {apart_text(row, a, b)} {where}, but {missed_text(row)}."
    return f"{text} {_remedy(row) if advise else ''}".strip()


def _remedy(row: Row) -> str:
    if row["detectable"] is None:
        return ""
    return remedy(row["difference"], row["seeds_for_seen"], row["seeds_for_seen_given_rates"])


def _summary(cells: Sequence[Row], who: str, b: str | None = None, places: str | None = None) -> str:
    """Return a sentence for each verdict: 'It is higher at LoRA-1 (...). There is no conclusion at LoRA-16 (...).'

    Args:
        who: name of the method, or 'It'.
        b: name of the baseline, if no earlier sentence has named it.
        places: in what the cells differ from all others that were compared; None if these are all.
    """
    margin = next((f" within {percent(r['margin'])} points" for r in cells if r["verdict"] == "equivalent"), "")
    than, to, tell = ("", "", "") if b is None else (f" than {b}", f" to {b}", f" from {b}")
    kinds = [
        *((f"{verdict}{than}", [r for r in cells if r["verdict"] == verdict]) for verdict in TESTED_VERDICTS[:2]),
        (f"equivalent{to}{margin}", [r for r in cells if r["verdict"] == "equivalent"]),
        (
            f"{TESTED_VERDICTS[-1]}{tell}",
            [r for r in cells if r["verdict"] == TESTED_VERDICTS[-1] and not inconclusive(r)],
        ),
    ]
    places, total = places or _places(cells), len(cells)
    predicates = [f"is {kind} {_location_text(rows, total, places)}." for kind, rows in kinds if rows]
    named = [f"{who if i == 0 else 'It'} {text}" for i, text in enumerate(predicates)]
    if rows := [r for r in cells if inconclusive(r)]:
        named.append(f"There is no conclusion {_location_text(rows, total, places, every='any of the')}.")
    if rows := [r for r in cells if untested(r["verdict"])]:
        named.append(f"Nothing could be tested {_location_text(rows, total, places, every='any of the')}.")
    return " ".join(named)


def _reasons(cells: Sequence[Row]) -> list[str]:
    """Return sentences on why there is no conclusion, or no test, at some budgets."""
    sentences = []
    if rows := [r for r in cells if inconclusive(r)]:
        which = "comparison" if len(rows) == 1 else f"{len(rows)} comparisons"
        sentences.append(f"In the {which} without a conclusion, {_missed(rows)}")
    if rows := [r for r in cells if untested(r["verdict"])]:
        sentences.append(f"Where nothing could be tested, {_why_not(rows)}.")
    return sentences


def _why_not(rows: Sequence[Row]) -> str:
    if all(r["verdict"] == NOT_KNOWN for r in rows):
        return "it is not known what the choice of learning rates adds"
    return "there is one seed, or no spread between seeds"


def _missed(rows: Sequence[Row]) -> str:
    """Return what rows without a conclusion cannot detect, and what would help if that is the same for all."""
    if len(rows) == 1:
        return f"{missed_text(rows[0])}. {_remedy(rows[0])}".strip()
    detectable = sorted(r["detectable"] for r in rows if r["detectable"] is not None)
    if not detectable:
        return f"{missed_text(rows[0])}."
    seeds = range_text({round(r["n"] / (r["datasets"] or 1)) for r in rows})
    what = "any difference"
    if detectable[0] < 1:
        ends = dict.fromkeys(size_of(min(value, 1.0)) for value in (detectable[0], detectable[-1]))
        what = f"differences below {' to '.join(ends)} points"
    sentence = f"{seeds} seed{'' if seeds == '1' else 's'} cannot detect {what}."
    remedies = {_remedy(r) for r in rows}
    return f"{sentence} {remedies.pop()}".strip() if len(remedies) == 1 else sentence


def _limit_name(cells: Sequence[Row]) -> str:
    return limited(r["reference"] for r in cells)


def _largest_mismatch(cells: Sequence[Row]) -> float:
    """Return the largest share by which compared counts differ."""
    ratios = [
        r["dof_ratio" if of_dof(r["reference"]) else "params_ratio"] for r in cells if not of_model(r["reference"])
    ]
    return max((abs(ratio - 1) for ratio in ratios if ratio is not None), default=0.0)


def _matching_text(cells: Sequence[Row]) -> str:
    """Return the start of a sentence that says how equal the compared counts are."""
    if _largest_mismatch(cells) <= MATCHED:
        return f"At equal {_limit_name(cells)}"
    return f"At the same budgets, where counts differ by up to {100 * _largest_mismatch(cells):.1f} %,"


def _why_untested(cells: Sequence[Row]) -> str:
    if any(r["verdict"] == NOT_KNOWN for r in cells):
        counts = [(v, sum(r["verdict_given_rates"] == v for r in cells)) for v in TESTED_VERDICTS]
        verdict_counts = ", ".join(f"{v} at {n}" for v, n in counts if n) or "not tested either"
        return (
            "what the choice of learning rates adds is not known here, so no difference can be tested with it; were "
            f"the chosen rates the only ones possible, of {len(cells)} {_places(cells)}: {verdict_counts}"
        )
    why = "only one seed" if max(r["n"] for r in cells) < 2 else "no spread between seeds"
    return f"{why}, so no difference can be tested"


def _location_text(rows: Sequence[Row], total: int, what: str, every: str = "all") -> str:
    """Return where rows are, and their differences: 'at LoRA-1 (...) and LoRA-4 (...)', 'in 4 of 9 comparisons'."""
    if len(rows) > _LISTED:
        count = f"{every} {total}" if len(rows) == total else f"{len(rows)} of {total}"
        place = f"at {count} budgets" if what == "budgets" else f"in {count} comparisons"
        return f"{place} ({_range(rows)})"
    named = listed([_budget_text(r, what, seen=True) for r in rows])
    return f"at {named}" if what == "budgets" else f"in {len(rows)} of {total} comparisons: {named}"


def _budget_text(r: Row, what: str, *, seen: bool = False) -> str:
    """Return a budget with its size, such as 'LoRA-8 (589,824 parameters)'.

    Args:
        what: what `_places` returned: if there are several data sets, sizes or models, the row's is named.
        seen: whether the observed difference follows the number of parameters.
    """
    limit = ("degree of freedom", "degrees of freedom") if of_dof(r["reference"]) else ("parameter", "parameters")
    inside = []
    if r["budget"] is not None:
        of_cost = of_model(r["reference"])
        inside = [amount(r["budget"], r["reference"]) if of_cost else plural(r["budget"], *limit)]
    inside += [interval_text(r)] if seen else []
    place = place_text(r["dataset"], r["train_size"]) if _SIZES in what else dataset_text(r["dataset"] or "")
    on = f" on {place}" if _DATASETS in what or _SIZES in what else ""
    model = f" with {r['model']}" if _MODELS in what else ""
    return budget_text(r["reference"]) + on + model + (f" ({', '.join(inside)})" if inside else "")


def _places(rows: Sequence[Row]) -> str:
    """Return in what the rows differ: 'budgets', 'budgets and data sets'."""
    kinds = {_DATASETS: "dataset", _SIZES: "train_size", _MODELS: "model"}
    return listed(["budgets", *(name for name, column in kinds.items() if len({r[column] for r in rows}) > 1)])


def _range(rows: Sequence[Row]) -> str:
    low, high = (points(end(r["difference"] for r in rows)) for end in (min, max))
    return f"{low} points" if low == high else f"{low} to {high} points"


def _averaged(rows: Sequence[Row], budgets: int) -> str:
    """Return over what rows are averaged: 'on average over the 3 budgets and 2 data sets'."""
    some = {r["n_budgets"] for r in rows} - {budgets, None}
    over = (
        [f"the {budgets} budgets" if not some else f"{range_text(some)} of the {budgets} budgets"]
        if budgets > 1
        else []
    )
    sets = {r["n_datasets"] for r in rows if r["dataset"] is None}
    return f"on average over {listed([*over, *([f'{range_text(sets)} data sets'] if sets else [])])}"


def _verdicts(rows: Sequence[Row]) -> str:
    """Return the number of rows with each verdict, in words."""
    counts = Counter(NO_CONCLUSION if inconclusive(r) else verdict_text(r["verdict"]) for r in rows)
    margin = next((r["margin"] for r in rows if r["verdict"] == "equivalent"), None)
    within = "" if margin is None else f" (within {percent(margin)} points)"
    present = [v for v in (*TESTED_VERDICTS, NO_CONCLUSION, "not tested") if counts[v]]
    return ", ".join(f"{v}{within * (v == 'equivalent')} at {counts[v]}" for v in present)


def _like_these(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on other data sets of the same kind, or [] if nothing could be tested."""
    if all(r["low"] is None for r in rows):
        return []
    if len(rows) > 1:
        return [f"On other data sets of this kind: {_verdicts(rows)}."]
    row = rows[0]
    if inconclusive(row):
        return [
            f"Other data sets of this kind were not tested. For these the mean difference is {interval_text(row)}, "
            f"which is no conclusion: {missed_text(row)}."
        ]
    return [f"On other data sets of this kind: {interval_text(row)}, {row['verdict']}."]
