"""The machines of a joined cluster, each asked whether it can work."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from sweeps.backends.needs import Needs
from sweeps.backends.ray.cluster import nodes
from sweeps.backends.ray.cluster.nodes import HEAD, check_lasting, check_nodes, job_variables, paths_outside_python
from sweeps.backends.ray.pool import Pool
from sweeps.backends.resources import ResourceError
from tests.support import ROOT


def test_results_in_a_jobs_own_copy_are_refused() -> None:
    inside = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1/results/a")
    with pytest.raises(ResourceError, match=r"output = .*which Ray deletes.*--set output="):
        check_lasting(inside)
    check_lasting(Path("/shared/results/a"))


def test_a_file_that_a_machine_may_not_look_at_is_one_that_it_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refuse)  # root is refused nothing
    assert nodes.examine(f"{ROOT}/closed/seen", Needs())["sees"] is False


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
    assert paths_outside_python(paths).split(os.pathsep) == [str(ROOT), "/elsewhere"]


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
        monkeypatch.setattr("sweeps.backends.ray.cluster.nodes.examine", look)
        with pytest.raises(ResourceError, match=said):
            check_nodes(tmp_path / "work" / "ray")


def test_all_that_trials_need_and_a_machine_lacks_is_said_at_once(tmp_path: Path, pool: Pool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    there = Needs((str(data),), ("lora", "prompt:coop"), ("trainables.training.worker",))
    check_nodes(tmp_path / "work" / "ray", there)
    needs = Needs((str(data), "/not/there", "/nor/there"), ("lora", "my-lora", "peft:no-such"), ("tests.no_such",))
    with pytest.raises(ResourceError) as raised:
        check_nodes(tmp_path / "work" / "ray", needs)
    (problem,) = raised.value.problems
    parts = ("/not/there", "/nor/there", r"module tests.no_such \(No module named .*\)", "method my-lora")
    assert re.fullmatch(rf"lacks {', '.join(parts)}, method peft:no-such.*", problem.rule)


def test_a_broken_package_of_a_method_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from randlora.errors import AdapterError

    def broken(name: str) -> None:
        raise AdapterError(f"methods called {name} need the package peft")

    monkeypatch.setattr("randlora.methods.registry.get_method", broken)
    assert list(Needs(methods=("peft:miss",)).lacking()) == [
        "method peft:miss (methods called peft:miss need the package peft)"
    ]


def test_a_node_with_smaller_gpus_lacks_what_trials_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.backends.needs.smallest_gpu", lambda: 40 * 2**30)
    assert not list(Needs(gpu_bytes=40 * 2**30).lacking())
    assert list(Needs(gpu_bytes=80 * 2**30).lacking()) == ["GPUs with the 80.0 GiB that trials share (gpus_per_worker)"]
    monkeypatch.undo()
    assert not list(Needs(gpu_bytes=2**60).lacking())  # there is no GPU here


def test_a_machine_may_install_as_long_as_ray_lets_it(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray._private.ray_constants import DEFAULT_RUNTIME_ENV_TIMEOUT_SECONDS

    assert nodes.ANSWER_S > DEFAULT_RUNTIME_ENV_TIMEOUT_SECONDS
    monkeypatch.setattr(nodes, "examine", _late)
    monkeypatch.setattr(nodes, "_NOTE_S", 0.0)
    monkeypatch.setattr(nodes, "ANSWER_S", 0.2)
    with pytest.raises(ResourceError, match=r"gave no answer within 0.2 s\. .*beforehand"):
        check_nodes(tmp_path / "work" / "ray")
    (tmp_path / "work" / "ray" / "installed").touch()
    monkeypatch.setattr(nodes, "ANSWER_S", 60.0)
    check_nodes(tmp_path / "work" / "ray")
    host = ray.nodes()[0]["NodeManagerHostname"]
    assert [r.message.partition(" Ray")[0] for r in caplog.records if r.name == "sweeps"][-1].startswith(
        f"waiting 1 minutes at most for {host} "
    )


def test_a_head_without_cpus_is_asked_for_the_package_alone(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node,) = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [node | {"Resources": {HEAD: 1.0}}])
    monkeypatch.setattr(nodes, "examine", _blind)
    check_nodes(tmp_path / "work" / "ray", Needs(("/not/there",)))
    monkeypatch.setattr(nodes, "examine", _bare)
    with pytest.raises(ResourceError, match="can't run this package"):
        check_nodes(tmp_path / "work" / "ray")


def _blind(token: str, needs: Needs) -> dict[str, Any]:
    return {"host": "h", "python": f"3.{sys.version_info.minor}", "package": None, "sees": False, "lacks": ()}


def _there() -> bool:
    return "raylet" in " ".join(sys.argv) or "default_worker" in " ".join(sys.argv)


def _bare(token: str, needs: Needs) -> dict[str, Any]:
    if _there():
        raise ModuleNotFoundError("No module named 'sweeps'")
    return _blind(token, needs)


def _other_python(token: str, needs: Needs) -> dict[str, Any]:
    return {**_blind(token, needs), "sees": True, "python": "0.0 there" if _there() else "0.0 here"}


def _other_package(token: str, needs: Needs) -> dict[str, Any]:
    return {**_blind(token, needs), "sees": True, "package": "0.0 there" if _there() else "0.0 here"}


def _late(token: str, needs: Needs) -> dict[str, Any]:
    while _there() and not Path(token).with_name("installed").exists():
        time.sleep(0.05)
    return {**_blind(token, needs), "sees": True}
