"""Every command of the README and the pages: reading and planning verbs run here, in the order of their page.

Verbs that train are run by tests of their own (the journeys, the quickstart, `sweeps/cli`): here their words are parsed
as the program parses them, and `run` and `estimate` plan their file.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from sweeps import run as run_plan
from sweeps.cli.main import app
from tests.analysis.synthetic import make_results
from tests.support import ROOT, sweeps
from tests.trainables.tiny_images import write_photos
from tests.trainables.tiny_language import completion_rows, save_model, write_rows

WRITTEN = ["README.md", "CONTRIBUTING.md", "AGENTS.md"]
PAGES = [*WRITTEN, *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("docs/**/*.md")))]
LONG = ("docs/recipes.md", "docs/claim.md", "docs/analysis.md")
"""Pages whose commands take long. Their tests are marked slow."""
ELSEWHERE = {
    "docs/other-tests.md": "test_docs_other_tests",
    "docs/use.md": "test_docs_use",
    "docs/questions.md": "test_published",
    "docs/results.md": "test_published",
    "docs/verbs.md": "below, parsed",
}
"""Pages whose commands another test runs, with what they print."""
PARSED = {"again", "analyze", "doctor", "export", "predict", "import", "verify", "watch"}
"""Verbs that need trained weights, a real journal or files from elsewhere, ask the machine itself, or serve until they
are stopped.
"""
PLANNED = {"run", "estimate"}
SHELLS = {"", "sh", "bash", "console"}
INSTALLED = "lora-fa"
"""A method that its page installs first; `randlora/test_plugins` does so, and checks and plans it."""


def commands(page: str) -> list[str]:
    """Return the commands in the blocks of a page that have no language or a shell's, without comments."""
    found = []
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.S | re.M)  # in pairs: a block's end begins no block
    for block in (block for language, block in blocks if language in SHELLS):
        for line in block.splitlines():
            for command in line.removeprefix("$ ").split("  #")[0].split(" # ")[0].split(" && "):
                if re.match(r"(sweeps|make|python|pip|cp) ", command := command.strip()):
                    found.append(re.sub(r" > [\w.-]+$", "", command))  # without the file that a shell writes
    return found


def parse(words: list[str]) -> None:
    """As the program reads them: verb, arguments, options and their types."""
    verb = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    verb.make_context(words[0], list(words[1:]))


def inline(page: str) -> list[list[str]]:
    """`sweeps VERB ...` in the sentences of a page: the verb and its options."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    return [" ".join(said.split()).split() for said in re.findall(r"`sweeps ([a-z][^`]*)`", text)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader is after `make demo`, the results synthetic, with files of their own and a model."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    make_results(tmp_path / "results" / "quickstart")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def here(word: str, folder: Path) -> str:
    """A word of a command, its files made: results, images, texts, a model."""
    if word == "RESULTS":
        return "results/quickstart"
    if re.fullmatch(r"(docs/)?results/[\w-]+", word) and not (folder / word).exists():
        make_results(folder / word, sweep=Path(word).name)
    if word == "folder:leaves" and not (folder / "leaves").exists():
        write_photos(folder / "leaves", 12, 4)
    if word == "json:my-questions":
        write_rows(folder / "my-questions")
    if word == "glue:my-sentences":
        (folder / "my-sentences").mkdir()
        for which in ("train", "test"):
            rows = ["sentence\tlabel", *(f"{which} {i}\t{'good' if i % 2 else 'bad'}" for i in range(40))]
            (folder / "my-sentences" / f"{which}.tsv").write_text("\n".join(rows), encoding="utf-8")
    if word == "my-texts":
        (folder / word).mkdir()
        for which, n, seed in (("train", 20, 0), ("test", 6, 1)):
            lines = map(json.dumps, completion_rows(n, seed))
            (folder / word / f"{which}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    if word.startswith("local:my-"):
        save_model(folder / word.removeprefix("local:"), "llama")
    return word


def run(command: str, folder: Path) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert set(words) <= set(targets), command
    elif program in {"python", "cp"}:
        if words[0] != "-c":
            script = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])
            source = script.read_text(encoding="utf-8") if script.is_file() else ""
            assert script.exists() or program == "cp"
            assert program == "cp" or all(word in source for word in words[1:] if word.startswith("--")), command
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = re.findall(r"randlora-sweeps\[([\w-]+)\]", command)
        assert set(extras) <= set(project["optional-dependencies"]) and (extras or (ROOT / words[-1]).exists())
    elif program == "sweeps":
        words = [here(word, folder) for word in words]
        parse(words)
        if INSTALLED in words or words[0] in PARSED - PLANNED or "--compare" in words:
            return
        if words[0] in PLANNED:
            kept = [i for i, word in enumerate(words) if word in {"--set", "--scale"}]
            words = ["plan", words[1], *(word for i in kept for word in words[i : i + 2])]
        if words[0] == "plan" and not Path(words[1]).exists():
            assert sweeps("init", words[1]).exit_code == 0
        if words[0] == "init" and (name := next((w for w in words if w.endswith(".toml")), None)):
            Path(name).unlink(missing_ok=True)
        if (words[0] == "plan" and "examples/paper" in words[1]) or "study" in command:
            return  # test_recipes and test_examples_real plan all of them
        done = sweeps(*words)
        assert done.exit_code == 0, f"{command}\n{done.output}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in LONG else ())
        for page in PAGES
        if page not in ELSEWHERE and commands(page)
    ],
)
def test_the_commands_of_a_page(page: str, folder: Path) -> None:
    for command in commands(page):
        run(command, folder)


@pytest.mark.parametrize("page", PAGES)
def test_verbs_and_options_in_sentences_are_the_programs(page: str) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for verb, *words in inline(page):
        for name in verb.split("|"):
            assert name in known or name == "VERB", f"{page}: sweeps {verb}"
        given = {word.split("=")[0] for word in words if word.startswith("--")} - {"--help"}
        if verb in known:
            options = {opt for p in known[verb].params for opt in [*p.opts, *p.secondary_opts]}
            assert given <= options, f"{page}: sweeps {verb} {' '.join(words)}"


def test_every_example_of_a_verb_parses() -> None:
    for command in commands("docs/verbs.md"):
        parse(shlex.split(command)[1:])


def test_commands_after_a_block_of_another_language_are_found() -> None:
    assert "sweeps plan leaves.toml" in commands("docs/own-images.md")  # its first block is text
    assert "sweeps run my.toml" in commands("README.md")  # in a list, so the block is indented


def test_the_tests_that_run_other_pages_are_there() -> None:
    for page, test in ELSEWHERE.items():
        assert (ROOT / page).is_file() and (
            test.startswith("below") or (ROOT / f"tests/repository/{test}.py").is_file()
        )


def test_run_in_python_takes_what_the_pages_give_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    named = {keyword for text in texts for keyword in re.findall(r"\brun\(plan, (\w+)=", text)}
    assert named == {"progress", "observers", "backend"}
    given: dict[str, Any] = {}

    def engine(plan: object, **how: object) -> SimpleNamespace:
        given.update(how)
        return SimpleNamespace(folder=Path("results/quickstart"))

    monkeypatch.setattr("sweeps.engine.run.run", engine)
    wanted: dict[str, Any] = dict.fromkeys([*named, "address", "restart", "retry_failed", "upload", "estimate"], "this")
    plan: Any = None
    assert run_plan(plan, **wanted).path == Path("results/quickstart") and given == wanted
