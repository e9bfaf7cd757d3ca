"""Every command the README and the quickstart page show is run here, or is a Make target that exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from sweeps.cli.main import app
from tests.support import ROOT

PAGES = ("README.md", "docs/quickstart.md", "CONTRIBUTING.md")
RUNS_A_SWEEP = ("run", "resume", "estimate")
"""Verbs that train: their sweep file is checked by `plan` here, and run whole by the quickstart test."""


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash|console|)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S):
            for line in block.splitlines():
                text = line.removeprefix("$ ").split("  #")[0].strip()
                if re.match(r"(sweeps|make|\.venv/bin/sweeps) ", text):
                    found.append((page, text.removeprefix(".venv/bin/")))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as the README's reader has it after `make demo`, the results synthetic."""
    from tests.analysis.synthetic import make_results

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    make_results(tmp_path / "results" / "quickstart")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda v: v)
def test_command(page: str, command: str, folder: Path) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert set(words) <= set(targets)
        return
    if words[0] in RUNS_A_SWEEP:
        words = ["plan", *words[1:]]
    if words[:2] == ["plan", "my.toml"] or "my.toml" in words:
        CliRunner().invoke(app, ["init", "my.toml"])
        words = ["plan" if w == "init" else w for w in words]
    with patch("uvicorn.Server.run"):  # `watch` serves until Ctrl-C
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
