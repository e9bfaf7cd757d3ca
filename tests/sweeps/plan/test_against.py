"""`sweeps plan --against-paper` compares counts and settings with the published form of a recipe."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sweeps.cli.main import app
from sweeps.plan.against import against
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT

RECIPE = ROOT / "examples" / "paper" / "fig1-clip.toml"
ONE = 'data.datasets=["cifar100"]'


def test_counts_and_settings_beside_the_papers() -> None:
    plan, published = (Plan.from_spec(SweepSpec.load(RECIPE, (ONE,), scale)) for scale in ("full", "published"))
    found = against(plan, published)
    rows = {(row.method, row.budget): row for row in found.rows}
    lora, randlora = rows["lora", "lora-32"], rows["randlora", "lora-32"]
    assert (lora.setting, lora.count, lora.published_count, lora.difference) == ("lora-32", 6_881_280, 6_881_280, 0.0)
    assert (randlora.setting, randlora.published_count) == ("randlora-6", 5_198_184)
    assert randlora.count is not None and randlora.difference == pytest.approx(randlora.count / 5_198_184 - 1)
    assert randlora.settings["start"] == ("lambda", "gamma")
    assert randlora.settings["tuning trials"] == (8, 0) and randlora.settings["seeds"] == (3, 1)
    ours, theirs = randlora.settings["capacity"]
    assert len(ours) > 1 and theirs == 6  # the fair form mixes ranks
    assert found.settings == {"protocol": ("standard", "paper")}
    assert rows["vera", "lora-1"].setting is None  # the figure has none
    same = against(published, published)
    assert same.settings == {} and all(row.settings == {} for row in same.rows)
    assert {(row.setting, row.published_count) for row in same.rows if row.method == "randlora"} == {
        ("randlora-128", 340_992), ("randlora-50", 693_720), ("randlora-12", 2_636_352), ("randlora-6", 5_198_184),
        ("randlora-3", 10_303_632),
    }  # fmt: skip


def test_percentages_of_table_15() -> None:
    path, one = RECIPE.with_name("table1-qwen2.toml"), 'data.datasets=["commonsense-15k"]'
    done = CliRunner().invoke(app, ["plan", str(path), "--against-paper", "--set", one, "--json"])
    rows = json.loads(done.stdout)["rows"]
    found = {(row["method"], row["setting"]): (row["percent"], row["published_percent"]) for row in rows}
    assert found["lora", "lora-16"] == (pytest.approx(1.18, abs=0.005), 1.18)
    assert found["randlora", "randlora-5"] == (pytest.approx(2.34, abs=0.005), 2.33)
    assert found["vera", "vera-1024"] == (pytest.approx(0.058, abs=0.0005), 0.06)
    printed = CliRunner().invoke(app, ["plan", str(path), "--against-paper", "--set", one])
    assert "all cells: protocol: standard, published paper" in printed.output


def test_a_file_without_a_published_form_is_refused() -> None:
    done = CliRunner().invoke(app, ["plan", str(ROOT / "examples" / "quickstart.toml"), "--against-paper"])
    assert done.exit_code == 2 and "[published]" in done.output


@pytest.mark.parametrize(
    ("words", "given", "beside"),
    [
        (["plan", "--against-paper", "--available"], "--available", "--against-paper"),
        (["estimate", "--compare", "--like", "results/x"], "--like", "--compare"),
        (["init", "--schema", "--name", "mine"], "--name", "--schema"),
    ],
)
def test_options_that_would_do_nothing_are_refused(words: list[str], given: str, beside: str) -> None:
    verb, *options = words
    path = [] if verb == "init" else [str(ROOT / "examples" / "quickstart.toml")]
    done = CliRunner().invoke(app, [verb, *path, *options])
    assert done.exit_code == 2 and f"{given}: has no effect with {beside}" in " ".join(done.output.split())


def test_lists_of_capacities_are_named_by_what_is_equal() -> None:
    tree = {
        "name": "x",
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": ["embedded:fashion-mnist"]},
        "budgets": {"lora_rank": [4], "count": "bytes"},
        "methods": {"lora": {}, "randlora": {"capacity": [6]}},
        "resources": {"priority": ["bytes-randlora-6"]},
    }
    cells = Plan.from_spec(SweepSpec.parse(tree)).cells
    assert [cell.reference for cell in cells] == ["bytes-lora-4", "bytes-randlora-6"]
