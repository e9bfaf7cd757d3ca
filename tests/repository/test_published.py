"""The published tables under docs/results open, are complete as said, go on without a journal, and hold no weights."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis import StoreError, open_store
from analysis.findings.all import pick
from analysis.sheets.forms import form_of
from sweeps import Plan, SweepSpec
from sweeps.cli.main import app
from sweeps.engine.run import run
from tests.support import ROOT

RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
ANSWERS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
BLOCK = r"```sh\n(.*?)```\n```text\n(.*?)```"
QUESTIONS = re.findall(BLOCK, PAGE + ANSWERS, re.S)
KINDS = {".parquet", ".json", ".jsonl"}


@pytest.mark.parametrize("command, printed", QUESTIONS)
def test_a_question_has_the_printed_answer(command: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    program, *words = shlex.split(command.replace("\\\n", " "))
    assert program == "sweeps"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    for line in printed.splitlines():
        assert any(" ".join(line.split()) in one for one in lines)


def test_the_readme_shows_what_the_published_quickstart_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its block of output, and every number of its table of answers."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["best", "docs/results/quickstart"])
    said = " ".join(done.output.split())
    plain = said.replace(" points [", " [")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```text\n(.*?)```", readme, re.S)
    for part in block.split("...\n"):
        assert " ".join(part.split()) in said
    rows = [line for line in readme.splitlines() if line.startswith(("| LoRA-", "| mean of"))]
    assert len(rows) == 4
    for number in re.findall(r"[+−]?\d[\d.,]*(?: \[.*?\])?", " ".join(rows)):
        assert number in plain, number


def test_every_block_of_commands_has_its_answer() -> None:
    assert len(QUESTIONS) == (PAGE + ANSWERS).count("```sh")


@pytest.mark.parametrize("folder", sorted(p for p in RESULTS.iterdir() if p.is_dir()), ids=lambda p: p.name)
def test_a_folder_opens_and_is_small(folder: Path) -> None:
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= KINDS and sum(p.stat().st_size for p in files) < 7_000_000
    store = open_store(folder)
    trials = store.table("trials").to_pylist()
    assert trials and {row["status"] for row in trials} == {"finished"}
    assert folder.name in PAGE
    for row in [*trials, *store.table("cells").to_pylist()]:
        assert not re.search(r":/", row["model"] + row["dataset"]), "an absolute path of one machine"


def test_the_page_counts_the_trials_of_every_sweep() -> None:
    counts = {name: int(planned) for name, planned in re.findall(r"^\| `([\w-]+)` .* all (\d+) trials", PAGE, re.M)}
    assert counts.keys() == {p.name for p in RESULTS.iterdir() if p.is_dir()} - {"peft-published"}
    for name, planned in counts.items():
        (row,) = (
            open_store(RESULTS / name)
            .sql("select sum(tune_planned + confirm_planned) as n from coverage where feasible")
            .to_pylist()
        )
        assert row["n"] == planned, name


@pytest.mark.parametrize("name, trials", [("quickstart", 128), ("rank", 216)])
def test_a_sweep_goes_on_from_its_tables(name: str, trials: int, tmp_path: Path) -> None:
    """Nothing is trained again, though the journal is not published."""
    folder = Path(shutil.copytree(RESULTS / name, tmp_path / name))
    plan = Plan.from_spec(SweepSpec.load(ROOT / "examples" / f"{name}.toml", [f"output={folder}"]))
    summary = run(plan, progress=False)  # starts no Ray: nothing is missing
    assert (summary.finished, summary.skipped, summary.complete) == (0, trials, True)


INTERVAL = re.compile(r"([+−]?\d+\.\d)(?: points?)?(?: of BLEU)?\s*\[([+−]?\d+\.\d),\s*([+−]?\d+\.\d)\]")
"""A mean and its interval, of a score or a difference; shares of tables, which have a % between, are not meant."""
TABLES = ("results", "comparisons", "averages", "changes", "full_fine_tuning", "rank_effects", "currencies")
SECTIONS = {text.splitlines()[0]: text for text in re.split(r"^#+ ", ANSWERS, flags=re.M) if INTERVAL.search(text)}
"""The sections of the results page that quote intervals, by heading."""
WHOLE = "all cells as one analysis"
"""Said of changes and slopes that a copy of the folder prints from which the declarations were taken."""


def numbers(texts: Sequence[str]) -> tuple[float, ...]:
    return tuple(float(text.replace("−", "-")) for text in texts)


def printed(folder: Path, tables: Sequence[str] = TABLES) -> str:
    """The tables of a folder that the page quotes, as `sweeps tables` prints them."""
    store = open_store(folder)
    said: list[str] = []
    for name in tables:
        with contextlib.suppress(StoreError):  # a table without a row here
            said += [form_of("markdown")(sheet) for sheet in pick(store, [name])]
    return "\n".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("heading", SECTIONS)
def test_the_folders_of_a_section_print_its_intervals(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "250")
    text = SECTIONS[heading]
    folders = sorted(path for path in set(re.findall(r"docs/results/[\w-]+", text)) if (ROOT / path).is_dir())
    said = [printed(ROOT / path) for path in folders]
    for path, name in re.findall(r"`sweeps\s+compare\s+(docs/results/[\w-]+)\s+--baseline\s+([\w-]+)`", text):
        said.append(CliRunner().invoke(app, ["compare", path, "--baseline", name]).output)
    for path in folders if WHOLE in " ".join(text.split()) else ():
        copy = Path(shutil.copytree(ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("declared.json")))
        said.append(printed(copy, ("changes", "rank_effects")))
    known = {numbers(found) for text in said for found in INTERVAL.findall(text)}
    for _, answer in re.findall(BLOCK, text, re.S):
        rows = [line.split()[-3:] for line in answer.splitlines()]
        known |= {numbers(row) for row in rows if all(re.fullmatch(r"-?\d+(\.\d)?", word) for word in row)}
    if not folders:  # the summary quotes other sections
        others = [other for other in SECTIONS.values() if other is not text and "docs/results/" in other]
        known = {numbers(found) for other in others for found in INTERVAL.findall(other)}
    known |= {(-mean, -high, -low) for mean, low, high in known}
    assert [found for found in INTERVAL.findall(text) if numbers(found) not in known] == []


def test_most_sections_quote_intervals() -> None:
    assert len(SECTIONS) >= 9 and sum(len(INTERVAL.findall(text)) for text in SECTIONS.values()) > 200
    assert any(WHOLE in " ".join(text.split()) for text in SECTIONS.values())
