"""Degrees of freedom of PEFT's types in closed form, at a point in general position. Those of other types are measured.

Two values of the trainables that make the same update count once. A formula holds for a type's own options: it returns
None for options that change what trains. `tests/randlora/adapted/test_freedom.py` compares each formula with the rank
of the Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from randlora.adapter import Shape
from randlora.methods.bridge.counts import bank, entries, vector_length
from randlora.methods.bridge.kinds import KINDS
from randlora.methods.bridge.measure import Options
from randlora.methods.method import low_rank_freedom
from randlora.methods.random.randlora import randlora_freedom

Freedom = Callable[[Shape, int, Options], int | None]


def _counted(name: str, **needed: Any) -> Freedom:
    """Return the formula of a type in which every counted parameter acts, with these options."""
    return lambda shape, capacity, options: (
        KINDS[name].count_of(shape, capacity, options) if _has(options, needed) else None
    )


def _low_rank(**needed: Any) -> Freedom:
    """Return the formula of a type whose update is a matrix of rank r, with these options."""
    return lambda shape, r, options: low_rank_freedom(shape, r) if _has(options, needed) else None


def _has(options: Options, needed: Mapping[str, Any]) -> bool:
    """Return whether the options have the needed values."""
    return all(options[key] == value for key, value in needed.items())


def _loha(shape: Shape, r: int, options: Options) -> int:
    """Return LoHa's. In an entrywise product, factors times c and over c, row by row or column by column, are
    the same."""
    return 2 * low_rank_freedom(shape, r) - sum(shape) + 1


def _glora(shape: Shape, r: int, options: Options) -> int | None:
    return 2 * low_rank_freedom(shape, r) if options["config_A_B"] == "lora" else None


def _rotation(shape: Shape, size: int) -> int:
    """Return the degrees of freedom of rotations of `size` dimensions that change a weight with this many rows."""
    rows = min(shape[0], size)
    return rows * size - rows * (rows + 1) // 2


def _hra(shape: Shape, r: int, options: Options) -> int | None:
    """Return HRA's: reflections by unit vectors, whose product is a rotation. More than `in` of them add no
    rotations."""
    if options.get("apply_GS"):
        return None
    r = min(r, shape[1])
    return min(r * shape[1] - r * (r + 1) // 2, _rotation(shape, shape[1]))


def _boft(shape: Shape, block: int, options: Options) -> int:
    """Return BOFT's: of each stored matrix only the skew part acts, which makes a rotation. Each row also has a
    scale."""
    return shape[1] // block * _rotation(shape, block) + shape[0]


def _oft(shape: Shape, block: int, options: Options) -> int:
    """Return OFT's. With exact rotations they are those of rotations. The Neumann series does not make exact rotations,
    so there every stored number acts."""
    if options["use_cayley_neumann"]:
        return KINDS["oft"].count_of(shape, block, options)
    return shape[1] // block * _rotation(shape, block)


def _fourier(shape: Shape, n: int, options: Options) -> int:
    """Return FourierFT's expected number: a wave and its conjugate, which may both be drawn, have the same real
    part."""
    return n - round(n * (n - 1) / (2 * max(1, entries(shape, options) - 1)))


def _psoft(shape: Shape, r: int, options: Options) -> int | None:
    """Return PSOFT's. Its two scales share a factor."""
    full = options["psoft_orth"] and options["psoft_mag_a"] and options["psoft_mag_b"]
    return r * (r - 1) // 2 + 2 * r - 1 if full else None


def _osf(shape: Shape, e: int, options: Options) -> int:
    """Return OSF's: those of a matrix of rank m - e. PEFT projects gradients, but AdamW's scaling leaves that space."""
    return low_rank_freedom(shape, min(shape) - e)


@lru_cache(maxsize=1024)
def _active(out: int, width: int) -> float:
    """Return the expected number of independent entries of a ReLU's row, min(out, n).

    Each of the `width` entries is positive with probability one half, and n are positive.
    """
    if width <= out:
        return width / 2
    logs = (math.lgamma(width + 1) - math.lgamma(n + 1) - math.lgamma(width - n + 1) for n in range(width + 1))
    return sum(min(out, n) * math.exp(log - width * math.log(2)) for n, log in enumerate(logs))


def _peanut(shape: Shape, r: int, options: Options) -> int | None:
    """Return PEANuT's expected number.

    A row of A acts through the positive entries of its ReLU. Its scale is also that of a column of B.
    """
    if options["depth"] or options["act_fn"] != "relu":
        return None
    return min(round(r * (shape[0] + _active(*shape) - 1)), low_rank_freedom(shape, r))


def _supertuning(shape: Shape, step: int, options: Options) -> int | None:
    return None if options["r"] else KINDS["supertuning"].count_of(shape, step, options)


def _adamss(shape: Shape, r: int, options: Options) -> int:
    """Return AdaMSS's: for every cluster, a column times a row."""
    return min(int(options["num_subspaces"]), shape[0]) * (r - 1) + shape[0]


FREEDOM: dict[str, Freedom] = {
    "lora": lambda shape, r, options: low_rank_freedom(shape, r) + (shape[0] if options.get("use_dora") else 0),
    "hira": _low_rank(),
    "delora": _low_rank(),
    "deft": _low_rank(para=False),
    "gralora": _low_rank(),
    "lily": _low_rank(),
    "loha": _loha,
    "glora": _glora,
    "miss": _counted("miss", init_weights=True),
    "hra": _hra,
    "boft": _boft,
    "oft": _oft,
    "c3a": _counted("c3a"),
    "fourierft": _fourier,
    "waveft": _counted("waveft"),
    "shira": _counted("shira"),
    "supertuning": _supertuning,
    "frod": _counted("frod"),
    "peanut": _peanut,
    "psoft": _psoft,
    "osf": _osf,
    "randlora": lambda shape, r, options: randlora_freedom(shape, r),
    "vera": lambda shape, r, options: shape[0] + r - 1,
    "pvera": lambda shape, r, options: shape[0] + r - 1,  # the variances only scale random noise
    "tinylora": lambda shape, u, options: min(u, options["r"] ** 2),
    "road": lambda shape, variant, options: min(variant, 2) * shape[0],
    "beft": _counted("beft"),
    "ia3": _counted("ia3"),
    "unilora": lambda shape, entries, options: min(entries, low_rank_freedom(shape, options["r"])),
    "adamss": _adamss,
    "vblora": lambda shape, vectors, options: min(
        low_rank_freedom(shape, options["r"]), _bank({"": shape}, vectors, options)
    ),
}


def _bank(shapes: Mapping[str, Shape], vectors: int, options: Options) -> int:
    """Return an upper bound for a bank: its vectors, and the weights of each piece's chosen vectors, which add
    up to 1."""
    length = vector_length(shapes.values(), options)
    pieces = bank(shapes, vectors, options) // vectors - length
    return vectors * length + pieces * (int(options["topk"]) - 1)


TOGETHER: dict[str, Callable[[Mapping[str, Shape], int, Options], int]] = {"vblora": _bank}
"""Type -> function that returns the most degrees of freedom that all weights have together."""
AT_MOST = {"randlora": ("sparse", "very_sparse")}
"""Type -> options with which its formula is an upper bound. A column of A that is zero in all rows leaves a
gamma dead."""
