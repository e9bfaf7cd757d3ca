"""Sentences on what was equal for all methods of a sweep: parameters, tuning, data, devices, versions."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from analysis.findings.batch_sizes import batches_say
from analysis.format import Row, level_text, plural, range_text
from analysis.store.columns import limited
from analysis.styles import style
from analysis.verdict.looks import Looks

PACKAGES = ("torch", "transformers", "open_clip_torch", "peft", "bitsandbytes", "torchvision", "pillow", "ray")
"""Packages that affect results and whose versions trials record. The first one that differs is named."""

_MOST = 6  # methods that a sentence names


def parity_says(parity: Sequence[Row], *, predicted: bool = True) -> list[str]:
    """Return sentences on what was equal over the cells, and what was not: parameters, tuning, epochs, devices.

    Args:
        parity: rows of the view `parity`.
        predicted: whether a solver predicted the counts. Imported results have the same number in both columns.
    """
    sentences = []
    budgeted = [r for r in parity if r["residual_fraction"] is not None]
    if budgeted:
        worst = max(budgeted, key=lambda r: abs(r["residual_fraction"]))
        sentences.append(
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
        sentences.append(f"What acts: updates have {shares} as many degrees of freedom as there are parameters.")
    built = [r for r in parity if predicted and r["count_holds"] is not None and r["count"] is not None]
    wrong = [r for r in built if not r["count_holds"]]
    if wrong:
        cells = plural(len(wrong), "cell")
        sentences.append(
            f"Counts: {cells} built another number of parameters than the solver predicted; see the table."
        )
    elif built:
        sentences.append(
            f"Counts: in all {len(built)} cells with a predicted count the built module has exactly that many."
        )
    tuned = [r for r in parity if r["allowance"]]
    sentences += tuning_says(tuned)
    widths = sorted({round(r["decades"], 2) for r in tuned if r["decades"] is not None})
    if widths:
        wide = "{} decade wide" if widths == [1] else "{} decades wide"
        sentences.append(f"Rates: the ranges are {_equal(widths, f'{wide} for every method', wide)}.")
    sentences += batches_say(tuned)
    epochs = sorted({r["epochs"] for r in tuned if r["epochs"] is not None})
    if epochs:
        trained = "trained {} epoch" if epochs == [1] else "trained {} epochs"
        trained = _equal(epochs, f"every confirmed run {trained}", f"runs {trained}")
        sentences.append(f"Data and steps: {trained}.")
    if compared := sorted({r["negatives"] for r in parity if r["negatives"] is not None}):
        equal = _equal(compared, "every image is compared with {}, itself among them", "images are compared with {}")
        sentences.append(f"Contrastive loss: {equal}.")
    if apart := devices_apart(parity):
        sentences.append(f"Devices and precision: NOT equal, {apart}.")
    elif ran := {r["computed_on"] for r in parity} - {None}:
        sentences.append(f"Devices and precision: every method ran on {' and '.join(sorted(ran))}.")
    return sentences


def _share(r: Row) -> str:
    bound = "at most " if r["dof_at_most"] else ""
    return f"{bound}{100 * r['dof'] / r['count']:.3g}"


def devices_apart(parity: Sequence[Row], methods: Collection[str] | None = None) -> str | None:
    """Return which methods ran on which device and precision, or None if that is the same for all methods of a place.

    Another device or precision rounds differently, which may cause a difference of scores.

    Args:
        parity: rows of the view `parity`.
        methods: the methods to compare; default: all.
    """
    places: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for r in parity:
        if r["computed_on"] is not None and (methods is None or r["method"] in methods):
            place = places.setdefault((r["sweep"], r["dataset"], r["train_size"]), {})
            place.setdefault(r["method"], set()).update(r["computed_on"].split(", "))
    for ran in places.values():
        if len({frozenset(on) for on in ran.values()}) > 1:
            return _who_ran_on_what(ran)
    return None


def versions_apart(ran: Sequence[Row], methods: Collection[str] | None = None) -> str | None:
    """Return which methods ran with which version of a package, or None if all results of a place had the same.

    Another version may compute differently, which may cause a difference of scores, even between seeds of one method.

    Args:
        ran: rows of finished trials, with the column `versions` of the table `trials`.
        methods: the methods to compare; default: all.
    """
    places: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = {}
    for r in ran:
        if r["versions"] is not None and (methods is None or r["method"] in methods):
            place = places.setdefault((r["sweep"], r["dataset"], r["train_size"]), {})
            place.setdefault(r["method"], []).append(json.loads(r["versions"]))
    for by_method in places.values():
        for package in PACKAGES:
            package_versions = {
                name: {f"{package} {v[package]}" for v in had if package in v} for name, had in by_method.items()
            }
            if len(set().union(*package_versions.values())) > 1:
                return _who_ran_on_what({name: versions for name, versions in package_versions.items() if versions})
    return None


def _who_ran_on_what(by_method: Mapping[str, Collection[str]]) -> str:
    """Return which methods ran on what: 'LoRA, DoRA on A; RandLoRA on A and B', or 'every method on A and B'."""
    kinds = {name: " and ".join(sorted(on)) for name, on in by_method.items()}
    if len(set(kinds.values())) == 1:
        return f"every method on {next(iter(kinds.values()))}"
    groups = []
    for kind in sorted({*kinds.values()}):
        names = [style(name).name for name in kinds if kinds[name] == kind]
        uncounted = [f"{len(names) - _MOST} more"] if len(names) > _MOST else []
        groups.append(f"{', '.join([*names[:_MOST], *uncounted])} on {kind}")
    return "; ".join(groups)


def tuning_says(rows: Sequence[Row]) -> list[str]:
    """Return sentences on the tuning effort that cells were allowed and that they used.

    Args:
        rows: rows of the view `parity` for tuned cells.
    """
    sampled = [r for r in rows if r["allowance_samples"] is not None]
    counted = [r for r in rows if r["allowance_samples"] is None]
    sentences = []
    for cells, allowed_column, used_column, unit in (
        (counted, "allowance", "allowance_used", "trials"),
        (sampled, "allowance_samples", "tune_samples", "training examples"),
    ):
        if not cells:
            continue
        each = {r[allowed_column] for r in cells}
        noun = unit.removesuffix("s") if each == {1} else unit
        equal = f"{'every tuned cell was' if len(each) == 1 else 'cells were'} given {range_text(each)} {noun}"
        spent, full = range_text(r[used_column] or 0 for r in cells), range_text(r["tune_full_length"] for r in cells)
        if cells is counted:
            tail = f"{full} of them finished at full length"
            tail += "; points past an edge came on top" if any(r["widened"] for r in cells) else ""
        else:
            tail = (
                f"in {range_text(r['allowance_used'] for r in cells)} trials, {full} of them finished at full length; "
                "points past an edge and failed trials are among them"
            )
        sentences.append(f"Tuning: {equal}; {spent} were used, {tail}.")
    return sentences


def looks_says(all_looks: Iterable[Looks]) -> list[str]:
    """Return sentences on how often CONFIRM's scores could have been seen before more seeds were added."""
    sentences = []
    for look in all_looks:
        *earlier, last = look.seeds
        maximum_text = (
            "no maximum was declared" if look.maximum is None else f"{look.maximum} were declared as the most"
        )
        if earlier:
            text = (
                f"scores of {' and then '.join(map(str, earlier))} seeds were there to be seen before there were {last}"
            )
        else:
            text = f"one, at {plural(last, 'seed')}"
        sentences.append(f"Looks: {text}; {maximum_text}, and tests of this look are made at {level_text(look.level)}.")
        if look.margins:
            times = plural(look.margins, "time")
            sentences.append(
                f"The margin of equivalence was changed {times} after test scores were there: the first one counts."
            )
        if look.questions:
            times = plural(look.questions, "time")
            sentences.append(
                f"The method in question was changed {times} after test scores were there: the first one counts."
            )
    return sentences


def _equal(values: Sequence[float], one: str, several: str) -> str:
    """Return `one` filled with the only value, or `several` filled with the range and marked as not equal."""
    if len(values) == 1:
        return one.format(f"{values[0]:g}")
    return f"{several.format(f'{values[0]:g} to {values[-1]:g}')}: NOT equal"
