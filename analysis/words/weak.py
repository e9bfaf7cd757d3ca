"""What a sweep's results rest on too little, said before the results: by `plan` beforehand, by reports afterwards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from scipy import stats

from analysis.format import Row, percent, points
from analysis.statistics.inference import LEVEL
from analysis.statistics.rank_effects import is_idle
from analysis.store.columns import of_dof
from analysis.styles import place_text, size_key, size_text, style

FEW_EXAMPLES = 200
"""Below it one example moves a score by more than half a point."""
FEW_SEEDS = 3
"""Below it an interval over seeds is 12.7 standard errors wide, too wide to be shaded in a plot."""
RISING_BY = 0.01
"""A point: validation that rises by more in the last epoch has not come to its end."""
_MOST = 4  # cells, or classes, that are named; more are counted
_WHY = {
    "edge low": "the lowest rate tried is the best",
    "edge high": "the highest rate tried is the best",
    "few finished": "few rates finished",
    "still rising": "one rate far above the others",
}


def weak_evidence(cells: Iterable[Row]) -> list[str]:
    """Statements on what is weak, the most general first; none where nothing is.

    Args:
        cells: rows of the view `signs`; before a run, rows of the table `cells`, feasible ones and those without data,
            of which less can be said.
    """
    found = list(cells)
    rows = [r for r in found if not r.get("absent")]
    trained = [r for r in rows if r["lr_centre"] is not None]
    several = len({(r["dataset"], r["train_size"]) for r in rows}) > 1
    said = [
        *absent_data(found),
        *_few_examples(rows, trained, several=several),
        *_absent_classes(rows),
        *_few_seeds(trained),
    ]
    named = partial(_listed, several=several)
    if idle := [r for r in trained if is_idle(r) and not of_dof(r["reference"])]:
        said.append(f"more than a tenth of the parameters can't act: {named(idle, _acting)}")
    if few := [r for r in trained if 0 < (r.get("seeds_scored") or 0) < min(FEW_SEEDS, r["confirm_seeds"])]:
        said.append(f"fewer than {FEW_SEEDS} seeds have a score: {named(few, _scored)}")
    if flat := [r for r in trained if r.get("untrained")]:
        said.append(f"every run scores exactly as zero-shot does (perhaps it did not train): {named(flat)}")
    if tied := [r for r in trained if (r.get("rates_tied") or 0) > 1]:
        said.append(f"rates tie for the best: {named(tied, _tied)}")
    if poor := [r for r in trained if r.get("under_tuned")]:
        said.append(f"perhaps under-tuned: {named(poor, _why)}")
    if rising := [r for r in trained if (r.get("still_rising") or 0.0) > RISING_BY]:
        rising.sort(key=lambda r: -r["still_rising"])
        text = named(rising, lambda r: points(r["still_rising"]))
        said.append(f"validation still rising in the last epoch (points): {text}; more epochs might change the order")
    return said


def absent_data(cells: Iterable[Row]) -> list[str]:
    """Which of a sweep's data sets are left out because their data was not at hand; nothing where none is."""
    rows = list(cells)
    names = list(dict.fromkeys(_short(r["dataset"]) for r in rows if r.get("absent")))
    if not names:
        return []
    return [f"{len(names)} of {len({r['dataset'] for r in rows})} data sets left out, not at hand: {', '.join(names)}"]


def _few_examples(rows: Sequence[Row], trained: Sequence[Row], *, several: bool) -> Iterator[str]:
    """Validation and test splits so small that one example counts much; each once, whatever trains on it."""
    for part, column, mine in (("validation", "val_examples", trained), ("test", "test_examples", rows)):
        found: dict[tuple[str, int], set[str]] = {}
        for r in mine:
            if n := r.get(column):
                found.setdefault((r["dataset"], n), set()).add(r["train_size"])
        unlike = Counter(dataset for dataset, _ in found)
        for (dataset, n), sizes in sorted(found.items(), key=lambda item: item[0]):
            if n >= FEW_EXAMPLES:
                continue
            of = f" of {_short(dataset)}" if several else ""
            of += f" at {' and '.join(map(size_text, sorted(sizes, key=size_key)))}" if unlike[dataset] > 1 else ""
            yield f"{part}{of} has {n} example{'s' * (n > 1)}: one is {percent(1 / n)} % of them"


def _absent_classes(rows: Sequence[Row]) -> list[str]:
    found = {r["dataset"]: json.loads(r["test_lacks"]) for r in rows if r.get("test_lacks")}
    return [f"test of {_short(name)} has no example of {_first(lacks)}" for name, lacks in found.items()]


def _few_seeds(trained: Sequence[Row]) -> list[str]:
    seeds = {r["confirm_seeds"] for r in trained}
    if not seeds or min(seeds) >= FEW_SEEDS:
        return []
    if min(seeds) < 2:
        return ["1 seed: no interval, and no difference can be tested"]
    two, five = (stats.t.isf((1 - LEVEL) / 2, n - 1) for n in (2, 5))
    return [f"2 seeds: an interval reaches {two:.1f} standard errors each way, with 5 seeds {five:.1f}"]


def _acting(row: Row) -> str:
    return f"{row['dof']:,} of {row['count']:,} act"


def _scored(row: Row) -> str:
    return f"{row['seeds_scored']} of {row['confirm_seeds']}"


def _tied(row: Row) -> str:
    return f"{row['rates_tied']} of {row['rates']}"


def _why(row: Row) -> str:
    return ", ".join(_WHY.get(reason, reason) for reason in row["under_tuned"].split("; "))


def _short(name: str) -> str:
    """A data set's id, a path cut to its last part."""
    return name.rstrip("/").rpartition("/")[2] if "/" in name and name.partition(":")[0] != "hf" else name


def _listed(rows: Sequence[Row], note: Callable[[Row], str] | None = None, *, several: bool = False) -> str:
    """Cells by name, each with a note."""
    names = []
    for r in rows:
        at = f" at {r['reference']}" if r["reference"] else ""
        on = f" on {place_text(_short(r['dataset']), r['train_size'])}" if several else ""
        names.append(f"{style(r['method']).name}{at}{on}" + (f" ({note(r)})" if note is not None else ""))
    return _first(names)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
