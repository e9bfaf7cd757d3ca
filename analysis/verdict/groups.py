"""All methods of one budget against each other: groups of methods that are not distinguishable.

Groups are letters, as in a compact letter display: two methods that share a letter are not distinguishable. A pair that
`analysis.comparisons` has tested keeps its verdict. The other pairs are tested in the same way, with the choice of
rates (`choice`), and are one Holm family. Pairs with cells that were added later are corrected separately, so that they
change no other verdict. A pair is not tested if it is not known what the choice adds.
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
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import place_of
from analysis.verdict.choice import choice_variances
from analysis.verdict.comparisons import rows_with_differences
from analysis.verdict.correction import holm_steps
from analysis.verdict.inference import Difference, paired_difference
from analysis.verdict.looks import level, restrict_to_declared
from analysis.verdict.runs import Seed, by_seed, confirmed, failed, shared_seeds
from analysis.verdict.verdicts import Verdict, verdict

GROUPS = pa.schema(
    [
        *typed(TEXT, *PLACE, "reference", "method"),
        ("mean", REAL),
        *typed(INT, "n", "failed"),  # confirming runs with a score, and without one
        ("tested", INT),  # number of other methods of the place and budget that it could be tested against
        ("group", TEXT),  # letters; methods of one place and budget that share one are not distinguishable
    ]
)


@dataclass(frozen=True)
class Pair:
    """The test of two methods of one budget, in the order of their block (the better one first).

    Attributes:
        tested: their difference, with the choice of rates; None if that is not known, or if they share no seed.
        verdict: corrected verdict on the difference, or on its opposite.
        alpha: level of the first step of its family.
        interval: interval of the difference, at the level at which the pair was decided.
    """

    tested: Difference | None
    verdict: Verdict
    alpha: float
    interval: tuple[float, float] | tuple[None, None] = (None, None)

    @property
    def apart(self) -> bool:
        """Whether the test found a difference."""
        return self.verdict in ("higher", "lower")

    def turned(self) -> Pair:
        """Return the pair in the other order, the second method minus the first. The verdict stays as it is."""
        return replace(self, tested=self.tested and self.tested.turned(), interval=_opposite(self.interval))


Block = tuple[list[Row], dict[tuple[int, int], Pair]]
"""The methods of a place and budget with their `scores` by seed, and the test of each two of them by position.

The order is that of `_best_first`, except that no method stands before one that a test found higher.
"""


@remembered
def tested_blocks(store: Store) -> list[Block]:
    """Return the methods of each place and budget, with the test of each two of them."""
    compared_before = {
        (place_of(r), r["reference"], frozenset((r["method"], r["baseline"]))): (r, known_difference)
        for r, known_difference in rows_with_differences(store)
    }
    choice, declared = choice_variances(store), _declared_pairs(store)
    blocks: list[Block] = [(methods, {}) for methods in _methods(store)]
    untested_pairs: list[tuple[dict[tuple[int, int], Pair], tuple[int, int], Difference | None, bool]] = []
    for methods, pairs in blocks:
        for at in combinations(range(len(methods)), 2):
            a, b = (methods[k] for k in at)
            found_before = compared_before.get((place_of(a), a["reference"], frozenset((a["method"], b["method"]))))
            if found_before is not None:
                row, known_difference = found_before
                widened = None if row["choice_sd"] is None else known_difference.widened(row["choice_sd"] ** 2)
                ends = (row["low"], row["high"])
                if row["method"] != a["method"]:
                    widened, ends = widened and widened.turned(), _opposite(ends)
                pairs[at] = Pair(widened, row["verdict"], row["alpha"], ends)
                continue
            if (pair := declared.get((a["sweep"], a["cell_id"], b["cell_id"]))) is not None:
                pairs[at] = pair
                continue
            difference = paired_difference(a["scores"], b["scores"])
            if difference is not None and (a["failed"] or b["failed"]):
                first, second = (
                    r["scores"] | (r["failed"] if leads else {})
                    for r, leads in ((a, difference.mean > 0), (b, difference.mean < 0))
                )
                also = None if (first, second) == (a["scores"], b["scores"]) else paired_difference(first, second)
                difference = replace(difference, as_untrained=also, lost=len(a["failed"]) + len(b["failed"]))
            added = [choice.get((row["sweep"], row["cell_id"])) for row in (a, b)]
            known_choice = [v for v in added if v is not None]
            choice_known = difference is None or len(known_choice) == 2
            untested_pairs.append(
                (
                    pairs,
                    at,
                    difference.widened(sum(known_choice)) if difference is not None and choice_known else None,
                    choice_known,
                )
            )
    steps = holm_steps([None if tested is None else tested.p for _, _, tested, _ in untested_pairs], level=level(store))
    for (pairs, at, tested, choice_known), step in zip(untested_pairs, steps, strict=True):
        word = verdict(None if tested is None else tested.mean, step.adjusted, known=choice_known)
        ends = tested.interval(step.level) if tested is not None else (None, None)
        pairs[at] = Pair(tested, word, step.first, ends)
    return [_winners_first(*block) for block in blocks]


def _declared_pairs(store: Store) -> dict[tuple[str, str, str], Pair]:
    """Return the tested pairs of the declared cells by (sweep, cell id, other cell id), in both orders.

    Empty if no cell was added later.
    """
    first, declared_pairs = restrict_to_declared(store), dict[tuple[str, str, str], Pair]()
    for methods, pairs in tested_blocks(first) if first is not store else ():
        for (i, j), pair in pairs.items():
            a, b = methods[i], methods[j]
            declared_pairs[a["sweep"], a["cell_id"], b["cell_id"]] = pair
            declared_pairs[a["sweep"], b["cell_id"], a["cell_id"]] = pair.turned()
    return declared_pairs


def _winners_first(methods: list[Row], pairs: dict[tuple[int, int], Pair]) -> Block:
    """Return the block in an order in which no method stands before one that a test found higher.

    Means over different seeds may have ordered them otherwise.
    """
    beaten = [(at, pair.tested.mean > 0) for at, pair in pairs.items() if pair.apart and pair.tested is not None]
    above = {at if first else at[::-1] for at, first in beaten}
    remaining, order = list(range(len(methods))), list[int]()
    while remaining:  # pairs with different seeds may even form a circle
        k = next((k for k in remaining if not any((other, k) in above for other in remaining)), remaining[0])
        remaining.remove(k)
        order.append(k)
    if order == sorted(order):
        return methods, pairs
    reordered: dict[tuple[int, int], Pair] = {}
    for at in combinations(range(len(order)), 2):
        a, b = (order[k] for k in at)
        pair = pairs[min(a, b), max(a, b)]
        reordered[at] = pair.turned() if a > b else pair
    return [methods[k] for k in order], reordered


def _opposite(ends: tuple[float | None, float | None]) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of the opposite difference."""
    low, high = ends
    return (None, None) if low is None or high is None else (-high, -low)


def _methods(store: Store) -> list[list[Row]]:
    """Return the methods of each place and budget, the best first, with their `scores` by seed.

    `failed` has the untrained model's score for each seed on which the method's run failed.
    """
    lost = failed(store)
    methods_by_budget: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for (place, method, reference), runs in confirmed(store).items():
        if reference is not None:
            scores = by_seed(runs)
            named = {k: runs[0][k] for k in (*PLACE, "reference", "budget", "method", "cell_id")}
            without = by_seed(lost.get((place, method, reference), ()))
            means = {"scores": scores, "failed": without, "mean": sum(scores.values()) / len(scores), "n": len(scores)}
            methods_by_budget[*place, reference].append(named | means)
    return [_best_first(methods) for methods in methods_by_budget.values()]


def _best_first(methods: list[Row]) -> list[Row]:
    """Return the methods by falling mean. A failed run counts with the untrained model's score.

    The mean is over the seeds that all methods have, if these are most seeds of each; so no method comes first by a
    lucky seed that only it has. Otherwise each method's mean is over its own seeds.
    """
    scores_by_method = {row["method"]: row["scores"] | row["failed"] for row in methods}
    shared = shared_seeds(list(scores_by_method.values()))
    shared_are_most = all(2 * len(shared) > len(scores) for scores in scores_by_method.values())

    def mean(row: Row) -> float:
        scores: dict[Seed, float] = scores_by_method[row["method"]]
        return sum(scores[s] for s in shared) if shared_are_most else sum(scores.values()) / len(scores)

    return sorted(methods, key=lambda row: -mean(row))


@remembered
def groups(store: Store) -> pa.Table:
    """Return the methods of each place and budget with two or more, the best first; columns `GROUPS`."""
    rows = []
    for methods, pairs in tested_blocks(store):
        letters = letter_groups(len(methods), {at for at, pair in pairs.items() if pair.apart})
        tested = Counter(
            k for at, pair in pairs.items() if pair.tested is not None and pair.tested.testable for k in at
        )
        if len(methods) > 1:
            rows += [
                row | {"failed": len(row["failed"]), "group": letters[k], "tested": tested[k]}
                for k, row in enumerate(methods)
            ]
    return pa.Table.from_pylist(rows, schema=GROUPS)


def letter_groups(n: int, apart: set[tuple[int, int]]) -> list[str]:
    """Return letters for `n` items. Two items share a letter exactly if no test found a difference between them.

    The algorithm is insert and absorb (Piepho 2004).

    Args:
        apart: pairs (i, j), i < j, for which a test found a difference.
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
    """Yield single characters to name groups: a to z, A to Z, then accented letters."""
    yield from string.ascii_letters
    yield from (chr(code) for code in count(0xC0) if chr(code).isalpha())
