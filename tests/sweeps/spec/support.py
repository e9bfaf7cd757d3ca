"""A sweep file that is good, and what is wrong with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeps.errors import Problem, SpecError
from sweeps.spec.spec import SweepSpec

GOOD = """
name = "t"
[model]
id = "embedded:tiny-clip"
[data]
datasets = ["embedded:fashion-mnist"]
[budgets]
lora_rank = [1, 4]
[methods.lora]
[methods.randlora]
"""


def write(tmp_path: Path, text: str, name: str = "s.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@dataclass(frozen=True)
class Wrong:
    """What a problem must tell, in whatever words.

    Attributes:
        names: numbers, keys and names that its rule must give.
    """

    field: str
    value: object = None
    nearest: str | None = None
    names: tuple[str, ...] = ()

    def check(self, problem: Problem) -> None:
        told = (problem.field, repr(problem.value), problem.nearest)
        assert told == (self.field, repr(self.value), self.nearest), f"{problem!r} is not {self!r}"
        missing = [name for name in self.names if name not in problem.rule]
        assert not missing, f"{problem.rule!r} does not give {missing}"


def refused(make: Callable[[], object]) -> tuple[Problem, ...]:
    """Return what is wrong with a sweep that `make` reads or plans."""
    with pytest.raises(SpecError) as caught:
        make()
    return caught.value.problems


def problems(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> tuple[Problem, ...]:
    return refused(lambda: SweepSpec.load(write(tmp_path, text), overrides))
