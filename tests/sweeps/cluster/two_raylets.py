"""A driver on a cluster of two raylets of this machine, one of which is lost in the middle of its trials.

    python -m tests.sweeps.cluster.two_raylets FOLDER LOG DELAY [back|away]

The head has no CPU to train on; two raylets with one CPU each do. All listen on loopback. With "back" another machine
takes the lost one's place, with "away" the head has no memory for the lanes' controllers. Prints JSON: what the sweep
did, the process ids of the lost machine, and how many controllers ran on the head then.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
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

from sweeps.backends.ray.backend import open_here  # in this process, whose settings of lanes count
from sweeps.backends.ray.lanes import lanes
from sweeps.engine.run import run
from tests.fakes import TRIAL, FakeResources, fake_plan
from tests.sweeps.support import logged

SMALL = 80 * 2**20


class Loss:
    """Takes a machine away, all of its processes at once, while one of its trials runs.

    As a display it hears of every trial in the main thread, the only one in which Ray starts a raylet.
    """

    def __init__(self, cluster: Cluster, node: Any, log: Path, folder: Path, back: bool) -> None:
        self.cluster, self.node, self.log, self.back = cluster, node, log, back
        self.controllers = 0
        self.journal = folder / "journal.jsonl"
        self.lost: list[int] = []
        self.lost_at = 0.0
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.lost:
            time.sleep(0.05)
            if self.journal.exists() and self.journal.read_text().count('"ev":"finish"') >= 3:
                self._strike()

    def start(self, state: Any) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self, state: Any) -> None: ...

    def update(self, state: Any) -> None:
        if self.back and self.lost and time.monotonic() - self.lost_at > 5:
            self.back = False
            self.cluster.add_node(num_cpus=1, object_store_memory=SMALL, wait=False)

    def _strike(self) -> None:
        family = _family(self.node)
        pids = {str(process.pid) for process in family}
        lines = [line.split() for line in self.log.read_text().splitlines()]
        epochs = [int(epoch) for _, epoch, pid in lines if pid in pids]
        if epochs and epochs[-1] == 2:  # one epoch is reported, the third is to come
            for process in family:
                process.kill()
            self.controllers = sum("TrainController" in _title(p) for p in _family(self.cluster.head_node))
            self.lost, self.lost_at = [process.pid for process in family], time.monotonic()


def _family(node: Any) -> list[psutil.Process]:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # it may just have ended
        return " ".join(process.cmdline())
    return ""


def main() -> None:
    folder, log, delay, how = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
    lanes.RETRY_S = 2.0  # not a minute
    if how == ["away"]:
        lanes.CONTROLLER_BYTES = lanes.GROUP_CONTROLLER_BYTES = 2**60
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, object_store_memory=SMALL, include_dashboard=False)
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=SMALL) for _ in range(2)]
        loss = Loss(cluster, nodes[-1], log, folder, back=how == ["back"])
        loss.thread.start()
        plan = fake_plan(folder, logged(log, delay=delay), resources=FakeResources(concurrent=2))
        summary = run(plan, trial=TRIAL, progress=loss, address=cluster.address, backend=open_here)
        found = {"finished": summary.finished, "failed": summary.failed, "lost": loss.lost}
        found["controllers"] = loss.controllers
        print(json.dumps(found))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
