"""Read and write files of tensors, with a digest that is checked at every read.

The digest is in the metadata of the safetensors file. Without it, a flipped bit would be a number like any other.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from randlora.errors import CheckpointError
from randlora.model.sharded import whole

DIGEST = "digest"
"""The key of the digest in a file's metadata."""


class UncheckedWarning(UserWarning):
    """A file of trained tensors has no digest, so damage in it cannot be noticed."""


def check_file(path: Path) -> None:
    """Raise CheckpointError if the path is a pipe, a device or a folder. Reading a pipe might not end."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a file but a folder, a pipe or a device; restore the file from a copy")


def write_text(path: Path, text: str) -> None:
    """Write a text under a temporary name, and rename the file."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors under a temporary name, and rename the file: a killed process leaves the old file or none."""
    unfinished = path.with_name(path.name + ".part")
    ready = {name: t.detach().to("cpu").contiguous().clone() for name, t in tensors.items()}
    save_file(ready, os.fspath(unfinished), metadata={**(metadata or {}), DIGEST: digest_of(ready)})
    unfinished.replace(path)


def read_tensors(path: Path, *, expect_digest: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Args:
        path: the file.
        expect_digest: warn if the file has no digest. Files of other programs may lack it.

    Raises:
        CheckpointError: the file is missing or damaged, or its tensors are not those that were written.
    """
    check_file(path)
    try:
        with safe_open(os.fspath(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            digest = (file.metadata() or {}).get(DIGEST)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if digest is None:
        if expect_digest:
            message = f"{path} has no digest, because an older version wrote it: damage would not be noticed"
            warnings.warn(message, UncheckedWarning, stacklevel=3)
    elif (actual := digest_of(tensors)) != digest:
        raise CheckpointError(
            f"{path} is damaged or was changed: its tensors have the digest {actual[:16]}..., and they were written "
            f"with {digest[:16]}...; restore the file from a copy, or train it anew"
        )
    return tensors


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, types and bits."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = whole(tensor).to("cpu").contiguous()
        total.update(f"{name}:{tuple(flat.shape)}:{flat.dtype}:".encode())
        total.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
