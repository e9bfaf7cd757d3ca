"""Base models of CPU workers: one copy of the weights for all workers of a machine.

Every worker loads a model as usual. The first one saves its weights in the machine's cache (`trainables.cache`: the
folder, limit and locks of the decoded images), named by a checksum of their bits. Every worker then maps that file in
place of what it loaded, after comparing each bit, so a damaged or foreign file is never used. The mapping is private
(copy on write): what a worker writes stays with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.cache import cache_folder, draft, in_turn, make_folder, make_room, mark_used
from trainables.models.loading import LoadedModel, load_model

PREFIX = "base-"
"""Of the folders in the cache that hold a model's weights."""
FILE = "weights.pt"

_REST = 0.1
"""The share of a model that a loader which maps its own file, as transformers does with float32, may leave unmapped."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_RUN = 64
"""Words whose order a checksum does not see; one that sees all takes several times as long."""

_log = logging.getLogger("trainables")
_said: set[str] = set()


def shared_model(model_id: str) -> LoadedModel:
    """Load a model for the CPU as `load_model` does, with weights that this machine's workers share if they can.

    Raises ModelError: as `load_model`.
    """
    loaded = load_model(model_id)
    cache = cache_folder()
    if cache is not None:
        try:
            _share(loaded.module, cache)
        except OSError as error:  # a full or read-only disk, or another user's cache
            _warn_once(f"{cache} can't be used ({error})")
    return loaded


def shared_bytes(module: nn.Module) -> int:
    """Return the bytes of a model's tensors that other processes of this machine can share."""
    spans = _mapped_files()
    return sum(t.nbytes for t in named_tensors(module).values() if _lies_in(t, spans))


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, tied ones once."""
    return dict([*module.named_parameters(), *module.named_buffers()])


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    """Return a checksum of a tensor's bits and their places; a tenth of a second a GiB on a core."""
    flat, size = tensor.detach().reshape(-1), tensor.element_size()
    is_aligned = (
        flat.nbytes % 8 == flat.storage_offset() * size % 8 == 0
    )  # words of 8 bytes are summed 25 times as fast
    words = flat.view(torch.int64 if is_aligned else _WORDS[size])
    cut = len(words) // _RUN * _RUN
    sums = torch.cat([words[:cut].view(-1, _RUN).sum(1, dtype=torch.int64), words[cut:].to(torch.int64)])
    places = torch.arange(1, len(sums) + 1, device=sums.device)
    return int(((sums ^ sums >> 29) * places).sum())  # else high bits would be lost in products with even places


def _share(module: nn.Module, cache: Path) -> None:
    """Map the weights of a loaded model from the cache, saved first if they are not there."""
    spans, tensors = _mapped_files(), named_tensors(module)
    mappable = {name: t.data for name, t in tensors.items() if can_be_mapped(t) and not _lies_in(t, spans)}
    size = sum(t.nbytes for t in mappable.values())
    if size <= _REST * sum(t.nbytes for t in tensors.values()):
        return
    about = [[name, str(t.dtype), list(t.shape), checksum(t)] for name, t in mappable.items()]
    folder = cache / (PREFIX + hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32])
    make_folder(folder)  # it refuses another user's, who may change the file while it is mapped
    with in_turn(folder):
        mapped = _mapped(folder / FILE, mappable)
        if mapped is None:
            if not make_room(cache, size, keep=folder):
                _warn_once(f"{cache} has no room for {size / 2**20:.0f} MiB")
                return
            for abandoned in folder.glob("*.part"):  # of a process that was killed
                abandoned.unlink()
            with draft(folder) as file:
                torch.save(mappable, file)
                file.replace(folder / FILE)
            mapped = _mapped(folder / FILE, mappable)
        mark_used(folder)
    if mapped is None:
        _warn_once(f"{folder / FILE} does not hold what was written to it")
        return
    for name, tensor in mapped.items():
        tensors[name].data = tensor
    del mappable
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed memory that lies in pieces; others have none
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _mapped(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Map a file of tensors. None if it is not there, or differs from `expected` in any bit."""
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return None
    if not isinstance(tensors, dict) or tensors.keys() != expected.keys():
        return None
    return tensors if all(_same_bits(tensors[name], tensor) for name, tensor in expected.items()) else None


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def can_be_mapped(tensor: Tensor) -> bool:
    """Return whether a tensor is a plain one and all of its memory: no subclass, not quantised, not split, no view."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and type(tensor.data) is Tensor
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    )


def _mapped_files() -> list[tuple[int, int]]:
    """Return the spans of this process's memory that are mapped files; none if the system does not tell (not Linux)."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    matches = (re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]", line) for line in lines)  # an inode
    return [(int(match[1], 16), int(match[2], 16)) for match in matches if match]


def _lies_in(tensor: Tensor, spans: list[tuple[int, int]]) -> bool:
    return tensor.device.type == "cpu" and any(low <= tensor.data_ptr() < high for low, high in spans)


def _warn_once(why: str) -> None:
    """Warn once a process: a sweep goes on without sharing."""
    if why not in _said:
        _said.add(why)
        _log.warning("%s: each worker keeps a copy of the base model", why)
