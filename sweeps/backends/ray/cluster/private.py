"""Makes a private folder and a token for a local Ray session, so that other users can neither read nor call it.

Ray opens its folders to everybody (mode 0777), so they are put into a folder that only the user may enter. By default,
Ray would use one token for all sessions, in the user's home.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sweeps.backends.ray.cluster.processes import clear
from sweeps.backends.ray.compat import loopback, read_authentication
from sweeps.backends.resources import ResourceError
from sweeps.errors import Problem

PREFIX = "sweeps-ray-"
"""How the folder's name begins. `joining.find` recognises processes of private sessions of any user by it."""
_RAYS = "/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store_1"
_SOCKET_BYTES = 103  # the longest path of a Unix socket: 107 on Linux, 103 on macOS
_YOUNG_S = 60.0
"""Age in seconds up to which a folder may belong to a session that is just being started."""
_SHORT = "/tmp"  # noqa: S108  # a new folder for its owner alone is made in it


def _wanted_place() -> str:
    """Return the folder that the environment names for Ray's files."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _SHORT


def temporary_space() -> tuple[str, int]:
    """Return the folder for Ray's files, and the bytes that are free there."""
    place = _wanted_place() if Path(_wanted_place()).is_dir() else _SHORT
    return place, shutil.disk_usage(place).free


def make_folder() -> Path:
    """Make and return a new folder for Ray's files, which only its owner may enter, with a new token in it.

    The folder is in RAY_TMPDIR, TMPDIR or /tmp. It is also in /tmp if the path of the first is too long for Ray's
    sockets, or if that folder can't be written.

    Raises:
        ResourceError: no place is writable and has a path that is short enough.
    """
    asked = _wanted_place()
    failures = []
    for place in dict.fromkeys((Path(asked).absolute(), Path(_SHORT))):
        over = len(os.fsencode(f"{place}/{PREFIX}12345678{_RAYS}")) - _SOCKET_BYTES
        if over > 0:
            failures.append(f"{place} is {over} bytes too long for Ray's sockets")
            continue
        folder: Path | None = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            token_of(folder).touch(0o600)
            token_of(folder).write_text(secrets.token_hex(32), encoding="ascii")
        except OSError as error:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            failures.append(f"{place}: {error.strerror}")
            continue
        if failures:
            logging.getLogger("sweeps").warning("Ray's files go to %s: %s", place, failures[0])
        for parent in dict.fromkeys((place, Path(_SHORT))):
            _remove_abandoned(parent)
        return folder
    rule = f"Ray's files can go nowhere ({'; '.join(failures)})"
    raise ResourceError([Problem("RAY_TMPDIR", asked, rule, "a short, writable folder")])


def _remove_abandoned(place: Path) -> None:
    """End the processes of this user's sessions whose drivers were killed, and remove their folders."""
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            about = folder.lstat()
            ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if ours and time.time() - about.st_mtime > _YOUNG_S and not _has_driver(folder):
                clear(folder)


def _has_driver(folder: Path) -> bool:
    """Return whether a driver holds the lock on a session's token. Return False if there is no token yet."""
    try:
        with token_of(folder).open() as token:
            fcntl.flock(token, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
    return False


def token_of(folder: Path) -> Path:
    """Return the path of a session's token."""
    return folder / "token"


def session_folder() -> Path | None:
    """Return the folder of this process's local session; None if it has joined a cluster, or has no session."""
    folder = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "")).parent
    return folder if folder.name.startswith(PREFIX) else None


@contextlib.contextmanager
def private_session(folder: Path) -> Iterator[None]:
    """Let Ray in the block listen on loopback and ask for the folder's token, whatever the user has set.

    The token's file is locked meanwhile, so that no other driver removes the folder as an abandoned one.
    """
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_of(folder))}
    before = {name: os.environ.pop(name, None) for name in (*own, "RAY_AUTH_TOKEN")}
    os.environ.update(own)
    try:
        with loopback(), token_of(folder).open() as token:
            fcntl.flock(token, fcntl.LOCK_SH)
            read_authentication()
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        read_authentication()


@contextlib.contextmanager
def users_token() -> Iterator[None]:
    """Let Ray in the block use the user's token, if there is one and RAY_AUTH_MODE is not set."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(path).expanduser().is_file()
    if "RAY_AUTH_MODE" in os.environ or not has_token:
        yield
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    try:
        read_authentication()
        yield
    finally:
        del os.environ["RAY_AUTH_MODE"]
        read_authentication()
