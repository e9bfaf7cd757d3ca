"""All methods of one budget against each other: groups that the tests do not tell apart, and mean ranks over data sets.

Groups are letters, as in a compact letter display: two methods that share one are not distinguishable. The tests are
paired by seed and include what the choice of rates adds where it is known (`choice`); Holm over all pairs of the table.
"""

from __future__ import annotations

import math
import string
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats as scipy_stats

from analysis.statistics.choice import choice_variances
from analysis.statistics.inference import holm, paired_difference, verdict, widened_p
from analysis.statistics.scaling import confirmed_scores
from analysis.store.store import Store
from analysis.styles import style

Row = dict[str, Any]

GROUPS = pa.schema(
    [
        ("sweep", pa.string()),
        ("model", pa.string()),
        ("dataset", pa.string()),
        ("train_size", pa.string()),
        ("reference", pa.string()),
        ("method", pa.string()),
        ("mean", pa.float64()),
        ("n", pa.int64()),
        ("tested", pa.int64()),  # other methods of the place and budget that it could be tested against
        ("group", pa.string()),  # letters; methods of one place and budget that share one are not distinguishable
    ]
)
RANKS = pa.schema(
    [
        ("sweep", pa.string()),
        ("model", pa.string()),
        ("train_size", pa.string()),
        ("reference", pa.string()),
        ("method", pa.string()),
        ("mean_rank", pa.float64()),  # 1 is the best; ties share the mean of their ranks
        ("methods", pa.int64()),
        ("datasets", pa.int64()),
        ("p_friedman", pa.float64()),  # that all methods rank alike, data sets being the blocks; null under 3 of either
        # Nemenyi's: mean ranks further apart differ, at 5 % over all budgets of the table; null where `p_friedman` is
        ("critical_difference", pa.float64()),
    ]
)


def groups(store: Store) -> pa.Table:
    """Methods with a budget, by place and budget where there are two or more, best mean first; columns `GROUPS`."""
    return store.remember("groups", lambda: _groups(store))


def _groups(store: Store) -> pa.Table:
    cells = confirmed_scores(store)
    choice = choice_variances(store)
    blocks: dict[tuple[Any, ...], list[tuple[str, Row]]] = defaultdict(list)
    for (place, method, reference), cell in cells.items():
        if reference is not None:
            blocks[*place, reference].append((method, cell))
    blocks = {key: sorted(found, key=lambda m: -m[1]["mean"]) for key, found in blocks.items() if len(found) > 1}
    tests: list[tuple[tuple[Any, ...], int, int, float, float | None]] = []
    for key, found in blocks.items():
        for i, j in combinations(range(len(found)), 2):
            a, b = found[i][1], found[j][1]
            difference = paired_difference(a["scores"], b["scores"])
            if difference is not None:
                added = sum(choice.get((key[0], cell["cell_id"]), 0.0) for cell in (a, b))
                tests.append((key, i, j, difference.mean, widened_p(difference, added)))
    adjusted = holm([p for *_, p in tests])
    tested: dict[tuple[Any, ...], int] = defaultdict(int)
    for key, i, j, _, p in tests:
        for k in (i, j):
            tested[key, k] += p is not None
    apart: dict[tuple[Any, ...], set[tuple[int, int]]] = defaultdict(set)
    for (key, i, j, mean, _), p in zip(tests, adjusted, strict=True):
        if verdict(mean, p) in ("higher", "lower"):
            apart[key].add((i, j))
    rows = []
    for key, found in blocks.items():
        named = dict(zip(("sweep", "model", "dataset", "train_size", "reference"), key, strict=True))
        for k, letters in enumerate(letter_groups(len(found), apart[key])):
            method, cell = found[k]
            row = named | {"method": method, "mean": cell["mean"], "n": len(cell["scores"]), "group": letters}
            rows.append(row | {"tested": tested[key, k]})
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
    blocks: dict[tuple[str, str, str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (place, method, reference), cell in confirmed_scores(store).items():
        if reference is not None:
            sweep, model, dataset, size = place
            blocks[sweep, model, size, reference][method][dataset] = cell["mean"]
    rows = []
    for key, methods in blocks.items():
        datasets = sorted({d for found in methods.values() for d in found})
        whole = sorted((m for m, found in methods.items() if len(found) == len(datasets)), key=lambda m: style(m).order)
        if len(datasets) < 2 or len(whole) < 2:
            continue
        scores = np.array([[methods[m][d] for d in datasets] for m in whole]).round(12)  # sums end in rounding
        ranks = scipy_stats.rankdata(-scores, axis=0).mean(axis=1)
        named: Row = dict(zip(("sweep", "model", "train_size", "reference"), key, strict=True))
        named |= {"methods": len(whole), "datasets": len(datasets), "p_friedman": _friedman(scores)}
        rows += [named | {"method": m, "mean_rank": float(r)} for m, r in zip(whole, ranks, strict=True)]
    tested = len({tuple(r[k] for k in RANKS.names[:4]) for r in rows if r["p_friedman"] is not None})
    for r in rows:
        known = r["p_friedman"] is not None
        r["critical_difference"] = critical_difference(r["methods"], r["datasets"], 0.05 / tested) if known else None
    return pa.Table.from_pylist(rows, schema=RANKS)


def critical_difference(methods: int, datasets: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of mean ranks (Demsar, JMLR 7, 2006): two further apart differ at level alpha.

    Args:
        methods: all that are ranked, two or more. datasets: the blocks. alpha: for all pairs of these methods.
    """
    return _studentized_range(methods, alpha) * math.sqrt(methods * (methods + 1) / (12 * datasets))


@lru_cache(maxsize=64)
def _studentized_range(methods: int, alpha: float) -> float:
    return float(scipy_stats.studentized_range.isf(alpha, methods, np.inf))  # a tenth of a second


def _friedman(scores: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    if min(scores.shape) < 3 or bool((scores == scores[:1]).all()):
        return None
    return float(scipy_stats.friedmanchisquare(*scores).pvalue)


def best_groups(rows: Sequence[Row]) -> str:
    """One sentence on rows of `groups` of one place and budget: who is in the first group."""
    first = rows[0]["group"][:1]
    names = [style(r["method"]).name for r in rows if first in r["group"]]
    if len(names) == 1:
        return f"{names[0]} is above every other method."
    return f"{', '.join(names[:-1])} and {names[-1]} are not distinguishable at the top."
