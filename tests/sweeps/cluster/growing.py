"""A driver on a cluster of one node that grows to three and loses the first one during the sweep.

    python -m tests.sweeps.cluster.growing FOLDER LOG

The head has no CPU to train on; each node has one. At most two trials run at a time. Prints JSON: what the sweep did,
the process ids of the workers that trained in each stage, and what was shown on the screen.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes Ray bind 127.0.0.1 on Linux
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
}
os.environ.pop("RAY_ADDRESS", None)

import psutil
from ray.cluster_utils import Cluster

from sweeps.engine.run import run
from tests.fakes import TRIAL, FakeResources, fake_plan
from tests.sweeps.support import logged

SMALL = 80 * 2**20
PAUSE_S = 2.0
"""How long the engine waits after each event of a trial, until the cluster has changed for the last time."""


class Changes:
    """Adds two nodes when two trials have finished, and kills the first node when a second worker has trained.

    As a display it hears of every trial in the main thread, the only one in which Ray starts a raylet. It holds the
    engine up meanwhile, so that the sweep lasts longer than the changes.
    """

    def __init__(self, cluster: Cluster, first: Any, log: Path) -> None:
        self.cluster, self.first, self.log = cluster, first, log
        self.before: set[str] = set()
        self.lost = False
        self.notes: list[str] = []

    def start(self, state: Any) -> None: ...
    def stop(self, state: Any) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def workers(self) -> set[str]:
        """Process ids of the workers that have trained."""
        return {line.split()[2] for line in self.log.read_text().splitlines()} if self.log.exists() else set()

    def update(self, state: Any) -> None:
        workers = self.workers()
        if not self.before:
            if sum(len(cell.rows) for cell in state.cells.values()) >= 2:
                self.before = workers
                for _ in range(2):
                    self.cluster.add_node(num_cpus=1, object_store_memory=SMALL, wait=False)
        elif not self.lost and len(workers) > 1:
            raylet = psutil.Process(self.first.all_processes["raylet"][0].process.pid)
            for process in (raylet, *raylet.children(recursive=True)):
                process.kill()
            self.lost = True
        if len(workers) < 3:
            time.sleep(PAUSE_S)


def main() -> None:
    folder, log = Path(sys.argv[1]), Path(sys.argv[2])
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, object_store_memory=SMALL, include_dashboard=False)
        changes = Changes(cluster, cluster.add_node(num_cpus=1, object_store_memory=SMALL), log)
        plan = fake_plan(folder, logged(log), resources=FakeResources(min_concurrent=1, max_concurrent=2))
        summary = run(plan, trial=TRIAL, progress=changes, address=cluster.address)
        found = {"finished": summary.finished, "failed": summary.failed, "before": len(changes.before)}
        print(json.dumps(found | {"workers": len(changes.workers()), "notes": changes.notes}))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
