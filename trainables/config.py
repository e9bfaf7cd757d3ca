"""The description of one trial. It is frozen, hashable and strictly checked, and the trial's id is made from it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
    """How every trial of a sweep trains: the same steps and data for every method."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=10, ge=1)
    """Passes over the training examples."""
    global_batch_size: int = Field(default=128, ge=1)
    """Examples of one optimiser step: the sum over all workers and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Examples of one forward pass. Default: a worker's whole share of the batch."""
    negatives: Annotated[Literal["batch", "part"], LATER] = "batch"
    """For `adapt = "both"` of a CLIP: the examples that the contrastive loss compares. batch: the whole batch, which
    then cannot be split into micro-batches. part: each micro-batch by itself, which is another loss. The RandLoRA paper
    has two parts of 64."""
    eval_batch_size: int = Field(default=512, ge=1)
    """Examples of one forward pass in evaluation."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's weight decay of adapter parameters."""
    full_weight_decay: float = Field(default=0.1, ge=0.0)
    """AdamW's weight decay of base weights, in full fine-tuning (the RandLoRA paper's Table 8)."""
    grad_clip: float = Field(default=1.0, gt=0.0)
    """Gradients are scaled down if the norm of all of them together is larger."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """How the learning rate falls from its peak."""
    min_lr_ratio: float = Field(default=0.01, ge=0.0, le=1.0)
    """The learning rate at the end of training, as a share of the peak rate (cosine and linear)."""
    warmup_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises from 0 to its peak."""
    warmup_steps: Annotated[int | None, Field(ge=1), LATER] = None
    """Number of these steps, in place of `warmup_fraction`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the computation. auto: bf16 autocast on CUDA devices that support it, else fp32."""
    base_weights: Annotated[Literal["fp32", "bf16", "nf4", "int8"], LATER] = "fp32"
    """Language models: the frozen weights; adapters train in float32. nf4, int8: all linear layers except the output
    layer are packed in 4 or 8 bits, and the rest is kept in bf16 (docs/models.md). They need the extra `quantised`."""
    float32: Annotated[Literal["default", "fast"], LATER] = "default"
    """fast: on CPUs oneDNN computes float32 products, if they are accurate enough (docs/running.md)."""
    hold_weights: Annotated[bool, LATER] = False
    """Add an adapter's update to the frozen weight once a step, not once a micro-batch. It takes the memory of two more
    copies of the adapted weights. It has no effect in bf16, and on trials that run in a pack."""
    augment: Literal["none", "crop-flip", "crop-flip-original"] = "none"
    """Augmentation of training images. crop-flip: a random resized crop (scale 0.5 to 1) of the image after it was
    resized to the model's square, and a random flip. crop-flip-original: the crop is taken from the original image, as
    in the RandLoRA paper. It takes 1.6 times the room on disk."""
    head_lr: Annotated[Annotated[float, Field(gt=0.0)] | Literal["lr"], LATER] = 1e-3
    """Peak learning rate of a new head, for models that get one (docs/models.md). It is not searched. "lr": the trial's
    learning rate, as in the RandLoRA paper's GLUE runs."""
    sampling: Annotated[Literal["shuffle", "replacement"], LATER] = "shuffle"
    """shuffle: every example once in an epoch. replacement: each example is drawn anew, as in the RandLoRA paper."""
    min_batches_per_epoch: int = Field(default=0, ge=0)
    """Small training sets are repeated until an epoch has this many batches (the RandLoRA paper: 10)."""
    max_tokens: Annotated[int | None, Field(ge=2), LATER] = None
    """Longest text in tokens, prompt and response together; the rest is cut off. Default: 256, and 128 for text
    encoders."""
    length_group: Annotated[Annotated[int, Field(ge=1)] | None, LATER] = None
    """Models of text: number of texts of similar length that stay together when an epoch is shuffled. Default: a batch;
    if batch sizes are searched, the largest one, so that the order of the texts is the same for all of them."""
    loss_on_prompt: Annotated[bool, LATER] = False
    """Language models: also learn the tokens of the prompt (LLM-Adapters' default)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0), LATER] = 0.0
    """Models of text: label smoothing, the share of a target that is spread over all tokens or classes (LoRA's E2E:
    0.1)."""
    base_dropout: Annotated[bool, LATER] = True
    """Whether training uses the dropout of the base model's config. An adapter's dropout is an option of its method."""
    parallel: Annotated[Literal["replicate", "fsdp"], LATER] = "replicate"
    """Full fine-tuning of a language model on several workers. replicate: each worker has a copy of the model. fsdp:
    weights, gradients and AdamW's moments are split over the workers (FSDP2)."""
    gradient_checkpointing: Annotated[bool, LATER] = False
    """Models of text: keep only the inputs of each layer and compute the rest again in the backward pass. It takes less
    memory and more time."""
    train_temperature: Annotated[bool, LATER] = False
    """Full fine-tuning of both towers of a CLIP: also train the temperature (logit_scale), as the RandLoRA paper's code
    does. It stays frozen in every other method."""
    select: Annotated[Literal["last", "best"], LATER] = "last"
    """Which weights of a trial are scored. last: those after the last step. best: those with the lowest validation
    loss. With `protocol = "paper"` it then keeps a tenth of the training examples for validation, and at most
    `evaluate.validation_rows` (default 5,000)."""
    select_every: Annotated[int | None, Field(ge=1), LATER] = None
    """Steps between the evaluations of `select = "best"`. Default: an epoch."""

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
    """How models are judged. `metric` is for all; the rest is for language models (`tasks.text.causal_lm`), and the
    numbers of rows for text encoders too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: Annotated[Literal["loss"] | None, LATER] = None
    """Default: the task's own score, such as accuracy. "loss": the score is e to the minus loss on held-out examples.
    This is the geometric mean of the probabilities that the model gives to the right answers."""
    protocol: Literal["log-likelihood", "generation"] | None = None
    """How a language model is scored (docs/models.md). Default: log-likelihood; for reference texts (E2E) and numbers
    (GSM8K) it is generation."""
    validation_rows: int | None = Field(default=None, ge=1)
    """Most validation rows that are evaluated, the same rows in every trial. Default: all."""
    test_rows: int | None = Field(default=None, ge=1)
    """Most test rows that are evaluated, the same rows in every trial. Default: all."""
    rows_by: Annotated[Literal["data"] | None, LATER] = None
    """Do not set this: the program does. data: which rows are evaluated depends on the data alone. In results folders
    of earlier versions it is missing, and the rows also depend on the path of the data set."""
    num_beams: int = Field(default=4, ge=1)
    """Number of beams of beam search, in generation (LLM-Adapters: 4; LoRA's E2E: 10)."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest generated text in tokens."""
    length_penalty: float = 1.0
    """A beam's score is divided by its length to this power (LoRA's E2E: 0.8)."""
    no_repeat_ngram: int = Field(default=0, ge=0)
    """A generated text may not repeat a sequence of this many tokens; the prompt is not counted (LoRA's E2E: 4). 0: it
    may."""


def contrastive(adapt: str | None, method: str) -> bool:
    """Return whether a CLIP's loss compares all images of a batch with their texts, so that a batch cannot be split."""
    return adapt == "both" and method != LINEAR_PROBE and not method.startswith(PROMPTS)


def refused_micro_batch(train: TrainSettings, adapt: str | None, method: str) -> str | None:
    """Return why a method's loss does not allow these micro-batches; None if it does."""
    micro, batch = train.micro_batch_size, train.global_batch_size
    if train.negatives == "part" and (adapt != "both" or micro is None):
        return (
            "train.negatives 'part' is of the contrastive loss of adapt = 'both' in micro-batches; give "
            "micro_batch_size, or leave it out"
        )
    if train.negatives == "batch" and micro is not None and micro < batch and contrastive(adapt, method):
        return (
            f"micro_batch_size {micro} is smaller than train.global_batch_size {batch}: the contrastive loss of adapt "
            "= 'both' compares all images of a batch; leave micro_batch_size out, or compare within each part: "
            "negatives = 'part'"
        )
    return None


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
        if (rule := refused_micro_batch(self.train, self.adapt, self.method)) is not None:
            raise ValueError(rule)
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
