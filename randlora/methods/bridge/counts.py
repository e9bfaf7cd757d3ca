"""Counts of PEFT's types that depend on options or need arithmetic, the capacities that are legal on a weight, and the
weights that PEFT refuses at every capacity.

`shape` is (out, in), `options` those of the type with their defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from randlora.adapter import Shape
from randlora.methods.method import Misfit

Options = Mapping[str, Any]
MOST = 1 << 20
"""Capacities of a weight that are tried at most."""
BANK = 1 << 13
"""Vectors of a bank that are tried at most."""
STEPS = 100_000
"""Steps of a capacity that is a fraction in PEFT."""


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*low, *(number // d for d in low)}))


def close(choices: tuple[int, ...], capacity: int) -> int:
    """The choice nearest to the capacity, of two equally near the smaller."""
    return min(choices, key=lambda choice: abs(choice - capacity))


def low_rank(shape: Shape, r: int, options: Options) -> int:
    """Two thin factors."""
    return r * sum(shape)


def lora(shape: Shape, r: int, options: Options) -> int:
    return low_rank(shape, r, options) + bool(options.get("use_dora")) * shape[0]


def miss(shape: Shape, r: int, options: Options) -> int:
    return r * int(options["mini_r"] if options["init_weights"] == "mini" else shape[0])


def miss_legal(shape: Shape, r: int, options: Options) -> int:
    if options["init_weights"] == "bat":
        return close(divisors(math.gcd(*shape)), r)
    return min(r, shape[1])


def peanut(shape: Shape, r: int, options: Options) -> int:
    return 2 * r * shape[0] + 2 * int(options["depth"]) * r * r


def glora(shape: Shape, r: int, options: Options) -> int:
    return 2 * {"lora": r * sum(shape), "vector": shape[0], "constant": 1, "none": 0}[options["config_A_B"]]


def lokr(shape: Shape, r: int, options: Options) -> int:
    from peft.tuners.lokr.layer import factorization

    (out_l, out_k), (in_m, in_n) = (factorization(side, options["decompose_factor"]) for side in shape)
    first = r * (out_l + in_m) if options["decompose_both"] and r < max(out_l, in_m) / 2 else out_l * in_m
    return int(first + (r * (out_k + in_n) if r < max(out_k, in_n) / 2 else out_k * in_n))


def lokr_most(shape: Shape, options: Options) -> int:
    return -(-max(shape) // 2)


def vector_length(shapes: Iterable[Shape], options: Options) -> int:
    """The longest vectors, up to the option, into which every side falls apart."""
    most: int = options["vector_length"]
    return max(d for d in divisors(math.gcd(*(side for shape in shapes for side in shape))) if d <= most)


def bank(shapes: Mapping[str, Shape], vectors: int, options: Options) -> int:
    """The bank, and a logit for each of its vectors in every piece of every factor."""
    length = vector_length(shapes.values(), options)
    return vectors * (length + int(options["r"]) * sum(map(sum, shapes.values())) // length)


def bank_most(shape: Shape, options: Options) -> int:
    """A vector for every piece of the factors."""
    return min(BANK, int(options["r"]) * sum(shape) // vector_length([shape], options))


def lily(shapes: Mapping[str, Shape], r: int, options: Options) -> int:
    """An A for `stride_A` layers of a group, `num_B` B for the group, and a router for each layer."""
    stride, heads = int(options["stride_A"]), int(options["num_B"])
    groups: dict[tuple[str, Shape], int] = {}
    for name, shape in shapes.items():
        key = tail(name.removesuffix(".weight")), shape
        groups[key] = groups.get(key, 0) + 1
    return r * sum(-(-n // stride) * i + heads * o + n * heads for (_, (o, i)), n in groups.items())


def tail(module: str) -> str:
    """What layers of one kind are called: the name after the last number in it ("layers.3.mlp.up": "mlp.up")."""
    parts = module.split(".")
    numbers = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else module


def alone(together: Callable[[Mapping[str, Shape], int, Options], int]) -> Callable[[Shape, int, Options], int]:
    """Of one weight, whose trainables no other shares."""
    return lambda shape, capacity, options: together({"": shape}, capacity, options)


def entries(shape: Shape, options: Options) -> int:
    return min(MOST, shape[0] * shape[1])


def within(most: Callable[[Shape, Options], int]) -> Callable[[Shape, int, Options], int]:
    """Legal are all capacities up to the largest."""
    return lambda shape, capacity, options: min(capacity, most(shape, options))


def supra(shape: Shape, step: int, options: Options) -> int:
    return int(shape[0] * shape[1] * (1 - sparsity(step))) + (options.get("r") or 0) * sum(shape)


def supra_legal(shape: Shape, step: int, options: Options) -> int:
    size = shape[0] * shape[1]
    step = max(step, STEPS // size)  # below, not one entry trains
    while int(size * (1 - sparsity(step))) < 1:
        step += 1
    return step


def sparsity(step: int) -> float:
    return 1 - step / STEPS


def frod(shape: Shape, step: int, options: Options) -> int:
    side = shape[1]
    return side + min(max(1, int(side * side * (step / STEPS))), side * side - side)


def psoft(shape: Shape, r: int, options: Options) -> int:
    middle = r * (r - 1) // 2 if options["psoft_orth"] else r * r
    return middle + r * int(options["psoft_mag_a"] + options["psoft_mag_b"])


def gralora_legal(shape: Shape, r: int, options: Options) -> int:
    k: int = options["gralora_k"]
    return max(k, k * ((r + k // 2) // k))


def shira_most(shape: Shape, options: Options) -> int:
    return shape[0] * shape[1] // sum(shape)


def narrow(shape: Shape, options: Options) -> int:
    return min(shape)


def width(shape: Shape, options: Options) -> int:
    return shape[1]


def _undivided(
    option: str, size: int, sides: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Shape], step: int = 1
) -> Misfit | None:
    """The misfit of the first weight with a side that `size` does not divide; the remedy is a multiple of `step`."""
    for name, own in sides.items():
        for side in own:
            if side % size:
                common = math.gcd(*(each for given in sides.values() for each in given))
                fitting = tuple(d for d in divisors(common) if d % step == 0)
                remedy = f"{option} = {close(fitting, size)}" if fitting else "targets without such weights"
                shape = "x".join(map(str, shapes[name]))
                return Misfit(f"{option} = {size} must divide {side}, a side of {name} ({shape})", remedy)
    return None


def _outs(shapes: Mapping[str, Shape]) -> dict[str, tuple[int, ...]]:
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
    """FRoD decomposes all layers of one category together, which needs one number of inputs."""
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
    """What FRoD calls layers with one role: the last two parts of a module's name, or one after a number."""
    parts = weight.removesuffix(".weight").split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    attention = parts[-3:] == ["attention", "output", "dense"]
    return "attention_output" if attention else f"{parts[-2]}_{parts[-1]}"
