"""Derive seeds for named uses from one number: independent random streams, the same on every machine."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *words: str | int) -> int:
    """Return a seed for one named use of `seed`."""
    digest = hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *words: str | int) -> torch.Generator:
    """Return a CPU generator for one named use of `seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *words))
