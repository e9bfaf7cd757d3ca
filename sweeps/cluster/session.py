"""A Ray session: started on loopback and ended without a trace, joined at an address, or the one this process has."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

from sweeps.cluster.nodes import job_variables, own_paths
from sweeps.cluster.reaper import Reaper, own_processes, ray_processes, runs
from sweeps.cluster.resources import Node, ResourceError
from sweeps.cluster.signals import handled, held, signalled
from sweeps.errors import Problem
from trainables.errors import first_line

_STORE_BYTES = 80 * 2**20  # trials pass kilobytes; Ray would take 30 % of the memory
_KNOCK_S = 2.5
_LOOK_S = 1.0
_LEAVE_S = 15.0
"""For the main thread to end a session that is lost: Ray's own shut-down takes half of that."""
_KEPT = "finished trials are kept, and the same command goes on"
_VITAL = ("raylet", "gcs_server")

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
def _environment(values: Mapping[str, str], *, over: bool = False) -> Iterator[None]:
    """Environment variables that Ray's processes inherit; all is put back. `over`: also where the user has set them."""
    new = {name: value for name, value in values.items() if over or name not in os.environ}
    before = {name: os.environ[name] for name in new if name in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
        os.environ.update(before)


def _import_paths() -> str:
    """Import path for Ray's workers: ours, so that a trial function next to the caller is found."""
    mine = [str(Path(entry or ".").resolve()) for entry in sys.path if not entry or Path(entry).is_dir()]
    return os.pathsep.join(dict.fromkeys([*mine, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))


class RayLostError(RuntimeError):
    """Ray's own processes died under a sweep. What is finished stays; the same command goes on from there."""


class Session:
    """The Ray session of a driver, from `connect` to the end of the `with`; its environment holds in the whole of it.

    A session that this process has already is used, and left running.

    Args:
        address: the cluster to join; None starts a local one.
        local: Ray's custom resources of a local session.

    Attributes:
        lost: which of a local session's own processes died, in words. Nothing goes on without them, and Ray would end
            this process a minute later, with exit code 1; so its main thread is interrupted.

    Raises:
        ResourceError: no cluster answers at the address.
    """

    def __init__(self, address: str | None = None, local: Mapping[str, float] | None = None) -> None:
        self.address = address
        self.local: dict[str, float] = dict(local or {})
        self.owned = False
        self.lost: str | None = None
        self._reaper: Reaper | None = None
        self._own: dict[str, psutil.Process] = {}
        self._over, self._ended = threading.Event(), threading.Event()
        self._variables = _environment(_ALWAYS | ({} if address else _LOCAL))

    def __enter__(self) -> Self:
        self._variables.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        self.look()
        self._over.set()
        if self.owned:
            ray.shutdown()
        if self._reaper is not None:
            self._reaper.close()
        self._ended.set()
        self._variables.__exit__(None, None, None)

    def look(self) -> str | None:
        """Look after Ray's own processes; returns `lost`."""
        if self.lost is None and not self._over.is_set():
            died = [f"{name} (process {p.pid})" for name, p in self._own.items() if not runs(p)]
            self.lost = f"Ray's {' and '.join(died)} died" if died else None
        return self.lost

    @contextmanager
    def minded(self) -> Iterator[None]:
        """Errors of the block are a `RayLostError` where Ray's own processes have died."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self.look() is None:
                raise
            raise RayLostError(f"{self.lost}; {_KEPT}") from error

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            if self.look() is not None:
                if handled():
                    self._leave()
                return

    def _leave(self) -> None:
        """Interrupt the main thread; and where that is in a call of Ray's which nothing ends, leave without it.

        Every step of the sweep is on disk, and the reaper sees to the processes.
        """
        code = 130 if signalled() else 2
        os.kill(os.getpid(), signal.SIGINT)
        if not self._ended.wait(_LEAVE_S) and handled():
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live display has hidden it
            print(f"{cursor}error: {self.lost}; {_KEPT}", file=sys.stderr, flush=True)
            os._exit(code)

    def connect(self) -> None:
        """Start, or join; nothing where this process has a session."""
        import ray

        for name in ("ray", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it shows a traceback for each process that is killed
        if ray.is_initialized():
            return
        paths = _import_paths()
        if self.address is not None:
            try:
                _knock(self.address)
                variables = {"PYTHONPATH": own_paths(paths), **_ALWAYS}
                given = job_variables()
                with held(), _own_handlers():
                    ray.init(
                        address=self.address,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        runtime_env={"env_vars": {k: v for k, v in variables.items() if k not in given}},
                    )
                    self.owned = True
            except (OSError, ray.exceptions.AuthenticationError) as error:
                rule = f"no Ray cluster answers there ({first_line(error)})"
                problem = Problem("--address", self.address, rule, "leave it out to run locally")
                raise ResourceError([problem]) from error
        else:
            node = local_node()
            with held(), _own_handlers(), _environment({"PYTHONPATH": paths}, over=True):
                ray.init(
                    address="local",  # whatever RAY_ADDRESS says
                    include_dashboard=False,
                    num_cpus=int(node.cpus),
                    num_gpus=int(node.gpus),
                    resources=self.local,
                    object_store_memory=_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
                self.owned = True
                self._reaper = Reaper(ray_processes())
                self._own = {name: psutil.Process(pid) for name, pid in own_processes().items() if name in _VITAL}
                threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()
        _silence_ray()


def _knock(address: str) -> None:
    """Fail within seconds where nothing listens; Ray would try for more than a minute."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep `ray.init` from its own SIGTERM handler, which ends the process wherever it is, with exit code 15."""
    from ray._private import utils

    theirs = getattr(utils, "set_sigterm_handler", None)
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        if theirs is not None:
            utils.set_sigterm_handler = theirs


def _silence_ray() -> None:
    """Send what Ray prints about died workers into the log: on stdout it would break `--json` and live displays."""
    from ray._private import worker

    def log(data: dict[str, Any], *_: Any, **__: Any) -> None:
        logging.getLogger("sweeps.ray").info("%s", " ".join(map(str, data.get("lines", ()))))

    if hasattr(worker, "print_to_stdstream"):  # Ray's own switch, log_to_driver, does not cover these
        worker.print_to_stdstream = log
