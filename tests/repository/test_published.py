"""The published tables under docs/results open, are complete as said, go on without a journal, and hold no weights."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis import open_store
from sweeps import Plan, SweepSpec
from sweeps.cli.main import app
from sweeps.engine.run import run
from tests.support import ROOT

RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
ANSWERS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"```sh\n(.*?)```\n```text\n(.*?)```", PAGE + ANSWERS, re.S)
KINDS = {".parquet", ".json", ".jsonl"}


@pytest.mark.parametrize("command, printed", QUESTIONS)
def test_a_question_has_the_printed_answer(command: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    program, *words = shlex.split(command.replace("\\\n", " "))
    assert program == "sweeps"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for line in printed.splitlines():
        assert line.rstrip() in done.output


def test_every_block_of_commands_has_its_answer() -> None:
    assert len(QUESTIONS) == (PAGE + ANSWERS).count("```sh") == 6


@pytest.mark.parametrize("folder", sorted(p for p in RESULTS.iterdir() if p.is_dir()), ids=lambda p: p.name)
def test_a_folder_opens_and_is_small(folder: Path) -> None:
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= KINDS and sum(p.stat().st_size for p in files) < 3_000_000
    store = open_store(folder)
    trials = store.table("trials").to_pylist()
    assert trials and {row["status"] for row in trials} == {"finished"}
    assert folder.name in PAGE
    for row in [*trials, *store.table("cells").to_pylist()]:
        assert not re.search(r":/", row["model"] + row["dataset"]), "an absolute path of one machine"


@pytest.mark.parametrize("name, trials", [("quickstart", 127), ("rank", 216)])
def test_a_sweep_goes_on_from_its_tables(name: str, trials: int, tmp_path: Path) -> None:
    """Nothing is trained again, though the journal is not published."""
    folder = Path(shutil.copytree(RESULTS / name, tmp_path / name))
    plan = Plan.from_spec(SweepSpec.load(ROOT / "examples" / f"{name}.toml", [f"output={folder}"]))
    summary = run(plan, progress=False)  # starts no Ray: nothing is missing
    assert (summary.finished, summary.skipped, summary.complete) == (0, trials, True)
