"""A sweep file that is good, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.errors import SpecError
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


def problems(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(SpecError) as caught:
        SweepSpec.load(write(tmp_path, text), overrides)
    return [str(p) for p in caught.value.problems]
