"""Sweeps on clusters: what the example files say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft202012Validator  # Ray depends on it

from sweeps.backends.ray.compat import supported
from tests.support import ROOT, wait_for

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
    authOptions=of("mode", mode={"enum": ["disabled", "token"]}, secretName=LABEL),
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
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
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
    "exclusive": "(user|mcs|topo)?",
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


def test_an_image_gets_what_a_commit_gets() -> None:
    kept_out = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    expected = {".git", *(line.strip("/") if line.startswith("/") else f"**/{line.strip('/')}" for line in kept_out)}
    assert set((EXAMPLES / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()[1:]) == expected


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
    assert asked["exclusive"] == ""  # `ray symmetric-run` refuses to start beside another Ray, and ends it at its end
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
        # what it runs runs unless Ray is dead; its own exit code is Ray's
        "ray": 'printf "%s\\n" "$@" > started; env > seen; while [[ $1 != -- ]]; do shift; done; shift\n'
        '[[ -e dead ]] && exit 0; "$@"; exit 1',
        "sweeps": f"exit {code}",
    }
    path = stand_ins(tmp_path, **commands)
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_RESTART_COUNT": str(restarts),
        "HOURS": hours,
    }
    output = tmp_path / "r"
    environment = {"PATH": path, "SWEEP": "a b.toml", "OUTPUT": str(output), **slurm}
    done = subprocess.run(["bash", str(EXAMPLES / "slurm.sbatch")], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code
    words = (tmp_path / "started").read_text().splitlines()
    address = "10.0.0.1:20007"
    assert words[: words.index("--")] == [
        "symmetric-run", "--address", address, "--min-nodes", "2", "--num-cpus=32", "--num-gpus=0"
    ]  # fmt: skip
    verb = ["sweeps", "run", "a b.toml", "--address", address, "--set", f"output={output}"]
    assert words[words.index("sweeps") :] == [*verb, "--max-hours", hours]
    seen = dict(line.partition("=")[::2] for line in (tmp_path / "seen").read_text().splitlines())
    assert seen["SRUN_CPUS_PER_TASK"] == "32"
    assert seen["RAY_AUTH_MODE"] == "token" and re.fullmatch("[0-9a-f]{64}", seen["RAY_AUTH_TOKEN"])
    assert (tmp_path / "requeued").exists() == again
    if again:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    if code == 0:  # Ray did not start
        (tmp_path / "dead").touch()
        done = subprocess.run(["bash", str(EXAMPLES / "slurm.sbatch")], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 4 and (tmp_path / "requeued").exists()


def stand_ins(folder: Path, **commands: str) -> str:
    """Commands of those names that do this instead; the PATH that has them first."""
    for name, does in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("waits", [False, True], ids=["while it runs", "while it waits for machines"])
def test_a_signal_to_the_script_for_machines_ends_the_sweep_cleanly_and_the_daemons(
    tmp_path: Path, number: int, waits: bool
) -> None:
    sweep = "trap 'touch told; exit 130' TERM; touch up; for _ in {1..300}; do sleep 0.1; done"
    # as Ray's command: it stops the daemons when what it runs has ended, and not when it is ended itself
    # while it waits for machines it has no child, which a signal could end in its place
    runs = f'bash -c "{sweep}"; code=$?; touch stopped; exit $code' if not waits else ": > up; exec sleep 60"
    path = stand_ins(tmp_path, ray=f"if [[ $1 == stop ]]; then touch stopped; exit; fi; {runs}")
    environment = {"PATH": path, "HOME": str(tmp_path), "HEAD": "10.0.0.1", "NODES": "2", "OUTPUT": "/r"}
    command = ["bash", str(EXAMPLES / "machines.sh"), "a.toml"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as running:
        wait_for((tmp_path / "up").exists, "the sweep to be up")
        running.send_signal(number)
        code = running.wait(30)
    assert (tmp_path / "stopped").exists()
    assert (code, (tmp_path / "told").exists()) == ((143, False) if waits else (130, True))


def test_a_stopped_job_has_time_for_a_clean_end(tmp_path: Path) -> None:
    """Ray's job supervisor, which is in the job's environment, reads it there."""
    variable, longer = "RAY_JOB_STOP_WAIT_TIME_S", "60"
    supervisor = Path(ray.__file__).parent / "dashboard" / "modules" / "job" / "job_supervisor.py"
    assert variable in supervisor.read_text(encoding="utf-8")
    assert load("runtime_env.yaml")["env_vars"] == {variable: longer}
    path = stand_ins(tmp_path, ray='printf "%s\n" "$@" > started')
    environment = {"PATH": path, "DASHBOARD": "http://head:8265", "OUTPUT": "/r"}
    command = ["bash", str(EXAMPLES / "submit.sh"), "a.toml"]
    for more, option, value in (
        ({}, "--runtime-env", "examples/cluster/runtime_env.yaml"),
        ({"ENVIRONMENT": ""}, "--runtime-env-json", json.dumps({"env_vars": {variable: longer}})),
    ):
        subprocess.run(command, cwd=tmp_path, env=environment | more, check=True)
        words = (tmp_path / "started").read_text().splitlines()
        assert words[words.index(option) + 1] == value
        assert words.index("--") > words.index(option)


def test_the_kubernetes_job_is_whole() -> None:
    job = load("kuberay.yaml")
    Draft202012Validator(RAY_JOB).validate(job)
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert set(environment) == {"env_vars"} and all(isinstance(v, str) for v in environment["env_vars"].values())
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
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
    assert supported(cluster["rayVersion"])
    assert f"ray:{cluster['rayVersion']}-" in (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "lock.txt").read_text(encoding="utf-8").splitlines()


def test_the_skypilot_task_is_whole() -> None:
    task = load("skypilot.yaml")
    Draft202012Validator(SKY_TASK).validate(task)
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert set(re.findall(r"\$([A-Z_]+)", script)) <= {*task["envs"], "HOME"}
    assert (ROOT / task["envs"]["SWEEP"]).exists()


def test_skypilot_itself_reads_the_task() -> None:
    sky = pytest.importorskip("sky", reason="skypilot is not installed")
    task, told = sky.Task.from_yaml(str(EXAMPLES / "skypilot.yaml")), load("skypilot.yaml")
    assert (task.name, task.num_nodes, task.envs) == (told["name"], told.get("num_nodes", 1), told["envs"])
    (resources,) = task.resources
    assert resources.use_spot == told["resources"]["use_spot"]


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


def test_a_job_gets_every_dependency_as_it_was_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock, *dependencies = load("runtime_env.yaml")["pip"]
    assert lock == "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/lock.txt"
    assert dependencies == [d for d in project["dependencies"] if not d.startswith("ray[")]
