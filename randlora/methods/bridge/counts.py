"""Counts and legal capacities of PEFT's types that cannot be measured, and misfits.

`shape` is (out, in). `options` are all options of the type. A misfit says why PEFT refuses weights at every capacity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from randlora.adapter import Shape
from randlora.methods.bridge.measure import Options, close, divisors
from randlora.methods.method import Misfit

MOST = 1 << 20
"""The largest capacity of a weight that is tried."""
BANK = 1 << 13
"""The largest number of vectors of a bank that is tried."""
STEPS = 100_000
"""The number of steps of a capacity that is a fraction in PEFT."""


def miss_legal(shape: Shape, r: int, options: Options) -> int:
    if options["init_weights"] == "bat":
        return close(divisors(math.gcd(*shape)), r)
    return min(r, shape[1])


def osf_rank(value: float | None, shape: Shape) -> int:
    """Return how many singular vectors PEFT's OSF keeps: a number, a fraction of the smaller side, or half of it."""
    if value is None:
        return min(shape) // 2
    return int(min(shape) * value) if isinstance(value, float) and value <= 1 else int(value)


def lokr(shape: Shape, r: int, options: Options) -> int:
    from peft.tuners.lokr.layer import factorization

    (out_l, out_k), (in_m, in_n) = (factorization(side, options["decompose_factor"]) for side in shape)
    first = r * (out_l + in_m) if options["decompose_both"] and r < max(out_l, in_m) / 2 else out_l * in_m
    return int(first + (r * (out_k + in_n) if r < max(out_k, in_n) / 2 else out_k * in_n))


def lokr_most(shape: Shape, options: Options) -> int:
    return -(-max(shape) // 2)


def vector_length(shapes: Iterable[Shape], options: Options) -> int:
    """Return the length of the vectors: the largest divisor of all sides that is at most the option `vector_length`."""
    most: int = options["vector_length"]
    return max(d for d in divisors(math.gcd(*(side for shape in shapes for side in shape))) if d <= most)


def bank(shapes: Mapping[str, Shape], vectors: int, options: Options) -> int:
    """Return the count of a bank of vectors, and of a logit for each of them in every piece of every factor."""
    length = vector_length(shapes.values(), options)
    return vectors * (length + int(options["r"]) * sum(map(sum, shapes.values())) // length)


def bank_most(shape: Shape, options: Options) -> int:
    """Return the number of pieces of the factors, as the largest useful number of vectors."""
    return min(BANK, int(options["r"]) * sum(shape) // vector_length([shape], options))


def lily(shapes: Mapping[str, Shape], r: int, options: Options) -> int:
    """Return the count of Lily: an A for `stride_A` layers of a group, `num_B` B for the group, and a router for each
    layer."""
    stride, heads = int(options["stride_A"]), int(options["num_B"])
    groups: dict[tuple[str, Shape], int] = {}
    for name, shape in shapes.items():
        key = layer_kind(name.removesuffix(".weight")), shape
        groups[key] = groups.get(key, 0) + 1
    return r * sum(-(-n // stride) * i + heads * o + n * heads for (_, (o, i)), n in groups.items())


def layer_kind(module: str) -> str:
    """Return the name of a kind of layers: what follows the last number in a module's name ("layers.3.mlp.up":
    "mlp.up")."""
    parts = module.split(".")
    numbers = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else module


def of_one_weight(together: Callable[[Mapping[str, Shape], int, Options], int]) -> Callable[[Shape, int, Options], int]:
    """Return the count of one weight that shares its trainables with no other, from the count of all weights
    together."""
    return lambda shape, capacity, options: together({"": shape}, capacity, options)


def entries(shape: Shape, options: Options) -> int:
    """Return the number of a weight's entries, at most `MOST`."""
    return min(MOST, shape[0] * shape[1])


def supra(shape: Shape, step: int, options: Options) -> int:
    return int(shape[0] * shape[1] * (1 - sparsity(step))) + (options.get("r") or 0) * sum(shape)


def supra_legal(shape: Shape, step: int, options: Options) -> int:
    """Return the nearest step at which at least one entry trains."""
    size = shape[0] * shape[1]
    step = max(step, STEPS // size)  # at fewer steps no entry trains
    while int(size * (1 - sparsity(step))) < 1:
        step += 1
    return step


def sparsity(step: int) -> float:
    """Return the sparsity at a step."""
    return 1 - step / STEPS


def frod(shape: Shape, step: int, options: Options) -> int:
    side = shape[1]
    return side + min(max(1, int(side * side * (step / STEPS))), side * side - side)


def gralora_legal(shape: Shape, r: int, options: Options) -> int:
    k: int = options["gralora_k"]
    return max(k, k * ((r + k // 2) // k))


def width(shape: Shape, options: Options) -> int:
    """Return the number of inputs."""
    return shape[1]


def _undivided(
    option: str, size: int, sides: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Shape], step: int = 1
) -> Misfit | None:
    """Return the misfit of the first weight with a side that `size` does not divide; None if there is none.

    Args:
        option: the option's name.
        size: its value.
        sides: weight name -> the sides that must be divisible.
        shapes: weight name -> (out, in).
        step: the remedy is a multiple of it.
    """
    for name, weight_sides in sides.items():
        for side in weight_sides:
            if side % size:
                common = math.gcd(*(common_side for all_sides in sides.values() for common_side in all_sides))
                fitting = tuple(d for d in divisors(common) if d % step == 0)
                remedy = f"{option} = {close(fitting, size)}" if fitting else "targets without such weights"
                shape = "x".join(map(str, shapes[name]))
                return Misfit(f"{option} = {size} must divide {side}, a side of {name} ({shape})", remedy)
    return None


def _outs(shapes: Mapping[str, Shape]) -> dict[str, tuple[int, ...]]:
    """Return the number of outputs of every weight, as its only side."""
    return {name: shape[:1] for name, shape in shapes.items()}


def gralora_misfit(shapes: Mapping[str, Shape], options: Options) -> Misfit | None:
    return _undivided("gralora_k", options["gralora_k"], shapes, shapes)


def miss_misfit(shapes: Mapping[str, Shape], options: Options) -> Misfit | None:
    if options["init_weights"] != "mini":
        return None
    return _undivided("mini_r", options["mini_r"], _outs(shapes), shapes)


def road_misfit(shapes: Mapping[str, Shape], options: Options) -> Misfit | None:
    return _undivided("group_size", options["group_size"], _outs(shapes), shapes, step=2)


def frod_misfit(shapes: Mapping[str, Shape], options: Options) -> Misfit | None:
    """Return the misfit of layers of one category that differ in their inputs, because FRoD decomposes them
    together."""
    first: dict[str, str] = {}
    for name, shape in shapes.items():
        other = first.setdefault(frod_category(name), name)
        if shape[1] != shapes[other][1]:
            return Misfit(
                f"layers of one name are decomposed together and need as many inputs, but {other} has "
                f"{shapes[other][1]} and {name} has {shape[1]}",
                "targets with one number of inputs",
            )
    return None


def frod_category(weight: str) -> str:
    """Return FRoD's name for layers of one role: the last two parts of a module's name, or the last one after a
    number."""
    parts = weight.removesuffix(".weight").split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    attention = parts[-3:] == ["attention", "output", "dense"]
    return "attention_output" if attention else f"{parts[-2]}_{parts[-1]}"
