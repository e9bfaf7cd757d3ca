"""Runs Ray's driver in a separate process. Ray may end that process, and the engine's process goes on.

Ray ends the process of a driver whose raylet or control store dies, at once or within a minute, and no setting changes
that. So the engine's process has no Ray in it. The driver's process is also in a separate process session: a signal to
the engine's process group, such as from `timeout` or Ctrl-C, reaches neither the driver nor Ray.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any

from sweeps.backends.backend import Backend, BackendLostError, Event, Facts, Order, Reported, Setup
from sweeps.backends.ray.cluster.private import session_folder
from sweeps.backends.ray.cluster.processes import clear
from sweeps.backends.signals import delay_signals

if TYPE_CHECKING:
    from sweeps.backends.ray.backend import RayBackend

_END_S = 30.0
"""Seconds that a driver gets to end. Lanes, Tune and Ray's own processes end within a third of that."""
_LOOK_S = 0.5
_CLOSED, _READY, _EVENTS, _BUSY, _FACTS = "closed", "ready", "events", "busy", "facts"
_NOTE, _LOG, _RAISED, _LOST = "note", "log", "raised", "lost"


class _Spawned:
    """A driver's process that waits for its `Setup`. It imports Ray meanwhile, which takes seconds.

    Args:
        modules: names of modules that it also imports, since its `Setup` will need them.

    Attributes:
        process: the driver's process, in a separate process session.
        connection: this process's end of the connection to it.
        output: the file with what the driver prints.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`, or by the `RayProcess` that takes this
        ours, theirs = socket.socketpair()
        with theirs:
            self.connection = Connection(ours.detach())
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweeps.backends.ray.process", str(theirs.fileno()), *modules],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                start_new_session=True,
            )

    def end(self) -> None:
        """End the process, which has started no Ray session yet."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.output.close()


_EARLY: list[_Spawned] = []
"""The process that `started_early` started, until `open_ray` takes it."""


@contextmanager
def started_early(modules: Sequence[str]) -> Iterator[None]:
    """Start the driver's process before its `Setup` is known. It imports Ray while this process plans the sweep.

    Args:
        modules: names of modules that the `Setup` will need.
    """
    if _has_session():
        yield
        return
    early = _Spawned(modules)
    _EARLY.append(early)
    try:
        yield
    finally:
        if early in _EARLY:
            _EARLY.remove(early)
            early.end()


def _has_session() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def open_ray(setup: Setup) -> Backend:
    """Start or join Ray and its lanes, in a separate process unless this process already has a Ray session."""
    if _has_session():
        from sweeps.backends.ray.backend import open_here

        return open_here(setup)
    return RayProcess(setup)


class RayProcess:
    """The engine's side of the driver's process: it passes calls to a `RayBackend` there, and events back."""

    facts: Facts

    def __init__(self, setup: Setup) -> None:
        self._note = setup.note
        self._started: list[set[str]] = []
        self._news: list[Event] = []
        self._asked = False
        self.busy = 0
        self._folder: Path | None = None
        spawned = _EARLY.pop() if _EARLY else _Spawned()
        self._output, self._connection, self._process = spawned.output, spawned.connection, spawned.process
        try:
            self._send(_import_path(), pickle.dumps(replace(setup, note=_show_nothing)))
            while not hasattr(self, "facts"):
                self._hear(None)
        except BaseException:
            self.close()
            raise

    @property
    def free(self) -> int:
        return self.facts.workers + 1 - len(self._started)  # one more than workers: no lane waits for the next

    def start(self, orders: Sequence[Order]) -> None:
        self._started.append({order.trial_id for order in orders})
        self._send("start", orders)

    def events(self, timeout: float) -> list[Event]:
        if not self._asked:
            self._send("events")
            self._asked = True
        end = time.monotonic() + timeout
        while self._asked and (seconds_left := end - time.monotonic()) > 0:
            self._hear(seconds_left)
        events, self._news = self._news, []
        for event in events:
            if not isinstance(event, Reported):
                self._started = [rest for ids in self._started if (rest := ids - {event.trial_id})]
        return events

    def stop(self, trial_id: str, *, over: bool) -> None:
        self._send("stop", trial_id, over)

    def close(self) -> None:
        """Tell the driver to end, and wait for that. Kill it if it does not end. Ray's processes end with it."""
        with delay_signals():
            try:
                if self._process.poll() is None and hasattr(self, "facts"):
                    with suppress(BackendLostError):
                        self._send("close")
                        end = time.monotonic() + _END_S
                        while (seconds_left := end - time.monotonic()) > 0:
                            self._hear(seconds_left)
                self._connection.close()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_END_S)
            finally:
                self._connection.close()
                if self._process.poll() is None:
                    self._process.kill()
                    self._process.wait()
                self._output.close()
                if self._folder is not None and self._folder.exists():  # the driver could not end its session
                    clear(self._folder)

    def _send(self, *words: Any) -> None:
        try:
            self._connection.send(words)
        except OSError as error:
            raise self._lost() from error

    def _hear(self, timeout: float | None) -> None:
        """Take one message of the driver, if one comes within `timeout` seconds, and do what it says."""
        try:
            if not self._connection.poll(timeout):
                return
            kind, *words = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if kind == _READY:
            self.facts, self._folder = words
        elif kind == _EVENTS:
            self._news, self._asked = words[0], False
        elif kind == _BUSY:
            (self.busy,) = words
        elif kind == _FACTS:
            (self.facts,) = words
        elif kind == _NOTE:
            self._note(*words)
        elif kind == _LOG:
            name, level, text = words
            logging.getLogger(name).log(level, "%s", text)
        elif kind == _RAISED:
            raise words[0]
        elif kind == _LOST:
            raise BackendLostError(words[0])
        elif kind == _CLOSED:
            raise BackendLostError("Ray's driver has ended")

    def _lost(self) -> BackendLostError:
        """Return the error for a driver that has ended, with the reason if it is known."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LOOK_S)
        code = self._process.poll()
        lines = _tail(self._output)
        for line in reversed(lines):
            if line.startswith(_ERROR):
                return BackendLostError(line.removeprefix(_ERROR).partition(";")[0])
        ended = "was ended by signal" if code is not None and code < 0 else "ended with exit code"
        last = f" ({lines[-1][:300]})" if lines and code not in (None, 0) and code > 0 else ""
        return BackendLostError(f"the process of Ray's driver {ended} {abs(code or 0)}{last}")


_ERROR = "error: "
"""The beginning of the driver's last line if Ray's own processes died (`sweeps.backends.ray.cluster.session`)."""


def _import_path() -> list[str]:
    """Return the import path of this process. A trial function may be in a folder beside the caller."""
    return [str(Path(entry or ".").resolve()) for entry in sys.path]


def _show_nothing(text: str) -> None:
    """Show nothing."""


def _tail(file: IO[bytes]) -> list[str]:
    """Return the last lines that a driver printed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 10_000))
    return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


class _Driver:
    """The driver's side: it opens a `RayBackend`, and serves the engine at the other end of a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._commands: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._wake: Callable[[], None] | None = None
        self._withdraw: Callable[[], None] | None = None
        self._busy = 0

    def run(self, modules: Sequence[str]) -> None:
        """Open the backend and serve the engine until it sends "close" or has ended.

        Args:
            modules: names of modules to import at the start. Imports take seconds, while the engine may still plan.
        """
        from sweeps.backends.ray.backend import open_here

        for module in ("sweeps.backends.ray.lanes.lanes", *modules):
            importlib.import_module(module)
        try:
            sys.path[:], setup = self._connection.recv()
        except EOFError:  # the engine needs no backend after all
            return
        threading.Thread(target=self._listen, name="engine", daemon=True).start()
        logging.getLogger().addHandler(_Forward(self))
        try:
            backend = open_here(replace(pickle.loads(setup), note=lambda text: self.send(_NOTE, text)))  # noqa: S301
        except Exception as error:  # noqa: BLE001  # raised again in the engine's process
            self.send(_RAISED, _portable(error))
            return
        self._wake, self._withdraw = backend.wake, backend.withdraw_request
        self.send(_READY, backend.facts, session_folder())
        try:
            self._serve(backend)
        except BackendLostError as error:
            self.send(_LOST, error.why)
            os._exit(1)  # without its session, Ray's library can't be shut down cleanly
        except Exception as error:  # noqa: BLE001  # raised again in the engine's process
            self.send(_RAISED, _portable(error))
            backend.close()
        else:
            backend.close()
            self.send(_CLOSED)

    def _serve(self, backend: RayBackend) -> None:
        events_wanted = False
        facts = backend.facts
        while True:
            with suppress(Empty):
                command, *arguments = self._commands.get(timeout=0 if events_wanted else _LOOK_S)
                if command == "close":
                    return
                if command == "events":
                    events_wanted = True
                elif command == "start":
                    backend.start(*arguments)
                elif command == "stop":
                    backend.stop(arguments[0], over=arguments[1])
                continue
            if events_wanted and (events := backend.events(_LOOK_S)):
                self.send(_EVENTS, events)
                events_wanted = False
            if backend.facts.workers != facts.workers:  # nodes have joined or left
                facts = backend.facts
                self.send(_FACTS, facts)
            if (busy := backend.busy) != self._busy:
                self._busy = busy
                self.send(_BUSY, busy)

    def _listen(self) -> None:
        """Queue the engine's commands. If the engine has ended, end the session and this process."""
        with suppress(EOFError, OSError):
            while True:
                self._commands.put(self._connection.recv())
                if self._wake is not None:
                    self._wake()
        if self._wake is None:  # Ray is still starting: the interrupt undoes that cleanly
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(_END_S / 2)
        if self._withdraw is not None:  # the cluster's autoscaler would keep the nodes
            asking = threading.Thread(target=self._withdraw, daemon=True)
            asking.start()
            asking.join(_END_S / 2)
        if (folder := session_folder()) is not None:  # Ray's agents would otherwise run for another minute
            clear(folder)
        os._exit(1)

    def send(self, *words: Any) -> None:
        """Send a message to the engine. Do nothing if it has ended."""
        with self._sending, suppress(OSError):
            self._connection.send(words)


class _Forward(logging.Handler):
    """A log handler that passes warnings of this package to the engine's process."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__(logging.WARNING)
        self._driver = driver

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == "sweeps":
            self._driver.send(_LOG, record.name, record.levelno, record.getMessage())


def _portable(error: Exception) -> Exception:
    """Return an error that can be pickled: `error` itself, or a RuntimeError with its message."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # made in the same line
    except Exception:  # noqa: BLE001  # whatever pickle or the error's own class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    os.set_inheritable(int(sys.argv[1]), False)  # Ray's processes must not inherit the connection
    _Driver(Connection(int(sys.argv[1]))).run(sys.argv[2:])
