"""Seeds that move all data sets alike: the permutation test over data set x seed is too sure; the F test sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import conclusion, open_store
from analysis.statistics import inference, scaling
from analysis.tables.results import compared
from tests.analysis.odd import Cells, odd_results

DATASETS, SEEDS = 8, 3


def tables(common: float, count: int) -> np.ndarray:
    """Differences of a method from itself (count, data sets, seeds), a share of their variance common to a seed."""
    rng = np.random.default_rng(0)
    own, shared = rng.normal(size=(count, DATASETS, SEEDS)), rng.normal(size=(count, 1, SEEDS))
    return np.asarray(np.sqrt(1 - common) * own + np.sqrt(common) * shared)


@pytest.mark.parametrize(("common", "least", "most"), [(0.0, 0.03, 0.07), (0.2, 0.16, 0.25), (0.5, 0.35, 0.46)])
def test_how_often_a_method_differs_from_itself(common: float, least: float, most: float) -> None:
    """The numbers of docs/fairness.md and docs/log.md."""
    drawn = tables(common, 1500)
    flat = drawn.reshape(len(drawn), -1)
    flips = np.random.default_rng(1).choice((1, -1), size=(2000, flat.shape[1]))
    p = ((np.abs(flat @ flips.T) >= np.abs(flat.sum(axis=1))[:, None]).sum(axis=1) + 1) / 2001
    assert least < (p <= 0.05).mean() < most
    by_seed = [inference.t_difference(list(one.mean(axis=0))).p for one in drawn]
    assert 0.03 < np.mean([q is not None and q <= 0.05 for q in by_seed]) < 0.07
    seen = np.mean([(inference.common_seed_p(one) or 1.0) <= 0.05 for one in drawn])
    assert (0.03 < seen < 0.07) if common == 0 else (0.22 < seen < 0.75)


def test_the_f_test_of_nothing() -> None:
    assert inference.common_seed_p([[0.1, 0.2]]) is None and inference.common_seed_p([[0.1], [0.2]]) is None
    assert inference.common_seed_p([[0.1, 0.2], [0.3, 0.4]]) is None  # no spread but the seeds' own


@pytest.mark.parametrize("alike", [True, False])
def test_it_is_said(tmp_path: Path, alike: bool) -> None:
    rng = np.random.default_rng(3)
    cells: Cells = {}
    for i in range(DATASETS):
        cells["lora", "lora-1", f"set-{i}"] = dict.fromkeys(range(SEEDS), 0.7)
        gain = {s: 0.02 + (0.02 * s if alike else 0.0) + float(rng.normal(0, 0.004)) for s in range(SEEDS)}
        cells["randlora", "lora-1", f"set-{i}"] = {s: 0.7 + v for s, v in gain.items()}
    store = open_store(odd_results(tmp_path / "made", cells))
    row = next(r for r in scaling.comparisons(store).to_pylist() if r["dataset"] is None)
    assert row["test"] == inference.SIGN_FLIP and (row["p_seeds"] <= 0.05) == alike
    assert ("too sure of itself" in conclusion(store)) == alike
    assert ("its p is too small" in compared(store).note) == alike
