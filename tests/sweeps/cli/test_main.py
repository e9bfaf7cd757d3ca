"""The verbs on the command line: output, JSON, exit codes, and what bad input says."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.engine import run as engine
from sweeps.engine.run import RunSummary
from sweeps.plan.plan import Plan
from tests.analysis.synthetic import make_results
from tests.support import ROOT, sweeps

QUICKSTART = str(ROOT / "examples" / "quickstart.toml")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "made"
    make_results(folder)
    return folder


def test_init_then_plan(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert sweeps("init", str(path)).exit_code == 0
    again = sweeps("init", str(path))
    assert again.exit_code == 2
    assert "--force" in again.output
    assert sweeps("init", str(path), "--force").exit_code == 0
    planned = sweeps("plan", str(path))
    assert planned.exit_code == 0, planned.output
    assert "randlora" in planned.output


def test_plan_json_has_counts_and_infeasible_cells() -> None:
    answer = json.loads(sweeps("plan", QUICKSTART, "--json").stdout)
    cells = answer["cells"]
    assert {c["method"] for c in cells} >= {"lora", "randlora", "vera", "nola", "full"}
    for cell in cells:
        assert (cell["reason"] is None) == cell["feasible"]
        if cell["budget"] is not None and cell["feasible"]:
            assert cell["count"] - cell["budget"] == cell["residual"]


def test_a_plan_says_what_a_cell_is_given(tmp_path: Path) -> None:
    answer = json.loads(sweeps("plan", QUICKSTART, "--set", "confirm.margin=0.01", "--json").stdout)
    assert (answer["allowance"], answer["margin"], answer["max_seeds"]) == ({"trials": 9}, 0.01, 5)
    shown = sweeps("plan", QUICKSTART, "--set", "confirm.margin=0.01").output
    assert "below 1 points count as none" in shown and "5 of at most 5" in shown


def test_a_plan_says_what_can_go_to_peft() -> None:
    words = ["--set", "budgets.lora_rank=[4]", "--set", "methods={lora={}, dora={}}"]
    forms = json.loads(sweeps("plan", QUICKSTART, *words, "--json").stdout)["peft"]
    itself, refused = sorted(forms.values())
    assert itself == "itself" and refused.endswith("which PEFT's DoRA needs")
    shown = sweeps("plan", QUICKSTART, *words).output
    assert "PEFT      as themselves: lora\n" in shown and f"PEFT      not ({refused}): dora\n" in shown


def test_budget_prints_the_solver() -> None:
    words = ["budget", "--model", "embedded:tiny-clip", "--lora-rank", "4", "--adapt", "vision"]
    answer = json.loads(sweeps(*words, "--json").stdout)
    assert answer["budget"] > 0
    assert {m["method"] for m in answer["methods"]} >= {"lora", "randlora", "vera", "nola"}
    shown = sweeps(*words)
    assert f"{answer['budget']:,}" in shown.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "model.id=embedded:tiny-clp"], "tiny-clip"),
        (["--set", 'data.datasets=["embedded:fashion-mnits"]'], "embedded:fashion-mnist"),
        (["--set", 'model.targets=["mlp.c_fcc"]'], "c_fc"),
        (["--set", "methods.lorra={}"], "Nearest: lora"),
        (["--set", "methods={hydralora={}}", "--set", "budgets.lora_rank=[16]"], "read as a matrix"),
        (["--set", "methods={lora={dropout=0.1}}"], "read as a matrix"),
        (["--set", "train.epoch=1"], "Nearest: epochs"),
        (["--set", "confirm.seeds=[]"], "at least 1"),
        (
            ["--set", "budgets.lora_rank=[100000]", "--set", "methods={lora={}}"],
            "largest rank of the target weights, 192",
        ),
        (["--set", "budgets.lora_rank=[100]", "--set", "methods={vera={}, full={}}"], "no cell is feasible"),
    ],
)
def test_bad_input_is_named_with_the_nearest_choice(words: list[str], said: str) -> None:
    result = sweeps("plan", QUICKSTART, *words)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "Traceback" not in result.output


def test_json_holds_bytes_and_numbers_that_are_not_finite(results: Path) -> None:
    rows = json.loads(
        sweeps("query", str(results), "select 1/0.0 as x, correct from predictions limit 1", "--json").stdout
    )
    assert rows[0]["x"] is None
    assert base64.b64decode(rows[0]["correct"], validate=True)


def test_budget_lists_chosen_methods_and_what_of_them_acts() -> None:
    words = [
        "budget",
        "--model",
        "embedded:tiny-clip",
        "--lora-rank",
        "4",
        "--adapt",
        "vision",
        "--targets",
        "mlp.c_fc",
    ]
    answer = json.loads(sweeps(*words, "--method", "peft:all", "--json").stdout)
    rows = {row["method"]: row for row in answer["methods"]}
    assert len(rows) == len(answer["methods"]) == 29
    assert rows["peft:lora"]["count"] == answer["budget"]
    assert rows["peft:waveft"]["acting"] == 1.0
    assert rows["peft:boft"]["acting"] < 0.9
    assert not rows["peft:ia3"]["feasible"]
    two = json.loads(sweeps(*words, "--method", "lora", "--method", "peft:miss", "--json").stdout)["methods"]
    assert {row["method"] for row in two} == {"lora", "peft:miss"}
    assert len(two) == 8
    shown = sweeps(*words, "--method", "peft:miss", "--method", "peft:ia3").output
    assert "acts" in shown
    assert "infeasible" in shown
    wrong = sweeps(*words, "--method", "peft:mis")
    assert wrong.exit_code == 2
    assert "peft:miss" in wrong.output


def test_budget_refuses_a_rank_beyond_the_weights() -> None:
    result = sweeps("budget", "--model", "embedded:tiny-clip", "--lora-rank", "1000", "--adapt", "vision")
    assert result.exit_code == 2
    assert "Nearest: --lora-rank 192" in result.output


def test_best_query_status_report(results: Path) -> None:
    assert sweeps("best", str(results)).exit_code == 0
    rows = json.loads(sweeps("best", str(results), "--json").stdout)
    assert {r["method"] for r in rows} >= {"lora", "randlora"}
    counted = json.loads(sweeps("query", str(results), "select count(*) as n from confirmed", "--json").stdout)
    assert counted[0]["n"] > 0
    lines = sweeps(
        "query", str(results), "select method from cells group by all order by 1", "--csv"
    ).stdout.splitlines()
    assert lines[0] == "method"
    status = json.loads(sweeps("status", str(results), "--json").stdout)
    assert status["failed"] >= 1
    assert not status["running"]
    assert sweeps("status", str(results)).exit_code == 0
    paths = json.loads(sweeps("report", str(results), "--json").stdout)
    assert Path(paths["report"]).is_file()


def test_query_names_the_known_columns(results: Path) -> None:
    result = sweeps("query", str(results), "select test_scor from trials")
    assert result.exit_code == 2
    assert "test_score" in result.output


def test_results_that_are_not_there(tmp_path: Path, results: Path) -> None:
    result = sweeps("status", str(tmp_path / "results"))
    assert result.exit_code == 2
    assert "no sweep yet" in result.output
    assert sweeps("best", str(tmp_path / "nothing.toml")).exit_code == 2


def test_export_of_an_adapter_that_was_not_kept(results: Path, tmp_path: Path) -> None:
    rows = json.loads(sweeps("query", str(results), "select trial_id from trials limit 1", "--json").stdout)
    result = sweeps("export", str(results), rows[0]["trial_id"], str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "not kept" in result.output
    assert sweeps("export", str(results), "zzz", str(tmp_path / "out")).exit_code == 2
    assert sweeps("export", str(results), rows[0]["trial_id"], str(tmp_path / "out"), "--form", "pefft").exit_code == 2


def test_doctor_passes_here() -> None:
    result = sweeps("doctor", "--json")
    checks = json.loads(result.stdout)
    assert all(c["ok"] for c in checks if c["name"].startswith("package "))


def test_the_version_and_names_that_are_no_results(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweeps("--version").output.startswith("sweeps 0.")
    monkeypatch.chdir(results.parents[1])
    for given in ("made", "results/mde"):
        answer = sweeps("status", given)
        assert answer.exit_code == 2
        assert "no such results folder or sweep file. Nearest: results/made." in answer.output.replace("\n", " ")


def test_an_interrupt_while_the_program_loads_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("raise KeyboardInterrupt\n")  # as where Ctrl-C meets its import
    command = [sys.executable, "-c", "from sweeps.cli.program import main; main()", "doctor"]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_run_takes_a_results_folder(results: Path) -> None:
    """It is the file's `output`; one that holds another sweep is refused, and left as it is."""
    before = sorted(results.rglob("*"))
    refused = sweeps("run", QUICKSTART, "--output", str(results), "--quiet")
    assert refused.exit_code == 2
    assert "belongs to another sweep" in refused.output
    assert sorted(results.rglob("*")) == before


def test_a_folder_whose_tables_are_nobodys_is_refused(results: Path) -> None:
    (results / "spec.json").unlink()
    refused = sweeps("run", QUICKSTART, "--output", str(results), "--quiet")
    assert refused.exit_code == 2
    assert "holds results, and no spec.json that says whose" in refused.output


def test_an_interrupted_run_answers_in_json_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(plan: Plan, **_: object) -> RunSummary:
        return RunSummary(plan.spec.folder, 3, 0, 0, 0, 1.0, interrupted=True)

    monkeypatch.setattr(engine, "run", interrupted)
    ended = sweeps("run", QUICKSTART, "--output", str(tmp_path / "r"), "--quiet", "--json")
    assert ended.exit_code == 130
    answer = json.loads(ended.stdout)
    assert (answer["interrupted"], answer["finished"]) == (True, 3)
    assert f"--output {tmp_path / 'r'}" in ended.stderr.replace("\n", "")
