"""Sentences made from test results, never stronger than the corrected tests allow."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from analysis.format import Row, change_text, level_text, percent, points, span
from analysis.statistics.inference import LEVEL, NOT_KNOWN, OVER_DATASETS
from analysis.statistics.rank_effects import CONTRAST, PARAMETERS, RANK
from analysis.statistics.scaling import EARLY, Question
from analysis.store.columns import limited, of_dof
from analysis.styles import in_order, place_of, place_text, style

ASKED = Question()
MATCHED = 0.05
"""Counts further apart than this, as a share, are not called equal."""
_MOST = 4  # methods that are named
_DATASETS, _SIZES, _MODELS = "data sets", "sizes", "models"
SAID = ("higher", "lower", "equivalent", "not distinguishable")
"""The verdicts of what was tested."""


def interval_text(row: Row) -> str:
    """'+1.3 points [0.2, 2.4]'; without the bracket where one seed gives no interval."""
    text = f"{points(row['difference'])} points"
    return text if row["low"] is None else f"{text} [{points(row['low'])}, {points(row['high'])}]"


def names_of(asked: Question) -> tuple[str, str]:
    """The methods in question, and what they are compared with, in words."""
    return "each other method" if asked.focus is None else style(asked.focus).name, style(asked.baseline).name


def of_question(rows: Sequence[Row], asked: Question) -> list[Row]:
    """The rows that compare the methods in question."""
    return [r for r in rows if r["baseline"] == asked.baseline and asked.focus in (None, r["method"])]


def conclude(compared: pa.Table, level: float = 1 - LEVEL, devices: str | None = None, asked: Question = ASKED) -> str:
    """One sentence on the question's methods at the same budgets, from `scaling.comparisons`.

    It says 'higher', 'lower' or 'equivalent' only of budgets whose `verdict` does, and says so where the method in
    question does not win, and first of all where it is preliminary, as seeds are to come. `level`: of the tests
    (`looks.level`). `devices`: what they ran on, where that differs (`parity.devices_apart`).
    """
    (a, b), rows = names_of(asked), of_question(compared.to_pylist(), asked)
    cells = [r for r in rows if r["reference"] is not None]
    whole = [r for r in rows if r["reference"] is None]
    if not cells:
        return f"No conclusion about {a} and {b} yet: no budget at which both are confirmed with a common seed."
    early = early_words(compared)
    if all(_untested(r) for r in [*cells, *whole]):
        return f"{early}No conclusion about {a} and {b}: {_why_untested(cells)} (observed {_range(cells)})."
    text = early + (_each(cells, b) if asked.focus is None else _of_one(cells, whole, a, b))
    text += f"; but devices or precision are NOT equal, {devices}" if devices else ""
    n = sorted({r["n"] for r in cells})
    seeds = str(n[0]) if len(n) == 1 else f"{n[0]} to {n[-1]}"
    order = ", the mean first" if any(r["test"] != OVER_DATASETS for r in whole) else ""
    paired = f"paired over {seeds} seed{'s' * (seeds != '1')}, the choice of learning rates included"
    return f"{text} ({paired}, Holm-corrected at {level_text(level)}{order})."


def preliminary(seeds: str | None) -> str:
    """How a sentence begins that is made while seeds are to come; nothing else. `seeds`: as of `looks.early`."""
    return f"Preliminary, {seeds}: " if seeds else ""


def early_words(compared: pa.Table) -> str:
    """`preliminary` of a table of `scaling.comparisons`."""
    return preliminary((compared.schema.metadata or {}).get(EARLY, b"").decode())


def _each(cells: Sequence[Row], b: str) -> str:
    """Every method against the baseline."""
    said = []
    for method in in_order({r["method"] for r in cells}):
        mine = [r for r in cells if r["method"] == method]
        found = [(v, [r for r in mine if r["verdict"] == v]) for v in (*SAID, "not testable", NOT_KNOWN)]
        at = [f"{v} at {_count(rows, len(mine), _places(mine))}" for v, rows in found if rows]
        said.append(f"{style(method).name} {', '.join(at)}")
    return f"{_matched(cells)} against {b}: {'; '.join(said)}"


def _matched(cells: Sequence[Row]) -> str:
    """How equal the counts are that are compared."""
    ratios = [r["dof_ratio" if of_dof(r["reference"]) else "params_ratio"] for r in cells]
    apart = max((abs(ratio - 1) for ratio in ratios if ratio is not None), default=0.0)
    if apart <= MATCHED:
        return f"At equal {limited(r['reference'] for r in cells)}"
    return f"At the same budgets, where counts differ by up to {100 * apart:.1f} %,"


def _of_one(cells: Sequence[Row], whole: Sequence[Row], a: str, b: str) -> str:
    """The method in question against the baseline."""
    text = _at_budgets(cells, whole, a, b)
    untested = [r for r in cells if _untested(r)]
    if untested and len(untested) < len(cells):
        unknown = all(r["verdict"] == NOT_KNOWN for r in untested)
        why = "what the choice of rates adds is not known" if unknown else "one seed, or no spread between seeds"
        text += f"; at {len(untested)} nothing can be tested ({why})"
    text += _overall([r for r in whole if r["test"] != OVER_DATASETS], len({r["reference"] for r in cells}))
    apart_all_the_same = [r for r in cells if r["verdict"] == SAID[-1] and _excludes_zero(r)]
    if apart_all_the_same:
        text += (
            f"; yet at {len(apart_all_the_same)} of the {_places(cells)} the simultaneous interval excludes zero "
            f"({_range(apart_all_the_same)}): the mean hides how unlike they are"
        )
    return text + _like_these([r for r in whole if r["test"] == OVER_DATASETS])


def _excludes_zero(row: Row) -> bool:
    low, high = row["low_simultaneous"], row["high_simultaneous"]
    return low is not None and high is not None and not low <= 0.0 <= high


def _untested(row: Row) -> bool:
    return bool(row["verdict"].startswith("not testable"))


def _why_untested(cells: Sequence[Row]) -> str:
    if any(r["verdict"] == NOT_KNOWN for r in cells):
        given = [(v, sum(r["verdict_given_rates"] == v for r in cells)) for v in SAID]
        said = ", ".join(f"{v} at {n}" for v, n in given if n) or "not testable either"
        return (
            "what the choice of learning rates adds is not known here, so no difference can be tested with it; were "
            f"the chosen rates the only ones possible, of {len(cells)} {_places(cells)}: {said}"
        )
    why = "only one seed" if max(r["n"] for r in cells) < 2 else "no spread between seeds"
    return f"{why}, so no difference can be tested"


def _at_budgets(cells: Sequence[Row], whole: Sequence[Row], a: str, b: str) -> str:
    """The budgets' verdicts in words."""
    where = _matched(cells)
    there = where[0].lower() + where[1:]
    higher, lower, equal, same = ([r for r in cells if r["verdict"] == v] for v in SAID)
    total, what = len(cells), _places(cells)
    left = len(same) if any(map(_untested, cells)) else f"the other {len(same)}"
    others = [f"is not distinguishable from it at {left}"] if same else []
    if equal:
        others.insert(0, f"is equivalent to it, within {percent(equal[0]['margin'])} points, at {len(equal)}")
    rest = "".join(f", and {other}" for other in others)
    if higher and not lower:
        return f"{where} {a} scores higher than {b} at {_count(higher, total, what)}{rest}"
    if higher:
        return (
            f"There is no one answer here: {there} {a} scores higher than {b} at "
            f"{_count(higher, total, what)}, lower at {len(lower)} ({_listed(lower, what)}){rest}"
        )
    start = f"{a} does not win here: {there} it"
    if lower:
        return f"{start} scores lower than {b} at {_count(lower, total, what)}{rest}"
    if any(r["verdict"] in ("higher", "lower") for r in whole):
        start = f"No single comparison decides: {there} {a}"
    seen = f" (differences {_range(cells)}{_power(cells)})"
    if equal:
        end = f", and not distinguishable at {left}" if same else ""
        margin = percent(equal[0]["margin"])
        return f"{start} is equivalent to {b}, within {margin} points, at {_count(equal, total, what)}{end}{seen}"
    if not same:
        return f"{where} no single comparison of {a} and {b} can be tested{seen}"
    at = f"at the one {what[:-1]} {'compared' if total == 1 else 'tested'}"
    at = f"at any of the {len(same)} {what}" if len(same) > 1 else at
    return f"{start} is not distinguishable from {b} {at}{seen}"


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
    text = f"On {where}, {'; '.join(filter(None, said))}."
    if any(r["verdict"] == NOT_KNOWN for r in place):
        return f"{text} Not tested: what the choice of rates adds is not known."
    return f"{text} {_tested(place)}"


def idle_text(rows: Sequence[Row]) -> str:
    """Which cells were left out, from `rank_effects.idle`; empty where none was."""
    each = [f"{style(r['method']).name} at {r['reference']} ({r['dof']:,} of {r['count']:,})" for r in rows]
    return f" Left out, since more than a tenth of their parameters can't act: {', '.join(each)}." if each else ""


def _brings(rows: Sequence[Row], effect: str) -> str:
    """One effect over all methods, and over the variants of one."""
    mine = sorted((r for r in rows if r["effect"] == effect), key=lambda r: r["scope"] is not None)
    if not mine:
        return ""
    doubled = {
        RANK: "doubling the rank at equal parameters brings, in points, ",
        PARAMETERS: "doubling the parameters at equal rank brings, in points, ",
        CONTRAST: "of the two the rank brings more by ",
    }
    whose = [f"over {'variants of ' + style(r['scope']).name if r['scope'] else 'all methods'}" for r in mine]
    return doubled[effect] + " and ".join(
        f"{change_text(r, 'slope')} {named}" for r, named in zip(mine, whose, strict=True)
    )


def _tested(rows: Sequence[Row]) -> str:
    def named(some: Sequence[Row]) -> str:
        return ", ".join(r["effect"] + (f" ({style(r['scope']).name})" if r["scope"] else "") for r in some)

    untested = [r for r in rows if r["p_holm"] is None]
    silent = [r for r in rows if r["verdict"] == "not distinguishable"]
    if len(untested) == len(rows):
        return "Not tested: that takes two seeds or more, and a spread between them."
    said = f"Not distinguishable from zero: {named(silent)}" if silent else "All that are tested differ from zero"
    said += " (paired over seeds, the choice of rates included, Holm-corrected over all slopes of the table: a family "
    said += "apart from the comparisons, whose verdicts may differ)."
    return f"{said} Not tested, for want of a spread between seeds: {named(untested)}." if untested else said


def _count(rows: Sequence[Row], total: int, what: str) -> str:
    if total == 1:
        return f"the one {what[:-1]} compared ({_listed(rows, what)})"
    if len(rows) == total:
        return f"all {total} {what} ({_range(rows)})"
    return f"{len(rows)} of {total} {what} ({_listed(rows, what)})"


def _listed(rows: Sequence[Row], what: str) -> str:
    """The rows' budgets with their differences, and where `what` says that there are several; many are only counted."""
    if len(rows) > 3:
        return _range(rows)

    def where(r: Row) -> str:
        on = f" on {place_text(r['dataset'], r['train_size'])}" if _DATASETS in what or _SIZES in what else ""
        return on + (f" with {r['model']}" if _MODELS in what else "")

    return "; ".join(f"{r['reference']}{where(r)}: {interval_text(r)}" for r in rows)


def _places(rows: Sequence[Row]) -> str:
    """What the rows are of."""
    kinds = {_DATASETS: "dataset", _SIZES: "train_size", _MODELS: "model"}
    *most, last = "budgets", *(name for name, column in kinds.items() if len({r[column] for r in rows}) > 1)
    return f"{', '.join(most)} and {last}" if most else last


def _range(rows: Sequence[Row]) -> str:
    low, high = (points(end(r["difference"] for r in rows)) for end in (min, max))
    return f"{low} points" if low == high else f"{low} to {high} points"


def _power(rows: Sequence[Row]) -> str:
    known = [r["power"] for r in rows if r["power"] is not None]
    if not known:
        return ""
    low, high = (f"{100 * end(known):.0f}" for end in (min, max))
    share = low if low == high else f"{low} to {high}"
    return f"; a true 2-point difference would be found {share} % of the time"


def _overall(rows: Sequence[Row], budgets: int) -> str:
    if not rows:
        return ""
    row, over = rows[0], _averaged(rows, budgets)
    if len(rows) > 1:
        return f"; averaged over {over}, at {len(rows)} sizes, models or sweeps: {_verdicts(rows)} ({_range(rows)})"
    text = f"; averaged over {over} the difference is {interval_text(row)}: {row['verdict']}"
    if row["verdict"] == "equivalent":
        text += f", within {percent(row['margin'])} points"
    if row["verdict"] == "not distinguishable" and row.get("detectable") is not None:
        text += f", where {percent(row['detectable'])} points would be found four times in five"
    return text


def _averaged(rows: Sequence[Row], budgets: int) -> str:
    """What means are over, of all `budgets` or some."""
    some = {r["n_budgets"] for r in rows} - {budgets, None}
    over = ["budgets" if not some else f"{span(some)} of the {budgets} budgets"] if budgets > 1 else []
    sets = {r["n_datasets"] for r in rows if r["dataset"] is None}
    return " and ".join([*over, *([f"{span(sets)} data sets"] if sets else [])])


def _verdicts(rows: Sequence[Row]) -> str:
    """How many rows have each verdict."""
    found = {v: [r for r in rows if r["verdict"] == v] for v in (*SAID, "not testable", NOT_KNOWN)}
    within = "".join(f" (within {percent(r['margin'])} points)" for r in found["equivalent"][:1])
    return ", ".join(f"{v}{within * (v == 'equivalent')} at {len(mine)}" for v, mine in found.items() if mine)


def _like_these(rows: Sequence[Row]) -> str:
    """The claim on data sets like those of the sweep, where their seeds let it be made."""
    if all(r["low"] is None for r in rows):
        return ""
    if len(rows) > 1:
        return f"; for data sets like these: {_verdicts(rows)}"
    return f"; for data sets like these it is {interval_text(rows[0])}: {rows[0]['verdict']}"
