"""Five data sets or more: interquartile means, performance profiles, and Wilcoxon's signed-rank test beside Nemenyi's.

As in Agarwal et al. (NeurIPS 2021, `rliable`) the runs of all data sets count together, each data set being a stratum
of the bootstrap; as in Demsar (JMLR 7, 2006) and Benavoli et al. (JMLR 17, 2016) data sets are the blocks of the test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from analysis.format import Row
from analysis.statistics.inference import LEVEL, verdict
from analysis.statistics.looks import holm_at, level
from analysis.statistics.runs import Seed, alike, by_seed, confirmed
from analysis.store.columns import INT, REAL, TEXT, typed
from analysis.store.store import Store, remembered
from analysis.styles import budget_order, in_order, size_key

Scores = list[dict[Seed, float]]
"""Scores by seed, of every data set."""
FEWEST = 5
"""Data sets below which these say little; of five Wilcoxon's least p value is 0.0625."""
RESAMPLES = 999

_BUDGET = typed(TEXT, "sweep", "model", "train_size", "reference", "method")
IQM = pa.schema([*_BUDGET, *typed(INT, "datasets", "n"), *typed(REAL, "iqm", "low", "high")])
PROFILES = pa.schema([*_BUDGET, *typed(REAL, "score", "share")])
WILCOXON = pa.schema(
    [
        *_BUDGET,
        *typed(TEXT, "other"),
        ("datasets", INT),
        *typed(REAL, "difference", "p", "p_holm"),  # median over data sets of the difference of means
        ("verdict", TEXT),
    ]
)


def _blocks(store: Store) -> Iterator[tuple[Row, dict[str, Scores]]]:
    """Every size and budget with FEWEST data sets: the scores of the methods that are confirmed on all of them."""
    runs: dict[tuple[Any, ...], dict[str, dict[str, dict[Seed, float]]]] = {}
    for ((sweep, model, dataset, size), method, reference), mine in confirmed(store).items():
        if reference is not None:
            by_method = runs.setdefault((sweep, model, size, reference), {}).setdefault(method, {})
            by_method[dataset or ""] = by_seed(mine)
    for key in sorted(runs, key=lambda k: (k[0], k[1], size_key(k[2]), budget_order(k[3]))):
        datasets = sorted({d for mine in runs[key].values() for d in mine})
        whole = [m for m in in_order(set(runs[key])) if len(runs[key][m]) == len(datasets)]
        if len(datasets) >= FEWEST and whole:
            named = dict(zip(("sweep", "model", "train_size", "reference"), key, strict=True))
            yield named, {m: [runs[key][m][d] for d in datasets] for m in whole}


def _values(scores: Sequence[Mapping[Seed, float]]) -> list[NDArray[np.float64]]:
    return [np.array(list(mine.values())) for mine in scores]


@remembered
def interquartile_means(store: Store) -> pa.Table:
    """Mean of the middle half of all runs over data sets and seeds; columns `IQM`."""
    rows: list[Row] = []
    for named, methods in _blocks(store):
        for method, by_dataset in methods.items():
            scores = _values(by_dataset)
            low, high = iqm_interval(scores)
            value = float(stats.trim_mean(np.concatenate(scores), 0.25))
            counts = {"datasets": len(scores), "n": sum(map(len, scores))}
            rows.append(named | counts | {"method": method, "iqm": value, "low": low, "high": high})
    return pa.Table.from_pylist(rows, schema=IQM)


def iqm_interval(scores: Sequence[NDArray[np.float64]]) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the interquartile mean over seeds of these data sets; none where a data set has one seed.

    A percentile bootstrap, seeds drawn within every data set by itself; S seeds drawn anew have too little spread, so
    it is stretched by sqrt(S / (S - 1)).
    """
    seeds = min(map(len, scores))
    if seeds < 2:
        return None, None

    def iqm(*groups: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.asarray(stats.trim_mean(np.concatenate(groups, axis=axis), 0.25, axis=axis))

    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"n_resamples": RESAMPLES, "confidence_level": LEVEL, "method": "percentile"}
    found = stats.bootstrap(tuple(scores), iqm, vectorized=True, rng=rng, **options).confidence_interval
    value, stretch = float(iqm(*scores)), math.sqrt(seeds / (seeds - 1))
    return value + stretch * (float(found.low) - value), value + stretch * (float(found.high) - value)


@remembered
def profiles(store: Store) -> pa.Table:
    """Share of the runs that score more, by score; every data set weighs the same; columns `PROFILES`."""
    rows: list[Row] = []
    for named, methods in _blocks(store):
        values = {method: _values(scores) for method, scores in methods.items()}
        every = np.concatenate([s for scores in values.values() for s in scores])
        for method, scores in values.items():
            for at in np.linspace(every.min(), every.max(), 41):
                share = float(np.mean([(s > at).mean() for s in scores]))
                rows.append(named | {"method": method, "score": float(at), "share": share})
    return pa.Table.from_pylist(rows, schema=PROFILES)


@remembered
def wilcoxon(store: Store) -> pa.Table:
    """Wilcoxon's signed-rank test of every two methods of a budget over data sets, Holm over all; columns `WILCOXON`.

    On a data set the means are over the seeds that both have, where there are any.
    Exact where no two differences tie. It takes data sets for independent samples of data sets like them.
    """
    rows: list[Row] = []
    leads: list[float] = []  # sums of signed ranks: a median may be 0 where these are not
    for named, methods in _blocks(store):
        for a, b in combinations(methods, 2):
            both = [_values(alike(pair)) for pair in zip(methods[a], methods[b], strict=True)]
            apart = [round(float(x.mean() - y.mean()), 12) for x, y in both]  # means end in rounding
            p = float(stats.wilcoxon(apart).pvalue) if any(apart) else 1.0
            unlike = np.array([v for v in apart if v])
            leads.append(float(np.sign(unlike) @ stats.rankdata(np.abs(unlike))))
            row = {"method": a, "other": b, "datasets": len(apart), "difference": float(np.median(apart)), "p": p}
            rows.append(named | row)
    for row, lead, adjusted in zip(rows, leads, holm_at(level(store), [r["p"] for r in rows]), strict=True):
        row |= {"p_holm": adjusted, "verdict": verdict(lead, adjusted)}
    return pa.Table.from_pylist(rows, schema=WILCOXON)
