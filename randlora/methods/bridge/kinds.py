"""What is known of every adapter type of PEFT: its capacity, its count, its seed, its published learning rate.

Counts are those of PEFT 0.21 on an `nn.Linear` of (out, in); `tests/randlora/methods/test_bridge.py` builds every type.
Learning rates are those of PEFT's own comparison (method_comparison/MetaMathQA of its repository), whose default is
1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from randlora.adapter import Shape
from randlora.errors import UnknownMethodError, nearest
from randlora.methods.bridge import counts
from randlora.methods.bridge.counts import Options
from randlora.methods.method import Misfit

PREFIX = "peft:"
Count = Callable[[Shape, int, Options], int]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One adapter type of PEFT.

    Attributes:
        title: its name as PEFT's documentation spells it.
        capacity_field: the field of PEFT's configuration that the capacity sets; None if the type has one size.
        count: returns the number of trainable parameters of one weight at a legal capacity.
        together: returns that number for all weights by name, if weights share trainables. They then have one capacity.
        most: returns the largest useful capacity on one weight.
        reach: returns the largest useful capacity of a model, from those of its weights.
        least: the smallest capacity.
        open_ended: whether parameters beyond `most` act too, so that only their cost limits the capacity.
        legal: returns the nearest capacity that PEFT accepts on a weight.
        misfit: returns why PEFT cannot adapt weights of these shapes at any capacity; None if it can.
        value: returns the value of PEFT's field at a capacity.
        read: returns the capacity of a weight for a value of PEFT's field.
        alpha: the field that PEFT divides by the rank, and its value per unit of rank (the quotient of PEFT's
            defaults).
        seed: the field with the seed of frozen random tensors; None if there are none.
        start: whether W0 + delta is W0 at the start, with default options: bit for bit, up to rounding, or not.
        defaults: options whose default differs from PEFT's, so that training starts from the base model.
        settled: returns fields that depend on the shapes of all weights.
        by_tail: whether layers of one kind share trainables. PEFT tells kinds by the names that it is given.
        fixed: fields that have a fixed value here, because they would change the count or what trains.
        sizes: option that changes the count -> its smallest value.
        refused: option -> strings that PEFT accepts and this package does not, because they write into the base weights
            or need data.
        matrix: whether the update is a matrix, so that weights that are read and not called can be adapted.
        bias_too: whether the layer's bias is changed too.
        bias_column: whether PEFT adds the bias to the weight as a column, and decomposes both.
        pooled: whether one vector for the whole model is trained. Its length is the sum of all capacities.
        derived: whether frozen tensors are made from W0 (a decomposition), so that a checkpoint keeps them.
        mixes_rows: whether a row's update depends on the rest of its batch.
        draws: whether a forward in training draws random numbers even without dropout.
        conv1d: whether PEFT adapts transformers' Conv1D too, so that an adapter on one can be exported.
        meta: whether PEFT builds the type without values of the weights.
        rate, source: the learning rate on which a search is centred, and where it was published.
    """

    title: str
    capacity_field: str | None = "r"
    count: Count
    together: Callable[[Mapping[str, Shape], int, Options], int] | None = None
    most: Callable[[Shape, Options], int] = lambda shape, options: min(shape)
    reach: Callable[[Iterable[int]], int] = max
    least: int = 1
    open_ended: bool = False
    legal: Callable[[Shape, int, Options], int] = lambda shape, capacity, options: capacity
    misfit: Callable[[Mapping[str, Shape], Options], Misfit | None] = lambda shapes, options: None
    value: Callable[[int], Any] = lambda capacity: capacity
    read: Callable[[Any, Shape], int] = lambda value, shape: int(value)
    alpha: tuple[str, float] | None = None
    seed: str | None = None
    start: Literal["exact", "rounded", "changed"] = "exact"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    settled: Callable[[Iterable[Shape], Options], Mapping[str, Any]] = lambda shapes, options: {}
    by_tail: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    matrix: bool = True
    bias_too: bool = False
    bias_column: bool = False
    pooled: bool = False
    derived: bool = False
    mixes_rows: bool = False
    draws: bool = False
    conv1d: bool = False
    meta: bool = True
    rate: float = 1e-4
    source: str = "PEFT's method comparison, its default"

    @property
    def needs_float_weight(self) -> str | None:
        """Why it cannot act beside a weight that is kept in 4 or 8 bits; None if it can."""
        if self.bias_too:
            return "changes the layer's bias as well as its weight"
        return None if self.matrix else "makes an update that is no matrix"

    def __reduce__(self) -> tuple[Callable[[str], Kind], tuple[str]]:
        """Pickle the name, because most fields are functions that no module has under their own name."""
        return kind_of, (next(name for name, kind in KINDS.items() if kind is self),)


_WRITES_BASE = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga", "mica")


def _rate(rate: float, folder: str) -> dict[str, Any]:
    return {"rate": rate, "source": f"PEFT's method comparison, {folder}"}


KINDS: dict[str, Kind] = {
    "lora": Kind(
        title="LoRA",
        count=counts.lora,
        alpha=("lora_alpha", 1.0),
        refused={"init_lora_weights": _WRITES_BASE},
        # a change of the bias is not a change of the weight
        fixed={"use_qalora": False, "ensure_weight_tying": False, "lora_bias": False},
        conv1d=True,
    ),
    "hira": Kind(
        title="HiRA",
        count=counts.low_rank,
        conv1d=True,
        **_rate(4.5e-3, "hira/llama-3.2-3B-rank32-lr4.5e-3"),
    ),
    "delora": Kind(
        title="DeLoRA",
        count=lambda shape, r, options: r * sum(shape) + 1,
        **_rate(1e-3, "delora/llama-3.2-3B-rank32"),
    ),
    "deft": Kind(
        title="DEFT",
        count=lambda shape, r, options: r * (shape[0] if options["para"] else sum(shape)),
        legal=lambda shape, r, options: min(r, shape[0]),
        start="rounded",
        conv1d=True,
    ),
    "gralora": Kind(
        title="GraLoRA",
        count=counts.low_rank,
        legal=counts.gralora_legal,
        misfit=counts.gralora_misfit,
        alpha=("alpha", 2.0),
        fixed={"hybrid_r": 0},
        sizes={"gralora_k": 1},
        conv1d=True,
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
        count=counts.lokr,
        most=counts.lokr_most,
        alpha=("alpha", 1.0),
        fixed={"use_effective_conv2d": False},
        **_rate(3e-3, "lokr/llama-3.2-3B-rank32-factor4-lr0.003"),
    ),
    "glora": Kind(title="GLoRA", count=counts.glora, fixed={"config_C": "none", "config_D_E": "none"}),
    "miss": Kind(
        title="MiSS",
        count=counts.miss,
        most=counts.width,
        legal=counts.miss_legal,
        misfit=counts.miss_misfit,
        sizes={"mini_r": 1},
    ),
    "hra": Kind(
        title="HRA",
        count=lambda shape, r, options: r * shape[1],
        most=counts.width,
        least=2,
        legal=lambda shape, r, options: max(2, r - r % 2),
        start="rounded",
    ),
    "peanut": Kind(title="PEANuT", count=counts.peanut, sizes={"depth": 0}),
    "boft": Kind(
        title="BOFT",
        capacity_field="boft_block_size",
        count=lambda shape, block, options: block * shape[1] + shape[0],
        most=counts.width,
        least=2,
        legal=lambda shape, block, options: counts.close(counts.divisors(shape[1])[1:], block),
        fixed={"boft_block_num": 0, "boft_n_butterfly_factor": 1},
    ),
    "oft": Kind(
        title="OFT",
        capacity_field="oft_block_size",
        count=lambda shape, block, options: shape[1] * (block - 1) // 2,
        most=counts.width,
        least=2,
        legal=lambda shape, block, options: counts.close(counts.divisors(shape[1])[1:], block),
        fixed={"r": 0, "block_share": False},
    ),
    "c3a": Kind(
        title="C3A",
        capacity_field="block_size",
        count=lambda shape, block, options: shape[0] * shape[1] // block,
        most=lambda shape, options: math.gcd(*shape),
        legal=lambda shape, block, options: counts.close(counts.divisors(math.gcd(*shape)), block),
        defaults={"init_weights": True},
        **_rate(0.3, "c3a/llama-3.2-3B-default"),
    ),
    "fourierft": Kind(
        title="FourierFT",
        capacity_field="n_frequency",
        count=lambda shape, n, options: n,
        most=counts.entries,
        legal=counts.up_to(counts.entries),
        seed="random_loc_seed",
        defaults={"init_weights": True},
        conv1d=True,
    ),
    "waveft": Kind(
        title="WaveFT",
        capacity_field="n_frequency",
        count=lambda shape, n, options: n,
        most=counts.entries,
        legal=counts.up_to(counts.entries),
        fixed={"proportional_parameters": False},
        seed="random_loc_seed",
        conv1d=True,
    ),
    "shira": Kind(
        title="SHiRA",
        count=counts.low_rank,
        most=counts.shira_most,
        legal=counts.up_to(counts.shira_most),
        seed="random_seed",
        meta=False,
        **_rate(3e-4, "shira/llama-3.2-3B-lr_0.0003-random_seed_42"),
    ),
    "supertuning": Kind(
        title="Super-Tuning",
        capacity_field="sparsity",
        count=counts.supra,
        most=lambda shape, options: counts.STEPS,
        legal=counts.supra_legal,
        value=counts.sparsity,
        read=lambda sparsity, shape: round((1 - sparsity) * counts.STEPS),
        fixed={"save_precomputed_indices": True},
        sizes={"r": 0},
        derived=True,
    ),
    "frod": Kind(
        title="FRoD",
        capacity_field="sparse_rate",
        count=counts.frod,
        misfit=counts.frod_misfit,
        most=lambda shape, options: counts.STEPS,
        value=lambda step: step / counts.STEPS,
        read=lambda rate, shape: round(rate * counts.STEPS),
        fixed={"progressbar": False, "save_projection": True, "runtime_offload_base_weight": False},
        seed="projection_prng_key",
        start="rounded",
        derived=True,
        meta=False,
        conv1d=True,
    ),
    "psoft": Kind(
        title="PSOFT",
        count=counts.psoft,
        legal=counts.up_to(counts.narrow),
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
        read=counts.osf_rank,
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
        conv1d=True,
    ),
    "vera": Kind(
        title="VeRA",
        count=lambda shape, r, options: r + shape[0],
        most=lambda shape, options: max(shape),
        open_ended=True,
        fixed={"save_projection": True},
        seed="projection_prng_key",
        conv1d=True,
        **_rate(1e-3, "vera/llama-3.2-3B-default"),
    ),
    "pvera": Kind(
        title="PVeRA",
        count=lambda shape, r, options: 2 * r + shape[0],
        most=lambda shape, options: max(shape),
        open_ended=True,
        fixed={"save_projection": True, "sample_at_inference": False, "generator_seed": None},
        seed="projection_prng_key",
        matrix=False,
        draws=True,
        conv1d=True,
        **_rate(3e-3, "pvera/llama-3.2-3B-default"),
    ),
    "tinylora": Kind(
        title="TinyLoRA",
        capacity_field="u",
        count=lambda shape, u, options: u,
        most=lambda shape, options: options["r"] ** 2,
        fixed={"weight_tying": 0.0, "save_projection": True},
        sizes={"r": 1},
        seed="projection_seed",
        derived=True,
        conv1d=True,
        **_rate(1e-3, "tinylora/llama-3.2-3B-default"),
    ),
    "road": Kind(
        title="RoAd",
        capacity_field="variant",
        count=lambda shape, variant, options: variant * shape[0],
        most=lambda shape, options: 4,
        legal=lambda shape, variant, options: counts.close((1, 2, 4), variant),
        value=lambda variant: f"road_{counts.close((1, 2, 4), variant)}",
        read=lambda word, shape: int(word.removeprefix("road_")),
        misfit=counts.road_misfit,
        sizes={"group_size": 2},
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
        conv1d=True,
        **_rate(5e-3, "ia3/llama-3.2-3B-all-attn-5k-lr0.005"),
    ),
    "unilora": Kind(
        title="UniLoRA",
        capacity_field="theta_d_length",
        count=lambda shape, entries, options: entries,
        most=lambda shape, options: options["r"] * sum(shape),
        legal=lambda shape, entries, options: min(entries, options["r"] * sum(shape)),
        fixed={"save_indices": False},
        sizes={"r": 1},
        seed="proj_seed",
        start="changed",
        pooled=True,
        conv1d=True,
        **_rate(2e-3, "unilora/llama-3.2-3B-r4-td131072-lr0.002"),
    ),
    "adamss": Kind(
        title="AdaMSS",
        count=lambda shape, r, options: min(options["num_subspaces"], shape[0]) * r + shape[0],
        legal=counts.up_to(counts.narrow),
        # with more directions per cluster the count would depend on each cluster's rows, and so on the weight's values
        fixed={"subspace_rank": 1, "use_dynamic_rank": False, "use_asa": False},
        sizes={"num_subspaces": 1},
        seed="random_seed",
        bias_too=True,
        bias_column=True,
        derived=True,
        meta=False,
    ),
    "vblora": Kind(
        title="VB-LoRA",
        capacity_field="num_vectors",
        count=counts.of_one_weight(counts.bank),
        together=counts.bank,
        most=counts.bank_most,
        reach=lambda most: min(counts.BANK, sum(most)),
        least=2,
        legal=lambda shape, vectors, options: max(vectors, options["topk"]),
        settled=lambda shapes, options: {"vector_length": counts.vector_length(shapes, options)},
        fixed={"save_only_topk_weights": False},
        sizes={"r": 1, "vector_length": 1, "topk": 1},
        start="changed",
        conv1d=True,
        **_rate(5e-4, "vblora/llama-3.2-3B-bank1024-lr5e4"),
    ),
    "lily": Kind(
        title="Lily",
        count=counts.of_one_weight(counts.lily),
        together=counts.lily,
        by_tail=True,
        sizes={"stride_A": 1, "num_B": 2},
        matrix=False,
        mixes_rows=True,
    ),
}

UNFIT: dict[str, str] = {
    "prompt_tuning": "puts vectors before a language model's inputs, and losses are read at a text's own places",
    "multitask_prompt_tuning": "splits prompts between tasks, and a trial has one",
    "p_tuning": "makes its prompt by an encoder and saves the prompt alone: what is counted is not what is kept",
    "prefix_tuning": "trains keys and values that every attention layer reads from a cache, where scoring has its own",
    "cartridge": "trains a cache of keys and values that a text was read into, and scoring has a cache of its own",
    "cpt": "trains the embeddings of given example texts within a ball; a trial has no such texts",
    "adaption_prompt": "adapts whole attention modules of a few model types, and cannot be taken off again",
    "ln_tuning": "trains the weights of norms, so that no capacity can meet a budget",
    "trainable_tokens": "trains rows of an embedding, so that no capacity can meet a budget",
    "shadow": "is a second backbone beside the model, not an update to its weights",
    "xlora": "mixes LoRAs that are trained already",
    "poly": "shares LoRAs between tasks, and a trial has one; take peft:lora",
    "adalora": "trains more than its budget until its schedule has cut it down; take adalora, which fills the budget",
}
"""PEFT's type that does not fit here -> the reason."""


def kind_of(name: str) -> Kind:
    """Return the type of this name, such as "peft:miss".

    Raises:
        UnknownMethodError: PEFT lacks the type, or it does not fit here; the message has the reason.
    """
    short = name.removeprefix(PREFIX)
    if short in UNFIT:
        raise UnknownMethodError(f"{name} is no method here: it {UNFIT[short]}")
    if short not in KINDS:
        names = [PREFIX + kind for kind in KINDS]
        raise UnknownMethodError(f"unknown method {name!r}: {nearest(name, names)}; PEFT's methods here are {names}")
    return KINDS[short]
