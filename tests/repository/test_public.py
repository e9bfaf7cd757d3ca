"""The public surface is the one written down: what leaves or changes breaks somebody's scripts."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import randlora
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


def documented() -> Iterator[tuple[str, str, list[str]]]:
    """Yield name, docstring and arguments of every public function, configuration and method of randlora."""
    for name in randlora.__all__:
        value = getattr(randlora, name)
        if inspect.isfunction(value):
            yield name, value.__doc__ or "", list(inspect.signature(value).parameters)
        if dataclasses.is_dataclass(value):
            yield name, value.__doc__ or "", [field.name for field in dataclasses.fields(value)]
        for key, member in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(member) and not key.startswith("_"):
                yield f"{name}.{key}", member.__doc__ or "", list(inspect.signature(member).parameters)[1:]


def test_help_names_every_argument() -> None:
    silent = [
        f"{name}: {argument}"
        for name, text, arguments in documented()
        for argument in arguments
        if not re.search(rf"\b{argument}\b", text)
    ]
    assert not silent


def test_the_command_line() -> None:
    assert public.commands() == written("commands"), ADVICE


def test_exit_codes_are_documented() -> None:
    codes = public.exit_codes()
    assert codes == written("exit codes"), ADVICE
    assert all(f"{code} {meaning.split()[0]}" in (main.__doc__ or "") for code, meaning in codes.items())


def test_the_columns_of_tables() -> None:
    assert public.columns() == written("columns"), ADVICE
