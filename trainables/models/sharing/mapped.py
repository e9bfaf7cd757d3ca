"""Tensors in one file that processes map into memory: the pages are one copy for all processes of a machine.

The file is safetensors, which others can read too, with every tensor at a multiple of 64 bytes as torch's own allocator
places it: the last bits of a matrix product depend on that. The mapping is private (copy on write), so what a process
writes stays with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 64
_MOST_HEADER = 100 * 2**20  # safetensors' own limit
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class DamagedError(ValueError):
    """A file that is cut short, malformed, or whose bits are not those that were written."""


def can_be_mapped(tensor: Tensor) -> bool:
    """Whether a tensor is a plain one, whole in CPU memory: no subclass, not quantised, not split, with no gaps."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and type(tensor.data) is Tensor
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.dtype in _NAMES
        and tensor.is_contiguous()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    )


def write(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write tensors that `can_be_mapped`, with the caller's notes beside them. Raises OSError."""
    views = {name: _bytes_of(tensor) for name, tensor in tensors.items()}
    sums = {name: zlib.crc32(view) for name, view in views.items()}
    header: dict[str, Any] = {"__metadata__": {**notes, "crc32": json.dumps(sums)}}
    end = 0
    gaps: dict[str, int] = {}
    for name, tensor in tensors.items():
        if gap := -end % ALIGNMENT:  # the format has no holes, so a gap is a tensor as well
            header[f"gap.{name}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            gaps[name], end = gap, end + gap
        at, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, view in views.items():
            file.write(bytes(gaps.get(name, 0)))
            file.write(view)


def read(path: Path, *, check: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a file of `write`: its tensors, each with a storage of its own, and the notes.

    Args:
        check: read every bit once, to compare its checksum; False for who has just written them.

    Raises OSError for no file, DamagedError for one that is not as it was written.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_MOST_HEADER, size - 8):
                raise DamagedError(f"{path}: no header")
            header = json.loads(file.read(length))
            notes = header.pop("__metadata__")
            sums = json.loads(notes.pop("crc32"))
            start = 8 + length
            if start + max(entry["data_offsets"][1] for entry in header.values()) != size:
                raise DamagedError(f"{path}: {size} bytes, which is not what its header says")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            tensors = {name: _view(mapped, start, header[name]) for name in sums}
        except DamagedError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise DamagedError(f"{path}: its header can't be read") from error
    for name, tensor in tensors.items() if check else ():
        if zlib.crc32(_bytes_of(tensor)) != sums[name]:
            raise DamagedError(f"{path}: the checksum of {name} differs")
    return tensors, notes


def _view(mapped: mmap.mmap, start: int, entry: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    at, end = entry["data_offsets"]
    if at == end:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=torch.uint8, count=end - at, offset=start + at).view(dtype).view(shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def own_copy(tensor: Tensor) -> Tensor:
    """A copy that lies to multiples of 64 bytes as the tensor does, so that whoever computes with it gets its bits."""
    data = tensor.detach()
    room = torch.empty(data.nbytes + ALIGNMENT, dtype=torch.uint8, device=data.device)
    shift = (data.data_ptr() - room.data_ptr()) % ALIGNMENT
    return room[shift : shift + data.nbytes].view(data.dtype).view(data.shape).copy_(data)


def trim() -> None:
    """Give memory that was freed back to the system, which glibc otherwise keeps where it lies in pieces."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def mapped_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of CPU tensors that lie in files mapped into this process; 0 where the system does not tell (not Linux)."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    spans = []
    for line in lines:
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)", line)
        if found and found.group(3) != "0":  # an inode
            spans.append((int(found.group(1), 16), int(found.group(2), 16)))
    total = 0
    for tensor in tensors:
        if tensor.device.type == "cpu":
            at = tensor.data_ptr()
            total += tensor.nbytes if any(low <= at < high for low, high in spans) else 0
    return total
