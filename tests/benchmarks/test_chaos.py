"""The cheap cases of the benchmark of faults, a few times each: no traceback, no wrong row."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT

CHAOS = ROOT / "benchmarks" / "chaos.py"


def chaos(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHAOS), *words]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(("case", "times"), [("journals", 15), ("data", 150)])
def test_a_case_finds_nothing(case: str, times: int) -> None:
    done = chaos("--case", case, "--times", str(times), "--seed", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = re.findall(rf"^{case}: (.*) \([\d.]+ minutes\)$", done.stdout, re.M)
    assert sum(int(part.split()[0]) for part in line.split(", ")) == times


@pytest.mark.slow
def test_an_unknown_case_is_told_the_known_ones() -> None:
    done = chaos("--case", "journal")
    assert done.returncode == 2 and "journals: " in done.stderr
