"""Simulate clusters on this machine, and measure trials a second and memory by the number of nodes.

    python benchmarks/simulated_cluster.py                      # 1 and 4 nodes of 2 devices
    python benchmarks/simulated_cluster.py --nodes 1 4 16 --devices 8 --trials 2000 --json FILE
    python benchmarks/simulated_cluster.py --nodes 16 --devices 1 --pack 16 --trials 2000   # 256 trials at a time
    python benchmarks/simulated_cluster.py --grow 1 8 2 --devices 1 --trials 160 --pause 3  # nodes join and leave

Ray's own test cluster runs several raylets on this machine and gives each node logical GPUs. A trial trains nothing:
its epochs are pauses. On one node the pauses are `--slow` times as long. Every node's clock is `--apart` seconds ahead
of the one before. The head has no device. The `--idle` nodes have none either: each is a raylet and its agents. The
driver joins by address, as on real machines.

Each size runs twice: left alone, and with a fault every `--every` seconds. The faults take turns. One stops all
processes of a node until the next fault. The other kills all processes of a node, while a new node joins. Every sweep's
tables must equal the first's. A worker is a process of 250 MB, which limits the number of nodes. A lane that is down is
tried again after 2 seconds, not after a minute. Everything listens on loopback, and asks for a token.

`--grow FIRST MOST LAST` runs a sweep on FIRST nodes. When it has finished trials, nodes join until there are MOST. When
these have finished trials too, nodes are killed until LAST are left. The script prints how long the sweep took to use
the nodes that joined, and how many trials ran at a time. The tables must equal those of a sweep that was left alone,
with shorter pauses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from tests.fakes import AHEAD, SLOWER  # noqa: E402

DRIVER = """
import json, sys
from pathlib import Path
from sweeps.engine.run import run
from sweeps.packing import choosing
from sweeps.backends.ray.lanes import lanes
from sweeps.backends.ray.backend import open_here
from tests.fake_packs import TOGETHER
from tests.fakes import TRIAL, FakeCell, FakeConfirm, FakeResources, FakeSearch, fake_plan

lanes.RETRY_S = 2.0
choosing.TOGETHER.update(TOGETHER)
folder, address, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
cells, tune, pack = map(int, sys.argv[4:])
options = (("delay", pause / pack), ("log", f"{folder}.log"))
made = tuple(FakeCell("lora", 1000 * (1 + k), options=options) for k in range(cells))
resources = FakeResources(gpus_per_worker=1.0, pack=pack)
search = FakeSearch(trials=tune, sampler="qmc", rerun_rates=0, rerun_seeds=0)
plan = fake_plan(folder, made, search=search, confirm=FakeConfirm((0, 1)), resources=resources)
summary = run(plan, trial=TRIAL, progress=False, address=address, backend=open_here)
print(json.dumps({"finished": summary.finished, "failed": summary.failed}))
"""
SEEDS = 2
SMALL = 80 * 2**20
LOOK_S = 1.0


class Memory:
    """Measures the largest unshared memory of the driver and of its processes on the head, in MB."""

    def __init__(self, driver: int, head: int) -> None:
        self.roots = {"driver": psutil.Process(driver), "head": psutil.Process(head)}
        self.most: dict[str, float] = {}

    def look(self) -> None:
        memory = {"driver": _own(self.roots["driver"]), "broker": 0.0, "lane controllers": 0.0, "other workers": 0.0}
        with contextlib.suppress(psutil.Error):
            for process in self.roots["head"].children(recursive=True):
                title = " ".join(process.cmdline()[:1])
                kinds = {"Broker": "broker", "TrainController": "lane controllers", "ray::": "other workers"}
                kind = next((kind for word, kind in kinds.items() if word in title), None)
                if kind is not None:
                    memory[kind] += _own(process)
        self.most = {kind: max(value, self.most.get(kind, 0.0)) for kind, value in memory.items()}


def _own(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return float(process.memory_full_info().uss) / 1e6
    return 0.0


def signalled(node: Any, number: signal.Signals) -> bool:
    """Send a signal to all processes of a node. Return whether it had any."""
    with contextlib.suppress(psutil.NoSuchProcess):
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        if raylet.status() == psutil.STATUS_ZOMBIE:
            return False
        for process in (raylet, *raylet.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return True
    return False


class Faults:
    """Makes the faults of nodes. In turn it stops a node until the next fault, or kills one and adds another."""

    def __init__(self, cluster: Any, devices: int) -> None:
        self.cluster, self.devices, self.still, self.silent, self.lost = cluster, devices, None, 0, 0

    def next(self) -> None:
        nodes = list(self.cluster.worker_nodes)
        if self.still is None:
            self.still = nodes[0]
            self.silent += signalled(self.still, signal.SIGSTOP)
            return
        woken, self.still = self.still, None
        self._replace(next((node for node in nodes if node is not woken), woken))
        if not signalled(woken, signal.SIGCONT) and woken in self.cluster.worker_nodes:
            self._replace(woken)  # it was silent for so long that Ray gave it up, and it ended itself

    def _replace(self, node: Any) -> None:
        signalled(node, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        join(self.cluster, self.devices, wait=False)
        self.lost += 1


class Growth:
    """A cluster that grows to `most` nodes and then shrinks to `last`, as the sweep's journal gets on.

    Attributes:
        at: when the nodes "joined" and "left", in seconds since 1970.
    """

    def __init__(self, cluster: Any, devices: int, most: int, last: int, folder: Path) -> None:
        self.cluster, self.devices, self.most, self.last = cluster, devices, most, last
        self.journal, self.log = folder / "journal.jsonl", Path(f"{folder}.log")
        self.at: dict[str, float] = {}
        self.lost, self.silent = 0, 0
        self._before: int | None = None
        """Number of trials that had finished when every node had trained."""

    def next(self) -> None:
        lines = self.journal.read_text().splitlines(keepends=True)
        finished = sum('"ev":"finish"' in line for line in lines if line.endswith("\n"))
        if "joined" not in self.at:
            if finished >= 2:
                for _ in range(self.most - len(self.cluster.worker_nodes)):
                    join(self.cluster, self.devices, wait=False)
                self.at["joined"] = time.time()
        elif self._before is None:
            if _workers(self.log) == self.most * self.devices:
                self._before = finished
        elif "left" not in self.at and finished >= self._before + 2 * self.most * self.devices:
            for node in [*self.cluster.worker_nodes][: self.most - self.last]:  # the first one too
                signalled(node, signal.SIGKILL)
                self.cluster.remove_node(node, allow_graceful=False)
                self.lost += 1
            self.at["left"] = time.time()


def _workers(log: Path) -> int:
    """Return the number of processes that have trained."""
    return len({line.split()[2] for line in log.read_text().splitlines()})


@contextlib.contextmanager
def cluster_of(nodes: int, options: argparse.Namespace) -> Iterator[Any]:
    """Start a head without devices, `nodes` nodes with devices, and the idle nodes. At the end, stop all processes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, object_store_memory=SMALL, include_dashboard=False)
        for _ in range(options.idle):
            join(cluster, 0, wait=True)
        for k in range(nodes):
            slow = 1.0 if k else options.slow
            join(cluster, options.devices, wait=True, slow=slow, ahead=(k + 1) * options.apart)
        yield cluster
    finally:
        family = psutil.Process().children(recursive=True)
        cluster.shutdown()
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=10)


def join(cluster: Any, devices: int, *, wait: bool, slow: float = 1.0, ahead: float = 0.0) -> None:
    environment = {SLOWER: str(slow), AHEAD: str(ahead)}
    cluster.add_node(num_cpus=devices, num_gpus=devices, object_store_memory=SMALL, wait=wait, env_vars=environment)


def row(folder: Path, nodes: int, options: argparse.Namespace, every: float) -> dict[str, Any]:
    """Run one sweep in a separate process. `every` is the number of seconds between faults, 0 for none."""
    with cluster_of(nodes, options) as cluster:
        tune = max(8, options.pack)
        sizes = (max(1, options.trials // (tune + SEEDS)), tune, options.pack)
        pause = options.pause if every or not options.grow else options.pause / 10
        command = [sys.executable, "-c", DRIVER, *map(str, (folder, cluster.address, pause, *sizes))]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        memory = Memory(driver.pid, cluster.head_node.all_processes["raylet"][0].process.pid)
        journal, due = folder / "journal.jsonl", None
        faults: Faults | Growth = Faults(cluster, options.devices)
        if options.grow and every:
            _, most, last = options.grow
            faults = Growth(cluster, options.devices, most, last, folder)
        while driver.poll() is None:
            time.sleep(LOOK_S)
            memory.look()
            if due is None and journal.exists() and '"ev":"finish"' in journal.read_text():
                due = time.monotonic() + every  # every device trains
            if every and due is not None and time.monotonic() > due:
                faults.next()
                due = time.monotonic() + every
        if driver.returncode:
            raise SystemExit(f"the driver ended with {driver.returncode}")
        assert driver.stdout is not None
        results = json.loads(driver.stdout.read().strip().splitlines()[-1])
    if isinstance(faults, Growth):
        results |= grown(folder, faults)
    return {"nodes": nodes, "devices": nodes * options.devices, "lost": faults.lost, "silent": faults.silent, **results,
            "trials per second": rate(folder, nodes * options.devices), "MB": memory.most}  # fmt: skip


def grown(folder: Path, growth: Growth) -> dict[str, Any]:
    """Return how a sweep followed its nodes: trials at a time at the start, in the middle and at the end, and when."""
    from analysis import open_store

    changes = [event for event in _events(folder) if event["ev"] == "workers"]
    if "left" not in growth.at or changes[-1]["workers"] != growth.last * growth.devices:
        raise SystemExit("the sweep ended before it had followed the cluster to its last size: take more trials")
    given_up = datetime.fromisoformat(changes[-1]["at"]).timestamp()
    rows = open_store(folder).table("trials").to_pylist()
    spans = [(row["started_at"].timestamp(), row["ended_at"].timestamp()) for row in rows]
    counts = [(moment, sum(start <= moment < end for start, end in spans)) for moment, _ in sorted(spans)]
    joined, left = growth.at["joined"], growth.at["left"]
    middle = [(moment, count) for moment, count in counts if joined <= moment < left]
    most = max(count for _, count in middle)
    after = [count for moment, count in counts if moment >= given_up]
    return {
        "at once": [max(count for moment, count in counts if moment < joined), most, max(after, default=0)],
        "seconds until used": next(moment for moment, count in middle if count == most) - joined,
        "seconds until given up": given_up - left,
        "attempts": max(row["attempt"] for row in rows),
    }


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def rate(folder: Path, devices: int) -> float:
    """Return trials a second, counted from when every device has ended one."""
    from analysis import open_store

    ends = sorted(row["ended_at"] for row in open_store(folder).table("trials").to_pylist())
    return (len(ends) - devices) / (ends[-1] - ends[devices - 1]).total_seconds()


def alone(folder: Path, nodes: int, every: float, arguments: list[str]) -> dict[str, Any]:
    """Run `row` in a process whose Ray keeps its files in a separate folder."""
    with tempfile.TemporaryDirectory(prefix="sim-") as files:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "RAY_TMPDIR": files, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0", "RAY_worker_niceness": "0",
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, __file__, *arguments, "--row", str(folder), str(nodes), str(every)]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{nodes} nodes: ended with {done.returncode}")
    results: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return results


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4], help="numbers of nodes, one by one (1 4)")
    parser.add_argument("--devices", type=int, default=2, help="logical GPUs of a node (2)")
    parser.add_argument("--trials", type=int, default=200, help="number of trials of each sweep (200)")
    parser.add_argument("--pack", type=int, default=1, help="trials that a device trains together (1)")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds of each of a trial's three epochs (0.5)")
    parser.add_argument(
        "--every", type=float, default=15.0, help="seconds from one fault of a node to the next (15); 0: none"
    )
    parser.add_argument("--slow", type=float, default=1.0, help="how many times as long trials of one node take (1)")
    parser.add_argument("--apart", type=float, default=0.0, help="seconds between the clocks of two nodes (0)")
    parser.add_argument("--idle", type=int, default=0, help="number of nodes without devices; needs --every 0 (0)")
    parser.add_argument(
        "--grow", type=int, nargs=3, metavar=("FIRST", "MOST", "LAST"), help="nodes that join and leave during a sweep"
    )
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.idle and options.every:
        parser.error("--idle is for clusters that are left alone: --every 0")
    if options.grow:
        options.nodes, options.every = options.grow[:1], LOOK_S
    return options


def main() -> None:
    options = parse()
    if options.row:
        print(json.dumps(row(Path(options.row[0]), int(options.row[1]), options, float(options.row[2]))))
        return
    from tests.sweeps.support import assert_same_tables

    rows, first = [], None
    with tempfile.TemporaryDirectory() as name:
        for nodes in options.nodes:
            for every in dict.fromkeys((0.0, options.every)):
                folder = Path(name) / f"{nodes}-{every:g}"
                results = alone(folder, nodes, every, sys.argv[1:])
                rows.append(results)
                memory = ", ".join(f"{kind} {value:.0f}" for kind, value in results["MB"].items())
                print(
                    f"{results['nodes']} nodes, {results['devices']} devices: {results['lost']} lost and "
                    f"{results['silent']} silent, {results['trials per second']:.2f} trials a second, "
                    f"{results['failed']} failed; MB: {memory}",
                    flush=True,
                )
                if "at once" in results:
                    before, most, last = results["at once"]
                    print(
                        f"nodes {' -> '.join(map(str, options.grow))}: {before}, {most} and {last} trials at a time; "
                        f"{results['seconds until used']:.0f} s until the nodes that joined trained, "
                        f"{results['seconds until given up']:.0f} s until those that left were given up",
                        flush=True,
                    )
                first = first or folder
                assert_same_tables(folder, first)
    print(f"tables of all {len(rows)} sweeps are equal")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
