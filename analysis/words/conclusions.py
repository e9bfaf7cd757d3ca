"""Sentences made from test results, never stronger than the corrected tests allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from analysis.format import Row, amount, change_text, end_of_interval, level_text, listed, percent, plural, points, span
from analysis.statistics.inference import LEVEL, NOT_KNOWN, OVER_DATASETS
from analysis.statistics.rank_effects import CONTRAST, PARAMETERS, RANK
from analysis.statistics.scaling import EARLY, Question
from analysis.store.columns import limited, of_dof, of_model
from analysis.styles import budget_text, dataset_text, in_order, place_of, place_text, style
from analysis.words.verdicts import SAID, apart_text, inconclusive, missed_text, remedy, size_of, untested, verdict_text

ASKED = Question()
MATCHED = 0.05
"""Counts further apart than this, as a share, are not called equal."""
_MOST = 4  # methods that are named
_LISTED = 3  # budgets whose differences are listed; more have a range
_DATASETS = "data sets"
_SIZES = "sizes"
_MODELS = "models"


@dataclass(frozen=True)
class Conclusion:
    """What a sweep answers to its question; all but the answer may be empty.

    Attributes:
        answer: one or two sentences: what a reader came for.
        budgets: the verdicts at the single budgets, if the answer is on their average.
        reasons: why there is no conclusion at some budgets.
        later: what methods, budgets and data sets say that joined after the first declaration.
        limits: on other data sets, and devices or versions that differ.
        basis: how it was tested.
    """

    answer: str
    budgets: str = ""
    reasons: str = ""
    later: str = ""
    limits: str = ""
    basis: str = ""

    def __str__(self) -> str:
        said = (self.answer, self.budgets, self.reasons, self.later, self.limits, self.basis)
        return " ".join(filter(None, said))


def interval_text(row: Row) -> str:
    """'+1.3 points [+0.2, +2.4]'; without the bracket if one seed gives no interval."""
    text = f"{points(row['difference'])} points"
    return text if row["low"] is None else f"{text} [{end_of_interval(row['low'])}, {end_of_interval(row['high'])}]"


def names_of(asked: Question) -> tuple[str, str]:
    """The methods in question, and what they are compared with, in words."""
    return "each other method" if asked.focus is None else style(asked.focus).name, style(asked.baseline).name


def of_question(rows: Sequence[Row], asked: Question) -> list[Row]:
    """The rows that compare the methods in question."""
    return [r for r in rows if r["baseline"] == asked.baseline and asked.focus in (None, r["method"])]


def conclude(
    compared: pa.Table, level: float = 1 - LEVEL, unlike: Sequence[str] = (), asked: Question = ASKED
) -> Conclusion:
    """Answer the sweep's question from `scaling.comparisons`, no stronger than its verdicts.

    It starts with 'Preliminary' while seeds are still to come. What was declared at first is the answer. What joined
    later has sentences of its own.

    Args:
        level: of the tests (`looks.level`).
        unlike: sentences on what differs besides the methods, such as devices.
    """
    (a, b), every = names_of(asked), of_question(compared.to_pylist(), asked)
    rows = [r for r in every if not r["added"]]
    cells = [r for r in rows if r["reference"] is not None]
    whole = [r for r in rows if r["reference"] is None]
    if not cells:
        return Conclusion(f"No conclusion about {a} and {b} yet: no budget at which both are confirmed on one seed.")
    early = early_words(compared)
    if all(untested(r["verdict"]) for r in [*cells, *whole]):
        return Conclusion(f"{early}No conclusion about {a} and {b}: {_why_untested(cells)} (observed {_range(cells)}).")
    if asked.focus is None:
        said, single, reasons = _of_each(cells, b)
    else:
        said, single, reasons = _of_one(cells, whole, a, b, advise=not early)
    limits = [*_like_these([r for r in whole if r["test"] == OVER_DATASETS]), *unlike]
    answer, budgets, why, more = (
        early + text if text else "" for text in (said, single, " ".join(reasons), " ".join(limits))
    )
    later = _later([r for r in every if r["added"]], a, b)
    return Conclusion(answer, budgets, why, later, more, _basis(cells, whole, level))


def _later(rows: Sequence[Row], a: str, b: str) -> str:
    """What the rows say that are of the second analysis; empty without any."""
    cells = [r for r in rows if r["reference"] is not None]
    means = [r for r in rows if r["reference"] is None and r["test"] != OVER_DATASETS]
    said = [_summary(cells, a, b)] if cells else []
    for row in means:
        word = verdict_text(row["verdict"])
        over = _averaged([row], row["n_budgets"])
        said.append(f"With these, {over}, the difference is {interval_text(row)}: {word}.")
    if not said:
        return ""
    return (
        f"Methods, budgets or data sets joined after the first declaration. They are tested apart from it, and marked "
        f"(later) in the tables. {' '.join(said)}"
    )


def _basis(cells: Sequence[Row], whole: Sequence[Row], level: float) -> str:
    """How the comparisons were tested."""
    counts = {round(r["n"] / (r["datasets"] or 1)) for r in cells}
    seeds = f"{span(counts)} seed{'' if counts == {1} else 's'}"
    half = any(r["test"] != OVER_DATASETS for r in whole)
    shared = ", half of it for the average over budgets" if half else ""
    equal = f"compared at equal {_limited(cells)} and " if _apart(cells) <= MATCHED else ""
    return (
        f"Methods are {equal}paired by seed ({seeds}). Differences account for the choice of learning rate. Verdicts "
        f"are corrected for multiple comparisons (Holm, at {level_text(level)}{shared}). The interval of a difference "
        "has the level of its test, so it excludes zero exactly if the methods are distinguishable."
    )


def preliminary(seeds: str | None) -> str:
    """How a sentence begins while seeds are to come; else empty. `seeds`: as `looks.least_advanced` returns them."""
    return f"Preliminary, {seeds}: " if seeds else ""


def early_words(compared: pa.Table) -> str:
    """`preliminary` of a table of `scaling.comparisons`."""
    return preliminary((compared.schema.metadata or {}).get(EARLY, b"").decode())


def _of_each(cells: Sequence[Row], b: str) -> tuple[str, str, list[str]]:
    """Every method against the baseline: the answer, nothing, and why there is none on some methods."""
    if len({(*place_of(r), r["reference"]) for r in cells}) > 1:
        each = [[r for r in cells if r["method"] == method] for method in in_order({r["method"] for r in cells})]
        names = [style(mine[0]["method"]).name for mine in each]
        said = [_summary(mine, name, b) for name, mine in zip(names, each, strict=True)]
        whose = (f"{name}: {text}" for name, text in zip(names, said, strict=True))
        return f"{_matched(cells)}. {' '.join(whose)}", "", _reasons(cells)
    at = f"at {_at(cells[0], '')}"
    found = {verdict: [r for r in cells if r["verdict"] == verdict] for verdict in SAID}
    said = [
        f"{_named(rows)} {'scores' if len(rows) == 1 else 'score'} {verdict} than {b} {at}."
        for verdict in SAID[:2]
        if (rows := found[verdict])
    ]
    lead = _matched(cells)
    said = [f"{lead} {said[0]}", *said[1:]] if said else [f"No conclusion: {at} no method is higher or lower than {b}."]
    if rows := found["equivalent"]:
        said.append(f"Equivalent to {b} within {percent(rows[0]['margin'])} points: {_named(rows)}.")
    if rows := [r for r in found[SAID[-1]] if not inconclusive(r)]:
        said.append(f"Not distinguishable from {b}: {_named(rows)}.")
    reasons = []
    if rows := [r for r in cells if inconclusive(r)]:
        reasons.append(f"No conclusion on {_named(rows)}: {_missed(rows)}")
    if rows := [r for r in cells if untested(r["verdict"])]:
        reasons.append(f"Not tested: {_named(rows)}, since {_why_not(rows)}.")
    return " ".join(said), "", reasons


def _named(rows: Sequence[Row]) -> str:
    """The methods of rows at one budget with their differences, or their number if they are many."""
    if len(rows) > _MOST:
        return f"{len(rows)} methods ({_range(rows)})"
    return listed([f"{style(r['method']).name} ({interval_text(r)})" for r in rows])


def _of_one(cells: Sequence[Row], whole: Sequence[Row], a: str, b: str, *, advise: bool) -> tuple[str, str, list[str]]:
    """The method in question against the baseline: the answer, the single budgets, and why some have none."""
    means = [r for r in whole if r["test"] != OVER_DATASETS]
    lead, what = _matched(cells), _places(cells)
    if len(cells) == 1 and not means:
        return _main(cells[0], lead, a, b, f"at {_at(cells[0], '')}", advise=advise), "", []
    if len(means) == 1:
        main = _main(means[0], lead, a, b, _averaged(means, len({r["reference"] for r in cells})), advise=advise)
        silent = inconclusive(means[0]) and all(inconclusive(r) for r in cells)
        return main, "" if silent else _summary(cells, "It"), _reasons(cells)
    verdicts = {r["verdict"] for r in cells}
    if means:
        over = _averaged(means, len({r["reference"] for r in cells}))
        each = f"{_verdicts(means)} ({_range(means)})"
        said = f"{lead} {a} against {b}, {over}, for {len(means)} sizes, models or sweeps: {each}."
        return said, _summary(cells, a, b), _reasons(cells)
    if all(inconclusive(r) for r in cells):
        said = f"No conclusion on {a} and {b} {_where(cells, len(cells), what, every='any of the')}: {_missed(cells)}"
        reasons = []
    else:
        start = "There is no single answer. " if {"higher", "lower"} <= verdicts else ""
        said, reasons = f"{start}{lead} {_summary(cells, a, b)}", _reasons(cells)
    return said, "", reasons


def _main(row: Row, lead: str, a: str, b: str, where: str, *, advise: bool) -> str:
    """The verdict on the one difference that answers the question."""
    if row["verdict"] in SAID[:2]:
        return f"{lead} {a} scores {row['verdict']} than {b}: {interval_text(row)} {where}."
    if row["verdict"] == "equivalent":
        within = percent(row["margin"])
        return f"{lead} {a} and {b} are equivalent within {within} points: {interval_text(row)} {where}."
    if untested(row["verdict"]):
        return f"No conclusion about {a} and {b} {where} ({points(row['difference'])} points): it could not be tested."
    if not inconclusive(row):
        seen = f"{lead} {a} and {b} are not distinguishable: {interval_text(row)} {where}."
        return f"{seen} A difference of {size_of(row['detectable'])} points would be detected."
    text = f"No conclusion: {apart_text(row, a, b)} {where}, but {missed_text(row)}."
    return f"{text} {_remedy(row) if advise else ''}".strip()


def _remedy(row: Row) -> str:
    if row["detectable"] is None:
        return ""
    return remedy(row["difference"], row["seeds_for_seen"], row["seeds_for_seen_given_rates"])


def _summary(cells: Sequence[Row], who: str, b: str | None = None) -> str:
    """A sentence for each verdict: 'It is higher at LoRA-1 (...). There is no conclusion at LoRA-16 (...).'

    Args:
        who: the method, or 'It'. b: what it is compared with, if no sentence before has said that.
    """
    margin = next((f" within {percent(r['margin'])} points" for r in cells if r["verdict"] == "equivalent"), "")
    than, to, tell = ("", "", "") if b is None else (f" than {b}", f" to {b}", f" from {b}")
    kinds = [
        *((f"{verdict}{than}", [r for r in cells if r["verdict"] == verdict]) for verdict in SAID[:2]),
        (f"equivalent{to}{margin}", [r for r in cells if r["verdict"] == "equivalent"]),
        (f"{SAID[-1]}{tell}", [r for r in cells if r["verdict"] == SAID[-1] and not inconclusive(r)]),
    ]
    what, total = _places(cells), len(cells)
    said = [f"is {kind} {_where(rows, total, what)}." for kind, rows in kinds if rows]
    named = [f"{who if i == 0 else 'It'} {text}" for i, text in enumerate(said)]
    if rows := [r for r in cells if inconclusive(r)]:
        named.append(f"There is no conclusion {_where(rows, total, what, every='any of the')}.")
    if rows := [r for r in cells if untested(r["verdict"])]:
        named.append(f"Nothing could be tested {_where(rows, total, what, every='any of the')}.")
    return " ".join(named)


def _reasons(cells: Sequence[Row]) -> list[str]:
    """Why there is no conclusion, or no test, at some budgets."""
    said = []
    if rows := [r for r in cells if inconclusive(r)]:
        which = "comparison" if len(rows) == 1 else f"{len(rows)} comparisons"
        said.append(f"In the {which} without a conclusion, {_missed(rows)}")
    if rows := [r for r in cells if untested(r["verdict"])]:
        said.append(f"Where nothing could be tested, {_why_not(rows)}.")
    return said


def _why_not(rows: Sequence[Row]) -> str:
    if all(r["verdict"] == NOT_KNOWN for r in rows):
        return "it is not known what the choice of learning rates adds"
    return "there is one seed, or no spread between seeds"


def _missed(rows: Sequence[Row]) -> str:
    """What rows without a conclusion cannot detect, and what would decide if there is one row."""
    if len(rows) == 1:
        return f"{missed_text(rows[0])}. {_remedy(rows[0])}".strip()
    known = sorted(r["detectable"] for r in rows if r["detectable"] is not None)
    if not known:
        return f"{missed_text(rows[0])}."
    seeds = span({round(r["n"] / (r["datasets"] or 1)) for r in rows})
    ends = " to ".join(dict.fromkeys(size_of(value) for value in (known[0], known[-1])))
    said = f"{seeds} seed{'' if seeds == '1' else 's'} cannot detect differences below {ends} points."
    remedies = {_remedy(r) for r in rows}
    return f"{said} {remedies.pop()}".strip() if len(remedies) == 1 else said


def _limited(cells: Sequence[Row]) -> str:
    return limited(r["reference"] for r in cells)


def _apart(cells: Sequence[Row]) -> float:
    """The largest share by which counts differ that are compared."""
    ratios = [
        r["dof_ratio" if of_dof(r["reference"]) else "params_ratio"] for r in cells if not of_model(r["reference"])
    ]
    return max((abs(ratio - 1) for ratio in ratios if ratio is not None), default=0.0)


def _matched(cells: Sequence[Row]) -> str:
    """How equal the counts are that are compared."""
    if _apart(cells) <= MATCHED:
        return f"At equal {_limited(cells)}"
    return f"At the same budgets, where counts differ by up to {100 * _apart(cells):.1f} %,"


def _why_untested(cells: Sequence[Row]) -> str:
    if any(r["verdict"] == NOT_KNOWN for r in cells):
        given = [(v, sum(r["verdict_given_rates"] == v for r in cells)) for v in SAID]
        said = ", ".join(f"{v} at {n}" for v, n in given if n) or "not tested either"
        return (
            "what the choice of learning rates adds is not known here, so no difference can be tested with it; were "
            f"the chosen rates the only ones possible, of {len(cells)} {_places(cells)}: {said}"
        )
    why = "only one seed" if max(r["n"] for r in cells) < 2 else "no spread between seeds"
    return f"{why}, so no difference can be tested"


def conclude_gap(compared: pa.Table, asked: Question = ASKED) -> str | None:
    """One sentence on the methods' distance from full fine-tuning at their largest budgets; None without it.

    Over several data sets it is on their mean.

    Args:
        compared: `scaling.comparisons(store, baseline="full")`. Preliminary, as in `conclude`.
    """
    rows = [r for r in compared.to_pylist() if r["budget"] is not None]
    means = [r for r in rows if r["dataset"] is None]
    rows = means or rows
    places = {place_of(r) for r in rows}
    parts = []
    several = in_order({r["method"] for r in rows})[:_MOST]
    for method in several if asked.focus is None else (asked.baseline, asked.focus):
        mine = [r for r in rows if r["method"] == method]
        if not mine or len(places) != 1:
            continue
        top = max(mine, key=lambda r: r["budget"])
        parts.append(f"{style(method).name} ({top['reference']}) {interval_text(top)}, {top['verdict']}")
    if not parts:
        return None
    where = f", in the mean over {means[0]['n_datasets']} data sets" if means else ""
    return f"{early_words(compared)}Against full fine-tuning{where}, each at its largest budget: {'; '.join(parts)}."


def conclude_rank_effects(rows: Sequence[Row]) -> str:
    """What a doubling of rank and of parameters brings, and which more, in one place or the mean over data sets.

    Args:
        rows: of `rank_effects.effects`.
    """
    if not rows:
        return "No budget has updates of different rank."
    first = rows[0]
    place = [r for r in rows if place_of(r) == place_of(first)]
    where = place_text(first["dataset"] or "the mean over data sets", first["train_size"])
    every = len({(*place_of(r)[:2], first["dataset"] and r["dataset"], r["train_size"]) for r in rows})
    where += f" (the first of {every} in the table)" if every > 1 else ""
    said = [_brings(place, effect) for effect in (RANK, PARAMETERS, CONTRAST)]
    text = f"On {where}: {' '.join(filter(None, said))}"
    if any(r["verdict"] == NOT_KNOWN for r in place):
        return f"{text} Not tested: what the choice of rates adds is not known."
    if all(r["p_holm"] is None for r in place):
        return f"{text} Not tested: that takes two seeds or more, and a spread between them."
    return text


def idle_text(rows: Sequence[Row]) -> str:
    """Which cells were left out, from `rank_effects.idle_cells`; empty where none was."""
    each = [f"{style(r['method']).name} at {r['reference']} ({r['dof']:,} of {r['count']:,})" for r in rows]
    return f" Left out, since more than a tenth of their parameters can't act: {', '.join(each)}." if each else ""


def _brings(rows: Sequence[Row], effect: str) -> str:
    """Say how many points one effect adds over all methods, and over the variants of one."""
    mine = sorted((r for r in rows if r["effect"] == effect), key=lambda r: r["scope"] is not None)
    if not mine:
        return ""
    begins = {
        RANK: "Doubling the rank at equal parameters adds",
        PARAMETERS: "Doubling the parameters at equal rank adds",
        CONTRAST: "The rank adds more than the parameters do by",
    }
    tested = any(r["p_holm"] is not None for r in rows)
    each = []
    for r in mine:
        scope = f"variants of {style(r['scope']).name}" if r["scope"] else "all methods"
        each.append(f"{change_text(r, 'slope')} points over {scope}{_slope_verdict(r) if tested else ''}")
    return f"{begins[effect]} {' and '.join(each)}."


def _slope_verdict(row: Row) -> str:
    """Say in brackets if a slope is not distinguishable from zero, or could not be tested."""
    if row["p_holm"] is None:
        return " (not tested: no spread between seeds)"
    return " (not distinguishable from zero)" if row["verdict"] == "not distinguishable" else ""


def _where(rows: Sequence[Row], total: int, what: str, every: str = "all") -> str:
    """Where the rows are, with their differences: 'at LoRA-1 (...) and LoRA-4 (...)', or 'in 4 of 9 comparisons'."""
    if len(rows) > _LISTED:
        count = f"{every} {total}" if len(rows) == total else f"{len(rows)} of {total}"
        place = f"at {count} budgets" if what == "budgets" else f"in {count} comparisons"
        return f"{place} ({_range(rows)})"
    named = listed([_at(r, what, seen=True) for r in rows])
    return f"at {named}" if what == "budgets" else f"in {len(rows)} of {total} comparisons: {named}"


def _at(r: Row, what: str, *, seen: bool = False) -> str:
    """'LoRA-8 (589,824 parameters)', with the data set and the model if `what` says that there are several.

    Args:
        seen: the difference follows the number of parameters.
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
    """What the rows are of: 'budgets', 'budgets and data sets'."""
    kinds = {_DATASETS: "dataset", _SIZES: "train_size", _MODELS: "model"}
    return listed(["budgets", *(name for name, column in kinds.items() if len({r[column] for r in rows}) > 1)])


def _range(rows: Sequence[Row]) -> str:
    low, high = (points(end(r["difference"] for r in rows)) for end in (min, max))
    return f"{low} points" if low == high else f"{low} to {high} points"


def _averaged(rows: Sequence[Row], budgets: int) -> str:
    """What means are over: 'on average over the 3 budgets and 2 data sets'."""
    some = {r["n_budgets"] for r in rows} - {budgets, None}
    over = [f"the {budgets} budgets" if not some else f"{span(some)} of the {budgets} budgets"] if budgets > 1 else []
    sets = {r["n_datasets"] for r in rows if r["dataset"] is None}
    return f"on average over {listed([*over, *([f'{span(sets)} data sets'] if sets else [])])}"


def _verdicts(rows: Sequence[Row]) -> str:
    """How many rows have each verdict."""
    counts = Counter(verdict_text(r["verdict"]) for r in rows)
    margin = next((r["margin"] for r in rows if r["verdict"] == "equivalent"), None)
    within = "" if margin is None else f" (within {percent(margin)} points)"
    found = [v for v in (*SAID, "not tested") if counts[v]]
    return ", ".join(f"{v}{within * (v == 'equivalent')} at {counts[v]}" for v in found)


def _like_these(rows: Sequence[Row]) -> list[str]:
    """The claim on other data sets of the same kind, if the seeds let it be made."""
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
