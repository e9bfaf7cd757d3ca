"""A local Ray session's own folder and token: only its owner reads what it writes, and only who has the token is heard.

Ray opens its folders to everybody (mode 0777), so they lie in one that is not. Ray's own default token would be one for
all sessions, in the user's home.
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
"""Of the folder's name: by it `joining.find` knows the processes of private sessions, anybody's."""
_RAYS = "/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store_1"
_SOCKET_BYTES = 103  # of a Unix socket's path: 107 on Linux, 103 on macOS
_YOUNG_S = 60.0
"""Age up to which a folder may be one of a session that is just being started."""
_SHORT = "/tmp"  # noqa: S108  # what is made in it is made anew, for its owner alone


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
        for known in dict.fromkeys((place, Path(_SHORT))):
            _remove_abandoned(known)
        return folder
    rule = f"no folder can hold Ray's files ({'; '.join(tried)})"
    raise ResourceError([Problem("RAY_TMPDIR", asked, rule, "a short, writable folder")])


def _remove_abandoned(place: Path) -> None:
    """End what is left of this user's sessions whose drivers were killed, and remove their folders."""
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            about = folder.lstat()
            ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if ours and time.time() - about.st_mtime > _YOUNG_S and not _has_driver(folder):
                clear(folder)


def _has_driver(folder: Path) -> bool:
    """Return whether a driver holds the lock of a session's token. One killed before it wrote the token does not."""
    try:
        with token_of(folder).open() as token:
            fcntl.flock(token, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
    return False


def token_of(folder: Path) -> Path:
    """Where a session's token is."""
    return folder / "token"


def session_folder() -> Path | None:
    """The folder of the local session that this process has; None where it has another one, or none."""
    folder = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "")).parent
    return folder if folder.name.startswith(PREFIX) else None


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """What is started in the block listens on loopback and asks for the folder's token, whatever the user has set.

    The token's file is locked meanwhile, so that no other driver takes the folder for an abandoned one.
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
    """Use a token that the user has in the block, if RAY_AUTH_MODE does not say otherwise."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    there = bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(path).expanduser().is_file()
    if "RAY_AUTH_MODE" in os.environ or not there:
        yield
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    try:
        read_authentication()
        yield
    finally:
        del os.environ["RAY_AUTH_MODE"]
        read_authentication()
