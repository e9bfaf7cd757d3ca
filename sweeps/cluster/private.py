"""A local Ray session's own folder and token: only its owner reads what it writes, and only who has the token is heard.

Ray opens its folders to everybody (mode 0777), so they lie in one that is not. Ray's own default token would be one for
all sessions, in the user's home.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from sweeps.cluster.resources import ResourceError
from sweeps.errors import Problem

PREFIX = "sweeps-ray-"
"""Of the folder's name: by it `joining.find` knows the processes of private sessions, anybody's."""
_RAYS = "/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store_1"
_SOCKET_BYTES = 103  # of a Unix socket's path: 107 on Linux, 103 on macOS
_SHORT = "/tmp"  # noqa: S108  # what is made in it is made anew, for its owner alone
_WAIT_S = 5.0


def _asked() -> str:
    """Where Ray's files are to go."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _SHORT


def room() -> tuple[str, int]:
    """Where Ray's files go, and the bytes that are free there."""
    place = _asked() if Path(_asked()).is_dir() else _SHORT
    return place, shutil.disk_usage(place).free


def make_folder() -> Path:
    """A new folder that only its owner may enter, with a token of its own in it, where Ray puts its files.

    That is in RAY_TMPDIR, TMPDIR or /tmp; in /tmp too where the path of the first would be too long for Ray's sockets,
    or it can't be written.

    Raises:
        ResourceError: no place is writable and has a path that is short enough.
    """
    asked = _asked()
    tried = []
    for place in dict.fromkeys((Path(asked).absolute(), Path(_SHORT))):
        over = len(os.fsencode(f"{place}/{PREFIX}12345678{_RAYS}")) - _SOCKET_BYTES
        if over > 0:
            tried.append(f"{place} is {over} bytes too long for Ray's sockets")
            continue
        folder: Path | None = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            token_of(folder).touch(0o600)
            token_of(folder).write_text(secrets.token_hex(32), encoding="ascii")
        except OSError as error:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            tried.append(f"{place}: {error.strerror}")
            continue
        if tried:
            logging.getLogger("sweeps").warning("Ray's files go to %s: %s", place, tried[0])
        return folder
    rule = f"Ray's files can go nowhere ({'; '.join(tried)})"
    raise ResourceError([Problem("RAY_TMPDIR", asked, rule, "a short, writable folder")])


def token_of(folder: Path) -> Path:
    """Where a session's token is."""
    return folder / "token"


def session_folder() -> Path | None:
    """The folder of the local session that this process has; None where it has another one, or none."""
    folder = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "")).parent
    return folder if folder.name.startswith(PREFIX) else None


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """What is started in the block listens on loopback and asks for the folder's token, whatever the user has set."""
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # no stubs

    def reread() -> None:
        Config.initialize("")  # first: a thread of Ray's that still ends must not look for a token that is gone
        AuthenticationTokenLoader.instance().reset_cache()

    # no cluster: what makes Ray bind 127.0.0.1 on Linux; Ray read it when it was imported, perhaps long before
    own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
    own["RAY_AUTH_TOKEN_PATH"] = str(token_of(folder))
    before = {name: os.environ.pop(name, None) for name in (*own, "RAY_AUTH_TOKEN")}
    cluster = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(own)
    ray_constants.ENABLE_RAY_CLUSTER = False
    reread()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = cluster
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        reread()


def clear(folder: Path) -> None:
    """End what still runs of a session that did not come up, and remove its folder."""
    left = processes_of(folder)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=_WAIT_S)
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """This user's processes of Ray that have the folder on their command line, or a file in it open."""
    found = []
    for pid in psutil.pids():  # not process_iter, whose processes may be earlier ones of the same number
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.pid == os.getpid() or process.uids().real != os.getuid():
                continue
            words = " ".join(process.cmdline())
            files = process.open_files() if words.startswith("ray::") else []  # a title in place of its arguments
            if str(folder) in words or any(file.path.startswith(f"{folder}/") for file in files):
                found.append(process)
    return found
