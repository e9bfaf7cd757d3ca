"""Runs the state machine of `any_order` in a process of its own.

The machine replaces parts of Ray and the clock in the modules of lanes. Lanes that other tests keep in this process
have threads that would use the replacements.
"""

from __future__ import annotations

import subprocess
import sys

from tests.support import ROOT


def test_lanes_keep_their_rules_in_any_order_of_events() -> None:
    machine = "tests/sweeps/lanes/any_order.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", machine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-8000:] + done.stderr[-2000:]
