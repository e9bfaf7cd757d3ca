"""Looks at the test scores, and the level that each leaves for its tests.

A look is a set of seeds whose scores were there to be seen before more seeds were added. Whoever adds seeds until a
difference is found finds one sooner or later, so the looks share the level (alpha spending by a union bound: the levels
of all looks sum to at most `1 - LEVEL`, whatever the correlation between them; Lan and DeMets, Biometrika 70, 1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.statistics.inference import LEVEL, holm
from analysis.store.store import Store, remembered

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
    """

    seeds: tuple[int, ...]
    maximum: int | None = None
    margins: int = 0

    @property
    def level(self) -> float:
        """The chance of any false difference that the tests of the last look may take.

        With a declared maximum every seed buys the same share of 5 %. Without one the first look spends four fifths of
        it, each later one four fifths of what is left.
        """
        if self.maximum is None:
            return (1 - LEVEL) * FIRST * (1 - FIRST) ** (len(self.seeds) - 1)
        before = self.seeds[-2] if len(self.seeds) > 1 else 0
        return (1 - LEVEL) * (self.seeds[-1] - before) / max(self.maximum, self.seeds[-1])


@remembered
def looks(store: Store) -> dict[str, Looks]:
    """The looks of every sweep whose journal declares its seeds, by name; older folders and imports declare none."""
    found: dict[str, Looks] = {}
    declared: dict[str, tuple[set[int], float | None]] = {}
    for event in store.events("declare"):
        name = str(event["name"])
        before = found.get(name)
        known, margin = declared.get(name, (set(), event["margin"]))
        more, seen = known | set(event["seeds"]), event["scored"] > 0
        declared[name] = more, event["margin"]
        if before is None:
            found[name] = Looks((len(more),), event["max_seeds"])
            continue
        earlier = before.seeds if seen and len(more) > len(known) else before.seeds[:-1]
        margins = before.margins + (seen and event["margin"] != margin)
        found[name] = Looks((*earlier, len(more)), before.maximum, margins)
    return found


def level(store: Store) -> float:
    """The level of a table's tests: 5 %, or what looks have left of it; of several sweeps the least."""
    return min((each.level for each in looks(store).values()), default=1 - LEVEL)


def holm_at(level: float, pvalues: Sequence[float | None]) -> list[float | None]:
    """`holm`, its adjusted values larger by what looks have spent: at most `1 - LEVEL` where they may be rejected."""
    spent = (1 - LEVEL) / level
    return holm([None if p is None else min(1.0, spent * p) for p in pvalues])
