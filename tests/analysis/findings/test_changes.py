"""Whether a difference changes with the budget: the estimate by hand, the family, and what has no change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import Store, open_store
from analysis.findings.comparisons.finding import changes_sheet
from analysis.findings.comparisons.numbers import CHANGES, changes
from analysis.verdict.comparisons import comparisons
from analysis.verdict.correction import holm_steps
from analysis.verdict.inference import half_width, t_difference
from tests.analysis.odd import Cells, odd_results

BUDGETS = ("lora-1", "lora-4", "lora-8")


def made(
    folder: Path, *, sets: str = "abc", rule: str | None = "per-data-set", fall: float = 0.02
) -> tuple[Store, Cells]:
    """RandLoRA's lead over LoRA falls by `fall` at every budget, four seeds a data set."""
    rng = np.random.default_rng(0)
    cells: Cells = {}
    for name in sets:
        for at, budget in enumerate(BUDGETS):
            cells["lora", budget, name] = dict(enumerate(rng.normal(0.6, 0.004, 4)))
            cells["randlora", budget, name] = dict(enumerate(rng.normal(0.65 - fall * at, 0.004, 4)))
    return open_store(odd_results(folder, cells, seeds=4, seed_rule=rule)), cells


@pytest.mark.parametrize("rule", ["per-data-set", None])
def test_a_change_is_the_last_difference_less_the_first(tmp_path: Path, rule: str | None) -> None:
    store, cells = made(tmp_path / "r", rule=rule)
    table = changes(store)
    mean, *each = table.to_pylist()
    assert table.schema == CHANGES and [r["dataset"] for r in each] == ["a", "b", "c"] and mean["dataset"] is None
    assert {(r["least"], r["most"], r["n"]) for r in (mean, *each)} == {("lora-1", "lora-8", 4)}
    single = {(r["dataset"], r["reference"]): r for r in comparisons(store).to_pylist()}
    moved = {}
    whole, *levels = (step.level for step in holm_steps([r["p"] for r in (mean, *each)], [3.0, 1.0, 1.0, 1.0]))
    for r, level in zip(each, levels, strict=True):
        ends = [single[r["dataset"], budget] for budget in ("lora-1", "lora-8")]
        gaps = np.array([[cells["randlora", b, r["dataset"]][s] - cells["lora", b, r["dataset"]][s] for s in range(4)]  # type: ignore[operator]
                         for b in ("lora-1", "lora-8")])  # fmt: skip
        moved[r["dataset"]] = gaps[1] - gaps[0]
        for end, e in zip(("at_least", "at_most"), ends, strict=True):
            at = (r[end], r[f"{end}_low"], r[f"{end}_high"])
            assert at == pytest.approx((e["difference"], e["low_pointwise"], e["high_pointwise"]))
        assert r["choice_sd"] ** 2 == pytest.approx(sum(e["choice_sd"] ** 2 for e in ends)) and r["choice_sd"] > 0
        want = t_difference(list(moved[r["dataset"]])).widened(r["choice_sd"] ** 2)
        assert (r["difference"], r["p"]) == pytest.approx((want.mean, want.p))
        assert (r["low"], r["high"]) == pytest.approx(want.interval(level))
    all_sets = np.array(list(moved.values()))
    parts = ([m.var(ddof=1) / 4 / 9 for m in all_sets], [3.0] * 3)
    parts = parts if rule else ([all_sets.mean(axis=0).var(ddof=1) / 4], [3.0])
    added = sum(r["choice_sd"] ** 2 for r in each) / (9 if rule else 3)  # shared seeds: choices may go wrong alike
    assert mean["difference"] == pytest.approx(all_sets.mean())
    assert mean["high"] - mean["low"] == pytest.approx(2 * float(half_width(*parts, added, whole)))


def test_the_mean_has_half_of_the_level_and_the_data_sets_the_rest(tmp_path: Path) -> None:
    store, _ = made(tmp_path / "falls")
    mean, *each = changes(store).to_pylist()
    assert mean["verdict"] == "lower" and mean["difference"] == pytest.approx(-0.04, abs=0.01)
    steps = holm_steps([r["p"] for r in (mean, *each)], [3.0, 1.0, 1.0, 1.0])
    assert [r["p_holm"] for r in (mean, *each)] == pytest.approx([step.adjusted for step in steps])
    for r in (mean, *each):
        assert (r["low"] > 0 or r["high"] < 0) == (r["verdict"] in ("higher", "lower"))
    still, _ = made(tmp_path / "stays", fall=0.0)
    assert {r["verdict"] for r in changes(still).to_pylist()} == {"not distinguishable"}
    [other, *_] = changes(store, "randlora").to_pylist()  # the pair the other way round
    assert (other["method"], other["difference"]) == ("lora", pytest.approx(-mean["difference"]))
    assert other["p"] == pytest.approx(mean["p"]) and other["verdict"] == "higher"
    sheet = changes_sheet(store)
    assert sheet.cells[0][:3] == ["mean of 3 data sets", "RandLoRA", "lora-1 to lora-8"] and sheet.strong(mean)


def test_budgets_that_a_data_set_lacks_are_no_ends(tmp_path: Path) -> None:
    _, cells = made(tmp_path / "whole")
    less = {key: v for key, v in cells.items() if key[1:] != ("lora-8", "b")}
    found = changes(open_store(odd_results(tmp_path / "r", less, seeds=4, seed_rule="per-data-set"))).to_pylist()
    assert len(found) == 4 and {(r["least"], r["most"]) for r in found} == {("lora-1", "lora-4")}


def test_one_data_set_one_seed_one_budget(tmp_path: Path) -> None:
    store, cells = made(tmp_path / "set", sets="a")
    [row] = changes(store).to_pylist()
    assert (row["dataset"], row["n_datasets"], row["verdict"]) == ("a", 1, "lower")
    one = {key: {0: scores[0]} for key, scores in cells.items()}
    [row] = changes(open_store(odd_results(tmp_path / "seed", one, seeds=1))).to_pylist()
    assert (row["verdict"], row["p"], row["n"]) == ("not testable", None, 1) and row["difference"] is not None
    flat = {key: scores for key, scores in cells.items() if key[1] == "lora-1"}
    assert changes(open_store(odd_results(tmp_path / "budget", flat))).num_rows == 0
    assert changes_sheet(open_store(tmp_path / "budget")).rows == []


def test_ends_are_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    _, cells = made(tmp_path / "set", sets="a")
    cells["lora", "lora-8", "a"] = {s: v for s, v in cells["lora", "lora-8", "a"].items() if s > 1}
    [row] = changes(open_store(odd_results(tmp_path / "r", cells, seeds=4))).to_pylist()
    assert row["n"] == 2 and row["at_most"] - row["at_least"] == pytest.approx(row["difference"])
    gone = {key: ({5: 0.6} if key[1] == "lora-8" else scores) for key, scores in cells.items()}
    [row] = changes(open_store(odd_results(tmp_path / "none", gone, seeds=4))).to_pylist()
    assert (row["n"], row["difference"], row["at_least"], row["verdict"]) == (0, None, None, "not testable")
