"""Looks at the test scores, and the level that each leaves for its tests.

A look is a set of seeds whose scores were there to be seen before more seeds were added. Whoever adds seeds until a
difference is found finds one sooner or later, so the looks share the level (alpha spending by a union bound: the levels
of all looks sum to at most `1 - LEVEL`, whatever the correlation between them; Lan and DeMets, Biometrika 70, 1983).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.errors import StoreError
from analysis.format import Row, plural
from analysis.statistics.inference import LEVEL
from analysis.store.columns import PLACE
from analysis.store.journal import Event
from analysis.store.left import to_come
from analysis.store.store import Store, part_of, remembered

CellKey = tuple[str, str]
"""(sweep, cell id)."""
FIRST = 0.8
"""Share of what is left of the level that a look spends where no maximum of seeds was declared."""


@dataclass(frozen=True)
class Looks:
    """What the journal says of one sweep's seeds.

    Attributes:
        seeds: at each look the number of distinct seeds declared so far; the last one is the look taken now.
        maximum: of seeds, declared before any score was there (`confirm.max_seeds`); None: none was.
        margins: how often `confirm.margin` was changed after scores were there. It costs no level: equivalence within
            any margin is read off one interval.
        questions: how often `confirm.question` was.
    """

    seeds: tuple[int, ...]
    maximum: int | None = None
    margins: int = 0
    questions: int = 0

    @property
    def level(self) -> float:
        """The chance of any false difference that the tests of the last look may take.

        With a declared maximum every seed up to it buys the same share of 5 %; seeds beyond it, such as those that
        replace others, buy none. Without one the first look spends four fifths of it, each later one four fifths of
        what is left.
        """
        if self.maximum is None:
            return (1 - LEVEL) * FIRST * (1 - FIRST) ** (len(self.seeds) - 1)
        before, now = (min(count, self.maximum) for count in (0, *self.seeds)[-2:])
        return (1 - LEVEL) * (now - before) / self.maximum


@remembered
def looks(store: Store) -> dict[str, Looks]:
    """The looks of every sweep whose journal declares its seeds, by name; older folders and imports declare none."""
    found: dict[str, Looks] = {}
    last: dict[str, tuple[set[int], float | None, str | None]] = {}
    for event in store.events("declare"):
        name = str(event["name"])
        before = found.get(name)
        known, margin, question = last.get(name, (set(), event["margin"], event.get("question")))
        more, seen = known | set(event["seeds"]), event["scored"] > 0
        last[name] = more, event["margin"], event.get("question")
        if before is None:
            found[name] = Looks((len(more),), event["max_seeds"])
            continue
        earlier = before.seeds if seen and len(more) > len(known) else before.seeds[:-1]
        margins = before.margins + (seen and event["margin"] != margin)
        questions = before.questions + (seen and event.get("question") != question)
        found[name] = Looks((*earlier, len(more)), before.maximum, margins, questions)
    return found


def declared(store: Store) -> dict[str, Any]:
    """What the first folder's sweep last declared of `[confirm]`, or what its `sweep.json` has where nothing was.

    The declaration counts, where there is one: `sweep.json` may be lost, edited or another sweep's.
    """
    events = store.declared()
    section = events[-1] if events else (store.spec() or {}).get("confirm")
    return section if isinstance(section, dict) else {}


def declared_first(store: Store) -> dict[str, Any]:
    """As `declared`, before a test score was there to be seen: its question and margin stay, whatever is changed."""
    events = store.declared()
    return _before_scores(events) if events else declared(store)


def _before_scores(events: Sequence[Event]) -> Event:
    """The last declaration before a test score was there to be seen; the first one of a folder that has none."""
    return next((event for event in reversed(events) if not event["scored"]), events[0])


@remembered
def added(store: Store) -> frozenset[CellKey]:
    """The cells, (sweep, cell id), that joined their sweep after its first declaration; older folders tell of none."""
    told: dict[str, list[Event]] = defaultdict(list)
    for event in store.events("declare"):
        if event.get("cells") is not None:
            told[str(event["name"])].append(event)
    first = {name: frozenset(_before_scores(events)["cells"]) for name, events in told.items()}
    cells = ((r["sweep"], r["cell_id"]) for r in store.table("cells").to_pylist() if r["feasible"])
    return frozenset(key for key in cells if key[0] in first and key[1] not in first[key[0]])


@remembered
def first_declared(store: Store) -> Store:
    """The store with the cells of the first declaration alone; the store itself where none joined later.

    Its verdicts are those of the declared analysis, and stay the same whatever joins.
    """
    later = added(store)
    if not later:
        return store
    return part_of(
        store, [key for r in store.table("cells").to_pylist() if (key := (r["sweep"], r["cell_id"])) not in later]
    )


def margin_of(store: Store) -> float | None:
    """The difference below which two methods count as equivalent, named beforehand in the sweep file; None: no one did.

    Raises:
        StoreError: it is no fraction between 0 and 1.
    """
    margin = declared_first(store).get("margin")
    if margin is not None and not (isinstance(margin, int | float) and 0.0 < margin < 1.0):
        raise StoreError(
            f"{store.path}: confirm.margin is {margin!r}; it must be a fraction above 0 and below 1: 0.01 is one point"
        )
    return None if margin is None else float(margin)


def level(store: Store) -> float:
    """The level of a table's tests: 5 %, or what looks have left of it, perhaps 0; of several sweeps the least."""
    return min((each.level for each in looks(store).values()), default=1 - LEVEL)


def early(store: Store, rows: Iterable[Row]) -> str | None:
    """'2 of 5 seeds', of the cell with the fewest: some that `rows` of `comparisons` are of have seeds still to run.

    None where none has: a seed that failed for good, or of a cell none of whose rates finished, will never come.
    """
    coming = _coming(store)
    cells = {
        (*(r[k] for k in PLACE), m, at)
        for r in rows
        for m in (r["method"], r["baseline"])
        for at in (r["reference"], None)
    }
    return _fewest(coming[cell] for cell in cells & coming.keys())


def early_at(store: Store, at: Row) -> str | None:
    """As `early`, of all cells of a place and a budget."""
    here = [at[k] for k in (*PLACE, "reference")]
    return _fewest(seeds for (*place, _, budget), seeds in _coming(store).items() if [*place, budget] == here)


def _fewest(seeds: Iterable[tuple[int, int]]) -> str | None:
    found = min(seeds, default=None)
    return None if found is None else f"{found[0]} of {plural(found[1], 'seed')}"


@remembered
def _coming(store: Store) -> dict[tuple[str | None, ...], tuple[int, int]]:
    """(place, method, budget) of cells with declared seeds still to run -> how many have a score, of how many."""
    left = to_come(store)
    done = {(r["sweep"], r["cell_id"]): r["confirm_done"] for r in store.table("coverage").to_pylist()}
    return {
        tuple(r[k] for k in (*PLACE, "method", "reference")): (done[r["sweep"], r["cell_id"]], r["confirm_seeds"])
        for r in store.table("cells").to_pylist()
        if (left.get((r["sweep"], r["cell_id"])) or (0, 0))[1] > 0
    }
