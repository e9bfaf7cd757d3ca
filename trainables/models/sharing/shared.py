"""Base models of CPU workers: one copy of the weights for all workers of a machine.

The first worker loads a model as usual and writes its weights into the machine's cache, beside the decoded images
(`trainables.cache`: the same folder, limit, locks and clearing up); every worker then maps that file, the first
one as well. Later workers read and convert nothing where the model's modules can be built without weights, which the
first one found out (`trainables.models.sharing.skeleton`); else they load, and let go of what they loaded.

A folder is named by the model, the libraries that read it, and what its files are now, so a model that has changed is
another one. Without room, or with a cache that can't be written, a worker keeps weights of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainables.cache import cache_folder, draft, in_turn, make_folder, make_room, mark_used
from trainables.models.families import ModelError, ModelId, parse_id
from trainables.models.loading import LoadedModel, fetched, load_model
from trainables.models.shapes import UNREADABLE
from trainables.models.sharing.mapped import DamagedError, can_be_mapped, mapped_bytes, read, trim, write
from trainables.models.sharing.skeleton import fill, fits, is_empty_form, named_tensors
from trainables.runtime import installed

PREFIX = "base-"
"""Of the folders in the cache that hold a model's weights."""
FILE = "weights.safetensors"
MAPPED_ALREADY = "mapped-already"
"""Marks a model whose loader maps its own file, as transformers does with float32 safetensors."""

_FORMAT = 1
_LIBRARIES = ("torch", "transformers", "open_clip_torch", "timm", "safetensors", "gguf")
_LARGEST_REST = 0.1

_log = logging.getLogger("trainables")
_said: set[str] = set()


@dataclass(frozen=True)
class _Kept:
    """The weights of a model in this machine's cache; `empty`: its modules can be built without any."""

    tensors: dict[str, Tensor]
    empty: bool


def shared_model(model_id: str) -> LoadedModel:
    """`load_model`, with weights that this machine's processes share where that can be done. On the CPU.

    Writing to them changes this process's copy alone.

    Raises ModelError: as `load_model`.
    """
    cache = cache_folder()
    if cache is None or (name := _name(model_id)) is None:
        return load_model(model_id)
    folder = cache / name
    try:
        make_folder(folder)  # before it is read: it refuses another user's, who may put any weights there
        mapped_already = (folder / MAPPED_ALREADY).is_file()
    except OSError as error:
        _say(f"{cache} can't be used ({error})")
        return load_model(model_id)
    if mapped_already:
        return load_model(model_id)
    if (kept := _look(folder)) is not None:
        return _with(model_id, kept)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(in_turn(folder))
        except OSError as error:
            _say(f"{cache} can't be written ({error})")
            return load_model(model_id)
        kept = _look(folder, mend=True)
        if kept is None:
            loaded = load_model(model_id)
            if _name(model_id) == name:  # its files did not change meanwhile
                _keep(folder, loaded)
            return loaded
    return _with(model_id, kept)


def shared_bytes(module: nn.Module) -> int:
    """Bytes of a model's tensors that other processes of this machine can share."""
    return mapped_bytes(named_tensors(module).values())


def _with(model_id: str, kept: _Kept) -> LoadedModel:
    """The model with the weights that are kept."""
    if kept.empty:
        with contextlib.suppress(*UNREADABLE, NotImplementedError):
            loaded = load_model(model_id, weights=False)
            if fits(loaded.module, kept.tensors):
                fill(loaded.module, kept.tensors)
                return loaded
    loaded = load_model(model_id)
    _swap(loaded.module, kept.tensors)
    return loaded


def _swap(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put mapped weights in place of loaded ones, as far as they are there."""
    mine = named_tensors(module)
    fill(module, {name: t for name, t in tensors.items() if name in mine and _form(t) == _form(mine[name])})
    trim()


def _form(tensor: Tensor) -> tuple[Any, Any]:
    return tensor.shape, tensor.dtype


def _look(folder: Path, *, mend: bool = False) -> _Kept | None:
    """What the folder holds; None where there is nothing, or nothing whole, which `mend` removes."""
    path = folder / FILE
    try:
        tensors, notes = read(path)
    except DamagedError:
        if mend:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        return None
    except OSError:
        return None
    mark_used(folder)
    return _Kept(tensors, notes.get("empty") == "yes")


def _keep(folder: Path, loaded: LoadedModel) -> None:
    """Write a loaded model's weights and map them in place of its own. The folder's lock is held."""
    tensors = named_tensors(loaded.module)
    plain = _plain(tensors)
    size = sum(t.nbytes for t in tensors.values())
    try:
        for left in folder.glob("*.part"):  # of a process that was killed
            left.unlink()
        if mapped_bytes(tensors.values()) >= (1 - _LARGEST_REST) * size:
            (folder / MAPPED_ALREADY).touch()
            mark_used(folder)
            return
        if not make_room(folder.parent, sum(t.nbytes for t in plain.values()), keep=folder):
            _say(f"{folder.parent} has no room for {size / 2**20:.0f} MiB")
            return
        empty = len(plain) == len(tensors) and _can_be_empty(loaded)
        with draft(folder) as file:
            write(file, plain, {"model": loaded.model_id, "empty": "yes" if empty else "no"})
            file.replace(folder / FILE)
        mark_used(folder)
    except OSError as error:  # a full or read-only disk
        _say(f"{folder.parent} can't be written ({error})")
        return
    _swap(loaded.module, read(folder / FILE, check=False)[0])


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that can be mapped, each with memory that no other of them has."""
    owners = Counter(_memory(t) for t in tensors.values())
    return {name: t for name, t in tensors.items() if can_be_mapped(t) and (t.nbytes == 0 or owners[_memory(t)] == 1)}


def _memory(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # of a layout or a subclass without a storage
        return None


def _can_be_empty(loaded: LoadedModel) -> bool:
    try:
        empty = load_model(loaded.model_id, weights=False)
    except (*UNREADABLE, NotImplementedError):  # transformers needs accelerate for it
        return False
    return is_empty_form(empty.module, loaded.module)


def _name(model_id: str) -> str | None:
    """The folder's name, by the model, the libraries and its files; None where these can't be told."""
    parsed = parse_id(model_id)
    try:
        files = _files(parsed)
    except (*UNREADABLE, ModelError):
        return None  # loading says what is wrong
    if not files:
        return None
    source = [model_id if parsed.folder is None else str(parsed.folder.resolve()), parsed.gguf, _FORMAT]
    parts = json.dumps([*source, installed(_LIBRARIES), files], sort_keys=True)
    return PREFIX + hashlib.sha256(parts.encode()).hexdigest()[:32]


def _files(parsed: ModelId) -> list[Any]:
    """What decides a model's weights: its local files' times and sizes, or the revision on the hub."""
    if parsed.folder is not None:
        wanted = [parsed.gguf, "*.json"] if parsed.gguf else ["*.safetensors", "*.json"]
        return _stamps(path for pattern in wanted for path in sorted(parsed.folder.glob(pattern)))
    if parsed.scheme == "open_clip":
        found = None if parsed.tag is None else fetched(parsed)
        return [] if found is None else _stamps([found])
    found = fetched(parsed)  # .../snapshots/REVISION/NAME
    return [found.parent.name] if found is not None and found.parent.parent.name == "snapshots" else []


def _stamps(paths: Iterable[Path]) -> list[Any]:
    found = []
    for path in paths:
        about = path.stat()
        found.append([path.name, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino])
    return found


def _say(why: str) -> None:
    """Once a process: a sweep goes on without."""
    if why not in _said:
        _said.add(why)
        _log.warning("%s: each worker keeps a copy of the base model", why)
