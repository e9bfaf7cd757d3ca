"""Sentences on weaknesses of a sweep's evidence. `plan` prints them before a run, `best` and the report after it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from scipy import special

from analysis.findings.absent import absent_data, short_name
from analysis.findings.batch_sizes import chosen_batch_size, end_of_list
from analysis.findings.rank.numbers import is_idle
from analysis.format import Row, first_listed, listed, percent, plural, points
from analysis.store.columns import of_dof
from analysis.styles import size_key, size_text, style
from analysis.verdict.inference import FEW_SEEDS, LEVEL

FEW_EXAMPLES = 200
"""In a split with fewer examples, one example changes the score by more than half a point."""
RISING_BY = 0.01
"""One point. If validation rose by more in the last epoch, training was probably too short."""
_MOST = 4  # cells or classes
_WHY = {
    "edge low": "the lowest rate tried is the best",
    "edge high": "the highest rate tried is the best",
    "few finished": "few rates finished",
    "between rates": "a better rate is expected between those tried",
}


def weak_evidence(cells: Iterable[Row], most: int = _MOST) -> list[str]:
    """Return a sentence on each weakness of the evidence, the gravest first; none if there is none.

    Args:
        cells: rows of the view `signs`. Before a run: rows of the table `cells` that are feasible or have no data; they
            show fewer weaknesses.
        most: largest number of cells, or classes, that a sentence names. The others are counted.
    """
    all_cells = list(cells)
    rows = [r for r in all_cells if not r.get("absent")]
    trained = [r for r in rows if r["lr_centre"] is not None]
    named = partial(_listed, most=most, at=_places(rows))
    sentences = absent_data(all_cells)
    if flat := [r for r in trained if r.get("untrained")]:
        sentences.append(
            f"Every run scores exactly as the untrained model does, so perhaps nothing was learned: {named(flat)}."
        )
    if equal := [r for r in trained if r.get("scores_equal") and not r.get("untrained")]:
        sentences.append(f"All seeds have exactly the same score: {named(equal)}.")
    sentences += _few_seeds(trained)
    if few := [r for r in trained if 0 < (r.get("seeds_scored") or 0) < min(FEW_SEEDS, r["confirm_seeds"])]:
        text = named(few, lambda r: f"{r['seeds_scored']} of {r['confirm_seeds']} seeds")
        sentences.append(f"Fewer than {FEW_SEEDS} seeds have a score: {text}.")
    if rising := [r for r in trained if (r.get("still_rising") or 0.0) > RISING_BY]:
        rising.sort(key=lambda r: -r["still_rising"])
        text = named(rising, lambda r: f"by {points(r['still_rising']).lstrip('+')} points")
        sentences.append(f"Validation still rose in the last epoch, so more epochs might change the order: {text}.")
    if poor := [r for r in trained if r.get("under_tuned")]:
        sentences.append(f"More learning rates might raise the score: {named(poor, why_under_tuned)}.")
    if ends := [r for r in trained if end_of_list(r)]:
        text = named(ends, lambda r: f"{chosen_batch_size(r):,}, the {end_of_list(r)}")
        sentences.append(
            f"The chosen batch size is at an end of the list, so a size beyond it might be better: {text}."
        )
    if idle := [r for r in trained if is_idle(r) and not of_dof(r["reference"])]:
        text = named(idle, lambda r: f"{r['dof']:,} of {r['count']:,} act")
        sentences.append(f"More than a tenth of the parameters cannot act: {text}.")
    sentences += [*_few_examples(rows, trained), *_absent_classes(rows, most)]
    if tied := [r for r in trained if (r.get("rates_tied") or 0) > 1]:
        text = named(tied, lambda r: f"{r['rates_tied']} of {r['rates']} rates")
        sentences.append(
            "On the first seed of the search several rates share the best validation score, so the choice is partly "
            f"chance: {text}."
        )
    return sentences


def _few_examples(rows: Sequence[Row], trained: Sequence[Row]) -> Iterator[str]:
    """Yield a sentence on each validation or test split that has few examples, the smallest first."""
    several = len({(r["dataset"], r["train_size"]) for r in rows}) > 1
    sizes_by_split: dict[tuple[str, str, int], set[str]] = {}
    for part, column, cells_of_split in (("validation", "val_examples", trained), ("test", "test_examples", rows)):
        for r in cells_of_split:
            if n := r.get(column):
                sizes_by_split.setdefault((part, r["dataset"], n), set()).add(r["train_size"])
    unlike = Counter((part, dataset) for part, dataset, _ in sizes_by_split)
    for (part, dataset, n), sizes in sorted(sizes_by_split.items(), key=lambda item: item[0][2]):
        if n >= FEW_EXAMPLES:
            continue
        of = f" of {short_name(dataset)}" if several else ""
        of += f" at {listed([size_text(s) for s in sorted(sizes, key=size_key)])}" if unlike[part, dataset] > 1 else ""
        yield f"The {part} split{of} has {plural(n, 'example')}: one of them is {percent(1 / n)} % of the score."


def _absent_classes(rows: Sequence[Row], most: int) -> list[str]:
    lacking = {r["dataset"]: json.loads(r["test_lacks"]) for r in rows if r.get("test_lacks")}
    return [
        f"The test split of {short_name(d)} has no example of {first_listed(lacks, most)}."
        for d, lacks in lacking.items()
    ]


def _few_seeds(trained: Sequence[Row]) -> list[str]:
    seeds = {r["confirm_seeds"] for r in trained}
    if not seeds or min(seeds) >= FEW_SEEDS:
        return []
    if min(seeds) < 2:
        return ["There is 1 seed: no interval is known, and no difference can be tested."]
    two, five = (-special.stdtrit(n - 1, (1 - LEVEL) / 2) for n in (2, 5))
    return [
        f"There are 2 seeds: intervals reach {two:.1f} standard errors each way; with 5 seeds they reach {five:.1f}."
    ]


def why_under_tuned(row: Row) -> str:
    """Return why more tuning might help a cell, in words."""
    return ", ".join(_WHY.get(reason, reason) for reason in row["under_tuned"].split("; "))


def _places(rows: Sequence[Row]) -> Callable[[Row], str]:
    """Return a function that names a cell's data set and training size, as far as they differ among the rows."""
    sets, sizes = ({r[column] for r in rows} for column in ("dataset", "train_size"))

    def at(r: Row) -> str:
        size = f", {size_text(r['train_size'])}" if len(sizes) > 1 else ""
        return f" on {short_name(r['dataset'])}{size}" if len(sets) > 1 or size else ""

    return at


def _listed(
    rows: Sequence[Row],
    note: Callable[[Row], str] | None = None,
    *,
    most: int,
    at: Callable[[Row], str],
) -> str:
    """Return the names of cells, each with its note."""
    names = []
    for r in rows:
        budget = f" at {r['reference']}" if r["reference"] else ""
        names.append(f"{style(r['method']).name}{budget}{at(r)}" + (f" ({note(r)})" if note is not None else ""))
    return first_listed(names, most)
