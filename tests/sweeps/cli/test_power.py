"""`sweeps power`, and what `plan` says of the difference that a sweep will detect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, sweeps

RESULTS = ROOT / "docs" / "results"
FILE = str(ROOT / "examples" / "quickstart.toml")


def said(*words: str) -> Any:
    done = sweeps(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


@pytest.fixture(scope="module")
def quickstart() -> Any:
    return said("power", FILE, "--like", str(RESULTS / "quickstart"))


def test_the_curve_falls_with_seeds_and_the_plan_says_its_point(quickstart: Any) -> None:
    assert quickstart["design"]["rows"] == 3 and quickstart["design"]["means"] == 1
    examples = quickstart["design"]["examples"]
    by = {row["seeds"]: row for row in quickstart["curve"] if row["val_examples"] == examples}
    assert by[3]["each"] > by[5]["each"] > by[10]["each"] and by[3]["mean"] > by[10]["mean"]
    assert by[5]["each"] == quickstart["each"]
    printed = sweeps("plan", FILE, "--like", quickstart["like"]).output
    assert f"about {100 * quickstart['each']:.1f} points" in printed


def test_every_method_in_question_of_several_budgets_has_a_mean(quickstart: Any) -> None:
    like = ("--like", quickstart["like"])
    design = said("power", FILE, *like, "--set", 'confirm.question="all"')["design"]
    assert (design["rows"], design["means"]) == (5, 1)  # VeRA and NoLA have one budget
    both = ("--set", 'confirm.question="all"', "--set", 'methods.dora.budgets=["lora-4", "lora-16"]')
    design = said("power", FILE, *like, *both)["design"]
    assert (design["rows"], design["means"]) == (7, 2)


def test_seeds_and_validation_examples_span_the_curve_where_the_like_sweep_tells_both() -> None:
    found = said("power", FILE, "--like", str(RESULTS / "photos"))
    own = found["design"]["examples"]
    assert {row["val_examples"] for row in found["curve"]} == {own // 4, own, 4 * own, 16 * own}
    assert any(f"{4 * own:,} validation examples" == change["change"] for change in found["changes"])


def test_its_own_results_are_its_pilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickstart: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert "not known yet" in sweeps("plan", FILE).output
    shutil.copytree(RESULTS / "quickstart", tmp_path / "results" / "quickstart")
    planned = said("plan", FILE)["detectable"]
    assert {**planned, "like": ""} == {**{k: v for k, v in quickstart.items() if k != "curve"}, "like": ""}


@pytest.mark.parametrize("like", [None, RESULTS / "section6", RESULTS / "peft-published"])
def test_nothing_is_invented(like: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = sweeps("power", FILE, *([] if like is None else ["--like", str(like)]))
    assert done.exit_code == 2
    assert "--like" in done.output
