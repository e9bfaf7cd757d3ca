"""The Ray session of a sweep: started on loopback, or joined; with its broker and lanes; shut down without a trace."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sweeps.errors import Problem
from sweeps.interfaces import Resources
from sweeps.nodes import check_nodes, job_variables, own_paths
from sweeps.packs import pack_size
from sweeps.reaper import Reaper
from sweeps.resources import LaneShape, Node, ResourceError, plan_lanes
from sweeps.share import MOST, Measure, Measured, gpu_share

PROXY_RESOURCE = "sweeps_proxy"
HEAD = "node:__internal_head__"
_PRECISION = 10_000  # Ray's of a resource
_STORE_BYTES = 80 * 2**20  # trials pass kilobytes; Ray would take 30 % of the memory
_STOP_S = 2.5  # idle lanes return at once; one in the middle of an epoch has its last checkpoint

_LOCAL = {
    "RAY_AUTH_MODE": "disabled",  # loopback only
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes Ray bind 127.0.0.1 on Linux
    "RAY_prestart_worker_first_driver": "0",  # idle workers that none of our actors can use
}
_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's state is never read: the journal is the truth
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def local_node() -> Node:
    """CPUs that this process may use, and CUDA devices."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Node(float(usable), float(torch.cuda.device_count()))


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that Ray's processes inherit; what the user has set stays, and all is put back."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _import_paths() -> str:
    """Import path for Ray's workers: ours, so that a trial function next to the caller is found."""
    mine = [str(Path(entry or ".").resolve()) for entry in sys.path if not entry or Path(entry).is_dir()]
    return os.pathsep.join(dict.fromkeys([*mine, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))


class Pool:
    """Broker and lanes of a Ray session. One pool can run one sweep after another and keeps its workers warm.

    Args:
        resources: `[resources]` of the sweep: what a trial takes and how many run at once.
        storage: a folder for Ray's own files, seen by all machines.
        address: the cluster to join; None starts a local one, unless this process has a session already, which is used
            and left running.
        measure: run on a GPU for `gpus_per_worker = "auto"`, so that trials share GPUs by the memory they take; None:
            a GPU each.

    Raises:
        ResourceError: the machines can't hold what is asked; nothing was started for a local session.
    """

    def __init__(
        self, resources: Resources, storage: Path, *, address: str | None = None, measure: Measure | None = None
    ) -> None:
        self.resources, self.storage, self.address = resources, storage, address
        self.measured: Measured | None = None
        self._measure = measure
        self.shapes: list[LaneShape] = []
        self.broker: Any = None
        self.broker_name = f"sweeps-broker-{uuid.uuid4().hex[:8]}"
        self._room = 0.0  # of the resource that proxies share
        self._lanes: Any = None
        self._owns_session = False
        self._reaper: Reaper | None = None
        self._variables = _environment(_ALWAYS | ({} if address else _LOCAL))

    @property
    def trials(self) -> int:
        """Trials that run at once."""
        return sum(shape.trials for shape in self.shapes)

    def pack(self, asked: Resources) -> int:
        """Trials that a worker trains at once at most; 1 where trials have several workers, or one each."""
        if asked.workers > 1 or asked.isolated:
            return 1
        gpu = self.shapes[0].per_worker.get("GPU", 0.0) if self.shapes else 0.0
        return pack_size(asked.pack, self.measured if gpu else None, min(1.0, gpu))

    def proxy_resources(self, packed: int) -> dict[str, float]:
        """What one proxy takes. It is shared out whole: one proxy more than there are trials would not fit."""
        proxies = self.trials * packed
        if self._room >= self.trials:
            return {PROXY_RESOURCE: math.floor(self._room / proxies * _PRECISION) / _PRECISION}
        # a resource can't be added to a running cluster, and fractions of CPUs would stand in the lanes' way
        return {HEAD: 0.9 / proxies}

    def __enter__(self) -> Self:
        self._variables.__enter__()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        import ray

        for name in ("ray", "ray.tune", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        joined = ray.is_initialized()
        if not joined and self.address is None:
            self.shapes = plan_lanes(self.resources, [local_node()])
        imports = threading.Thread(target=_import_ahead, name="imports", daemon=True)
        imports.start()  # while Ray's processes come up
        if not joined:
            self._connect()
        if self.address is not None:
            check_nodes(self.storage)
        found = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        nodes = [Node(n.get("CPU", 0.0), n.get("GPU", 0.0)) for n in found]
        self.shapes = plan_lanes(self.resources, nodes, self._share(nodes))
        self._room = ray.cluster_resources().get(PROXY_RESOURCE, 0.0)
        imports.join()
        from sweeps.broker import Broker
        from sweeps.lanes import Lanes

        # on the head, which all depends on anyway: other machines may be lost
        options = {
            "num_cpus": 0,
            "resources": {HEAD: 0.001},
            "max_restarts": -1,
            "max_task_retries": -1,
            "max_concurrency": 1000,
        }
        self.broker = ray.remote(**options)(Broker).options(name=self.broker_name).remote()
        self._lanes = Lanes(self.broker, self.shapes, self.storage)

    def _share(self, nodes: list[Node]) -> float:
        """The part of a GPU that a worker gets where that is left to us."""
        asked = self.resources
        with_gpus = [node for node in nodes if node.gpus >= 1]
        shared = asked.gpus_per_worker == "auto" and asked.workers == 1
        packed = asked.pack == "auto" and asked.gpus_per_worker != 0 and not asked.isolated
        if not with_gpus or asked.workers > 1 or self._measure is None or not (shared or packed):
            return 1.0
        self.measured = self._measured(self._measure)
        if self.measured is None or not shared:
            return 1.0
        pack = 1 if asked.isolated else pack_size(asked.pack, self.measured)
        return gpu_share(self.measured, min(n.cpus / n.gpus for n in with_gpus), asked.cpus_per_worker, pack)

    def _measured(self, measure: Measure) -> Measured | None:
        import ray

        def on_a_gpu() -> Measured:  # Ray takes nothing but functions
            return measure()

        # max_calls: its process ends, and with it what it holds on the GPU
        cpus = self.resources.cpus_per_worker
        task = ray.remote(num_gpus=1, num_cpus=cpus, max_calls=1, max_retries=0)(on_a_gpu)
        try:
            found: Measured = ray.get(task.remote())
        except ray.exceptions.RayError as error:  # trials will tell what is wrong with them
            logging.getLogger("sweeps").warning("a GPU for every trial: the probe failed (%s)", error)
            return None
        return found

    def _connect(self) -> None:
        import ray

        paths = _import_paths()
        if self.address is not None:
            try:
                _knock(self.address)
                variables = {"PYTHONPATH": own_paths(paths), **_ALWAYS}
                given = job_variables()
                ray.init(
                    address=self.address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": {k: v for k, v in variables.items() if k not in given}},
                )
            except (OSError, ray.exceptions.AuthenticationError) as error:
                rule = f"no Ray cluster answers there ({str(error).splitlines()[0]})"
                raise ResourceError(
                    [Problem("--address", self.address, rule, "leave it out to run locally")]
                ) from error
        else:
            with _environment_set("PYTHONPATH", paths):
                node = local_node()
                ray.init(
                    address="local",  # whatever RAY_ADDRESS says
                    include_dashboard=False,
                    num_cpus=int(node.cpus),
                    num_gpus=int(node.gpus),
                    resources={PROXY_RESOURCE: float(self.trials * (MOST if node.gpus else 1))},
                    object_store_memory=_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            self._reaper = Reaper()
        self._owns_session = True
        _silence_ray()

    def close(self) -> None:
        """Stop lanes and broker; end the Ray session if it is ours."""
        import ray

        try:
            if ray.is_initialized() and self.broker is not None:
                self._lanes.ending()
                ray.get(self.broker.shutdown.remote(), timeout=_STOP_S)
                self._lanes.stop(_STOP_S)
                if not self._owns_session:
                    ray.kill(self.broker)
        except (ray.exceptions.RayError, TimeoutError):
            self._lanes.stop(0.0)  # the session is going down anyway
        finally:
            if self._owns_session:
                ray.shutdown()
            if self._reaper is not None:
                self._reaper.close()
            self._variables.__exit__(None, None, None)


@contextmanager
def _environment_set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name)
        else:
            os.environ[name] = before


def _knock(address: str) -> None:
    """Fail within seconds where nothing listens; Ray would try for more than a minute."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=_STOP_S).close()


def _silence_ray() -> None:
    """Send what Ray prints about died workers into the log: on stdout it would break `--json` and live displays."""
    from ray._private import worker

    def log(data: dict[str, Any], *_: Any, **__: Any) -> None:
        logging.getLogger("sweeps.ray").info("%s", " ".join(map(str, data.get("lines", ()))))

    if hasattr(worker, "print_to_stdstream"):  # Ray's own switch, log_to_driver, does not cover these
        worker.print_to_stdstream = log


def _import_ahead() -> None:
    import sweeps.dispatch
    import sweeps.lanes  # noqa: F401


def host_facts() -> dict[str, Any]:
    """Provenance of a run: host, process, start and versions."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for name in ("ray", "optuna", "torch", "randlora-sweeps"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time(), "versions": versions}
