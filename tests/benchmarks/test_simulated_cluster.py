"""`benchmarks/simulated_cluster.py`: what happens to nodes; a head without devices, and one node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks.simulated_cluster import AHEAD, SLOWER, Faults, Growth
from tests.support import ROOT, wait_for


class Machines:
    """Nodes whose raylet is a process that sleeps."""

    def __init__(self) -> None:
        self.worker_nodes: list[Any] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.given: list[dict[str, Any]] = []

    def add_node(self, **given: Any) -> None:
        self.processes.append(subprocess.Popen(["sleep", "60"]))
        self.worker_nodes.append(
            SimpleNamespace(all_processes={"raylet": [SimpleNamespace(process=self.processes[-1])]})
        )
        self.given.append(given)

    def remove_node(self, node: Any, *, allow_graceful: bool) -> None:
        assert not allow_graceful
        self.worker_nodes.remove(node)

    def states(self) -> list[str]:
        return [psutil.Process(process.pid).status() for process in self.processes]


@pytest.fixture
def machines() -> Iterator[Machines]:
    made = Machines()
    for _ in range(2):
        made.add_node()
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def test_nodes_fall_silent_and_are_lost_in_turn(machines: Machines) -> None:
    first, second = machines.worker_nodes
    faults = Faults(machines, devices=3)
    faults.next()
    wait_for(lambda: machines.states() == [psutil.STATUS_STOPPED, psutil.STATUS_SLEEPING], "one to be silent")
    assert (faults.silent, faults.lost, machines.worker_nodes) == (1, 0, [first, second])
    faults.next()
    alive = [psutil.STATUS_SLEEPING, psutil.STATUS_ZOMBIE, psutil.STATUS_SLEEPING]
    wait_for(lambda: machines.states() == alive, "one to be lost, and one to have come")
    assert (faults.silent, faults.lost) == (1, 1)
    assert first in machines.worker_nodes and second not in machines.worker_nodes
    assert (
        machines.given[-1] | {"num_gpus": 3, "wait": False, "env_vars": {SLOWER: "1.0", AHEAD: "0.0"}}
        == machines.given[-1]
    )


def test_a_node_that_ended_while_it_was_silent_is_replaced_too(machines: Machines) -> None:
    first, second = machines.worker_nodes
    faults = Faults(machines, devices=1)
    faults.next()
    machines.processes[0].kill()
    wait_for(lambda: machines.states()[0] == psutil.STATUS_ZOMBIE, "the silent one to end")
    faults.next()
    assert (faults.silent, faults.lost, len(machines.worker_nodes)) == (1, 2, 2)
    assert not {id(first), id(second)} & {id(node) for node in machines.worker_nodes}


def test_a_cluster_grows_and_shrinks_as_the_sweep_gets_on(machines: Machines, tmp_path: Path) -> None:
    folder, log = tmp_path / "r", tmp_path / "r.log"
    folder.mkdir()
    growth = Growth(machines, devices=1, most=4, last=1, folder=folder)

    def after(trials: int, workers: int) -> int:
        lines = '{"ev":"finish"}\n' * trials + '{"ev":"finish"'  # one is being written
        (folder / "journal.jsonl").write_text(lines)
        log.write_text("".join(f"trial 1 {worker}\n" for worker in [0, *range(workers)]))
        growth.next()
        return len(machines.worker_nodes)

    assert [after(1, 1), after(2, 1), after(20, 3)] == [2, 4, 4]  # one that joined has not trained yet
    assert [after(20, 4), after(27, 4), after(28, 4), after(40, 4)] == [4, 4, 1, 1]
    assert growth.lost == 3 and growth.at["joined"] <= growth.at["left"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_node_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # Ray gives no node more GPUs than that names
    command = [sys.executable, str(ROOT / "benchmarks" / "simulated_cluster.py"), "--nodes", "1", "--every", "0"]
    subprocess.run([*command, "--trials", "20", "--json", str(tmp_path / "s.json")], check=True, capture_output=True)
    (found,) = json.loads((tmp_path / "s.json").read_text())
    assert (found["nodes"], found["devices"], found["lost"]) == (1, 2, 0)
    assert (found["finished"], found["failed"]) == (20, 0)
    assert 0 < found["trials per second"] < 2 / 1.5 * 1.1  # two devices, three pauses of half a second
    assert found["MB"]["driver"] > 0 and found["MB"]["broker"] > 0
