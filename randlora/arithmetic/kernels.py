"""The optional compiled kernels: a small C library, and a Triton kernel on CUDA.

The C library is built on first use with the system's compiler, and cached. Triton is used if the environment has
`RANDLORA_KERNELS=triton`. Nothing needs the kernels. Without a compiler, or with `RANDLORA_KERNELS=off`,
`load_compiled()` returns None and torch computes the same products. `status()` says what is in use and why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from randlora.errors import ConfigError

_SOURCE = Path(__file__).with_name("ternary.c")
_FLAGS = ("-O3", "-fPIC", "-shared", "-std=gnu11")
_NATIVE = ("-march=native", "-mcpu=native", "")
_SECONDS = 60.0


class _BuildError(RuntimeError):
    """The library cannot be built or loaded; the message says why."""

    pass


def _compiler() -> str:
    """Return the path of a C compiler. Raises _BuildError if there is none."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return path
    raise _BuildError("no C compiler was found (cc, gcc, clang, or $CC)")


def _machine() -> str:
    """Return what a native build depends on: the platform, and the processor's features if the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.system()} {platform.machine()} {platform.processor()} {features}"


@contextmanager
def _cache() -> Iterator[Path]:
    """Yield a folder that only this user can write. Without one, it is a temporary folder, which is removed at
    the end."""
    base = _own_folder()
    if base is not None:
        yield base
        return
    with tempfile.TemporaryDirectory(prefix="randlora-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)  # a loaded library stays usable after its file is removed


def _own_folder() -> Path | None:
    """Return the user's cache folder, made if missing; None if it cannot be made or if others can write to it."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "randlora"
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = base.stat()
        if info.st_uid == os.getuid() and not info.st_mode & 0o022 and os.access(base, os.W_OK):
            return base
    except (OSError, RuntimeError):
        pass  # no home folder, or a read-only one: the library is built for this process alone
    return None


def _build(compiler: str, target: Path) -> None:
    """Compile the library and move it to `target`. Raises _BuildError with the compiler's last words."""
    errors = ""
    for native in _NATIVE:
        unfinished = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.part")
        command = [compiler, *_FLAGS, *([native] if native else []), str(_SOURCE), "-o", str(unfinished)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _BuildError(f"{compiler} did not run: {error}") from error
        if done.returncode == 0:
            with unfinished.open("rb") as library:
                os.fsync(
                    library.fileno()
                )  # an incomplete library, as after a power cut, would kill the process that loads it
            unfinished.replace(target)
            return
        errors = done.stderr.strip()
    raise _BuildError(f"{compiler} failed: {errors[-500:]}")


def _open(compiler: str, target: Path) -> ctypes.CDLL:
    """Return the library in `target`. It is built if it is missing or cannot be loaded."""
    if target.exists():
        with suppress(OSError):  # an incomplete library, as a full disk leaves it, is built again
            return ctypes.CDLL(os.fspath(target))
    _build(compiler, target)
    try:
        return ctypes.CDLL(os.fspath(target))
    except OSError as error:
        raise _BuildError(f"{target} cannot be loaded: {error}") from error


def _load() -> ctypes.CDLL:
    """Return the library with the types of its function set. Raises _BuildError if it cannot be had."""
    if os.environ.get("RANDLORA_KERNELS", "").lower() in ("0", "off", "no", "false"):
        raise _BuildError("switched off by RANDLORA_KERNELS")
    if sys.platform == "win32":
        raise _BuildError("not built on Windows")
    compiler = _compiler()
    with Path(compiler).open("rb") as file:  # another compiler under the same name needs another build
        version = hashlib.file_digest(file, "sha256").hexdigest()
    parts = (_SOURCE.read_text(encoding="utf-8"), compiler, version, *_FLAGS, _machine())
    key = hashlib.sha256("\x1f".join(parts).encode())
    with _cache() as folder:
        library = _open(compiler, folder / f"ternary-{key.hexdigest()[:24]}.so")
    try:
        function = library.randlora_ternary
    except AttributeError as error:
        raise _BuildError(f"the library lacks its function: {error}") from error
    pointer, stride, size = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int64
    function.argtypes = [
        *(pointer, stride, stride, size, size),
        *(pointer, pointer, pointer, pointer),
        *(size, ctypes.c_float, pointer, pointer, stride, stride, size, size),
    ]
    function.restype = ctypes.c_int
    return library


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason why there is none."""
    try:
        return _load(), "compiled"
    except (_BuildError, OSError) as error:
        return None, str(error)


def load_compiled() -> ctypes.CDLL | None:
    """Return the compiled library, built if needed; None if it cannot be had."""
    return _library()[0]


def takes_triton(device: torch.device) -> bool:
    """Return whether Triton computes products with signs on `device`.

    That is so only if `RANDLORA_KERNELS=triton`, because nobody has measured yet that it is faster. Under Triton's
    interpreter it also works on the CPU.

    Raises:
        ConfigError: Triton is asked for, and the package triton is not installed.
    """
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if os.environ.get("RANDLORA_KERNELS", "").lower() != "triton" or not (device.type == "cuda" or interpreted):
        return False
    if importlib.util.find_spec("triton") is None:
        raise ConfigError("RANDLORA_KERNELS=triton needs the package triton: pip install triton")
    return True


def status() -> str:
    """Return "compiled", or the reason why the compiled library is not in use."""
    return _library()[1]
