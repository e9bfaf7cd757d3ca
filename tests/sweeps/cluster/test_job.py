"""`examples/cluster/submit.sh` on a Ray head of this machine: a job with its files, its environment, its results."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.store.store import open_store
from tests.support import ROOT
from tests.sweeps.cluster.support import TINY, OwnRay


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def working_copy(folder: Path) -> None:
    """What a checkout holds: a virtual environment or results beside it would be sent along."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submitted_job(tmp_path: Path, own_ray: OwnRay) -> None:
    pytest.importorskip("aiohttp", reason="the job server needs ray[default]: pip install 'randlora-sweeps[cluster]'")
    pytest.importorskip("virtualenv", reason="runtime environments need ray[default]")
    copy, output = tmp_path / "repository", tmp_path / "results"
    working_copy(copy)
    (copy / "tiny.json").write_text(json.dumps(TINY))
    binaries = Path(sys.executable).parent
    environment = own_ray.environment | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback alone
    }
    environment.pop("PYTHONPATH", None)  # the job brings the package
    dashboard = free_port()
    head = f"ray start --head --block --port={free_port()} --num-cpus=1 --include-dashboard=true".split()
    head += f"--dashboard-host=127.0.0.1 --dashboard-port={dashboard} --object-store-memory={80 * 2**20}".split()
    with (tmp_path / "head.log").open("w") as log:
        running = subprocess.Popen(head, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        submitted(copy, environment | {"DASHBOARD": f"http://127.0.0.1:{dashboard}", "OUTPUT": str(output)})
    finally:
        own_ray.end()
        running.wait(10)
    trials = open_store(output).table("trials").to_pylist()
    assert sorted((row["stage"], row["status"]) for row in trials) == [("CONFIRM", "finished")] + 2 * [
        ("TUNE", "finished")
    ]
    assert [row["test_score"] is not None for row in trials if row["stage"] == "CONFIRM"] == [True]
    assert not (output / "lock").exists()


def submitted(copy: Path, variables: dict[str, str]) -> None:
    """Submit the sweep, and wait until the job has succeeded."""

    def ray(*arguments: str, check: bool = True) -> str:
        command = ["ray", "job", *arguments, "--address", variables["DASHBOARD"]]
        done = subprocess.run(command, env=variables, cwd=copy, capture_output=True, text=True, check=check)
        return done.stdout + done.stderr

    until(lambda: "Error" not in ray("list", check=False), 120)
    submit = ["bash", str(copy / "examples" / "cluster" / "submit.sh"), "tiny.json", "--no-report"]
    done = subprocess.run(submit, env=variables, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    job = re.findall(r"raysubmit_\w+", done.stdout)[0]
    until(lambda: re.search("succeeded|failed|stopped", ray("status", job).lower()), 600)
    assert "succeeded" in ray("status", job).lower(), ray("logs", job)


def until(condition: object, seconds: float) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s"
        time.sleep(3)
