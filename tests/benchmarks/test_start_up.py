"""`benchmarks/start_up.py`: its ratios are taken inside rounds, and both sides get to their first trial."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.start_up import MEASURED, report
from tests.support import ROOT

SLOW, QUICK = (("usual", 60.0), ("ours", 30.0)), (("usual", 2.0), ("ours", 1.0))
"""Processes of each side, in a round on a slow machine and in one on a quick machine."""


def test_ratios_are_taken_inside_rounds() -> None:
    rounds = [{side: dict.fromkeys(MEASURED, value) for side, value in each} for each in (SLOW, QUICK)]
    lines = [line for line in report(rounds) if line.startswith("processes")]
    assert lines == [
        "processes, usual: 31.0 [2.0, 60.0]",
        "processes, ours: 15.5 [1.0, 30.0]",
        "processes, ours / usual: 0.50 [0.50, 0.50]",
    ]


@pytest.mark.slow
def test_one_round() -> None:
    """With two lanes, each of which leaves out two processes, our side has fewer of them."""
    command = [sys.executable, "-m", "benchmarks.start_up", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    counts = {
        line.partition(":")[0]: float(line.split()[-3]) for line in done.stdout.splitlines() if "processes," in line
    }
    assert counts["processes, ours"] < counts["processes, usual"]
