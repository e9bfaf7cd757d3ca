"""Sweeps on clusters: what the example files say, and a machine that lacks something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeps.cluster.nodes import check_lasting, check_nodes, job_variables, own_paths
from sweeps.cluster.resources import ResourceError
from sweeps.lanes.pool import Pool
from tests.support import ROOT

EXAMPLES = ROOT / "examples" / "cluster"
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])


def load(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash(path: Path) -> None:
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.suffix == ".sh"], ids=lambda p: p.name)
def test_scripts_say_what_they_lack(path: Path) -> None:
    bare = {k: v for k, v in os.environ.items() if k == "PATH"}
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=False, env=bare)
    assert done.returncode != 0
    assert re.search(r"(HEAD|DASHBOARD): the address", done.stderr)


def test_the_slurm_job_asks_for_what_it_uses() -> None:
    text = (EXAMPLES / "slurm.sbatch").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert asked["ntasks-per-node"] == "1"
    assert {"nodes", "cpus-per-task", "time", "requeue"} <= set(asked)
    hours = float(re.findall(r"HOURS:-([\d.]+)", text)[0])
    assert hours < float(asked["time"].split(":")[0])  # it stops by itself before it is killed
    assert "code -eq 3" in text  # the exit code of a limit


def test_the_kubernetes_job_is_whole() -> None:
    job = load("kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    known = {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
    assert set(job["spec"]) <= known | {"runtimeEnvYAML", "rayClusterSpec"}
    yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    output = re.findall(r"output=(\S+)", job["spec"]["entrypoint"])[0]
    images = set()
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            images.add(container["image"])
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert any(output.startswith(mount["mountPath"]) for mount in container["volumeMounts"])
            assert set(container["resources"]) == {"requests", "limits"}
    assert len(images) == 1  # the same versions everywhere
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wanted = next(r for r in requirements if r.startswith("ray["))
    assert f">={'.'.join(cluster['rayVersion'].split('.')[:2])}," in wanted
    assert f"ray:{cluster['rayVersion']}-" in (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")


def test_the_skypilot_task_is_whole() -> None:
    task = load("skypilot.yaml")
    assert set(task) <= {"name", "num_nodes", "resources", "workdir", "envs", "file_mounts", "setup", "run"}
    assert all(isinstance(value, str) for value in task["envs"].values())
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert set(re.findall(r"\$([A-Z_]+)", script)) <= {*task["envs"], "HOME"}
    assert (ROOT / task["envs"]["SWEEP"]).exists()


def test_a_job_gets_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert load("runtime_env.yaml")["pip"] == [d for d in project["dependencies"] if not d.startswith("ray[")]


def test_results_in_a_jobs_own_copy_are_refused() -> None:
    inside = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1/results/a")
    with pytest.raises(ResourceError, match=r"output = .*which Ray deletes.*--set output="):
        check_lasting(inside)
    check_lasting(Path("/shared/results/a"))


def test_a_jobs_variables_are_not_set_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_JOB_CONFIG_JSON_ENV_VAR"
    monkeypatch.delenv(name, raising=False)
    assert job_variables() == {}
    monkeypatch.setenv(name, '{"runtime_env": {"env_vars": {"PYTHONPATH": "/a"}}}')
    assert job_variables() == {"PYTHONPATH": "/a"}
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert name == RAY_JOB_CONFIG_JSON_ENV_VAR


def test_other_machines_keep_their_own_python() -> None:
    paths = os.pathsep.join([str(ROOT), sys.prefix + "/lib", sys.base_prefix + "/lib/python3.11", "/elsewhere"])
    assert own_paths(paths).split(os.pathsep) == [str(ROOT), "/elsewhere"]


def test_a_machine_that_lacks_something_is_named(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    check_nodes(tmp_path / "work" / "ray")
    assert list((tmp_path / "work" / "ray").iterdir()) == []
    lacks = (
        (_blind, r"output = \S+ is not seen by .*all machines share"),
        (_bare, r"can't run this package \(.*No module named 'sweeps'"),
        (_other_python, r"has Python 0.0 there, and the driver 0.0 here"),
        (_other_package, r"has this package 0.0 there, and the driver 0.0 here"),
    )
    for look, said in lacks:
        monkeypatch.setattr("sweeps.cluster.nodes.look", look)
        with pytest.raises(ResourceError, match=said):
            check_nodes(tmp_path / "work" / "ray")


def _blind(token: str) -> dict[str, Any]:
    return {"host": "h", "python": f"3.{sys.version_info.minor}", "package": None, "sees": False}


def _there() -> bool:
    return "raylet" in " ".join(sys.argv) or "default_worker" in " ".join(sys.argv)


def _bare(token: str) -> dict[str, Any]:
    if _there():
        raise ModuleNotFoundError("No module named 'sweeps'")
    return _blind(token)


def _other_python(token: str) -> dict[str, Any]:
    return {**_blind(token), "sees": True, "python": "0.0 there" if _there() else "0.0 here"}


def _other_package(token: str) -> dict[str, Any]:
    return {**_blind(token), "sees": True, "package": "0.0 there" if _there() else "0.0 here"}
