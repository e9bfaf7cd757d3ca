"""What is known of every adapter type of PEFT: its capacity, its count in closed form, its seed, its published rate.

Counts are those of PEFT 0.21 on an `nn.Linear` of (out, in); `tests/randlora/methods/test_bridge.py` builds every one.
Rates are those of PEFT's own comparison (method_comparison/MetaMathQA of its repository), whose default is 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from randlora.adapter import Shape
from randlora.errors import UnknownMethodError, nearest

PREFIX = "peft:"
Options = Mapping[str, Any]
Count = Callable[[Shape, int, Options], int]
_MOST = 1 << 20
"""Capacities of a weight that are tried at most."""
_STEPS = 100_000
"""Steps of a capacity that is a fraction in PEFT."""


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*low, *(number // d for d in low)}))


def _close(choices: tuple[int, ...], capacity: int) -> int:
    """The choice nearest to the capacity, of two equally near the smaller."""
    return min(choices, key=lambda choice: abs(choice - capacity))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One adapter type of PEFT.

    Attributes:
        title: as PEFT's documentation spells it.
        capacity_field: of PEFT's configuration that the capacity sets; None where the type has one size.
        count: trainable parameters of one weight at a legal capacity.
        most: the largest capacity worth trying on one weight; nothing beyond it acts.
        least: the smallest.
        legal: the nearest capacity that PEFT takes on a weight, of those that it does.
        value: what PEFT's field is at a capacity.
        alpha: the field that PEFT divides by the rank, and what it is a unit of rank (the quotient of PEFT's defaults).
        seed: the field that draws what is frozen; None: nothing random is frozen.
        start: whether W0 + delta is W0 at the start, by default: to the bit, to rounding, or not.
        defaults: options whose default is not PEFT's, so that training starts from the base model.
        fixed: fields that are set here, because they would change the count or what trains.
        refused: option -> words that PEFT takes and this package does not, since they write into the base weights or
            need data.
        matrix: whether the update is a matrix, so that weights that are read and not called can be adapted.
        bias_too: whether the layer's bias is changed as well.
        pooled: whether one vector for the whole model is what trains; its length is the sum of all capacities.
        derived: whether frozen tensors are made from W0 (a decomposition), so that a checkpoint keeps them.
        draws: whether a training forward draws random numbers even without dropout.
        meta: whether PEFT builds it without weights.
        rate, source: the centre of a search.
    """

    title: str
    capacity_field: str | None = "r"
    count: Count
    most: Callable[[Shape, Options], int] = lambda shape, options: min(shape)
    least: int = 1
    legal: Callable[[Shape, int, Options], int] = lambda shape, capacity, options: capacity
    value: Callable[[int], Any] = lambda capacity: capacity
    alpha: tuple[str, float] | None = None
    seed: str | None = None
    start: Literal["exact", "rounded", "changed"] = "exact"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    matrix: bool = True
    bias_too: bool = False
    pooled: bool = False
    derived: bool = False
    draws: bool = False
    meta: bool = True
    rate: float = 1e-4
    source: str = "PEFT's method comparison, its default"


def _lora(shape: Shape, r: int, options: Options) -> int:
    more = bool(options.get("use_dora")) + bool(options.get("lora_bias"))
    return r * sum(shape) + more * shape[0]


def _miss(shape: Shape, r: int, options: Options) -> int:
    return r * int(options["mini_r"] if options["init_weights"] == "mini" else shape[0])


def _miss_legal(shape: Shape, r: int, options: Options) -> int:
    if options["init_weights"] == "bat":
        return _close(divisors(math.gcd(*shape)), r)
    return min(r, shape[1])


def _peanut(shape: Shape, r: int, options: Options) -> int:
    return 2 * r * shape[0] + 2 * int(options["depth"]) * r * r


def _glora(shape: Shape, r: int, options: Options) -> int:
    return 2 * {"lora": r * sum(shape), "vector": shape[0], "constant": 1, "none": 0}[options["config_A_B"]]


def _lokr(shape: Shape, r: int, options: Options) -> int:
    from peft.tuners.lokr.layer import factorization

    (out_l, out_k), (in_m, in_n) = (factorization(side, options["decompose_factor"]) for side in shape)
    first = r * (out_l + in_m) if options["decompose_both"] and r < max(out_l, in_m) / 2 else out_l * in_m
    return int(first + (r * (out_k + in_n) if r < max(out_k, in_n) / 2 else out_k * in_n))


def _lokr_most(shape: Shape, options: Options) -> int:
    return -(-max(shape) // 2)


def _entries(shape: Shape, options: Options) -> int:
    return min(_MOST, shape[0] * shape[1])


def _within(most: Callable[[Shape, Options], int]) -> Callable[[Shape, int, Options], int]:
    """Legal are all capacities up to the largest."""
    return lambda shape, capacity, options: min(capacity, most(shape, options))


def _supra(shape: Shape, step: int, options: Options) -> int:
    return int(shape[0] * shape[1] * (1 - _sparsity(step))) + (options.get("r") or 0) * sum(shape)


def _supra_legal(shape: Shape, step: int, options: Options) -> int:
    while int(shape[0] * shape[1] * (1 - _sparsity(step))) < 1:
        step += 1
    return step


def _sparsity(step: int) -> float:
    return 1 - step / _STEPS


def _frod(shape: Shape, step: int, options: Options) -> int:
    side = shape[1]
    return side + min(max(1, int(side * side * (step / _STEPS))), side * side - side)


def _psoft(shape: Shape, r: int, options: Options) -> int:
    middle = r * (r - 1) // 2 if options["psoft_orth"] else r * r
    return middle + r * int(options["psoft_mag_a"] + options["psoft_mag_b"])


def _gralora_legal(shape: Shape, r: int, options: Options) -> int:
    k: int = options["gralora_k"]
    return max(k, k * ((r + k // 2) // k))


_shira_most: Callable[[Shape, Options], int] = lambda shape, options: shape[0] * shape[1] // sum(shape)  # noqa: E731
_narrow: Callable[[Shape, Options], int] = lambda shape, options: min(shape)  # noqa: E731
_width: Callable[[Shape, Options], int] = lambda shape, options: shape[1]  # noqa: E731
_WRITES_BASE = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga", "mica")


def _rate(rate: float, folder: str) -> dict[str, Any]:
    return {"rate": rate, "source": f"PEFT's method comparison, {folder}"}


KINDS: dict[str, Kind] = {
    "lora": Kind(
        title="LoRA",
        count=_lora,
        alpha=("lora_alpha", 1.0),
        refused={"init_lora_weights": _WRITES_BASE},
        fixed={"use_qalora": False, "ensure_weight_tying": False},
    ),
    "hira": Kind(
        title="HiRA",
        count=lambda shape, r, options: r * sum(shape),
        **_rate(4.5e-3, "hira/llama-3.2-3B-rank32-lr4.5e-3"),
    ),
    "delora": Kind(title="DeLoRA", count=lambda shape, r, options: r * sum(shape) + 1),
    "deft": Kind(
        title="DEFT",
        count=lambda shape, r, options: r * (shape[0] if options["para"] else sum(shape)),
        legal=lambda shape, r, options: min(r, shape[0]),
        start="rounded",
    ),
    "gralora": Kind(
        title="GraLoRA",
        count=lambda shape, r, options: r * sum(shape),
        legal=_gralora_legal,
        alpha=("alpha", 2.0),
        fixed={"hybrid_r": 0},
        **_rate(2e-4, "gralora/llama-3.2-3B-rank32"),
    ),
    "loha": Kind(
        title="LoHa",
        count=lambda shape, r, options: 2 * r * sum(shape),
        alpha=("alpha", 1.0),
        fixed={"use_effective_conv2d": False},
    ),
    "lokr": Kind(
        title="LoKr",
        count=_lokr,
        most=_lokr_most,
        alpha=("alpha", 1.0),
        fixed={"use_effective_conv2d": False},
        **_rate(3e-3, "lokr/llama-3.2-3B-rank32-factor4-lr0.003"),
    ),
    "glora": Kind(title="GLoRA", count=_glora, fixed={"config_C": "none", "config_D_E": "none"}),
    "miss": Kind(title="MiSS", count=_miss, most=_width, legal=_miss_legal),
    "hra": Kind(
        title="HRA",
        count=lambda shape, r, options: r * shape[1],
        most=_width,
        least=2,
        legal=lambda shape, r, options: max(2, r - r % 2),
        start="rounded",
    ),
    "peanut": Kind(title="PEANuT", count=_peanut),
    "boft": Kind(
        title="BOFT",
        capacity_field="boft_block_size",
        count=lambda shape, block, options: block * shape[1] + shape[0],
        most=_width,
        least=2,
        legal=lambda shape, block, options: _close(divisors(shape[1])[1:], block),
        fixed={"boft_block_num": 0, "boft_n_butterfly_factor": 1},
        bias_too=True,
    ),
    "oft": Kind(
        title="OFT",
        capacity_field="oft_block_size",
        count=lambda shape, block, options: shape[1] * (block - 1) // 2,
        most=_width,
        least=2,
        legal=lambda shape, block, options: _close(divisors(shape[1])[1:], block),
        fixed={"r": 0, "block_share": False},
    ),
    "c3a": Kind(
        title="C3A",
        capacity_field="block_size",
        count=lambda shape, block, options: shape[0] * shape[1] // block,
        most=lambda shape, options: math.gcd(*shape),
        legal=lambda shape, block, options: _close(divisors(math.gcd(*shape)), block),
        defaults={"init_weights": True},
        **_rate(0.3, "c3a/llama-3.2-3B-default"),
    ),
    "fourierft": Kind(
        title="FourierFT",
        capacity_field="n_frequency",
        count=lambda shape, n, options: n,
        most=_entries,
        legal=_within(_entries),
        seed="random_loc_seed",
        defaults={"init_weights": True},
    ),
    "waveft": Kind(
        title="WaveFT",
        capacity_field="n_frequency",
        count=lambda shape, n, options: n,
        most=_entries,
        legal=_within(_entries),
        fixed={"proportional_parameters": False},
        seed="random_loc_seed",
    ),
    "shira": Kind(
        title="SHiRA",
        count=lambda shape, r, options: r * sum(shape),
        most=_shira_most,
        legal=_within(_shira_most),
        seed="random_seed",
        meta=False,
        **_rate(3e-4, "shira/llama-3.2-3B-lr_0.0003-random_seed_42"),
    ),
    "supertuning": Kind(
        title="Super-Tuning",
        capacity_field="sparsity",
        count=_supra,
        most=lambda shape, options: _STEPS,
        legal=_supra_legal,
        value=_sparsity,
        fixed={"save_precomputed_indices": True},
        derived=True,
    ),
    "frod": Kind(
        title="FRoD",
        capacity_field="sparse_rate",
        count=_frod,
        most=lambda shape, options: _STEPS,
        value=lambda step: step / _STEPS,
        fixed={"progressbar": False, "save_projection": True, "runtime_offload_base_weight": False},
        seed="projection_prng_key",
        start="rounded",
        derived=True,
        meta=False,
    ),
    "psoft": Kind(
        title="PSOFT",
        count=_psoft,
        legal=_within(_narrow),
        alpha=("psoft_alpha", 1.0),
        seed="random_seed",
        derived=True,
    ),
    "osf": Kind(
        title="OSF",
        capacity_field="effective_rank",
        count=lambda shape, e, options: (min(shape) - e) * (sum(shape) + 1),
        most=lambda shape, options: min(shape) - 1,
        legal=lambda shape, e, options: min(e, min(shape) - 1),
        start="rounded",
        derived=True,
        **_rate(5e-5, "osf/llama-3.2-3B-rank128"),
    ),
    "randlora": Kind(
        title="RandLoRA",
        count=lambda shape, r, options: -(-min(shape) // r) * (r + min(shape)),
        alpha=("randlora_alpha", 20.0),
        fixed={"save_projection": True},
        seed="projection_prng_key",
    ),
    "vera": Kind(
        title="VeRA",
        count=lambda shape, r, options: r + shape[0],
        most=lambda shape, options: max(shape),
        fixed={"save_projection": True},
        seed="projection_prng_key",
    ),
    "pvera": Kind(
        title="PVeRA",
        count=lambda shape, r, options: 2 * r + shape[0],
        most=lambda shape, options: max(shape),
        fixed={"save_projection": True, "sample_at_inference": False, "generator_seed": None},
        seed="projection_prng_key",
        matrix=False,
        draws=True,
    ),
    "tinylora": Kind(
        title="TinyLoRA",
        capacity_field="u",
        count=lambda shape, u, options: u,
        most=lambda shape, options: options["r"] ** 2,
        fixed={"weight_tying": 0.0, "save_projection": True},
        seed="projection_seed",
        derived=True,
    ),
    "road": Kind(
        title="RoAd",
        capacity_field="variant",
        count=lambda shape, variant, options: variant * shape[0],
        most=lambda shape, options: 4,
        legal=lambda shape, variant, options: _close((1, 2, 4), variant),
        value=lambda variant: f"road_{_close((1, 2, 4), variant)}",
        bias_too=True,
        **_rate(1e-3, "road/llama-3.2-3B-lr_0.001"),
    ),
    "beft": Kind(
        title="BEFT",
        capacity_field=None,
        count=lambda shape, size, options: shape[0],
        most=lambda shape, options: 1,
        matrix=False,
        bias_too=True,
    ),
    "ia3": Kind(
        title="IA3",
        capacity_field=None,
        count=lambda shape, size, options: shape[0],
        most=lambda shape, options: 1,
        fixed={"feedforward_modules": []},
        bias_too=True,
        **_rate(5e-3, "ia3/llama-3.2-3B-all-attn-5k-lr0.005"),
    ),
    "unilora": Kind(
        title="UniLoRA",
        capacity_field="theta_d_length",
        count=lambda shape, entries, options: entries,
        most=lambda shape, options: options["r"] * sum(shape),
        legal=lambda shape, entries, options: min(entries, options["r"] * sum(shape)),
        fixed={"save_indices": False},
        seed="proj_seed",
        start="changed",
        pooled=True,
        **_rate(2e-3, "unilora/llama-3.2-3B-r4-td131072-lr0.002"),
    ),
}

_PROMPT = "adds virtual tokens to a causal language model, not an update to its weights"
UNFIT: dict[str, str] = {
    "prompt_tuning": _PROMPT,
    "multitask_prompt_tuning": _PROMPT,
    "p_tuning": _PROMPT,
    "prefix_tuning": _PROMPT,
    "cartridge": _PROMPT,
    "cpt": _PROMPT,
    "adaption_prompt": "adapts whole attention modules of a few model types, and cannot be taken off again",
    "ln_tuning": "trains the weights of norms, so that no capacity can meet a budget",
    "trainable_tokens": "trains rows of an embedding, so that no capacity can meet a budget",
    "shadow": "is a second backbone beside the model, not an update to its weights",
    "xlora": "mixes LoRAs that are trained already",
    "poly": "shares LoRAs between tasks, and a trial has one; take peft:lora",
    "adalora": "trains more than its budget until its schedule has cut it down; take adalora, which fills the budget",
    "adamss": "counts parameters by the values of the weights, so that no budget can be solved before they are loaded",
    "vblora": "shares a bank of vectors between all weights, which its count per weight does not have",
    "lily": "shares its factors between the layers of a group, which its count per weight does not have",
}
"""PEFT's other types, with the reason."""


def kind_of(name: str) -> Kind:
    """The type called `name`, as in "peft:miss".

    Raises:
        UnknownMethodError: a type that PEFT lacks, or that does not fit here, with the reason.
    """
    short = name.removeprefix(PREFIX)
    if short in UNFIT:
        raise UnknownMethodError(f"{name} is no method here: it {UNFIT[short]}")
    if short not in KINDS:
        names = [PREFIX + kind for kind in KINDS]
        raise UnknownMethodError(f"unknown method {name!r}: {nearest(name, names)}; PEFT's methods here are {names}")
    return KINDS[short]
