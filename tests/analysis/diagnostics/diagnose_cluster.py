"""`sweeps analyze --address` on a cluster of two raylets of this machine, one of which may be lost in the middle.

    python -m tests.analysis.diagnostics.diagnose_cluster FOLDER LOG [lose]

The head has no CPU; two raylets with one each have. All listen on loopback. Prints JSON: exit codes, what was said, and
the raylets' process ids. LOG gets a line per task that begins: its unit, its raylet, its process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.sweeps.cluster.two_raylets import SMALL, Cluster  # sets what keeps Ray on loopback

# isort: split
import psutil
from typer.testing import CliRunner

from analysis.diagnostics.units import Unit
from sweeps.cli.main import app
from sweeps.engine import analyze as diagnose

LOG = "TEST_DIAGNOSE_LOG"
LEAST_S = 1.0
"""How long a task takes at least, so that it can be lost in the middle."""

_whole = diagnose._compute


def logged(folder: Path, unit: Unit) -> list[dict[str, Any]]:
    """A unit's rows; says first who computes it."""
    with Path(os.environ[LOG]).open("a") as log:
        log.write(f"{unit.unit_id} {os.getppid()} {os.getpid()}\n")
    time.sleep(LEAST_S)
    return _whole(folder, unit)


def lose(raylet: psutil.Process, log: Path, lost: list[int]) -> None:
    """Take the machine away, all of its processes at once, as soon as a task runs there."""
    while not lost:
        time.sleep(0.05)
        lines = log.read_text().splitlines() if log.exists() else []
        if any(line.split()[1] == str(raylet.pid) for line in lines):
            family = [raylet, *raylet.children(recursive=True)]
            for process in family:
                process.kill()
            lost += [process.pid for process in family]


def main() -> None:
    folder, log, losing = sys.argv[1], Path(sys.argv[2]), sys.argv[3:] == ["lose"]
    os.environ[LOG] = str(log)  # the raylets' workers have it too
    diagnose._compute = logged
    cluster, lost = Cluster(), list[int]()
    try:
        cluster.add_node(num_cpus=0, object_store_memory=SMALL, include_dashboard=False)
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=SMALL) for _ in range(2)]
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        ask = ["analyze", "landscape", folder, "--address", cluster.address, "--points", "4", "--examples", "16"]
        refused = CliRunner().invoke(app, [*ask, "--cpus", "2"])
        if losing:
            threading.Thread(target=lose, args=(psutil.Process(raylets[1]), log, lost), daemon=True).start()
        done = CliRunner().invoke(app, [*ask, "--json"])
        found = {"raylets": raylets, "lost": lost, "refused": [refused.exit_code, refused.output]}
        print(json.dumps(found | {"done": [done.exit_code, done.stdout], "error": repr(done.exception)}))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
