"""The optional compiled parts: a small C library, built on first use with the system's compiler and kept in a cache;
and, on CUDA, a Triton kernel where `RANDLORA_KERNELS=triton` asks for it.

Nothing needs them. Without a compiler, or with `RANDLORA_KERNELS=off` in the environment, `load_compiled()` is None and
the same products are made by torch. `status()` says what is in use and why.
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
    pass


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise _BuildError("no C compiler was found (cc, gcc, clang, or $CC)")


def _machine() -> str:
    """What a native build depends on: the processor's features where the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.system()} {platform.machine()} {platform.processor()} {features}"


@contextmanager
def _cache() -> Iterator[Path]:
    """A folder that only this user can write, made if missing; else a temporary one, gone at the end."""
    base = _own_folder()
    if base is not None:
        yield base
        return
    with tempfile.TemporaryDirectory(prefix="randlora-", ignore_cleanup_errors=True) as made:
        yield Path(made)  # a library that was loaded outlives its file


def _own_folder() -> Path | None:
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "randlora"
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = base.stat()
        if info.st_uid == os.getuid() and not info.st_mode & 0o022 and os.access(base, os.W_OK):
            return base
    except (OSError, RuntimeError):
        pass  # no home, or a read-only one: the library is built for this process alone
    return None


def _build(compiler: str, target: Path) -> None:
    errors = ""
    for native in _NATIVE:
        part = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.part")
        command = [compiler, *_FLAGS, *([native] if native else []), str(_SOURCE), "-o", str(part)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _BuildError(f"{compiler} did not run: {error}") from error
        if done.returncode == 0:
            with part.open("rb") as made:
                os.fsync(made.fileno())  # half a library, as after a power cut, kills the process that loads it
            part.replace(target)
            return
        errors = done.stderr.strip()
    raise _BuildError(f"{compiler} failed: {errors[-500:]}")


def _open(compiler: str, target: Path) -> ctypes.CDLL:
    """The library in `target`, built where there is none that can be loaded."""
    if target.exists():
        with suppress(OSError):  # cut short by a full disk, say: built anew
            return ctypes.CDLL(os.fspath(target))
    _build(compiler, target)
    try:
        return ctypes.CDLL(os.fspath(target))
    except OSError as error:
        raise _BuildError(f"{target} cannot be loaded: {error}") from error


def _load() -> ctypes.CDLL:
    if os.environ.get("RANDLORA_KERNELS", "").lower() in ("0", "off", "no", "false"):
        raise _BuildError("switched off by RANDLORA_KERNELS")
    if sys.platform == "win32":
        raise _BuildError("not built on Windows")
    compiler = _compiler()
    with Path(compiler).open("rb") as file:  # another version under the same name builds anew
        version = hashlib.file_digest(file, "sha256").hexdigest()
    parts = (_SOURCE.read_text(encoding="utf-8"), compiler, version, *_FLAGS, _machine())
    key = hashlib.sha256("\x1f".join(parts).encode())
    with _cache() as folder:
        found = _open(compiler, folder / f"ternary-{key.hexdigest()[:24]}.so")
    try:
        function = found.randlora_ternary
    except AttributeError as error:
        raise _BuildError(f"the library lacks its function: {error}") from error
    pointer, stride, size = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int64
    function.argtypes = [
        *(pointer, stride, stride, size, size),
        *(pointer, pointer, pointer, pointer),
        *(size, ctypes.c_float, pointer, pointer, stride, stride, size, size),
    ]
    function.restype = ctypes.c_int
    return found


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    try:
        return _load(), "compiled"
    except (_BuildError, OSError) as error:
        return None, str(error)


def load_compiled() -> ctypes.CDLL | None:
    """The compiled library, built if need be; None where it cannot be had."""
    return _library()[0]


def takes_triton(device: torch.device) -> bool:
    """Whether products with signs on `device` are Triton's.

    On request alone, until it is measured that it is faster. Under Triton's interpreter the CPU is such a device.

    Raises ConfigError: it is asked for, and there is no package triton.
    """
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if os.environ.get("RANDLORA_KERNELS", "").lower() != "triton" or not (device.type == "cuda" or interpreted):
        return False
    if importlib.util.find_spec("triton") is None:
        raise ConfigError("RANDLORA_KERNELS=triton needs the package triton: pip install triton")
    return True


def status() -> str:
    """ "compiled", or why the compiled part is not in use."""
    return _library()[1]
