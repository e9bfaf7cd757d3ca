"""The largest rank that a method's update of one weight can have: what parameters are traded against.

Bounds that updates in general position reach: facts of the formulas in `docs/methods.md`, not of trained weights (for
those, `sweeps analyze spectrum`). Sparse ternary bases of a small weight may fall short of them. m is min(out, in).
"""

from __future__ import annotations

from typing import Any

from randlora.adapter import Shape
from randlora.methods.random.ablations import half_bases
from randlora.methods.random.randlora import num_bases


def capacity_rank(shape: Shape, capacity: int, **options: Any) -> int:
    """min(r, m): a product through r dimensions (LoRA, VeRA, LoRA-XS; AdaLoRA and AutoLoRA at their ends)."""
    return min(capacity, *shape)


def option_rank(shape: Shape, capacity: int, *, r: int, **options: Any) -> int:
    """min(r, m) where the rank r is an option and parameters buy something else (NoLA, RandLoRA-a)."""
    return min(r, *shape)


def twice_rank(shape: Shape, capacity: int, **options: Any) -> int:
    """min(2r, m): what was taken off the frozen weight, and what replaces it (PiSSA)."""
    return min(2 * capacity, *shape)


def spread_rank(shape: Shape, capacity: int, **options: Any) -> int:
    """min(n r, m) = m: n = ceil(m / r) bases of rank r (RandLoRA)."""
    return min(num_bases(shape, capacity) * capacity, *shape)


def half_rank(shape: Shape, capacity: int, **options: Any) -> int:
    """min(n r, m), n = ceil(m / 2r): about m / 2 (RandLoRA-b)."""
    return min(half_bases(shape, capacity) * capacity, *shape)


def full_rank(shape: Shape, capacity: int, **options: Any) -> int:
    """m: the weight itself, its rescaled rows (DoRA), or the main diagonal between all its singular vectors (SVFT)."""
    return min(shape)
