"""A Ray session: starts one on loopback and ends it, joins one at an address, or uses the one of this process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil

from sweeps.backends.ray.cluster.joining import ask, find, other_release, unsupported_ray
from sweeps.backends.ray.cluster.nodes import job_variables, paths_outside_python
from sweeps.backends.ray.cluster.private import make_folder, private_session, temporary_space, users_token
from sweeps.backends.ray.cluster.processes import clear, ended, runs, vital
from sweeps.backends.ray.compat import log_errors_of_workers
from sweeps.backends.resources import ResourceError, local_node
from sweeps.backends.signals import delay_signals, signal_came, signals_handled
from sweeps.errors import Problem
from trainables.errors import first_line

_STORE_BYTES = 80 * 2**20  # trials pass kilobytes; Ray would take 30 % of the memory
_KNOCK_S = 2.5
_STARTS = 2
"""How often a local Ray is started before that is an error. Time-outs of a busy machine and taken ports may pass."""
_LOOK_S = 1.0
_LEAVE_S = 15.0
"""Seconds that the main thread gets to end a session that is lost. Ray's own shut-down takes half of that."""
_HEARD_S = 0.02
"""Seconds to wait so that a signal which was sent to all processes also reaches this one."""
_KEPT = "finished trials are kept, and the same command goes on"
EXIT_LOST = 4
_QUIET_S = 3.0
"""Seconds for which the control store of a local session may refuse connections. If it is ended, it hangs like that."""
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
_ENDS_S = 60.0
"""Seconds after which Ray gives up a lost control store, and ends the driver with exit code 1 (Ray's default)."""
_SPARE_S = _LEAVE_S + 5.0
"""The sweep ends itself this many seconds earlier. Ending may take `_LEAVE_S`."""

_LOCAL = {
    "RAY_prestart_worker_first_driver": "0",  # idle workers that none of our actors can use
    "RAY_worker_niceness": "0",  # by default 15: beside busy programs a lane would get a thirtieth of their time
}
_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU sees none, where Ray would leave it all of them
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's controllers do
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's state is never read: the journal is the truth
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@contextmanager
def _environment(values: Mapping[str, str], *, over: bool = False) -> Iterator[None]:
    """Set environment variables in the block, which Ray's processes inherit, and restore them afterwards.

    Args:
        values: the variables.
        over: also set variables that the user has set.
    """
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
    """Return the import path for Ray's workers: that of this process, so that they find the caller's trial function."""
    own = [str(Path(entry or ".").resolve()) for entry in sys.path if not entry or Path(entry).is_dir()]
    return os.pathsep.join(dict.fromkeys([*own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))


def connected() -> bool:
    """Return whether this process has a Ray session."""
    import ray

    return bool(ray.is_initialized())


class RayLostError(RuntimeError):
    """Ray's own processes died during a sweep. Finished trials are kept, and the same command goes on."""

    exit_code = EXIT_LOST


class RayStartError(RuntimeError):
    """Ray did not start on this machine. Nothing of it is left."""


class Session:
    """The Ray session of a driver, from `connect` to the end of the `with` block.

    Its environment variables are set in the whole block. If this process already has a session, that one is used and
    left running.

    Args:
        address: the cluster to join; None starts a local session.
        note: shows the address that is tried to the user.

    Attributes:
        lost: says, in words, which of the session's own processes died, or that the control store is gone; None if all
            run. Nothing goes on without them, and Ray would end this process with exit code 1, at once or a minute
            later. So the main thread is interrupted first.

    Raises:
        ResourceError: no cluster answers at the address, or there is no place for Ray's files.
        RayStartError: Ray did not start.
    """

    def __init__(self, address: str | None = None, note: Callable[[str], None] = lambda _: None) -> None:
        self.address = address
        self._note = note
        self._private = ExitStack()
        self.owned = False
        self.lost: str | None = None
        self._folder: Path | None = None
        self._own: dict[str, psutil.Process] = {}
        self._store: str | None = None
        self._heard = 0.0
        self._patience = _QUIET_S
        self._over = threading.Event()
        self._ended = threading.Event()
        self._variables = _environment(_ALWAYS | ({} if address else _LOCAL))

    def __enter__(self) -> Self:
        self._variables.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        self.check_processes()
        self._over.set()
        if self.owned:
            ray.shutdown()
        self._private.close()
        if self._folder is not None:
            clear(self._folder)
        self._ended.set()
        self._variables.__exit__(None, None, None)

    def check_processes(self) -> str | None:
        """Check whether Ray's own processes run. Set and return `lost`."""
        if self.lost is None and not self._over.is_set() and self._store is not None:
            loss = self._describe_loss(self._store)
            if loss and not self._over.is_set():  # else `__exit__` has ended them meanwhile
                self.lost = loss
        return self.lost

    def _describe_loss(self, store: str) -> str | None:
        """Return, in words, which process died or that the control store does not answer; None if all is well."""
        died = [f"{name} (process {p.pid})" for name, p in self._own.items() if not runs(p)]
        if died:
            return f"Ray's {' and '.join(died)} died"
        with suppress(OSError):
            _knock(store)
            self._heard = time.monotonic()
        quiet = time.monotonic() - self._heard > self._patience
        return f"Ray's control store at {store} takes no connections any more" if quiet else None

    @contextmanager
    def convert_lost_errors(self) -> Iterator[None]:
        """Turn errors of the block into a `RayLostError` if Ray's own processes have died."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self.check_processes() is None:
                raise
            raise RayLostError(f"{self.lost}; {_KEPT}") from error

    def _watch(self) -> None:
        """Wait until Ray's own processes die or the session ends. If they die, end the sweep before Ray ends it."""
        helpers = [name for name in self._own if "agent" in name]
        with ended(list(self._own.values())) as wait:
            while not self._over.is_set():
                wait(_LOOK_S)
                if self.check_processes() is not None:
                    if not all(runs(self._own[name]) for name in helpers):
                        # the raylet ends with its agents, and soon afterwards Ray ends this process
                        time.sleep(_HEARD_S)
                        self._exit(130 if signal_came() else EXIT_LOST)
                    elif signals_handled():
                        self._leave()
                    return

    def _leave(self) -> None:
        """Interrupt the main thread. If it is in a call of Ray that does not return, end the process without it.

        Nothing is lost by that: every step of the sweep is on disk.
        """
        code = 130 if signal_came() else EXIT_LOST
        os.kill(os.getpid(), signal.SIGINT)
        if not self._ended.wait(_LEAVE_S) and signals_handled():
            self._exit(code)

    def _exit(self, code: int) -> None:
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live display has hidden it
        with suppress(OSError):
            os.write(2, f"{cursor}error: {self.lost}; {_KEPT}\n".encode())
        if self._folder is not None:
            clear(self._folder)
        os._exit(code)

    def connect(self) -> None:
        """Start or join a session. Do nothing if this process has one."""
        import ray

        for name in ("ray", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it shows a traceback for each killed process
        if connected():
            return
        paths = _import_paths()
        if self.address is not None:
            self._join(self.address, paths)
        else:
            with delay_signals(), _environment({"PYTHONPATH": paths}, over=True):
                self._start()
        self._store, self._heard = ray.get_runtime_context().gcs_address, time.monotonic()
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()
        log_errors_of_workers()

    def _join(self, asked: str, paths: str) -> None:
        import ray

        if problem := unsupported_ray(asked):
            raise ResourceError([problem])
        address = find(asked)
        if asked == "auto":
            self._private.enter_context(users_token())
        self._note(f"joining the Ray cluster at {address}")
        try:
            if "://" not in address:
                _knock(address)
                why = ask(address)
                if (problem := other_release(asked, why)) is not None:
                    raise ResourceError([problem])
                if why is not None:
                    raise ConnectionError(why)
            variables = {"PYTHONPATH": paths_outside_python(paths), **_ALWAYS}
            jobs_own = job_variables()
            with delay_signals(), _environment({"RAY_ADDRESS": address}, over=True), _no_exit():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": {k: v for k, v in variables.items() if k not in jobs_own}},
                )
                self.owned = True
            self._patience = max(_QUIET_S, float(os.environ.get(_RECONNECT, _ENDS_S)) - _SPARE_S)
        except (OSError, ray.exceptions.AuthenticationError) as error:
            at = "" if address == asked else f" at {address}"
            rule = f"no Ray cluster answers there{at} ({first_line(error)})"
            raise ResourceError([Problem("--address", asked, rule, "leave it out to run locally")]) from error
        except RuntimeError as error:
            if (problem := other_release(asked, str(error))) is None:
                raise
            raise ResourceError([problem]) from error  # another release of Python, which `ray status` does not tell

    def _start(self) -> None:
        """Start a local session. Try again if it did not come up."""
        import ray

        node = local_node()
        for tries_left in reversed(range(_STARTS)):
            self._folder = folder = make_folder()
            self._private.enter_context(private_session(folder))
            try:
                with _no_exit():
                    ray.init(
                        address="local",  # whatever RAY_ADDRESS says
                        include_dashboard=False,
                        num_cpus=int(node.cpus),
                        num_gpus=int(node.gpus),
                        object_store_memory=_STORE_BYTES,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        _temp_dir=str(folder / "r"),
                    )
            except BaseException as error:
                ray.shutdown()
                self._private.close()
                clear(folder)
                if not isinstance(error, Exception):
                    raise
                if not tries_left:
                    raise RayStartError(_why_not(error)) from error
                logging.getLogger("sweeps").warning("Ray did not start, and is started again: %s", first_line(error))
                continue
            self.owned = True
            self._own = vital(folder)
            return


def _why_not(error: Exception) -> str:
    """Return the message for a local Ray that did not start: why, and what to do."""
    memory, (place, store) = psutil.virtual_memory().available, temporary_space()
    free = f"{memory / 2**30:.1f} GiB of memory and {store / 2**30:.1f} GiB of {place} are free"
    return (
        f"Ray did not start in {_STARTS} tries ({first_line(error)}); {free}. "
        "Close what else runs, or set RAY_TMPDIR to a folder with room, then give the same command again"
    )


def _knock(address: str) -> None:
    """Connect to an address, and fail within seconds if nothing listens there. Ray would try for more than a minute."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


@contextmanager
def _no_exit() -> Iterator[None]:
    """Turn a SIGTERM during `ray.init` into a KeyboardInterrupt: Ray's own handler raises SystemExit."""
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
