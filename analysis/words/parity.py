"""Sentences on the three parities of a sweep, each true of the rows as they are."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from analysis.format import Row, level_text, plural, span
from analysis.statistics.looks import Looks
from analysis.store.columns import limited
from analysis.styles import style
from analysis.words.batch_sizes import batches_say

PACKAGES = ("torch", "transformers", "open_clip_torch", "peft", "torchvision", "pillow", "ray")
"""Packages that compute results, as far as trials record them; the first that differs is named."""

_MOST = 6  # methods that a sentence names


def parity_says(parity: Sequence[Row], *, predicted: bool = True) -> list[str]:
    """What was equal over the cells, and what was not: parameters, counts, tuning, rates, epochs.

    Args:
        parity: rows of the view of that name.
        predicted: whether a solver predicted the counts; of imported results one number stands in both columns.
    """
    said = []
    budgeted = [r for r in parity if r["residual_fraction"] is not None]
    if budgeted:
        worst = max(budgeted, key=lambda r: abs(r["residual_fraction"]))
        said.append(
            f"{limited(r['reference'] for r in budgeted).removeprefix('trainable ').capitalize()}: "
            "the largest distance of a count from its budget is "
            f"{100 * abs(worst['residual_fraction']):.2f} % ({style(worst['method']).name} at {worst['reference']})."
        )
    acting = [r for r in parity if r["dof"] is not None and r["count"]]
    if acting:
        least, most = (pick(acting, key=lambda r: r["dof"] / r["count"]) for pick in (min, max))
        ends = [
            f"{_share(r)}{unit} ({style(r['method']).name} at {r['reference']})"
            for r, unit in ((least, ""), (most, " %"))
        ]
        shares = " to ".join(ends) if _share(least) != _share(most) else f"{_share(least)} %"
        said.append(f"What acts: updates have {shares} as many degrees of freedom as there are parameters.")
    built = [r for r in parity if predicted and r["count_holds"] is not None and r["count"] is not None]
    wrong = [r for r in built if not r["count_holds"]]
    if wrong:
        cells = plural(len(wrong), "cell")
        said.append(f"Counts: {cells} built another number of parameters than the solver predicted; see the table.")
    elif built:
        said.append(f"Counts: in all {len(built)} cells with a predicted count the built module has exactly that many.")
    tuned = [r for r in parity if r["allowance"]]
    said += tuning_says(tuned)
    widths = sorted({round(r["decades"], 2) for r in tuned if r["decades"] is not None})
    if widths:
        wide = "{} decade wide" if widths == [1] else "{} decades wide"
        said.append(f"Rates: the ranges are {_equal(widths, f'{wide} for every method', wide)}.")
    said += batches_say(tuned)
    epochs = sorted({r["epochs"] for r in tuned if r["epochs"] is not None})
    if epochs:
        trained = "trained {} epoch" if epochs == [1] else "trained {} epochs"
        trained = _equal(epochs, f"every confirmed run {trained}", f"runs {trained}")
        said.append(f"Data and steps: {trained}.")
    if compared := sorted({r["negatives"] for r in parity if r["negatives"] is not None}):
        equal = _equal(compared, "every image is compared with {}, itself among them", "images are compared with {}")
        said.append(f"Contrastive loss: {equal}.")
    if apart := devices_apart(parity):
        said.append(f"Devices and precision: NOT equal, {apart}.")
    elif ran := {r["computed_on"] for r in parity} - {None}:
        said.append(f"Devices and precision: every method ran on {' and '.join(sorted(ran))}.")
    return said


def _share(r: Row) -> str:
    bound = "at most " if r["dof_at_most"] else ""
    return f"{bound}{100 * r['dof'] / r['count']:.3g}"


def devices_apart(parity: Sequence[Row], methods: Collection[str] | None = None) -> str | None:
    """Which methods ran on what, where that differs between methods of one place; None where it does not.

    Another precision rounds otherwise, and so may another device: a difference of scores may then be theirs.

    Args:
        parity: rows of the view of that name.
        methods: those to compare; all.
    """
    places: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for r in parity:
        if r["computed_on"] is not None and (methods is None or r["method"] in methods):
            place = places.setdefault((r["sweep"], r["dataset"], r["train_size"]), {})
            place.setdefault(r["method"], set()).update(r["computed_on"].split(", "))
    for ran in places.values():
        if len({frozenset(on) for on in ran.values()}) > 1:
            return _kinds(ran)
    return None


def versions_apart(ran: Sequence[Row], methods: Collection[str] | None = None) -> str | None:
    """Which methods ran with which versions of `PACKAGES`, if results of one place had several; None if they had one.

    Another version may compute otherwise: a difference of scores, or of two seeds of one method, may then be its.

    Args:
        ran: rows of finished trials, with `versions` as the table `trials` has them.
        methods: those to compare; all.
    """
    places: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = {}
    for r in ran:
        if r["versions"] is not None and (methods is None or r["method"] in methods):
            place = places.setdefault((r["sweep"], r["dataset"], r["train_size"]), {})
            place.setdefault(r["method"], []).append(json.loads(r["versions"]))
    for by_method in places.values():
        for package in PACKAGES:
            known = {name: {f"{package} {v[package]}" for v in had if package in v} for name, had in by_method.items()}
            if len(set().union(*known.values())) > 1:
                return _kinds({name: versions for name, versions in known.items() if versions})
    return None


def _kinds(by_method: Mapping[str, Collection[str]]) -> str:
    """'LoRA and DoRA on A; RandLoRA on A and B', or 'every method on A and B'."""
    kinds = {name: " and ".join(sorted(on)) for name, on in by_method.items()}
    if len(set(kinds.values())) == 1:
        return f"every method on {next(iter(kinds.values()))}"
    said = []
    for kind in sorted({*kinds.values()}):
        names = [style(name).name for name in kinds if kinds[name] == kind]
        more = [f"{len(names) - _MOST} more"] if len(names) > _MOST else []
        said.append(f"{', '.join([*names[:_MOST], *more])} on {kind}")
    return "; ".join(said)


def tuning_says(rows: Sequence[Row]) -> list[str]:
    """Sentences on what tuned cells were given and what they used, rows of the view `parity`."""
    sampled = [r for r in rows if r["allowance_samples"] is not None]
    counted = [r for r in rows if r["allowance_samples"] is None]
    said = []
    for mine, given, used, unit in (
        (counted, "allowance", "allowance_used", "trials"),
        (sampled, "allowance_samples", "tune_samples", "training examples"),
    ):
        if not mine:
            continue
        each = {r[given] for r in mine}
        what = unit.removesuffix("s") if each == {1} else unit
        equal = f"{'every tuned cell was' if len(each) == 1 else 'cells were'} given {span(each)} {what}"
        spent, full = span(r[used] or 0 for r in mine), span(r["tune_full_length"] for r in mine)
        if mine is counted:
            tail = f"{full} of them finished at full length"
            tail += "; points past an edge came on top" if any(r["widened"] for r in mine) else ""
        else:
            tail = (
                f"in {span(r['allowance_used'] for r in mine)} trials, {full} of them finished at full length; points "
                "past an edge and failed trials are among them"
            )
        said.append(f"Tuning: {equal}; {spent} were used, {tail}.")
    return said


def looks_says(found: Iterable[Looks]) -> list[str]:
    """Sentences on how often the scores of CONFIRM's seeds were there to be seen before more seeds were added."""
    said = []
    for each in found:
        *earlier, now = each.seeds
        most = "no maximum was declared" if each.maximum is None else f"{each.maximum} were declared as the most"
        if earlier:
            text = (
                f"scores of {' and then '.join(map(str, earlier))} seeds were there to be seen before there were {now}"
            )
        else:
            text = f"one, at {plural(now, 'seed')}"
        said.append(f"Looks: {text}; {most}, and tests of this look are made at {level_text(each.level)}.")
        if each.margins:
            times = plural(each.margins, "time")
            said.append(
                f"The margin of equivalence was changed {times} after test scores were there: the first one counts."
            )
        if each.questions:
            times = plural(each.questions, "time")
            said.append(
                f"The method in question was changed {times} after test scores were there: the first one counts."
            )
    return said


def _equal(values: Sequence[float], one: str, several: str) -> str:
    """`one` filled with the only value; else `several` with the range, and that it is not equal."""
    if len(values) == 1:
        return one.format(f"{values[0]:g}")
    return f"{several.format(f'{values[0]:g} to {values[-1]:g}')}: NOT equal"
