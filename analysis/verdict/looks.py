"""Interim analyses ("looks") at the test scores, and the level that is left for the tests of each.

A look is an analysis that could have been made before more seeds were added. Whoever adds seeds until a difference is
found will find one sooner or later. So the looks share the level: their levels sum to at most `1 - LEVEL`, whatever the
correlation between them (alpha spending by a union bound; Lan and DeMets, Biometrika 70, 1983).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from analysis.errors import StoreError
from analysis.format import Row, plural
from analysis.store.columns import PLACE
from analysis.store.journal import Event
from analysis.store.left import to_come
from analysis.store.store import Store, part_of, remembered
from analysis.verdict.inference import LEVEL
from analysis.verdict.runs import CellKey

FIRST = 0.8
"""Share of the remaining level that a look spends if no maximum number of seeds was declared."""


@dataclass(frozen=True)
class Looks:
    """The looks at one sweep's scores, as its journal tells them.

    Attributes:
        seeds: number of distinct seeds declared at each look. The last entry is the current look.
        maximum: largest number of seeds, if it was declared before there was any score (`confirm.max_seeds`), else
            None.
        margins: number of changes to `confirm.margin` after there were scores. They cost no level, because one interval
            shows equivalence within any margin.
        questions: number of changes to `confirm.question` after there were scores.
    """

    seeds: tuple[int, ...]
    maximum: int | None = None
    margins: int = 0
    questions: int = 0

    @property
    def level(self) -> float:
        """Level of the tests of the last look: the allowed chance of any false difference.

        With a declared maximum every seed up to it adds the same share of 5 %. Seeds beyond it, such as those that
        replace others, add nothing. Without a maximum the first look spends four fifths of 5 %, and each later one four
        fifths of what is left.
        """
        if self.maximum is None:
            return (1 - LEVEL) * FIRST * (1 - FIRST) ** (len(self.seeds) - 1)
        before, now = (min(count, self.maximum) for count in (0, *self.seeds)[-2:])
        return (1 - LEVEL) * (now - before) / self.maximum


@remembered
def looks(store: Store) -> dict[str, Looks]:
    """Return the looks of each sweep, by its name. Sweeps without declared seeds (imports, old folders) have none."""
    looks_by_sweep: dict[str, Looks] = {}
    last_declaration: dict[str, tuple[set[int], float | None, str | None]] = {}
    for event in store.events("declare"):
        name = str(event["name"])
        before = looks_by_sweep.get(name)
        known_seeds, margin, question = last_declaration.get(name, (set(), event["margin"], event.get("question")))
        all_seeds, scores_seen = known_seeds | set(event["seeds"]), event["scored"] > 0
        last_declaration[name] = all_seeds, event["margin"], event.get("question")
        if before is None:
            looks_by_sweep[name] = Looks((len(all_seeds),), event["max_seeds"])
            continue
        earlier = before.seeds if scores_seen and len(all_seeds) > len(known_seeds) else before.seeds[:-1]
        margins = before.margins + (scores_seen and event["margin"] != margin)
        questions = before.questions + (scores_seen and event.get("question") != question)
        looks_by_sweep[name] = Looks((*earlier, len(all_seeds)), before.maximum, margins, questions)
    return looks_by_sweep


def declared(store: Store) -> dict[str, Any]:
    """Return the section `[confirm]` that the sweep of the first folder declared last.

    If nothing was declared, the section comes from `sweep.json`. A declaration counts more, because `sweep.json` may be
    lost, edited, or that of another sweep.
    """
    events = store.declared()
    section = events[-1] if events else (store.spec() or {}).get("confirm")
    return section if isinstance(section, dict) else {}


def declared_before_scores(store: Store) -> dict[str, Any]:
    """Return the section `[confirm]` as last declared before there was a test score.

    Its question and margin stay, whatever is changed later.
    """
    events = store.declared()
    return _before_scores(events) if events else declared(store)


def _before_scores(events: Sequence[Event]) -> Event:
    """Return the last declaration before there was a test score, or the first one if all came later."""
    return next((event for event in reversed(events) if not event["scored"]), events[0])


@remembered
def added_later(store: Store) -> frozenset[CellKey]:
    """Return the cells that were added to their sweep after there were test scores. Old folders do not record them."""
    declarations: dict[str, list[Event]] = defaultdict(list)
    for event in store.events("declare"):
        if event.get("cells") is not None:
            declarations[str(event["name"])].append(event)
    first = {name: frozenset(_before_scores(events)["cells"]) for name, events in declarations.items()}
    cells = ((r["sweep"], r["cell_id"]) for r in store.table("cells").to_pylist() if r["feasible"])
    return frozenset(key for key in cells if key[0] in first and key[1] not in first[key[0]])


@remembered
def restrict_to_declared(store: Store) -> Store:
    """Return the store without the cells that were added later (the store itself if there are none).

    Its verdicts are those of the declared analysis. They stay the same whatever is added.
    """
    later = added_later(store)
    if not later:
        return store
    return part_of(
        store, [key for r in store.table("cells").to_pylist() if (key := (r["sweep"], r["cell_id"])) not in later]
    )


def margin_of(store: Store) -> float | None:
    """Return the margin of equivalence that the sweep file declared beforehand, or None if it declared none.

    Raises:
        StoreError: the margin is not a fraction between 0 and 1.
    """
    margin = declared_before_scores(store).get("margin")
    if margin is not None and not (isinstance(margin, int | float) and 0.0 < margin < 1.0):
        raise StoreError(
            f"{store.path}: confirm.margin is {margin!r}; it must be a fraction above 0 and below 1: 0.01 is one point"
        )
    return None if margin is None else float(margin)


def level(store: Store) -> float:
    """Return the level of a table's tests: 5 %, or what earlier looks have left of it (possibly 0).

    With several sweeps it is the smallest of their levels.
    """
    return min((each.level for each in looks(store).values()), default=1 - LEVEL)


def least_advanced(store: Store, rows: Iterable[Row], methods: Collection[str] | None) -> str | None:
    """Return "2 of 5 seeds" for the least advanced cell of a conclusion, or None if all declared seeds have run.

    These are the cells in `rows`, and those of the methods in question that have no row yet, because nothing of theirs
    has been confirmed. Cells that were added later and have no row yet are not waited for. Seeds that will never run
    are not waited for either: those that failed for good, and those of a cell none of whose rates finished.

    Args:
        rows: rows of `analysis.comparisons`.
        methods: the methods in question; None for all that have a budget.
    """
    coming, first = _unfinished(store), _unfinished(restrict_to_declared(store))
    cells = {
        (*(r[k] for k in PLACE), m, at)
        for r in rows
        for m in (r["method"], r["baseline"])
        for at in (r["reference"], None)
    }
    of_question = {(*place, m, at) for *place, m, at in first if (at is not None if methods is None else m in methods)}
    return _seeds_text(coming[cell] for cell in (cells | of_question) & coming.keys())


def least_advanced_at(store: Store, at: Row) -> str | None:
    """Return what `least_advanced` returns, for all cells at the place and budget of the row `at`."""
    wanted_budget = [at[k] for k in (*PLACE, "reference")]
    return _seeds_text(
        seeds for (*place, _, budget), seeds in _unfinished(store).items() if [*place, budget] == wanted_budget
    )


def _seeds_text(seeds: Iterable[tuple[int, int]]) -> str | None:
    """Return "2 of 5 seeds" for the pair with the fewest seeds done, or None if there is no pair."""
    least = min(seeds, default=None)
    return None if least is None else f"{least[0]} of {plural(least[1], 'seed')}"


@remembered
def _unfinished(store: Store) -> dict[tuple[str | None, ...], tuple[int, int]]:
    """Return the cells with seeds still to run: (place, method, budget) -> (seeds with a score, declared seeds)."""
    slots_left = to_come(store)
    done = {(r["sweep"], r["cell_id"]): r["confirm_done"] for r in store.table("coverage").to_pylist()}
    return {
        tuple(r[k] for k in (*PLACE, "method", "reference")): (done[r["sweep"], r["cell_id"]], r["confirm_seeds"])
        for r in store.table("cells").to_pylist()
        if (slots_left.get((r["sweep"], r["cell_id"])) or (0, 0))[1] > 0
    }


EARLY = b"preliminary"
"""Key of a table's metadata. Its value is the text of `looks.least_advanced`, such as '2 of 5 seeds'."""


def preliminary(seeds: str | None) -> str:
    """Return the start of a sentence while seeds are still to run, else "". `seeds` is from `looks.least_advanced`."""
    return f"Preliminary, {seeds}: " if seeds else ""


def preliminary_words(compared: pa.Table) -> str:
    """Return `preliminary` for a table of `analysis.comparisons`."""
    return preliminary((compared.schema.metadata or {}).get(EARLY, b"").decode())
