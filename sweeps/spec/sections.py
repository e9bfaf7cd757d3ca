"""The sections of a sweep file as pydantic models: types, defaults, and the meaning of each key."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from sweeps.spec.resources import LimitsSection, ResourceSection
from sweeps.spec.search import MAY_CHANGE, ListsAreValues, LrRange, OneOrMany, SearchSection, SpaceEntry
from sweeps.spec.search import Section as _Section
from trainables.config import LATER, EvaluateSettings, TrainSettings, identifying

Allocation = Literal["auto", "uniform", "per-layer", "fill"]


def _each_once(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if values is not None and len(set(values)) < len(values):
        twice = next(value for value, count in Counter(values).items() if count > 1)
        raise ValueError(f"each may be listed once, and {twice!r} is listed twice; leave the second out")
    return values


Once = AfterValidator(_each_once)
"""A list without repetitions: a repeated name would be planned, counted and paid for twice."""

_AMOUNTS = ("memory", "flops", "bytes")
"""Keys of `[budgets]` for amounts with a unit. Each is also a name of a currency in `count`."""
_POWERS = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_BYTES = re.compile(r"\d*\.?\d+\s*[A-Za-z]+")
_FLOPS = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGTP]?)FLOPs?")


def _bytes_of(text: str) -> int:
    if text.strip().replace(".", "").isdigit():
        raise ValueError(f"a size with its unit, such as '{text.strip()} MiB', got {text!r}")
    try:
        # pydantic alone reads the size that a text starts with and ignores the rest: "1,5 GiB" as 1
        return int(TypeAdapter(ByteSize).validate_python(text if _BYTES.fullmatch(text.strip()) else ""))
    except ValidationError as error:
        known = "B, kB, MB, GB, TB, KiB, MiB, GiB and TiB"
        raise ValueError(f"a size with its unit ({known}), such as '2 GiB', got {text!r}") from error


def _flops_of(text: str) -> int:
    match = _FLOPS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"a number of floating-point operations with its unit, such as '12 GFLOP', got {text!r}")
    return int(Decimal(match[1]) * 10 ** _POWERS[match[2]])


def _parsed(read: Callable[[str], int]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if read(text) < 1:
            raise ValueError(f"must be above 0, got {text!r}")
        return text

    return check


Size = Annotated[str, AfterValidator(_parsed(_bytes_of))]
"""Bytes with their unit: "2 GiB"."""
Operations = Annotated[str, AfterValidator(_parsed(_flops_of))]
"""Floating-point operations with their unit: "12 GFLOP"."""

Capacities = Annotated[
    Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), Once, Tag("tuple")]
    | Annotated[int, Field(ge=1), Tag("int")],
    Discriminator(lambda value: "tuple" if isinstance(value, list | tuple) else "int"),
]
"""One capacity or a list of them. Errors are about the form that the file has."""

Epochs = Annotated[
    Annotated[Literal["paper"], Tag("str")] | Annotated[dict[str, Annotated[int, Field(ge=1)]], Tag("dict")],
    Discriminator(lambda value: "dict" if isinstance(value, dict) else "str"),
]
"""The paper's epochs, or those of each data set. Errors are about the form that the file has."""

TUNE_SEED = 1_000_000
"""The seed of every first TUNE trial of a learning rate. Re-runs have the seeds after it, CONFIRM those below."""
MOST_SEEDS = 10_000
"""The largest number of seeds. A larger number is probably a seed, which must be in a list."""


class ModelSection(_Section):
    """`[model]`: the base model, and which of its weights are adapted."""

    id: str
    """The base model: `embedded:tiny-clip`, `open_clip:ARCH/TAG`, `hf:ORG/NAME`, `local:DIR` (docs/models.md)."""
    adapt: Literal["vision", "both", "all"] | None = None
    """Which part of the model is adapted. Of a CLIP: "vision" (the text tower stays frozen) or "both" towers (the
    default). Of any other model: "all"."""
    targets: Annotated[tuple[str, ...] | None, Once] = Field(default=None, min_length=1)
    """Weights to adapt, by the ends of their names. Default: those of the model's family (docs/models.md)."""
    image_size: Annotated[int | None, Field(ge=1), LATER] = None
    """Side of the input images in pixels. Default: the model's own. Another size needs a model that interpolates its
    position embeddings."""


class DataSection(_Section):
    """`[data]`: data sets and training sizes; a size is a fraction in (0, 1] or 'K-shot'."""

    datasets: Annotated[tuple[str, ...], Once] = Field(min_length=1)
    """Data sets, by registered name or by form and folder: `cifar100`, `folder:DIR`, `json:DIR` (docs/data.md)."""
    train_size: Annotated[tuple[str | float, ...], OneOrMany, Once] = Field(default=(1.0,), min_length=1)
    """How much of the training data is used: fractions in (0, 1], or `"16-shot"` for 16 images of each class. Each size
    has its own cells."""
    skip_bad: Annotated[bool, LATER] = False
    """Leave unreadable images out and count them. Without it such an image is an error."""
    epochs: Annotated[Epochs | None, LATER] = None
    """Epochs of single data sets, in place of `train.epochs`: `{ cifar100 = 20 }`. "paper": those of the RandLoRA
    paper, 10 for K-shot sizes and Table 7 for others."""

    def epochs_of(self, dataset: str, size: str | float) -> int | None:
        """Return the epochs of one data set at one size; None if `train.epochs` holds."""
        if self.epochs == "paper":
            return _paper_epochs(dataset, size)
        return (self.epochs or {}).get(dataset)

    @model_validator(mode="after")
    def _epochs_known(self) -> Self:
        if isinstance(self.epochs, dict):
            if strange := [name for name in self.epochs if name not in self.datasets]:
                raise ValueError(
                    f"epochs names {strange[0]!r}, which is not among datasets: {', '.join(self.datasets)}"
                )
        elif self.epochs == "paper":
            for name in self.datasets:
                if any(_paper_epochs(name, size) is None for size in self.train_size):
                    raise ValueError(
                        f"epochs = 'paper', and the paper's Table 7 does not have {name!r}; "
                        f"write data.epochs = {{ {json.dumps(name)} = 10 }}"
                    )
        return self

    @field_validator("train_size")
    @classmethod
    def _sizes(cls, value: tuple[str | float, ...]) -> tuple[str | float, ...]:
        for size in value:
            shots = isinstance(size, str) and re.fullmatch(r"[1-9][0-9]*-shot", size)
            if not shots and (isinstance(size, str) or not 0 < size <= 1):
                raise ValueError(f"a size is a fraction in (0, 1] or 'K-shot' such as '16-shot', got {size!r}")
        return value


def _paper_epochs(dataset: str, size: str | float) -> int | None:
    from trainables.data.registry import paper_epochs  # loads torch

    return paper_epochs(dataset, size)


class BudgetSection(_Section):
    """`[budgets]`: exactly one of LoRA ranks, parameter counts, percentages of the adapted weights, or amounts of
    memory, operations or bytes."""

    lora_rank: Annotated[tuple[Annotated[int, Field(ge=1)], ...] | None, Once] = Field(default=None, min_length=1)
    """Each rank is a budget: what LoRA of this rank takes on the same weights, usually its number of trained
    parameters. A file gives exactly one of `lora_rank`, `params`, `percent`, `memory`, `flops` and `bytes`."""
    params: Annotated[tuple[Annotated[int, Field(ge=1)], ...] | None, Once] = Field(default=None, min_length=1)
    """Budgets as numbers of trained parameters (of degrees of freedom with `count = "dof"`)."""
    percent: Annotated[tuple[Annotated[float, Field(gt=0, le=100)], ...] | None, Once] = Field(
        default=None, min_length=1
    )
    """Budgets in percent of the number of adapted weights."""
    memory: Annotated[tuple[Size, ...] | None, Once, LATER] = Field(default=None, min_length=1)
    """Budgets as the most memory of a training step, the base model's included: `["2 GiB"]`."""
    flops: Annotated[tuple[Operations, ...] | None, Once, LATER] = Field(default=None, min_length=1)
    """Budgets as floating-point operations of training on one image or token: `["12 GFLOP"]`."""
    bytes: Annotated[tuple[Size, ...] | None, Once, LATER] = Field(default=None, min_length=1)
    """Budgets as the size of the saved adapter's tensors: `["2 MiB"]`."""
    count: Annotated[Literal["parameters", "dof", "memory", "flops", "bytes"], LATER] = "parameters"
    """What the budgets limit: trained parameters, degrees of freedom, memory, operations or saved bytes
    (docs/fairness.md). `memory`, `flops` and `bytes` set it by themselves."""
    costs: Annotated[bool | None, LATER] = None
    """Compute memory, operations and saved bytes of every cell, for `plan` and the report. This takes about a second
    for each cell. Default: only if the budgets limit one of them."""
    tolerance: float = Field(default=0.05, ge=0, le=1)
    """How far a cell's count may be from its budget, as a share of the budget. A cell that is farther off is listed and
    not run."""
    allocation: Allocation = "auto"
    """How ranks are spread over layers (docs/fairness.md). auto: uniform (all layers have one rank) if that is within
    the tolerance, else fill (two neighbouring ranks are mixed). per-layer: each weight matches what LoRA trains on
    it."""

    @model_validator(mode="before")
    @classmethod
    def _count_of_amounts(cls, value: Any) -> Any:
        """Set `count` to the kind of the amounts if the file does not give it: `memory = ["2 GiB"]` says enough."""
        if isinstance(value, Mapping) and "count" not in value:
            given = [name for name in _AMOUNTS if value.get(name) is not None]
            if len(given) == 1:
                return {**value, "count": given[0]}
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        names = ("lora_rank", "params", "percent", *_AMOUNTS)
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(names)}; got {', '.join(given) or 'none'}")
        fitting = ("parameters", "dof") if given[0] in ("params", "percent") else (given[0],)
        if given[0] != "lora_rank" and self.count not in fitting:
            other = self.count if self.count in _AMOUNTS else "params"
            raise ValueError(
                f"count = {self.count!r} does not limit {given[0]}; give lora_rank or {other}, or leave count out"
            )
        labels = Counter(self.references())
        if alike := [label for label, count in labels.items() if count > 1]:  # cells of one id
            raise ValueError(f"{given[0]} has {alike[0]!r} twice; leave one out")
        return self

    @property
    def shows_costs(self) -> bool:
        """Return whether memory, operations and saved bytes of all cells are computed."""
        return self.count in _AMOUNTS if self.costs is None else self.costs

    def references(self) -> tuple[str, ...]:
        """Return the labels of the budgets in file order.

        Parameters: 'lora-8', 'params-250000' or 'percent-0.1'. Degrees of freedom: 'dof-lora-8', 'dof-250000' or
        'dof-percent-0.1'. Memory: 'memory-lora-8' or 'memory-2GiB'. Operations and bytes are labelled like memory.
        """
        plain = self.count == "parameters"
        front = "" if plain else f"{self.count}-"
        if self.lora_rank is not None:
            return tuple(f"{front}lora-{rank}" for rank in self.lora_rank)
        if self.percent is not None:
            return tuple(f"{front}percent-{share:g}" for share in self.percent)
        if self.params is not None:
            return tuple(f"{'params-' if plain else front}{number}" for number in self.params)
        return tuple(front + "".join(text.split()) for text in getattr(self, self.count))

    def amounts(self) -> tuple[int, ...]:
        """Return the budgets as numbers in file order, if `params`, `memory`, `flops` or `bytes` gives them."""
        if self.params is not None:
            return self.params
        return tuple(map(_flops_of if self.count == "flops" else _bytes_of, getattr(self, self.count)))


class MethodSection(BaseModel):
    """`[methods.NAME]`: the keys of every method. The method's own options are checked against its registry entry."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    method: Annotated[str | None, LATER] = None
    """The method behind NAME, if NAME is your own name for a variant: `[methods.lora-2r]` with `method = "lora"` and
    `alpha = "2r"`."""
    lr: LrRange | None = None
    """Range of learning rates. `1e-3` is its centre; `search.lr` says how wide it is. `{ low = 1e-4, high = 1e-2 }`
    gives both ends. Default: centred on the method's published rate."""
    space: Annotated[dict[str, SpaceEntry] | None, ListsAreValues, LATER] = None
    """As `search.space`, for this method alone. It replaces the entries of the same name."""
    budgets: Annotated[tuple[str, ...] | None, Once] = Field(default=None, min_length=1)
    """Run this method only at these budgets: `["lora-8"]`. Default: at all budgets."""
    allocation: Allocation | None = None
    """Replaces `budgets.allocation` for this method."""
    capacity: Capacities | None = None
    """Fixes the capacity (usually the rank) instead of solving it. A number: the method runs once, at the budget that
    is nearest to its count. A list: the method runs once for each, and each has its own count as its budget, called
    NAME-CAPACITY (such as `nola-64`)."""
    unmatched: bool = False
    """Run the setting that is nearest to the budget even if it is outside the tolerance. Tables mark it with †."""
    micro_batch_size: Annotated[Annotated[int, Field(ge=1)] | None, LATER] = None
    """Replaces `train.micro_batch_size` for this method. Full fine-tuning may need smaller micro-batches than
    adapters."""

    @field_validator("lr", mode="before")
    @classmethod
    def _centre(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"centre": value}
        if not isinstance(value, Mapping | LrRange):
            raise ValueError("give a number, the range's centre: lr = 1e-3; or ends: lr = { low = 1e-4, high = 1e-2 }")
        return value

    @property
    def options(self) -> dict[str, Any]:
        """Return the method's own options, as they are in the file."""
        return dict(self.model_extra or {})


class ConfirmSection(_Section):
    """`[confirm]`: stage CONFIRM. `seeds` is a number or a list. `hold` fixes a kind of seed for all trials."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=TUNE_SEED)], ...], Once] = Field(
        default=(0, 1, 2, 3, 4), min_length=1
    )
    """Seeds of stage CONFIRM: a list, or their number (3 means 0, 1, 2)."""
    max_seeds: Annotated[int | None, Field(ge=1), LATER] = None
    """Most seeds that the sweep will ever have. Set it to the number of `seeds` if you will add none: the first test
    then has the whole level of 5 %. Without it, seeds may be added without end, and the first test has 4 %
    (docs/fairness.md)."""
    margin: Annotated[float | None, LATER] = None
    """The largest difference that does not matter to you: 0.01 is a point of accuracy. Methods that differ by less can
    be called "equivalent". Default: no method is."""
    question: Annotated[str | None, LATER] = None
    """The method that the first sentence of the results compares with LoRA. Default: RandLoRA if present, else the only
    other method. "all": every method is in question, and each gets its mean over data sets and budgets."""
    hold: dict[Literal["data_seed", "init_seed", "basis_seed"], Annotated[int, Field(ge=0)]] = Field(default={})
    """Kinds of seeds that are the same in all trials: `{ data_seed = 0 }` gives all trials the same examples in the
    same order. The others are `init_seed` (initial values, dropout) and `basis_seed` (frozen random bases)."""

    @property
    def seeds_are_fixed(self) -> bool:
        """Return whether all three kinds of seeds are fixed, so that a trial on another seed is the same trial."""
        return len(self.hold) == 3

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if not 1 <= value <= MOST_SEEDS:
            raise ValueError(f"a number of seeds, at least 1 and at most {MOST_SEEDS:,}, or a list of seeds")
        return tuple(range(value))

    @field_validator("margin")
    @classmethod
    def _within(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            raise ValueError("must be above 0 and below 1, the range of the scores; one point is margin = 0.01")
        return value

    @model_validator(mode="after")
    def _declared(self) -> Self:
        if self.max_seeds is not None and self.max_seeds < len(self.seeds):
            raise ValueError(
                f"max_seeds = {self.max_seeds} is below the {len(self.seeds)} seeds; the least is {len(self.seeds)}. A "
                "sweep that has begun keeps its max_seeds, so more seeds need a sweep with another name"
            )
        return self


class KeepSection(_Section):
    """`[keep]`: which trained weights stay on disk. `full`: also those of full fine-tuning, for diagnostics."""

    adapters: Literal["none", "best", "confirm", "all"] = "none"
    """Trained adapters that stay on disk. best: of each cell the CONFIRM trial with the best validation score (of all
    CONFIRM trials if `protocol = "paper"`, which has no such scores). confirm: of all CONFIRM trials. all: of all
    trials."""
    full: bool = False
    """Also keep the weights of full fine-tuning, of the first CONFIRM seed. Some diagnostics need them."""


class Sections(_Section):
    """A whole sweep file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The sweep's name: letters, digits, '.', '_' and '-'."""
    description: str = ""
    """A text that the report prints."""
    output: Path | None = None
    """Results folder. Default: `results/NAME`."""
    protocol: Literal["standard", "paper"] = "standard"
    """standard: stage TUNE searches the learning rates. paper: nothing is searched, and each method trains at the
    centre of its range. It then also trains on the examples that would otherwise be kept for validation."""
    model: ModelSection
    data: DataSection
    budgets: BudgetSection
    methods: dict[str, MethodSection] = Field(min_length=1)
    search: SearchSection = SearchSection()
    confirm: ConfirmSection = ConfirmSection()
    train: TrainSettings = TrainSettings()
    evaluate: Annotated[EvaluateSettings, LATER] = EvaluateSettings()
    resources: ResourceSection = ResourceSection()
    limits: LimitsSection = LimitsSection()
    keep: KeepSection = KeepSection()

    @property
    def folder(self) -> Path:
        """Return the results folder: `output`, or `results/NAME` in the working directory."""
        return Path("results") / self.name if self.output is None else Path(os.path.expanduser(self.output))  # noqa: PTH111

    def base(self, name: str) -> str:
        """Return the method of a name under `[methods]`: the name itself, or the method of which it is a variant."""
        return self.methods[name].method or name

    def identity(self) -> dict[str, Any]:
        """Return the fields that must not change in a sweep with results, as JSON values.

        Lists that may become longer, and numbers of methods and seeds, are not among them.
        """
        all_fields = identifying(self)
        search = {k: v for k, v in all_fields["search"].items() if k not in MAY_CHANGE}
        if not search["refine"]:  # folders of versions without a local fit lack this key
            del search["refine"]
        methods = {
            name: {k: v for k, v in section.items() if k != "budgets" and (k != "capacity" or not isinstance(v, list))}
            for name, section in all_fields["methods"].items()
        }
        budgets = {k: getattr(self.budgets, k) for k in ("tolerance", "allocation", "count")}
        fixed: dict[str, Any] = {
            k: all_fields[k] for k in ("name", "protocol", "model", "train", "evaluate") if k in all_fields
        }
        # "all" is the only choice for a model with one tower, and None means "both" for a CLIP
        if all_fields["model"]["adapt"] in (None, "all"):
            fixed["model"] = all_fields["model"] | {"adapt": "both"}
        if data := {k: all_fields["data"][k] for k in ("skip_bad", "epochs") if k in all_fields["data"]}:
            if isinstance(self.data.epochs, dict):  # also for data sets that the table leaves out, so that it may grow
                data["epochs"] = dict.fromkeys(self.data.datasets, self.train.epochs) | self.data.epochs
            fixed["data"] = data
        if self.confirm.max_seeds is not None:  # it was declared before results were seen, so it must not change
            fixed["confirm.max_seeds"] = self.confirm.max_seeds
        return {
            **fixed,
            "budgets": budgets,
            "methods": methods,
            "search": search,
            "hold": all_fields["confirm"]["hold"],
        }
