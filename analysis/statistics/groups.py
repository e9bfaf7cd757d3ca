"""All methods of one budget against each other: groups that the tests do not tell apart, and mean ranks over data sets.

Groups are letters, as in a compact letter display: two methods that share one are not distinguishable. The tests are
paired by seed and include what the choice of rates adds where it is known (`choice`); Holm over all pairs of the table.
"""

from __future__ import annotations

import math
import string
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from analysis.format import Row
from analysis.statistics.choice import choice_variances
from analysis.statistics.inference import holm, paired_difference, verdict, widened_p
from analysis.statistics.runs import by, by_seed, confirmed
from analysis.store.columns import INT, PLACE, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import in_order

GROUPS = pa.schema(
    [
        *typed(TEXT, *PLACE, "reference", "method"),
        ("mean", REAL),
        ("n", INT),
        ("tested", INT),  # other methods of the place and budget that it could be tested against
        ("group", TEXT),  # letters; methods of one place and budget that share one are not distinguishable
    ]
)
RANKS = pa.schema(
    [
        *typed(TEXT, "sweep", "model", "train_size", "reference", "method"),
        ("mean_rank", REAL),  # 1 is the best; ties share the mean of their ranks
        *typed(INT, "methods", "datasets"),
        ("p_friedman", REAL),  # that all methods rank alike, data sets being the blocks; null under 3 of either
        # Nemenyi's: mean ranks further apart differ, at 5 % over all budgets of the table; null where `p_friedman` is
        ("critical_difference", REAL),
    ]
)


def _blocks(store: Store) -> list[list[Row]]:
    """The methods of every place and budget, best mean first, with their `scores` by seed."""
    blocks: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for (place, _, reference), runs in confirmed(store).items():
        if reference is not None:
            scores = by_seed(runs)
            named = {k: runs[0][k] for k in (*PLACE, "reference", "method", "cell_id")}
            means = {"scores": scores, "mean": sum(scores.values()) / len(scores), "n": len(scores)}
            blocks[*place, reference].append(named | means)
    return [sorted(methods, key=lambda row: -row["mean"]) for methods in blocks.values()]


@remembered
def groups(store: Store) -> pa.Table:
    """Methods with a budget, by place and budget where there are two or more, best mean first; columns `GROUPS`."""
    choice = choice_variances(store)
    blocks = [methods for methods in _blocks(store) if len(methods) > 1]
    tests: list[tuple[int, int, int, float, float | None]] = []
    for block, methods in enumerate(blocks):
        for i, j in combinations(range(len(methods)), 2):
            a, b = methods[i], methods[j]
            difference = paired_difference(a["scores"], b["scores"])
            if difference is not None:
                added = sum(choice.get((row["sweep"], row["cell_id"]), 0.0) for row in (a, b))
                tests.append((block, i, j, difference.mean, widened_p(difference, added)))
    tested: Counter[tuple[int, int]] = Counter()
    apart: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for (block, i, j, mean, p), adjusted in zip(tests, holm([p for *_, p in tests]), strict=True):
        if p is not None:
            tested.update([(block, i), (block, j)])
        if verdict(mean, adjusted) in ("higher", "lower"):
            apart[block].add((i, j))
    rows = []
    for block, methods in enumerate(blocks):
        letters = letter_groups(len(methods), apart[block])
        rows += [row | {"group": letters[k], "tested": tested[block, k]} for k, row in enumerate(methods)]
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
    names = [letter * times for times in (1, 2, 3) for letter in string.ascii_lowercase]
    return ["".join(name for name, column in zip(names, columns, strict=False) if i in column) for i in range(n)]


def mean_ranks(store: Store) -> pa.Table:
    """Ranks by mean test score, averaged over data sets, per budget; of methods confirmed on every one; `RANKS`.

    Sweeps over one data set have no row.
    """
    names = ("sweep", "model", "train_size", "reference")
    rows: list[Row] = []
    tables = 0  # that Friedman's test is made of
    for key, mine in by([row for methods in _blocks(store) for row in methods], *names).items():
        means = {(r["method"], r["dataset"]): r["mean"] for r in mine}
        datasets = sorted({dataset for _, dataset in means})
        whole = [m for m in in_order({m for m, _ in means}) if all((m, d) in means for d in datasets)]
        if len(datasets) < 2 or len(whole) < 2:
            continue
        scores = np.array([[means[m, d] for d in datasets] for m in whole]).round(12)  # sums end in rounding
        ranks = stats.rankdata(-scores, axis=0).mean(axis=1)
        p = _friedman(scores)
        tables += p is not None
        named = dict(zip(names, key, strict=True)) | {"methods": len(whole), "datasets": len(datasets), "p_friedman": p}
        rows += [named | {"method": m, "mean_rank": float(r)} for m, r in zip(whole, ranks, strict=True)]
    for r in rows:
        if r["p_friedman"] is not None:
            r["critical_difference"] = critical_difference(r["methods"], r["datasets"], 0.05 / tables)
    return pa.Table.from_pylist(rows, schema=RANKS)


def critical_difference(methods: int, datasets: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of mean ranks (Demsar, JMLR 7, 2006): two further apart differ at level alpha.

    Args:
        methods: all that are ranked, two or more. datasets: the blocks. alpha: for all pairs of these methods.
    """
    return _studentized_range(methods, alpha) * math.sqrt(methods * (methods + 1) / (12 * datasets))


@lru_cache(maxsize=64)
def _studentized_range(methods: int, alpha: float) -> float:
    return float(stats.studentized_range.isf(alpha, methods, np.inf))  # a tenth of a second


def _friedman(scores: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    if min(scores.shape) < 3 or bool((scores == scores[:1]).all()):
        return None
    return float(stats.friedmanchisquare(*scores).pvalue)
