"""The public surface is the one written down: what leaves or changes breaks somebody's scripts."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from sweeps.cli import main
from tests.repository import public

WRITTEN = Path(__file__).with_name("public.json")
ADVICE = "on purpose? Say so in CHANGELOG.md and run: python -m tests.repository.public > tests/repository/public.json"


def written(part: str) -> Any:
    return json.loads(WRITTEN.read_text(encoding="utf-8"))[part]


@pytest.mark.parametrize("package", ["randlora", "sweeps", "analysis"])
def test_public_names(package: str) -> None:
    assert public.names()[package] == written("names")[package], ADVICE
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_the_command_line() -> None:
    assert public.commands() == written("commands"), ADVICE


def test_exit_codes_are_documented() -> None:
    codes = public.exit_codes()
    assert codes == written("exit codes"), ADVICE
    assert all(f"{code} {meaning.split()[0]}" in (main.__doc__ or "") for code, meaning in codes.items())


def test_the_columns_of_tables() -> None:
    assert public.columns() == written("columns"), ADVICE
