"""The page on other tests: its commands and blocks run in order, and give what a calculation from the tables gives.

A block that imports a library that is not installed is left out; none of the others needs it.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis import Store, open_store
from tests.analysis.synthetic import make_results
from tests.support import ROOT, sweeps

PAGE = (ROOT / "docs" / "other-tests.md").read_text(encoding="utf-8")
METHODS = ("lora", "nola", "randlora")
LIBRARIES = ("scikit_posthocs", "rliable")


def lacks(block: str) -> list[str]:
    """Libraries that a block imports and that are not installed."""
    used = re.findall(r"^(?:import|from) (\w+)", block, re.M)
    return [name for name in used if name in LIBRARIES and importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any]]:
    """A sweep over six data sets, and the names that the page's blocks leave."""
    place = tmp_path_factory.mktemp("other-tests")
    plan = dict.fromkeys(METHODS, ("lora-1", "lora-4")) | {"full": (None,)}
    make_results(place / "results/fig1-clip", datasets=[f"set-{i}" for i in range(6)], plan=plan, noise=0.003)
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for kind, text in re.findall(r"```(python|)\n(.*?)```", PAGE, re.S):
            if kind == "python":
                if not lacks(text):
                    exec(compile(text, "other-tests.md", "exec"), names)
            elif text.startswith("sweeps "):
                answer = sweeps(*shlex.split(text)[1:])
                assert answer.exit_code == 0, answer.output
    return open_store(place / "results/fig1-clip"), names


def confirmed(store: Store, method: str) -> np.ndarray:
    """(6 data sets, 3 seeds) test scores at lora-4."""
    rows = store.sql(
        f"select test_score from confirmed where method = '{method}' and reference = 'lora-4' "
        "order by dataset, data_seed"
    )
    return rows.column("test_score").to_numpy().reshape(6, 3)


def test_the_arrays_are_the_runs_of_the_tables(page: tuple[Store, dict[str, Any]]) -> None:
    store, names = page
    assert tuple(names["means"].columns) == METHODS == tuple(names["runs"])
    for method in METHODS:
        scores = confirmed(store, method)
        assert names["means"][method].to_numpy() == pytest.approx(scores.mean(axis=1))
        assert names["runs"][method] == pytest.approx(scores.T)
        assert names["iqm"][method] == pytest.approx(np.sort(scores.ravel())[4:-4].mean())


def test_tests_over_data_sets(page: tuple[Store, dict[str, Any]]) -> None:
    store, names = page
    scores = np.stack([confirmed(store, method).mean(axis=1) for method in METHODS])
    ranks = stats.rankdata(-scores, axis=0)
    assert names["ranks"].to_numpy() == pytest.approx(ranks.T)
    assert names["friedman"].pvalue == pytest.approx(stats.friedmanchisquare(*scores).pvalue)
    assert (ranks.argmin(axis=0) == METHODS.index("randlora")).all()
    for a, b in combinations(range(3), 2):
        wanted = min(1.0, 3 * stats.wilcoxon(scores[a] - scores[b]).pvalue)
        assert names["wilcoxon"][METHODS[a], METHODS[b]] == pytest.approx(wanted)
    agreed = np.tile([[1.0], [2], [3]], 3)  # three methods, three data sets: one permutation in 36 is as extreme
    exact = stats.permutation_test(tuple(agreed.T), names["spread"], permutation_type="pairings", vectorized=True)
    assert exact.pvalue <= 2 / 36 + 1e-9 and 0.0 < names["exact"].pvalue < 0.01


def test_two_checkpoints(page: tuple[Store, dict[str, Any]]) -> None:
    store, names = page
    tested = {r["trial_id"]: r for r in store.table("predictions").to_pylist()}
    right = []
    for each in (names["one"], names["other"]):
        row = tested[each["trial_id"]]
        right.append(np.unpackbits(np.frombuffer(row["correct"], np.uint8))[: row["n_examples"]])
    assert (names["one"]["method"], names["other"]["method"]) == ("randlora", "lora")
    assert names["only_one"] == int((right[0] > right[1]).sum()) > 0
    assert names["only_other"] == int((right[1] > right[0]).sum()) > 0
    both = names["only_one"] + names["only_other"]
    assert names["pvalue"] == pytest.approx(stats.binomtest(names["only_other"], both).pvalue)


@pytest.mark.parametrize("library", LIBRARIES)
def test_blocks_of_other_libraries_ran_if_they_are_installed(page: tuple[Store, dict[str, Any]], library: str) -> None:
    pytest.importorskip(library)
    _, names = page
    if library == "scikit_posthocs":
        assert names["nemenyi"].loc["lora", "randlora"] < 0.5 == names["nemenyi"].loc["lora", "lora"] / 2
    else:
        assert set(names["profiles"]) == set(METHODS)
        for method in METHODS:
            low, high = names["intervals"][method].ravel()
            assert low <= names["iqm"][method] <= high
            assert names["values"][method].item() == pytest.approx(names["iqm"][method])
