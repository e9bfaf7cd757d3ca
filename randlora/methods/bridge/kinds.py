"""What cannot be measured or read from PEFT's classes: a type's capacity field, its special rules, its published rate.

Counts and the capacities that PEFT accepts are measured (`measure`). Where an entry states a count or a legal capacity,
a comment says why that cannot be measured. Learning rates are those of PEFT's own comparison
(method_comparison/MetaMathQA of its repository), whose default is 1e-4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any, Literal

from randlora.adapter import Shape
from randlora.errors import AdapterError, ConfigError, UnknownMethodError, nearest
from randlora.methods.bridge import counts
from randlora.methods.bridge.installed import PREFIX, fields_of, peft, types_of_peft
from randlora.methods.bridge.measure import (
    REFUSALS,
    Measured,
    Options,
    built_count,
    close,
    divisors,
    measure,
    takes_conv1d,
)
from randlora.methods.method import Misfit

Count = Callable[[Shape, int, Options], int]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One adapter type of PEFT.

    Attributes:
        name: its name in PEFT, in small letters.
        title: its name as PEFT's documentation spells it.
        capacity_field: the field of PEFT's configuration that the capacity sets; None if the type has one size.
        count: returns the number of trainable parameters of one weight at a legal capacity. None: it is measured.
        together: returns that number for all weights by name, if weights share trainables. They then have one capacity.
        most: returns the largest useful capacity on one weight. None: the largest that PEFT accepts, or the smaller
            side if it accepts all.
        reach: returns the largest useful capacity of a model, from those of its weights.
        least: the smallest capacity.
        open_ended: whether parameters beyond `most` act too, so that only their cost limits the capacity.
        legal: returns the nearest capacity that PEFT accepts on a weight. None: it is measured, or PEFT accepts all if
            `count` is stated.
        misfit: returns why PEFT cannot adapt weights of these shapes at any capacity; None if it can.
        value: returns the value of PEFT's field at a capacity.
        read: returns the capacity of a weight for a value of PEFT's field.
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
        rate, source: the learning rate on which a search is centred, and where it was published.
    """

    name: str
    title: str
    capacity_field: str | None = "r"
    count: Count | None = None
    together: Callable[[Mapping[str, Shape], int, Options], int] | None = None
    most: Callable[[Shape, Options], int] | None = None
    reach: Callable[[Iterable[int]], int] = max
    least: int = 1
    open_ended: bool = False
    legal: Callable[[Shape, int, Options], int] | None = None
    misfit: Callable[[Mapping[str, Shape], Options], Misfit | None] = lambda shapes, options: None
    value: Callable[[int], Any] = lambda capacity: capacity
    read: Callable[[Any, Shape], int] = lambda value, shape: int(value)
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
        return kind_of, (self.name,)

    @cached_property
    def theirs(self) -> type[Any]:
        """Return PEFT's configuration class.

        Raises:
            AdapterError: `peft` is not installed, or its release lacks the type or a field that is named here.
        """
        types, version = types_of_peft(), peft().__version__
        if self.name not in types:
            raise AdapterError(
                f"PEFT {version} has no type {self.name!r}, so {PREFIX}{self.name} is no method with it; "
                f"{nearest(self.name, types)}; pip install 'randlora-sweeps[peft]' installs a release that has it"
            )
        theirs = types[self.name]
        needed = {*self.fixed, *self.defaults, *self.sizes, *self.refused}
        if self.capacity_field is not None:
            needed.add(self.capacity_field)
        if missing := sorted(needed - fields_of(theirs).keys()):
            raise AdapterError(
                f"{theirs.__name__} of PEFT {version} has no field {', '.join(missing)}, which {PREFIX}{self.name} "
                f"needs; its fields are {sorted(fields_of(theirs))}; pip install 'randlora-sweeps[peft]' installs a "
                "release that fits"
            )
        return theirs

    @cached_property
    def option_defaults(self) -> dict[str, Any]:
        """Return the default of every field of PEFT's configuration: PEFT's, or ours if that differs."""
        return {**fields_of(self.theirs), **self.defaults, **self.fixed}

    @cached_property
    def alpha(self) -> tuple[str, float] | None:
        """Return the field that PEFT divides by the rank, and its value per unit of rank (the quotient of PEFT's
        defaults); None if there is none."""
        defaults = fields_of(self.theirs)
        for name in ("alpha", f"{self.name}_alpha"):
            if isinstance(alpha := defaults.get(name), int | float):
                return name, alpha / defaults["r"]
        return None

    @cached_property
    def seed(self) -> str | None:
        """Return the field with the seed of frozen random tensors; None if there is none."""
        seeds = (name for name in fields_of(self.theirs) if name.endswith(("_seed", "_prng_key")))
        return next((name for name in seeds if name not in self.fixed), None)

    @cached_property
    def conv1d(self) -> bool:
        """Return whether PEFT adapts transformers' Conv1D too, so that an adapter on one can be exported."""
        return "fan_in_fan_out" in fields_of(self.theirs) and takes_conv1d(self.theirs, self.fields({}, self.least))

    def fields(self, options: Options, capacity: int) -> dict[str, Any]:
        """Return the fields of PEFT's configuration at a capacity.

        Args:
            options: options that are not at their default.
            capacity: the capacity.
        """
        fields = {**self.defaults, **self.fixed, **options}
        if self.capacity_field is not None:
            fields[self.capacity_field] = self.value(capacity)
        return fields

    def count_of(self, shape: Shape, capacity: int, options: Options) -> int:
        """Return the number of trainable parameters of one weight at a legal capacity.

        Args:
            shape: (out, in).
            capacity: a legal capacity.
            options: the type's options. Those that are missing are at their default.

        Raises:
            ConfigError: PEFT refuses the options or the capacity.
        """
        if self.count is not None:
            return self.count(shape, capacity, {**self.option_defaults, **options})
        measured = self.measured(options)
        if measured.terms is not None:
            return measured.count(shape, capacity)
        return _built(self.name, tuple(self.changed(options).items()), shape, capacity)

    def legal_of(self, shape: Shape, capacity: int, options: Options) -> int:
        """Return the nearest capacity that PEFT accepts on a weight. The arguments are those of `count_of`."""
        if self.legal is not None:
            return self.legal(shape, capacity, {**self.option_defaults, **options})
        return self.measured(options).legal(shape, capacity, self.least)

    def most_of(self, shape: Shape, options: Options) -> int:
        """Return the largest useful capacity on one weight."""
        if self.most is not None:
            return self.most(shape, {**self.option_defaults, **options})
        return min(counts.MOST, self.measured(options).most(shape))

    def misfit_of(self, shapes: Mapping[str, Shape], options: Options) -> Misfit | None:
        """Return why PEFT cannot adapt weights of these shapes at any capacity; None if it can."""
        return self.misfit(shapes, {**self.option_defaults, **options})

    def changed(self, options: Options) -> dict[str, Any]:
        """Return the options that are not at their default."""
        defaults, alpha = self.option_defaults, self.alpha and self.alpha[0]
        return {
            name: value
            for name, value in options.items()
            if not (defaults.get(name) == value or (name == alpha and value is None))
        }

    def measured(self, options: Options) -> Measured:
        """Return what is measured of the type with these options; no limits if its count is stated."""
        if self.count is not None:
            return Measured(None)
        return _measured(self.name, tuple(self.changed(options).items()) if options else ())


@lru_cache(maxsize=1024)
def _measured(name: str, options: tuple[tuple[str, Any], ...]) -> Measured:
    """Measure a type once for every combination of options."""
    kind, chosen = kind_of(name), dict(options)
    every = {**kind.option_defaults, **chosen}
    legal = kind.legal
    keep = None if legal is None else lambda shape, capacity: legal(shape, capacity, every)
    measured = Measured(None)
    for unit in dict.fromkeys((1, math.lcm(*(every[size] for size in kind.sizes if every[size])))):
        measured = measure(kind.theirs, lambda capacity: kind.fields(chosen, capacity), kind.least, unit, keep)
        if measured.terms is not None:
            break
    return measured


@lru_cache(maxsize=1 << 16)
def _built(name: str, options: tuple[tuple[str, Any], ...], shape: Shape, capacity: int) -> int:
    """Build one weight of a type whose count has no formula, and return the count.

    Raises:
        ConfigError: PEFT refuses to build it.
    """
    kind = kind_of(name)
    try:
        return built_count(kind.theirs, kind.fields(dict(options), capacity), shape)
    except REFUSALS as error:
        raise ConfigError(
            f"{PREFIX}{name}: PEFT refuses a weight of {shape} at capacity {capacity}: {error}"
        ) from error


_WRITES_BASE = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga", "mica")


def _rate(rate: float, folder: str) -> dict[str, Any]:
    return {"rate": rate, "source": f"PEFT's method comparison, {folder}"}


_ENTRIES = (
    Kind(
        name="lora",
        title="LoRA",
        refused={"init_lora_weights": _WRITES_BASE},
        # a change of the bias is not a change of the weight
        fixed={"use_qalora": False, "ensure_weight_tying": False, "lora_bias": False},
    ),
    Kind(
        name="hira",
        title="HiRA",
        **_rate(4.5e-3, "hira/llama-3.2-3B-rank32-lr4.5e-3"),
    ),
    Kind(
        name="delora",
        title="DeLoRA",
        **_rate(1e-3, "delora/llama-3.2-3B-rank32"),
    ),
    Kind(
        name="deft",
        title="DEFT",
        legal=lambda shape, r, options: min(r, shape[0]),
        start="rounded",
    ),
    Kind(
        name="gralora",
        title="GraLoRA",
        legal=counts.gralora_legal,
        misfit=counts.gralora_misfit,
        fixed={"hybrid_r": 0},
        sizes={"gralora_k": 1},
        **_rate(2e-4, "gralora/llama-3.2-3B-rank32"),
    ),
    Kind(
        name="loha",
        title="LoHa",
        fixed={"use_effective_conv2d": False},
    ),
    Kind(
        name="lokr",
        title="LoKr",
        # not measured: the count has steps, where a factor is no longer split
        count=counts.lokr,
        most=counts.lokr_most,
        fixed={"use_effective_conv2d": False},
        **_rate(3e-3, "lokr/llama-3.2-3B-rank32-factor4-lr0.003"),
    ),
    Kind(name="glora", title="GLoRA", fixed={"config_C": "none", "config_D_E": "none"}),
    Kind(
        name="miss",
        title="MiSS",
        most=counts.width,
        legal=counts.miss_legal,
        misfit=counts.miss_misfit,
        sizes={"mini_r": 1},
    ),
    Kind(
        name="hra",
        title="HRA",
        most=counts.width,
        least=2,
        legal=lambda shape, r, options: max(2, r - r % 2),
        start="rounded",
    ),
    Kind(name="peanut", title="PEANuT", sizes={"depth": 0}),
    Kind(
        name="boft",
        title="BOFT",
        capacity_field="boft_block_size",
        least=2,
        fixed={"boft_block_num": 0, "boft_n_butterfly_factor": 1},
    ),
    Kind(
        name="oft",
        title="OFT",
        capacity_field="oft_block_size",
        most=counts.width,
        least=2,
        legal=lambda shape, block, options: close(divisors(shape[1])[1:], block),
        fixed={"r": 0, "block_share": False},
    ),
    Kind(
        name="c3a",
        title="C3A",
        capacity_field="block_size",
        defaults={"init_weights": True},
        **_rate(0.3, "c3a/llama-3.2-3B-default"),
    ),
    Kind(
        name="fourierft",
        title="FourierFT",
        capacity_field="n_frequency",
        defaults={"init_weights": True},
    ),
    Kind(
        name="waveft",
        title="WaveFT",
        capacity_field="n_frequency",
        fixed={"proportional_parameters": False},
    ),
    Kind(
        name="shira",
        title="SHiRA",
        **_rate(3e-4, "shira/llama-3.2-3B-lr_0.0003-random_seed_42"),
    ),
    Kind(
        name="supertuning",
        title="Super-Tuning",
        capacity_field="sparsity",
        # not measured: the count is rounded
        count=counts.supra,
        most=lambda shape, options: counts.STEPS,
        legal=counts.supra_legal,
        value=counts.sparsity,
        read=lambda sparsity, shape: round((1 - sparsity) * counts.STEPS),
        fixed={"save_precomputed_indices": True},
        sizes={"r": 0},
        derived=True,
    ),
    Kind(
        name="frod",
        title="FRoD",
        capacity_field="sparse_rate",
        # not measured: the count is rounded
        count=counts.frod,
        misfit=counts.frod_misfit,
        most=lambda shape, options: counts.STEPS,
        value=lambda step: step / counts.STEPS,
        read=lambda rate, shape: round(rate * counts.STEPS),
        fixed={"progressbar": False, "save_projection": True, "runtime_offload_base_weight": False},
        start="rounded",
        derived=True,
    ),
    Kind(
        name="psoft",
        title="PSOFT",
        derived=True,
    ),
    Kind(
        name="osf",
        title="OSF",
        capacity_field="effective_rank",
        most=lambda shape, options: min(shape) - 1,
        legal=lambda shape, e, options: min(e, min(shape) - 1),
        read=counts.osf_rank,
        start="rounded",
        derived=True,
        **_rate(5e-5, "osf/llama-3.2-3B-rank128"),
    ),
    Kind(
        name="randlora",
        title="RandLoRA",
        fixed={"save_projection": True},
    ),
    Kind(
        name="vera",
        title="VeRA",
        most=lambda shape, options: max(shape),
        open_ended=True,
        fixed={"save_projection": True},
        **_rate(1e-3, "vera/llama-3.2-3B-default"),
    ),
    Kind(
        name="pvera",
        title="PVeRA",
        most=lambda shape, options: max(shape),
        open_ended=True,
        fixed={"save_projection": True, "sample_at_inference": False, "generator_seed": None},
        matrix=False,
        draws=True,
        **_rate(3e-3, "pvera/llama-3.2-3B-default"),
    ),
    Kind(
        name="tinylora",
        title="TinyLoRA",
        capacity_field="u",
        # not measured: the solver doubles r until a budget is reached, and large r are slow to build
        count=lambda shape, u, options: u,
        most=lambda shape, options: options["r"] ** 2,
        fixed={"weight_tying": 0.0, "save_projection": True},
        sizes={"r": 1},
        derived=True,
        **_rate(1e-3, "tinylora/llama-3.2-3B-default"),
    ),
    Kind(
        name="road",
        title="RoAd",
        capacity_field="variant",
        most=lambda shape, options: 4,
        legal=lambda shape, variant, options: close((1, 2, 4), variant),
        value=lambda variant: f"road_{close((1, 2, 4), variant)}",
        read=lambda word, shape: int(word.removeprefix("road_")),
        misfit=counts.road_misfit,
        sizes={"group_size": 2},
        bias_too=True,
        **_rate(1e-3, "road/llama-3.2-3B-lr_0.001"),
    ),
    Kind(
        name="beft",
        title="BEFT",
        capacity_field=None,
        most=lambda shape, options: 1,
        matrix=False,
        bias_too=True,
    ),
    Kind(
        name="ia3",
        title="IA3",
        capacity_field=None,
        most=lambda shape, options: 1,
        fixed={"feedforward_modules": []},
        bias_too=True,
        **_rate(5e-3, "ia3/llama-3.2-3B-all-attn-5k-lr0.005"),
    ),
    Kind(
        name="unilora",
        title="UniLoRA",
        capacity_field="theta_d_length",
        # not measured, as for TinyLoRA
        count=lambda shape, entries, options: entries,
        most=lambda shape, options: options["r"] * sum(shape),
        legal=lambda shape, entries, options: min(entries, options["r"] * sum(shape)),
        fixed={"save_indices": False},
        sizes={"r": 1},
        start="changed",
        pooled=True,
        **_rate(2e-3, "unilora/llama-3.2-3B-r4-td131072-lr0.002"),
    ),
    Kind(
        name="adamss",
        title="AdaMSS",
        # not measured: PEFT clusters rows, which takes 0.2 s a layer
        count=lambda shape, r, options: min(options["num_subspaces"], shape[0]) * r + shape[0],
        legal=lambda shape, r, options: min(r, *shape),
        # with more directions per cluster the count would depend on each cluster's rows, and so on the weight's values
        fixed={"subspace_rank": 1, "use_dynamic_rank": False, "use_asa": False},
        sizes={"num_subspaces": 1},
        bias_too=True,
        bias_column=True,
        derived=True,
    ),
    Kind(
        name="vblora",
        title="VB-LoRA",
        capacity_field="num_vectors",
        # not measured: weights share trainables
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
        **_rate(5e-4, "vblora/llama-3.2-3B-bank1024-lr5e4"),
    ),
    Kind(
        name="lily",
        title="Lily",
        # not measured: weights share trainables
        count=counts.of_one_weight(counts.lily),
        together=counts.lily,
        by_tail=True,
        sizes={"stride_A": 1, "num_B": 2},
        matrix=False,
        mixes_rows=True,
    ),
)
KINDS = {kind.name: kind for kind in _ENTRIES}

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


@cache
def kind_of(name: str) -> Kind:
    """Return the type of this name, such as "peft:miss".

    A type that is new in PEFT needs no entry here, if its capacity field is named as that of another type.

    Raises:
        UnknownMethodError: PEFT lacks the type, or it does not fit here; the message has the reason.
    """
    short = name.removeprefix(PREFIX)
    if short in UNFIT:
        raise UnknownMethodError(f"{name} is no method here: it {UNFIT[short]}")
    return KINDS[short] if short in KINDS else _new_kind(short)


def _new_kind(short: str) -> Kind:
    """Return an entry for a type without one. It is never merged, packed with others or used on weights in few bits,
    since nothing says that it could be, and all its frozen tensors are saved."""
    types = types_of_peft()
    if short not in types:
        names = [PREFIX + kind for kind in KINDS]
        raise UnknownMethodError(
            f"unknown method {PREFIX + short!r}: {nearest(PREFIX + short, names)}; PEFT's methods here are {names}"
        )
    theirs = types[short]
    known = dict.fromkeys(kind.capacity_field for kind in KINDS.values())
    field = next((f.name for f in dataclasses.fields(theirs) if f.name in known), None)
    if field is None or "target_modules" not in fields_of(theirs):
        raise UnknownMethodError(
            f"{PREFIX}{short} is no method here: PEFT's type is newer than this release, and none of the fields of "
            f"{theirs.__name__} is known to set the size of an update to weights: {sorted(fields_of(theirs))}"
        )
    kind = Kind(
        name=short,
        title=theirs.__name__.removesuffix("Config"),
        capacity_field=field,
        matrix=False,
        bias_too=True,
        derived=True,
        mixes_rows=True,
        draws=True,
    )
    try:
        one, two = (built_count(theirs, kind.fields({}, 2), (24, 24), layers) for layers in (1, 2))
    except REFUSALS as error:
        raise UnknownMethodError(
            f"{PREFIX}{short} is no method here: PEFT's type is newer than this release, and PEFT refuses to build it "
            f"on a linear layer with {field} = 2: {error}"
        ) from error
    if two != 2 * one:
        raise UnknownMethodError(
            f"{PREFIX}{short} is no method here: PEFT's type is newer than this release, and its weights share "
            f"trainable parameters ({one} on one weight, {two} on two)"
        )
    return kind
