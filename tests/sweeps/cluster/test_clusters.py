"""Sweeps on clusters: what the example files say, and a machine that lacks something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # Ray depends on it

from sweeps.cluster.nodes import check_lasting, check_nodes, job_variables, own_paths
from sweeps.cluster.resources import ResourceError
from sweeps.lanes.pool import Pool
from tests.support import ROOT

EXAMPLES = ROOT / "examples" / "cluster"
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])


def of(required: str = "", **fields: Any) -> dict[str, Any]:
    """A JSON schema of an object with these fields and no others; a type's name stands for it."""
    types = {name: {"type": field} if isinstance(field, str) else field for name, field in fields.items()}
    return {"type": "object", "properties": types, "required": required.split(), "additionalProperties": False}


def each(**fields: Any) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": of(" ".join(fields), **fields)}


def matching(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^({pattern})$"}


# What the files may hold, after the schemas of KubeRay's API v1, Kubernetes' pods, and SkyPilot's tasks and resources
LABEL = matching("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
AMOUNTS = {"type": "object", "additionalProperties": matching(r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?")}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
CONTAINER = {
    "name": LABEL,
    "image": matching(r"[a-z0-9./:-]+:[\w.-]+"),
    "resources": of("requests limits", requests=AMOUNTS, limits=AMOUNTS),
    "volumeMounts": each(name=LABEL, mountPath=matching("/.*")),
}
HEAD = CONTAINER | {"ports": each(containerPort=PORT, name=matching("[a-z0-9-]{1,15}"))}
VOLUME = of("name", name=LABEL, persistentVolumeClaim=of("claimName", claimName=LABEL), configMap=of(name=LABEL))
VOLUMES = {"type": "array", "items": VOLUME | {"minProperties": 2, "maxProperties": 2}}


def template(container: dict[str, Any]) -> dict[str, Any]:
    return of("spec", spec=of("containers", containers=each(**container), volumes=VOLUMES))


RAY_CLUSTER = of(
    "headGroupSpec",
    rayVersion=matching(r"\d+\.\d+\.\d+"),
    headGroupSpec=of("rayStartParams template", rayStartParams=TEXTS, template=template(HEAD)),
    workerGroupSpecs=each(
        groupName=LABEL,
        replicas="integer",
        minReplicas="integer",
        maxReplicas="integer",
        rayStartParams=TEXTS,
        template=template(CONTAINER),
    ),
)
RAY_JOB = of(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=of("name", name=LABEL),
    spec=of(
        entrypoint="string",
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        backoffLimit="integer",
        shutdownAfterJobFinishes={"const": True},  # or ttlSecondsAfterFinished has no effect
        ttlSecondsAfterFinished="integer",
        runtimeEnvYAML="string",
        rayClusterSpec=RAY_CLUSTER,
    ),
)
SKY_TASK = of(
    "",
    name="string",
    num_nodes="integer",
    resources=of("", accelerators=matching(r"[A-Za-z0-9-]+:\d+"), use_spot="boolean", disk_size="integer"),
    workdir="string",
    envs=TEXTS,
    setup="string",
    run="string",
)
SBATCH = {
    "job-name": r"\w+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "time": r"(\d+-)?\d+(:\d\d){0,2}",
    "requeue": "",
    "open-mode": "append|truncate",
    "output": r"([\w./-]|%[AaJjNnstux])+",
}
"""Options of `sbatch` and their values, after its manual."""


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
    lines = (EXAMPLES / "slurm.sbatch").read_text(encoding="utf-8").splitlines()
    first = next(k for k, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]  # sbatch would not read them
    given = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line) for line in lines if line.startswith("#SBATCH")]
    asked = {option[1]: option[2] or "" for option in given if option is not None}
    assert len(asked) == len(given)
    for option, value in asked.items():
        assert re.fullmatch(SBATCH[option], value), option
    assert asked["ntasks-per-node"] == "1"
    hours = float(re.findall(r"HOURS:-([\d.]+)", "\n".join(lines))[0])
    assert hours < float(asked["time"].split(":")[0])  # it stops by itself before it is killed


@pytest.mark.parametrize(
    ("code", "hours", "restarts", "again"),
    [
        (0, "23.5", 0, False),
        (1, "23.5", 0, False),
        (3, "0", 0, True),
        (3, "0.5", 0, False),  # long before its time is up: another limit, which the next job would meet too
        (4, "23.5", 3, True),
        (4, "23.5", 4, False),
    ],
)
def test_the_slurm_job_runs_dry_and_queues_itself_again_when_its_time_is_up(
    tmp_path: Path, code: int, hours: str, restarts: int, again: bool
) -> None:
    """With Slurm's commands and Ray's in their places: what is started where, and what follows from its exit code."""
    commands = {
        "scontrol": 'if [[ $1 == show ]]; then printf "n1\\nn2\\n"; else echo "$@" > requeued; fi',
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "hostname": "echo 10.0.0.1 10.0.1.1",
        "ray": f'printf "%s\\n" "$@" > started; env > seen; [[ -e dead ]] || touch "$OUTPUT/report.html"; exit {code}',
    }
    for name, does in commands.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_RESTART_COUNT": str(restarts),
        "HOURS": hours,
    }
    output = tmp_path / "r"
    output.mkdir()
    stale = output / "report.html"
    stale.touch()
    os.utime(stale, (0, 0))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SWEEP": "a b.toml", "OUTPUT": str(output), **slurm}
    done = subprocess.run(["bash", str(EXAMPLES / "slurm.sbatch")], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code
    words = (tmp_path / "started").read_text().splitlines()
    address = "10.0.0.1:20007"
    assert words[: words.index("--")] == [
        "symmetric-run", "--address", address, "--min-nodes", "2", "--num-cpus=32", "--num-gpus=0"
    ]  # fmt: skip
    verb = ["sweeps", "run", "a b.toml", "--address", address, "--set", f"output={output}"]
    assert words[words.index("--") + 1 :] == [*verb, "--max-hours", hours]
    seen = dict(line.partition("=")[::2] for line in (tmp_path / "seen").read_text().splitlines())
    assert seen["RAY_AUTH_MODE"] == "token" and re.fullmatch("[0-9a-f]{64}", seen["RAY_AUTH_TOKEN"])
    assert (tmp_path / "requeued").exists() == again
    if again:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    if code == 0:  # Ray did not start
        os.utime(stale, (0, 0))
        (tmp_path / "dead").touch()
        done = subprocess.run(["bash", str(EXAMPLES / "slurm.sbatch")], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 4 and (tmp_path / "requeued").exists()


def test_the_kubernetes_job_is_whole() -> None:
    job = load("kuberay.yaml")
    Draft202012Validator(RAY_JOB).validate(job)
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert set(environment) == {"env_vars"} and all(isinstance(v, str) for v in environment["env_vars"].values())
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    output = re.findall(r"output=(\S+)", job["spec"]["entrypoint"])[0]
    images = set()
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            images.add(container["image"])
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert any(output.startswith(mount["mountPath"]) for mount in container["volumeMounts"])
            gpus = [container["resources"][kind].get("nvidia.com/gpu") for kind in ("requests", "limits")]
            assert gpus[0] == gpus[1]  # Kubernetes gives out no others
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert len(images) == 1  # the same versions everywhere
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wanted = next(r for r in requirements if r.startswith("ray["))
    assert f">={'.'.join(cluster['rayVersion'].split('.')[:2])}," in wanted
    assert f"ray:{cluster['rayVersion']}-" in (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")


def test_the_skypilot_task_is_whole() -> None:
    task = load("skypilot.yaml")
    Draft202012Validator(SKY_TASK).validate(task)
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert set(re.findall(r"\$([A-Z_]+)", script)) <= {*task["envs"], "HOME"}
    assert (ROOT / task["envs"]["SWEEP"]).exists()


@pytest.mark.parametrize(
    ("file", "schema", "wrong"),
    [
        ("kuberay.yaml", RAY_JOB, lambda job: job["spec"].update(backOffLimit=3)),
        ("kuberay.yaml", RAY_JOB, lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"].pop("template")),
        (
            "kuberay.yaml",
            RAY_JOB,
            lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        ),
        ("skypilot.yaml", SKY_TASK, lambda task: task["resources"].update(spot=True)),
        ("skypilot.yaml", SKY_TASK, lambda task: task["envs"].update(RAY_USAGE_STATS_ENABLED=0)),
    ],
)
def test_the_schemas_find_mistakes(file: str, schema: dict[str, Any], wrong: Callable[[Any], object]) -> None:
    tree = load(file)
    wrong(tree)
    assert not Draft202012Validator(schema).is_valid(tree)


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
