"""All methods of one budget against each other: groups that the tests do not tell apart.

Groups are letters, as in a compact letter display: two methods that share one are not distinguishable. A pair that
`scaling.comparisons` has keeps its verdict; the other pairs are tested alike, the choice of rates included (`choice`),
Holm over these. Pairs of cells that joined after the first declaration are corrected by themselves, so that they change
no other. A pair for which the choice is not known is not tested.
"""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, count
from typing import Any

import pyarrow as pa

from analysis.format import Row
from analysis.statistics.choice import choice_variances
from analysis.statistics.inference import Difference, Verdict, holm_steps, paired_difference, verdict
from analysis.statistics.looks import level, restrict_to_declared
from analysis.statistics.runs import Seed, by_seed, confirmed, failed, shared_seeds
from analysis.statistics.scaling import rows_with_differences
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import place_of

GROUPS = pa.schema(
    [
        *typed(TEXT, *PLACE, "reference", "method"),
        ("mean", REAL),
        ("n", INT),
        ("tested", INT),  # other methods of the place and budget that it could be tested against
        ("group", TEXT),  # letters; methods of one place and budget that share one are not distinguishable
    ]
)


@dataclass(frozen=True)
class Pair:
    """Two methods of one budget, the better one first, as in their block.

    Attributes:
        tested: their difference, the choice of rates included; None where that, or a common seed, is missing.
        verdict: on the difference, or on its opposite; corrected.
        alpha: level of the first step of its family.
        interval: of the difference, at the level at which the pair was decided.
    """

    tested: Difference | None
    verdict: Verdict
    alpha: float
    interval: tuple[float, float] | tuple[None, None] = (None, None)

    @property
    def apart(self) -> bool:
        """Whether the test tells the two apart."""
        return self.verdict in ("higher", "lower")

    def turned(self) -> Pair:
        """The second method less the first. The verdict stays: it is on either."""
        return replace(self, tested=self.tested and self.tested.turned(), interval=_opposite(self.interval))


Block = tuple[list[Row], dict[tuple[int, int], Pair]]
"""The methods of a place and budget with their `scores` by seed, and every pair of them by position.

`_best_first`, but none before one that a test puts above it.
"""


@remembered
def tested_blocks(store: Store) -> list[Block]:
    """Every place and budget, each pair of its methods tested."""
    said = {
        (place_of(r), r["reference"], frozenset((r["method"], r["baseline"]))): (r, difference)
        for r, difference in rows_with_differences(store)
    }
    choice, declared = choice_variances(store), _declared_pairs(store)
    found: list[Block] = [(methods, {}) for methods in _methods(store)]
    others: list[tuple[dict[tuple[int, int], Pair], tuple[int, int], Difference | None, bool]] = []
    for methods, pairs in found:
        for at in combinations(range(len(methods)), 2):
            a, b = (methods[k] for k in at)
            found_before = said.get((place_of(a), a["reference"], frozenset((a["method"], b["method"]))))
            if found_before is not None:
                row, difference = found_before
                widened = None if row["choice_sd"] is None else difference.widened(row["choice_sd"] ** 2)
                ends = (row["low"], row["high"])
                if row["method"] != a["method"]:
                    widened, ends = widened and widened.turned(), _opposite(ends)
                pairs[at] = Pair(widened, row["verdict"], row["alpha"], ends)
                continue
            if (pair := declared.get((a["sweep"], a["cell_id"], b["cell_id"]))) is not None:
                pairs[at] = pair
                continue
            seen = paired_difference(a["scores"], b["scores"])
            if seen is not None and (a["failed"] or b["failed"]):
                first, second = (
                    r["scores"] | (r["failed"] if leads else {})
                    for r, leads in ((a, seen.mean > 0), (b, seen.mean < 0))
                )
                also = None if (first, second) == (a["scores"], b["scores"]) else paired_difference(first, second)
                seen = replace(seen, as_untrained=also, lost=len(a["failed"]) + len(b["failed"]))
            added = [choice.get((row["sweep"], row["cell_id"])) for row in (a, b)]
            known_choice = [v for v in added if v is not None]
            known = seen is None or len(known_choice) == 2
            others.append((pairs, at, seen.widened(sum(known_choice)) if seen is not None and known else None, known))
    steps = holm_steps([None if tested is None else tested.p for _, _, tested, _ in others], level=level(store))
    for (pairs, at, tested, known), step in zip(others, steps, strict=True):
        word = verdict(None if tested is None else tested.mean, step.adjusted, known=known)
        ends = tested.interval(step.level) if tested is not None else (None, None)
        pairs[at] = Pair(tested, word, step.first, ends)
    return [_winners_first(*block) for block in found]


def _declared_pairs(store: Store) -> dict[tuple[str, str, str], Pair]:
    """(sweep, cell id, other cell id) -> their pair among the cells of the first declaration, both ways round.

    Empty where no cell joined later.
    """
    first, found = restrict_to_declared(store), dict[tuple[str, str, str], Pair]()
    for methods, pairs in tested_blocks(first) if first is not store else ():
        for (i, j), pair in pairs.items():
            a, b = methods[i], methods[j]
            found[a["sweep"], a["cell_id"], b["cell_id"]] = pair
            found[a["sweep"], b["cell_id"], a["cell_id"]] = pair.turned()
    return found


def _winners_first(methods: list[Row], pairs: dict[tuple[int, int], Pair]) -> Block:
    """The same, no method before one that a test puts above it: means over unlike seeds may have it otherwise."""
    beaten = [(at, pair.tested.mean > 0) for at, pair in pairs.items() if pair.apart and pair.tested is not None]
    above = {at if first else at[::-1] for at, first in beaten}
    left, order = list(range(len(methods))), list[int]()
    while left:  # pairs of unlike seeds may even go round in a circle
        k = next((k for k in left if not any((other, k) in above for other in left)), left[0])
        left.remove(k)
        order.append(k)
    if order == sorted(order):
        return methods, pairs
    found: dict[tuple[int, int], Pair] = {}
    for at in combinations(range(len(order)), 2):
        a, b = (order[k] for k in at)
        pair = pairs[min(a, b), max(a, b)]
        found[at] = pair.turned() if a > b else pair
    return [methods[k] for k in order], found


def _opposite(ends: tuple[float | None, float | None]) -> tuple[float, float] | tuple[None, None]:
    low, high = ends
    return (None, None) if low is None or high is None else (-high, -low)


def _methods(store: Store) -> list[list[Row]]:
    """The methods of every place and budget, `_best_first`, with their `scores` by seed.

    `failed` has the untrained model's score for each seed on which the method gave none.
    """
    lost = failed(store)
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for (place, method, reference), runs in confirmed(store).items():
        if reference is not None:
            scores = by_seed(runs)
            named = {k: runs[0][k] for k in (*PLACE, "reference", "budget", "method", "cell_id")}
            without = by_seed(lost.get((place, method, reference), ()))
            means = {"scores": scores, "failed": without, "mean": sum(scores.values()) / len(scores), "n": len(scores)}
            found[*place, reference].append(named | means)
    return [_best_first(methods) for methods in found.values()]


def _best_first(methods: list[Row]) -> list[Row]:
    """By the mean over the seeds that all have, as tests pair them, where these are most of each one's; else by their
    own: a lucky seed that one alone has puts none first. A failed run counts as the untrained model here.
    """
    every = {row["method"]: row["scores"] | row["failed"] for row in methods}
    shared = shared_seeds(list(every.values()))
    most = all(2 * len(shared) > len(scores) for scores in every.values())

    def mean(row: Row) -> float:
        scores: dict[Seed, float] = every[row["method"]]
        return sum(scores[s] for s in shared) if most else sum(scores.values()) / len(scores)

    return sorted(methods, key=lambda row: -mean(row))


@remembered
def groups(store: Store) -> pa.Table:
    """Methods with a budget, the best first, by place and budget where there are two or more; columns `GROUPS`."""
    rows = []
    for methods, pairs in tested_blocks(store):
        letters = letter_groups(len(methods), {at for at, pair in pairs.items() if pair.apart})
        tested = Counter(
            k for at, pair in pairs.items() if pair.tested is not None and pair.tested.testable for k in at
        )
        if len(methods) > 1:
            rows += [row | {"group": letters[k], "tested": tested[k]} for k, row in enumerate(methods)]
    return pa.Table.from_pylist(rows, schema=GROUPS)


def letter_groups(n: int, apart: set[tuple[int, int]]) -> list[str]:
    """Letters for `n` items; two share one exactly if they are not told apart (Piepho 2004, insert and absorb).

    Args:
        apart: pairs (i, j), i < j, that a test tells apart.
    """
    columns: list[frozenset[int]] = [frozenset(range(n))]
    for pair in sorted(apart):
        split: list[frozenset[int]] = []
        for column in columns:
            split += [column - {item} for item in pair] if set(pair) <= column else [column]
        columns = [c for c in dict.fromkeys(split) if c and not any(c < other for other in split)]
    columns.sort(key=min)
    return ["".join(name for name, column in zip(_letters(), columns, strict=False) if i in column) for i in range(n)]


def _letters() -> Iterator[str]:
    """As many as there are groups, each one character, so that shared ones are seen: a to z, A to Z, accented ones."""
    yield from string.ascii_letters
    yield from (chr(code) for code in count(0xC0) if chr(code).isalpha())
