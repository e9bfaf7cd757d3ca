"""Tensors in files, with a digest that is checked whenever they are read.

The digest stands in the metadata of the safetensors file. Without it a flipped bit would be a number like any other.
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
"""Key of the digest in a file's metadata."""


class UncheckedWarning(UserWarning):
    """A file of trained tensors has no digest, so that damage in it can't be seen."""


def check_file(path: Path) -> None:
    """Raise CheckpointError for a pipe, a device or a folder in a file's place: reading a pipe might not end."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a file but a folder, a pipe or a device; restore the file from a copy")


def write_text(path: Path, text: str) -> None:
    """Write a text under a temporary name, then rename."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors under a temporary name, then rename: a killed process leaves the old file or none."""
    part = path.with_name(path.name + ".part")
    ready = {name: t.detach().to("cpu").contiguous().clone() for name, t in tensors.items()}
    save_file(ready, os.fspath(part), metadata={**(metadata or {}), DIGEST: digest_of(ready)})
    part.replace(path)


def read_tensors(path: Path, *, expect_digest: bool = False) -> dict[str, Tensor]:
    """Read safetensors.

    Args:
        path: the file.
        expect_digest: warn if the file has no digest of its tensors; else files of others may lack it.

    Raises:
        CheckpointError: the file is missing or damaged, or its tensors are not those that it was written with.
    """
    check_file(path)
    try:
        with safe_open(os.fspath(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            wanted = (file.metadata() or {}).get(DIGEST)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if wanted is None:
        if expect_digest:
            said = f"{path} has no digest of its tensors, since an older version wrote it: damage would not be noticed"
            warnings.warn(said, UncheckedWarning, stacklevel=3)
    elif (found := digest_of(tensors)) != wanted:
        raise CheckpointError(
            f"{path} is damaged or was changed: its tensors have the digest {found[:16]}..., and they were written "
            f"with {wanted[:16]}...; restore the file from a copy, or train it anew"
        )
    return tensors


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bits."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = whole(tensor).to("cpu").contiguous()
        total.update(f"{name}:{tuple(flat.shape)}:{flat.dtype}:".encode())
        total.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
