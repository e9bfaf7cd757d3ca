"""The verbs on the command line: output, JSON, exit codes, and what bad input says."""

from __future__ import annotations

import base64
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from sweeps.backends.backend import BackendError
from sweeps.backends.ray.cluster.session import RayLostError, RayStartError
from sweeps.cli.main import VERBS, app
from sweeps.cli.run import command
from sweeps.engine import run as engine
from sweeps.engine.prepare import Prepared
from sweeps.engine.run import RunSummary
from sweeps.errors import Problem, SpecError
from sweeps.plan.plan import Plan
from sweeps.records.locks import FolderLock, holder
from sweeps.spec.cell import Cell
from sweeps.spec.spec import SweepSpec
from tests.analysis.synthetic import make_results
from tests.support import ROOT, sweeps

QUICKSTART = str(ROOT / "examples" / "quickstart.toml")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "made"
    make_results(folder)
    return folder


def test_every_verb_shows_an_example_that_it_takes() -> None:
    for name, (_, example) in VERBS.items():
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        assert " ".join(sweeps(name, "-h").output.split()).endswith(f"Example: {example}"), name
        program, verb, *rest = shlex.split(example)
        assert (program, verb) == ("sweeps", name)
        command.make_context(name, rest)  # raises where an option or an argument is unknown


def test_targets_may_be_a_comma_list(tmp_path: Path) -> None:
    words = ("budget", "--model", "embedded:tiny-clip", "--lora-rank", "1", "--adapt", "vision", "--json")
    one = sweeps(*words, "--targets", "attn.in_proj_weight[q,v],mlp.c_fc").stdout
    assert one == sweeps(*words, "--targets", "attn.in_proj_weight[q,v]", "--targets", "mlp.c_fc").stdout


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
    assert "below 1 point count as none" in shown and "5 seeds; no more can be added" in shown


@pytest.mark.parametrize("slow", [True, False])
def test_bf16_on_a_processor_without_it_is_named(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.runtime.slow_bf16", lambda: slow)
    words = [QUICKSTART, "--set", "budgets.lora_rank=[4]", "--set", "methods={lora={}}", "--set"]
    assert ("no bf16 products" in sweeps("plan", *words, 'train.precision="bf16"').output) == slow
    assert "no bf16 products" not in sweeps("plan", *words, 'train.precision="fp32"').output
    assert ("bf16 slower" in sweeps("doctor").output) == slow


def test_a_plan_says_what_can_go_to_peft() -> None:
    words = ["--set", "budgets.lora_rank=[4]", "--set", "methods={lora={}, dora={}}"]
    forms = json.loads(sweeps("plan", QUICKSTART, *words, "--json").stdout)["peft"]
    itself, refused = sorted(forms.values())
    assert itself == "itself" and refused.endswith("which PEFT's DoRA needs")
    shown = sweeps("plan", QUICKSTART, *words).output
    assert "PEFT      lora: can be exported\n" in shown and f"PEFT      dora: cannot be exported, {refused}\n" in shown


def test_a_budget_of_several_data_sets_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def forms(_: object, cells: Sequence[Cell]) -> dict[str, str]:
        return {c.cell_id: "itself" if c.reference == "lora-4" else "no place" for c in cells if c.feasible}

    monkeypatch.setattr("sweeps.plan.checks.peft_forms", forms)
    sets = 'data.datasets=["embedded:fashion-mnist", "embedded:fashion-mnist-turned"]'
    words = ["--set", "methods={lora={}, vera={}}", "--set", "budgets.lora_rank=[4, 16]", "--set", sets]
    shown = sweeps("plan", QUICKSTART, *words).output
    assert (
        "PEFT      lora at lora-4: can be exported\n" in shown
        and "lora at lora-16: cannot be exported, no place\n" in shown
    )
    assert "left out  vera lora-16, 2 data sets or sizes: " in shown and shown.count("left out  ") == 2


def test_a_plan_shows_the_capacities_that_are_built() -> None:
    words = ["--set", "budgets.lora_rank=[4]", "--set", 'methods={lora={}, "peft:oft"={}}']
    cells = json.loads(sweeps("plan", QUICKSTART, *words, "--json").stdout)["cells"]
    solved = next(json.loads(cell["capacities"]) for cell in cells if cell["method"] == "peft:oft")
    assert set(solved.values()) == {29}  # an identity of begun folders; blocks divide the 192 columns
    line = next(line for line in sweeps("plan", QUICKSTART, *words).output.splitlines() if line.startswith("peft:oft"))
    assert line.split()[2:5] == ["9,216", "32", "uniform"]


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


def test_a_plan_refuses_layers_that_frod_cannot_decompose_together(tmp_path: Path) -> None:
    """PEFT builds FRoD from the weights' values, so that a model without any shows nothing."""
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
    transformers.SwinModel(transformers.SwinConfig(window_size=4, **sizes)).save_pretrained(tmp_path)
    words = ["--set", f"model.id=local:{tmp_path}", "--set", 'model.targets=["mlp.fc1"]', "--set", "model.adapt=all"]
    words += ["--set", 'methods={lora={}, "peft:frod"={}}', "--set", "budgets.lora_rank=[1]"]
    result = sweeps("plan", QUICKSTART, *words)
    assert result.exit_code == 2
    assert "methods.peft:frod" in result.output and "methods.lora" not in result.output
    assert "Nearest: targets with one number of inputs" in " ".join(result.output.split())


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
    assert len(rows) == len(answer["methods"]) == 32
    assert rows["peft:lora"]["count"] == answer["budget"]
    assert rows["peft:waveft"]["dof"] == rows["peft:waveft"]["count"]
    assert rows["peft:boft"]["dof"] < 0.9 * rows["peft:boft"]["count"]
    assert rows["peft:lokr"]["dof_measured"] is True
    assert {name for name, row in rows.items() if row["dof_at_most"]} == {"peft:vblora", "peft:lily"}
    assert not rows["peft:ia3"]["feasible"]
    two = json.loads(sweeps(*words, "--method", "lora", "--method", "peft:miss", "--json").stdout)["methods"]
    assert [row["method"] for row in two] == ["lora", "peft:miss"]
    every = json.loads(sweeps(*words, "--method", "lora", "--method", "peft:miss", "--all", "--json").stdout)["methods"]
    assert len(every) == 8 and {row["method"] for row in every} == {"lora", "peft:miss"}
    shown = sweeps(*words, "--method", "peft:miss", "--method", "peft:ia3").output
    assert "dof" in shown
    assert "infeasible" in shown
    wrong = sweeps(*words, "--method", "peft:mis")
    assert wrong.exit_code == 2
    assert "peft:miss" in wrong.output


def test_budget_answers_for_bare_weights_counts_shares_and_ranks() -> None:
    def asked(*words: str) -> dict[str, Any]:
        return json.loads(sweeps("budget", *words, "--json").stdout)

    one = asked("--shape", "4096x4096", "--params", "262144", "--method", "lora", "--method", "randlora")
    assert (one["reference"], one["budget"], one["model_parameters"]) == ("params-262144", 262_144, 4096**2)
    rows = {row["method"]: row for row in one["methods"]}
    assert rows["lora"]["ranks"] == 32  # 32 (4096 + 4096)
    n, rank = -(-4096 // rows["randlora"]["ranks"]), rows["randlora"]["ranks"]
    assert rows["randlora"]["count"] == n * (rank + 4096)
    assert asked("--shape", "4096x4096", "--percent", "1.5625", "--method", "lora")["methods"] == [rows["lora"]]
    blocks = asked("--shape", "576x576", "--params", "8928", "--method", "peft:oft")["methods"]
    assert [(row["ranks"], row["count"]) for row in blocks] == [(32, 8928)]  # solved at 29, which no block can have
    llama = ("--model", "hf:meta-llama/Meta-Llama-3-8B", "--adapt", "all")
    back = asked(*llama, "--method", "randlora", "--rank", "30")  # Table 15: 0.7 % each, LoRA-32
    own, lora = back["methods"]
    assert (back["reference"], own["method"], own["ranks"], own["count"]) == ("randlora-30", "randlora", 30, 56_626_112)
    assert (lora["method"], lora["ranks"], lora["residual"]) == ("lora", 32, 56_623_104 - 56_626_112)
    assert [round(row["percent"], 2) for row in (own, lora)] == [0.71, 0.71]
    shown = sweeps("budget", *llama, "--method", "randlora", "--rank", "30").output
    assert "randlora-30 = 56,626,112 trainable parameters" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora-rank", "4"], "give a model, or in its place shapes"),
        (["--shape", "4096", "--lora-rank", "4"], "OUTxIN"),
        (["--shape", "1000000x8", "--lora-rank", "4"], "sides below 1,000,000"),
        (["--shape", "64x64", "--lora-rank", "2", "--adapt", "both"], "names weights of a model"),
        (["--shape", "64x64", "--lora-rank", "2", "--targets", "mlp"], "names weights of a model"),
        (["--shape", "64x64"], "exactly one of --lora-rank, --params, --percent, --rank"),
        (["--shape", "64x64", "--params", "9", "--percent", "1"], "--params, --percent"),
        (["--shape", "64x64", "--percent", "0"], "above 0"),
        (["--shape", "64x64", "--rank", "4"], "--method randlora --rank 4"),
        (["--shape", "64x64", "--rank", "65", "--method", "randlora"], "randlora takes 1 to 64 on these weights"),
        (["--shape", "96x13", "--rank", "1", "--method", "peft:road"], "Nearest: group_size = 48"),
        (["--shape", "64x64", "--lora-rank", "2", "--costs"], "needs the layers of a model"),
        (["--lora-rank", "2", "--costs"], "give a model, or in its place shapes"),
        (["--shape", "64x64", "--lora-rank", "2", "--batch-size", "8"], "only with --costs"),
    ],
)
def test_budget_names_what_it_cannot_answer(words: list[str], said: str) -> None:
    result = sweeps("budget", *words)
    assert result.exit_code == 2 and said in " ".join(result.output.split())


def test_budget_adds_the_costs_that_a_plan_has() -> None:
    words = ["--model", "embedded:tiny-clip", "--adapt", "vision", "--targets", "attn.in_proj_weight"]
    chosen = ["--method", "lora", "--method", "randlora", "--method", "hydralora", "--lora-rank", "4"]
    words = ["budget", *words, *chosen, "--costs", "--batch-size", "64"]
    rows = {row["method"]: row for row in json.loads(sweeps(*words, "--json").stdout)["methods"]}
    given = ["--set", "budgets.costs=true", "--set", "budgets.lora_rank=[4]", "--set", "train.global_batch_size=64"]
    given += ["--set", "methods={lora={}, randlora={}}"]
    cells = json.loads(sweeps("plan", QUICKSTART, *given, "--json").stdout)["cells"]
    for name in ("step_memory_bytes", "step_flops", "forward_flops", "saved_bytes"):
        assert {cell["method"]: cell[name] for cell in cells} == {m: rows[m][name] for m in ("lora", "randlora")}
    assert rows["hydralora"]["step_flops"] is None
    shown = " ".join(sweeps(*words).output.split())
    assert "memory step saved" in shown and "in forward passes of the base model" in shown
    assert "A step has 64 examples and computes in fp32" in shown


def test_budget_refuses_a_rank_beyond_the_weights() -> None:
    result = sweeps("budget", "--model", "embedded:tiny-clip", "--lora-rank", "1000", "--adapt", "vision")
    assert result.exit_code == 2
    assert "Nearest: --lora-rank 192" in result.output


def test_best_query_status(results: Path) -> None:
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


def test_export_of_an_adapter_that_was_not_kept(results: Path, tmp_path: Path) -> None:
    rows = json.loads(sweeps("query", str(results), "select trial_id from trials limit 1", "--json").stdout)
    result = sweeps("export", str(results), rows[0]["trial_id"], str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "not kept" in result.output
    best = sweeps("export", str(results), "best", str(tmp_path / "out")).output
    assert "the confirmed trials' trained weights were not kept" in best.replace("\n", " ")
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
    (tmp_path / "typer").mkdir()
    (tmp_path / "typer" / "__init__.py").write_text("raise KeyboardInterrupt\n")  # as where Ctrl-C meets its import
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


@pytest.mark.parametrize("journal", [True, False])
def test_another_sweeps_folder_is_refused_before_anything_is_fetched(
    results: Path, tmp_path: Path, journal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr("sweeps.engine.prepare.check_inputs", done.append)
    monkeypatch.setattr("sweeps.engine.prepare.restore", lambda *given: done.append(given))
    if not journal:
        (results / "journal.jsonl").unlink()
    words = ("--output", str(results), "--upload", (tmp_path / "copy").as_uri(), "--quiet")
    refused = sweeps("run", QUICKSTART, *words)
    assert (refused.exit_code, done) == (2, []) and "belongs to another sweep" in refused.output


def test_an_empty_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a variable that is not set; the results would go into the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "run_prepared", lambda *_, **__: pytest.fail("it ran"))
    for words in (("run", QUICKSTART, "-o", ""), ("plan", QUICKSTART, "--set", 'output=""')):
        refused = sweeps(*words)
        assert refused.exit_code == 2 and "output = '': is empty" in refused.output
        assert "Nearest: results/quickstart." in refused.output
    assert list(tmp_path.iterdir()) == []


def test_a_results_folder_in_the_place_of_a_sweep_file_names_its_own(tmp_path: Path) -> None:
    shown = sweeps("plan", ROOT / "docs" / "results" / "quickstart").output.replace("\n", "")
    assert "is a folder, and not a sweep file" in shown and "results/quickstart/sweep.json." in shown
    assert "is a folder, and not a sweep file.\n" in sweeps("plan", tmp_path).output


def test_a_second_driver_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Plan] = []
    monkeypatch.setattr("sweeps.engine.prepare.check_inputs", read.append)
    folder = tmp_path / "r"
    with FolderLock(folder):
        refused = sweeps("run", QUICKSTART, "--output", str(folder), "--quiet")
        assert (refused.exit_code, read) == (2, [])
        assert f"results = {str(folder)!r}: is being run by process {os.getpid()}" in refused.output.replace("\n", "")
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "lock"]


def test_a_copy_is_fetched_by_one_start_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(folder: Path, _: object) -> int:
        raise SpecError([Problem("held", str(holder(folder) is not None), "it says")])

    monkeypatch.setattr("sweeps.engine.prepare.restore", fetch)
    words = ("--output", str(tmp_path / "r"), "--upload", (tmp_path / "copy").as_uri(), "--quiet")
    assert "held = 'True'" in sweeps("run", QUICKSTART, *words).output
    assert not (tmp_path / "r").exists()


def test_a_folder_whose_tables_are_nobodys_is_refused(results: Path) -> None:
    (results / "spec.json").unlink()
    refused = sweeps("run", QUICKSTART, "--output", str(results), "--quiet")
    assert refused.exit_code == 2
    assert "has results, but no spec.json that says whose" in refused.output


ENDS: list[tuple[dict[str, Any] | Exception, int]] = [
    ({}, 0),
    ({"failed": 1}, 1),
    ({"not_uploaded": "no answer"}, 1),
    ({"stopped_by": "limits.max_cost = 1"}, 3),
    ({"interrupted": True}, 130),
    ({"interrupted": True, "signal": signal.SIGTERM}, 143),
    ({"interrupted": True, "signal": signal.SIGHUP}, 129),
    (OSError(errno.ENOSPC, "No space left on device"), 2),
    (RayStartError("Ray did not come up"), 2),
    (RayLostError("Ray is gone"), 4),
    (BackendError("no lane could be kept up"), 4),
]


@pytest.mark.parametrize(("end", "code"), ENDS, ids=[str(end) for end, _ in ENDS])
def test_the_exit_code_says_how_a_run_ended(
    end: dict[str, Any] | Exception, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(prepared: Prepared, **_: object) -> RunSummary:
        if isinstance(end, Exception):
            raise end
        return replace(RunSummary(prepared.plan.spec.folder, 3, 0, 0, 0, 1.0, interrupted=False), **end)

    monkeypatch.setattr(engine, "run_prepared", ended)
    done = sweeps("run", QUICKSTART, "--output", str(tmp_path / "r"), "--quiet", "--json", "--no-report")
    assert done.exit_code == code, done.output
    if isinstance(end, dict):
        answer = json.loads(done.stdout)
        assert (answer["interrupted"], answer["finished"]) == (code > 128, 3)
        assert (f"--output {tmp_path / 'r'}" in done.stderr.replace("\n", "")) == (code > 2)
        told = SweepSpec.load(Path(QUICKSTART), [f"output='{tmp_path / 'r'}'"])  # a lost sweep.json is written again
        assert SweepSpec.load(tmp_path / "r" / "sweep.json").identity() == told.identity()


def test_the_command_that_goes_on_is_the_one_that_was_given() -> None:
    given = {"--scale": ["small"], "--set": ["name='a b'"], "--output": [None], "--upload": ["s3://key:word@bucket/x"]}
    given |= {"--address": ["me@head:1"], "--optuna-storage": ["postgresql://me:word@host/x"], "--track": ["wandb"]}
    said = command(Path("s.toml"), given, {"--available": True, "--retry-failed": False})
    assert "word" not in said
    assert shlex.split(said) == [
        "sweeps",
        "run",
        "s.toml",
        "--scale",
        "small",
        "--set",
        "name='a b'",
        "--upload",
        "s3://...",
        "--address",
        "me@head:1",
        "--optuna-storage",
        "postgresql://...",
        "--track",
        "wandb",
        "--available",
    ]


def test_a_budget_says_what_its_columns_mean() -> None:
    """Several capacities have a legend, and what is infeasible is marked in every table."""
    shown = sweeps("budget", "--model", "embedded:tiny-clip", "--lora-rank", "4", "--method", "dora").output
    assert "3x9 4x6: rank 3 on 9 weights, rank 4 on 6 weights." in shown
    (row,) = (
        line
        for line in sweeps("budget", "--shape", "64x64", "--params", "999", "--method", "vera").output.splitlines()
        if line.startswith("vera")
    )
    assert row.rstrip().endswith("infeasible")
    half = json.loads(sweeps("budget", "--model", "embedded:tiny-clip", "--percent", "1", "--json").stdout)
    assert half["budget"] == round(half["adapted_parameters"] / 100) < half["model_parameters"] / 100


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        ImportError("libscipy_openblas.so: failed to map segment from shared object"),
    ],
    ids=["python", "torch", "thread", "library"],
)
def test_memory_that_runs_out_is_no_traceback(results: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def starved(*_: object) -> None:
        raise error

    monkeypatch.setattr("sweeps.cli.status.store_of", starved)
    done = sweeps("status", str(results))
    assert done.exit_code == 2 and "memory ran out" in done.output
