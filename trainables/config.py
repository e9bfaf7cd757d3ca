"""The description of one trial. It is frozen, hashable and strictly checked, and the trial's id is made from it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainables.errors import TrialError

Stage = Literal["TUNE", "CONFIRM"]
Adapt = Literal["vision", "both", "all"]
Protocol = Literal["standard", "paper"]
TrainSize = str | float
Option = str | float | int | bool

NO_TRAINING = "zero-shot"
LINEAR_PROBE = "linear-probe"
"""The method that trains a linear head alone, with the trial's learning rate."""
PROMPTS = "prompt:"
"""The prefix of methods of prompt learning. (`randlora.methods.prompts.kinds.PREFIX` is the same, but its module loads
torch.)"""
FULL_METHODS = ("full", "full-targets")
"""Methods that train the base weights themselves: every weight of the adapted towers, or the target weights."""
QUANTISED = ("nf4", "int8")
"""Values of `train.base_weights` for which bitsandbytes packs the linear layers."""

_SHOTS = re.compile(r"([1-9][0-9]*)-shot")


LATER: Final = "came after the first stored ids"
"""Marks a field that was added later than the first stored ids: `name: Annotated[int | None, LATER] = None`.

While such a field has its default, ids do not include it, so that stored results keep their ids.
"""


def identifying(model: BaseModel) -> dict[str, Any]:
    """Return the content of a model from which ids are made: all fields, without LATER fields that have their default.

    The values are those of JSON. Models inside it, also those in its tables, follow the same rule.
    """
    content = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if LATER in field.metadata and value == field.get_default(call_default_factory=True):
            del content[name]
        elif isinstance(value, BaseModel):
            content[name] = identifying(value)
        elif isinstance(value, dict):
            content[name] |= {str(k): identifying(v) for k, v in value.items() if isinstance(v, BaseModel)}
    return content


def shots(train_size: TrainSize) -> int | None:
    """Return the k of "k-shot"; None for a fraction. Raises ValueError for neither (k >= 1, a fraction in (0, 1])."""
    if isinstance(train_size, str):
        match = _SHOTS.fullmatch(train_size)
        if match is None:
            raise ValueError(f"train_size {train_size!r} is neither 'K-shot' with K >= 1 nor a fraction in (0, 1]")
        return int(match.group(1))
    if not 0.0 < train_size <= 1.0:
        raise ValueError(
            f"train_size {train_size!r} is not in (0, 1]; for K images per class write '{train_size}-shot'"
        )
    return None


class TrainSettings(BaseModel):
    """How every trial of a sweep trains: with the same steps and data for every method."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=10, ge=1)
    """Passes over the training examples."""
    global_batch_size: int = Field(default=128, ge=1)
    """Examples of an optimiser step, over workers and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Examples of one forward pass. Default: a worker's whole share of the batch."""
    negatives: Annotated[Literal["batch", "part"], LATER] = "batch"
    """What the loss of both CLIP towers compares: the whole batch, which then cannot be split, or the micro-batch. The
    latter is another loss, as in the paper's 2 x 64."""
    eval_batch_size: int = Field(default=512, ge=1)
    """Examples of one forward pass in evaluation."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's weight decay of adapter parameters."""
    full_weight_decay: float = Field(default=0.1, ge=0.0)
    """AdamW's weight decay of base weights that train (the paper's Table 8)."""
    grad_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the whole gradient."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """How the learning rate falls."""
    min_lr_ratio: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of the peak learning rate at which a cosine or linear schedule ends."""
    warmup_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises from 0."""
    warmup_steps: Annotated[int | None, Field(ge=1), LATER] = None
    """Number of steps in which the learning rate rises from 0, instead of the fraction."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on CUDA devices that have it, else fp32."""
    base_weights: Annotated[Literal["fp32", "bf16", "nf4", "int8"], LATER] = "fp32"
    """Type of a language model's frozen weights. Adapters train in float32. "nf4" and "int8" pack all linear layers
    except the output layer in 4 or 8 bits, and keep the rest in bf16 (docs/models.md). They need the extra
    `quantised`."""
    float32: Annotated[Literal["default", "fast"], LATER] = "default"
    """fast: use oneDNN's products on CPUs on which they are as accurate (docs/running.md)."""
    hold_weights: Annotated[bool, LATER] = False
    """Make W0 + delta once per step, not once per micro-batch. This needs memory for two more copies of the adapted
    weights. It has no effect in bf16, or on trials that run in a pack."""
    augment: Literal["none", "crop-flip", "crop-flip-original"] = "none"
    """crop-flip: resized crops (scale 0.5 to 1) of the model's square, and flips. crop-flip-original: crops of the
    original image, as in the paper; they take 1.6 times the disk space."""
    head_lr: Annotated[Annotated[float, Field(gt=0.0)] | Literal["lr"], LATER] = 1e-3
    """Peak learning rate of a new head. It is never searched. "lr": the trial's own rate (the paper's GLUE)."""
    sampling: Annotated[Literal["shuffle", "replacement"], LATER] = "shuffle"
    """shuffle: use every example once per epoch. replacement: draw each example from all of them (the paper)."""
    min_batches_per_epoch: int = Field(default=0, ge=0)
    """Repeat small subsets until an epoch has this many batches (the paper: 10)."""
    max_tokens: Annotated[int | None, Field(ge=2), LATER] = None
    """Longest text in tokens, prompt and response together. Default: 256; for text encoders 128."""
    loss_on_prompt: Annotated[bool, LATER] = False
    """Language models: compute the loss over the prompt too (LLM-Adapters' default)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0), LATER] = 0.0
    """Models of text: share of a target that is spread over all words or classes (LoRA's E2E: 0.1)."""
    base_dropout: Annotated[bool, LATER] = True
    """Whether training uses the dropout of the base model's config. An adapter's dropout is an option of its method."""
    parallel: Annotated[Literal["replicate", "fsdp"], LATER] = "replicate"
    """For full fine-tuning of a language model on several workers. replicate: each has a copy. fsdp: weights, gradients
    and moments are split (FSDP2)."""
    gradient_checkpointing: Annotated[bool, LATER] = False
    """Models of text: keep only the inputs of layers, and recompute the rest in the backward pass."""
    train_temperature: Annotated[bool, LATER] = False
    """Full fine-tuning of both towers of a CLIP: also train the temperature (logit_scale), as the RandLoRA paper's code
    does. It stays frozen in every other method."""
    select: Annotated[Literal["last", "best"], LATER] = "last"
    """Which weights are scored: the last ones, or those with the lowest validation loss. With `protocol = "paper"`,
    `evaluate.validation_rows` rows are kept apart for this (default: 5,000, at most a tenth)."""
    select_every: Annotated[int | None, Field(ge=1), LATER] = None
    """Steps between two validation losses of `select = "best"`. Default: an epoch."""

    @model_validator(mode="after")
    def _agree(self) -> TrainSettings:
        if self.select_every is not None and self.select != "best":
            raise ValueError(
                f"select_every = {self.select_every} counts the steps between looks of select = 'best', and select is "
                f"{self.select!r}; write select = 'best', or leave it out"
            )
        if self.gradient_checkpointing and not self.base_dropout:
            raise ValueError(
                "base_dropout = false keeps the base model in evaluation mode, which turns checkpointing off; "
                "leave gradient_checkpointing out"
            )
        if self.warmup_steps is not None and self.warmup_fraction:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} and warmup_fraction = {self.warmup_fraction} are two lengths of "
                "one warm-up; leave one out"
            )
        return self


class EvaluateSettings(BaseModel):
    """How models are evaluated. `metric` is for all models. The rest is for language models (`tasks.text.causal_lm`);
    the numbers of rows are for text encoders too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: Annotated[Literal["loss"] | None, LATER] = None
    """Default: the task's own score, such as accuracy. "loss": exp(-loss) on held-out examples. That is the geometric
    mean of the probabilities that the model gives to the right answers (`tasks.task.by_loss`)."""
    protocol: Literal["log-likelihood", "generation"] | None = None
    """Default: log-likelihood; generation for reference texts (E2E) or numbers (GSM8K)."""
    validation_rows: int | None = Field(default=None, ge=1)
    """Number of validation rows of each task to evaluate. They are the same in every trial."""
    test_rows: int | None = Field(default=None, ge=1)
    """Number of test rows of each task to evaluate. They are the same in every trial."""
    rows_by: Annotated[Literal["data"] | None, LATER] = None
    """Set by the program. data: the limited rows depend on the data alone. Folders of earlier versions have no value;
    their rows depend on the data set's folder too."""
    num_beams: int = Field(default=4, ge=1)
    """Beams of generation (LLM-Adapters: 4; LoRA's E2E: 10)."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest generated text in tokens."""
    length_penalty: float = 1.0
    """Exponent of the length that divides a beam's score (LoRA's E2E: 0.8)."""
    no_repeat_ngram: int = Field(default=0, ge=0)
    """Forbid that an n-gram of this length occurs twice in a generated text, its prompt not counted (LoRA's E2E: 4). 0:
    no rule."""


def contrastive(adapt: str | None, method: str) -> bool:
    """Return whether a CLIP's loss compares all images of a batch with their texts, so that a batch cannot be split."""
    return adapt == "both" and method != LINEAR_PROBE and not method.startswith(PROMPTS)


class TrialConfig(BaseModel):
    """Everything that decides a trial's result. Equal configurations have equal ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Stage
    cell_id: str
    model: str
    adapt: Adapt
    targets: tuple[str, ...]
    dataset: str
    train_size: TrainSize
    method: str
    """A name of randlora's registry, or "full", "full-targets", "linear-probe", "zero-shot"."""
    capacities: tuple[tuple[str, int], ...] = ()
    """(weight name, capacity) of every adapted weight; empty for methods without a budget."""
    options: tuple[tuple[str, Option], ...] = ()
    """(name, value) of the method's options besides capacity."""
    budget: int | None = None
    """Number of trainable adapter parameters that was asked for; None for methods without a budget."""
    lr: float | None = None
    """Peak learning rate; None only for zero-shot."""
    data_seed: int
    """Seed of the training subset and the order of its batches."""
    init_seed: int
    """Seed of the trainables' start and of dropout."""
    basis_seed: int
    """Seed of the frozen bases."""
    train: TrainSettings = TrainSettings()
    protocol: Protocol = "standard"
    """paper: train also on images that are otherwise set aside for validation, so that there is no validation score."""
    skip_bad: Annotated[bool, LATER] = False
    """Leave examples that cannot be read out of every split, and count them. Otherwise one of them stops the trial."""
    image_size: Annotated[int | None, Field(ge=1), LATER] = None
    """Side of the model's square input in pixels. None: the model's own."""
    evaluate: Annotated[EvaluateSettings, LATER] = EvaluateSettings()
    """How a language model is evaluated."""

    @field_validator("train_size")
    @classmethod
    def _known_size(cls, value: TrainSize) -> TrainSize:
        shots(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrialConfig:
        if self.method == NO_TRAINING:
            if self.lr is not None:
                raise ValueError(f"lr {self.lr!r} given for zero-shot, which trains nothing; leave it out")
        elif self.lr is None or not math.isfinite(self.lr) or self.lr <= 0.0:
            raise ValueError(f"lr {self.lr!r} of method {self.method!r} is not a positive finite number")
        if self.protocol == "paper" and self.stage == "TUNE":
            raise ValueError("protocol 'paper' has no validation images, so no stage TUNE; use CONFIRM at a fixed rate")
        micro = self.train.micro_batch_size
        if self.train.negatives == "part" and (self.adapt != "both" or micro is None):
            raise ValueError(
                "train.negatives 'part' is of the contrastive loss of adapt = 'both' in micro-batches; give "
                "micro_batch_size, or leave it out"
            )
        split = self.train.negatives == "batch" and micro is not None and micro < self.train.global_batch_size
        if self.contrastive and split:
            raise ValueError(
                f"train.micro_batch_size {micro} is smaller than train.global_batch_size "
                f"{self.train.global_batch_size}: the contrastive loss of adapt = 'both' compares all images of "
                "a batch; leave micro_batch_size out, or compare within each part: negatives = 'part'"
            )
        return self

    @property
    def contrastive(self) -> bool:
        """Return whether the trial's loss compares all images of a batch (see the function of this name)."""
        return contrastive(self.adapt, self.method)

    @property
    def trial_id(self) -> str:
        """Return the id: the first 16 hexadecimal digits of the SHA-256 of the configuration's canonical JSON
        (`identifying`)."""
        text = json.dumps(identifying(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


OWN = ("lr", "data_seed", "init_seed", "basis_seed")
OWN_TRAIN = ("weight_decay", "full_weight_decay")
"""What the trials of a pack may differ in."""


class NotPackableError(TrialError):
    """These trials cannot share a model. Each of them may run alone."""


class UnevenTrialsError(NotPackableError):
    """These trials are at different epochs, as after an interruption. Others of their kind may share a model."""


def alike(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a trial's configuration in which all trials of a pack must agree."""
    shared = {name: value for name, value in config.items() if name not in OWN}
    return shared | {"train": {n: v for n, v in config["train"].items() if n not in OWN_TRAIN}}


def check_alike(trials: Sequence[TrialConfig]) -> None:
    """Raise NotPackableError if trials differ in more than they may, or if their method trains no adapter."""
    shared = [alike(identifying(trial)) for trial in trials]
    for other in shared:
        differ = sorted(n for n in {*shared[0], *other} if shared[0].get(n) != other.get(n))
        if differ:
            raise NotPackableError(f"trials of a pack may differ in {', '.join(OWN)} alone, not in {', '.join(differ)}")
    if trials[0].train.base_weights == "int8":
        raise NotPackableError(
            "train.base_weights = 'int8' takes outliers of the whole batch out of each product, so trials would mix"
        )
    method = trials[0].method
    if method in (*FULL_METHODS, LINEAR_PROBE, NO_TRAINING):
        raise NotPackableError(f"method {method!r} adds no adapter to the base model, so there is nothing to pack")
