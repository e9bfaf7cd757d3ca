"""The description of one trial: frozen, hashable, strict, and the source of its id."""

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
"""Trains a linear head alone, at the trial's own learning rate."""
PROMPTS = "prompt:"
"""How methods of prompt learning begin (`randlora.methods.prompts.kinds.PREFIX`, whose module loads torch)."""
FULL_METHODS = ("full", "full-targets")
"""Methods that train the base weights themselves: every weight of the adapted towers, or the target weights."""
QUANTISED = ("nf4", "int8")
"""Values of `train.base_weights` for which bitsandbytes packs the linear layers."""

_SHOTS = re.compile(r"([1-9][0-9]*)-shot")


LATER: Final = "came after the first stored ids"
"""Marks a field that came after the first stored ids: `name: Annotated[int | None, LATER] = None`.

Such a field is left out of ids and identities while it has its default, so that what was stored before keeps them.
"""


def identifying(model: BaseModel) -> dict[str, Any]:
    """The JSON-able content of a model that ids are made from: all of it, without LATER fields at their default.

    Models inside it, also those in its tables, follow the same rule.
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
    """The k of "k-shot"; None for a fraction. Raises ValueError for neither (k >= 1, a fraction in (0, 1])."""
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
    """Examples of an optimiser step, over workers and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Examples of one forward pass; without it a worker's whole share of the batch."""
    negatives: Annotated[Literal["batch", "part"], LATER] = "batch"
    """What the loss of both CLIP towers compares: the whole batch, which then can't be split, or the micro-batch, as
    the paper's 2 x 64: another loss."""
    eval_batch_size: int = Field(default=512, ge=1)
    """Examples of one forward pass in evaluation."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's decay of adapter parameters."""
    full_weight_decay: float = Field(default=0.1, ge=0.0)
    """AdamW's decay of base weights that train (the paper's Table 8)."""
    grad_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the whole gradient."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """How the learning rate falls."""
    min_lr_ratio: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of the rate at which cosine or line end."""
    warmup_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the steps in which it rises from 0."""
    warmup_steps: Annotated[int | None, Field(ge=1), LATER] = None
    """The same in steps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on CUDA devices that have it, else fp32."""
    base_weights: Annotated[Literal["fp32", "bf16", "nf4", "int8"], LATER] = "fp32"
    """Language models: the frozen weights; adapters train in float32. "nf4" and "int8" pack all linear layers except
    the output layer in 4 or 8 bits, and hold the rest in bf16 (docs/models.md); they need the extra `quantised`."""
    float32: Annotated[Literal["default", "fast"], LATER] = "default"
    """fast: oneDNN's products on CPUs, where they are as accurate (docs/running.md)."""
    hold_weights: Annotated[bool, LATER] = False
    """Make W0 + delta once a step, not once a micro-batch: two more copies of the adapted weights. Without effect in
    bf16, and on trials that run in a pack."""
    augment: Literal["none", "crop-flip", "crop-flip-original"] = "none"
    """crop-flip: resized crop (scale 0.5 to 1) of the model's square, and flip. crop-flip-original: of the original
    image, as the paper; 1.6 times the room on disk."""
    head_lr: Annotated[Annotated[float, Field(gt=0.0)] | Literal["lr"], LATER] = 1e-3
    """Peak rate of a new head, never searched; "lr": the trial's own (the paper's GLUE)."""
    sampling: Annotated[Literal["shuffle", "replacement"], LATER] = "shuffle"
    """Every example once an epoch, or each drawn anew (the paper)."""
    min_batches_per_epoch: int = Field(default=0, ge=0)
    """Small subsets repeat until an epoch has this many (the paper: 10)."""
    max_tokens: Annotated[int | None, Field(ge=2), LATER] = None
    """Longest text, prompt and response together; without it 256, for text encoders 128."""
    loss_on_prompt: Annotated[bool, LATER] = False
    """Language models: a loss over the prompt too (LLM-Adapters' default)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0), LATER] = 0.0
    """Models of text: share of a target spread over all words or classes (LoRA's E2E: 0.1)."""
    base_dropout: Annotated[bool, LATER] = True
    """Whether training uses the dropout of the base model's config. An adapter's dropout is an option of its method."""
    parallel: Annotated[Literal["replicate", "fsdp"], LATER] = "replicate"
    """Full fine-tuning of a language model on several workers: a copy each, or weights, gradients and moments split
    (FSDP2)."""
    gradient_checkpointing: Annotated[bool, LATER] = False
    """Models of text: keep layers' inputs alone, and recompute the rest."""
    train_temperature: Annotated[bool, LATER] = False
    """Full fine-tuning of both towers of a CLIP: also train the temperature (logit_scale), as the RandLoRA paper's code
    does. It stays frozen in every other method."""
    select: Annotated[Literal["last", "best"], LATER] = "last"
    """Weights to score: the last, or those of the lowest validation loss; `protocol = "paper"` keeps
    `evaluate.validation_rows` apart for it (else 5,000, a tenth at most)."""
    select_every: Annotated[int | None, Field(ge=1), LATER] = None
    """Steps between the looks of "best"; without it an epoch."""

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
    """Without it the task's own score, such as accuracy. "loss": scores are e to the minus loss on held-out examples,
    which is the geometric mean of the probabilities that the model gives to what is right (`tasks.task.by_loss`)."""
    protocol: Literal["log-likelihood", "generation"] | None = None
    """Without it log-likelihood; generation for reference texts (E2E) or numbers (GSM8K)."""
    validation_rows: int | None = Field(default=None, ge=1)
    """Validation rows of each task to evaluate, the same in every trial."""
    test_rows: int | None = Field(default=None, ge=1)
    """Test rows likewise."""
    rows_by: Annotated[Literal["data"] | None, LATER] = None
    """Set by the program. data: the limited rows are drawn by the data alone. Folders that earlier versions began have
    none, and draw by the data set's folder too."""
    num_beams: int = Field(default=4, ge=1)
    """Beams of generation (LLM-Adapters: 4; LoRA's E2E: 10)."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest generated text in tokens."""
    length_penalty: float = 1.0
    """Exponent of the length that divides a beam's score (LoRA's E2E: 0.8)."""
    no_repeat_ngram: int = Field(default=0, ge=0)
    """No n-gram of this length twice in a generated text, its prompt not counted (LoRA's E2E: 4); 0: no rule."""


def contrastive(adapt: str | None, method: str) -> bool:
    """Whether a CLIP's loss compares all images of a batch with their texts, so that a batch can't be split."""
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
    """Trainable adapter parameters asked for; None for methods without a budget."""
    lr: float | None = None
    """Peak learning rate; None for zero-shot alone."""
    data_seed: int
    """Draws the training subset and the order of its batches."""
    init_seed: int
    """Draws the trainables' start and dropout."""
    basis_seed: int
    """Draws the frozen bases."""
    train: TrainSettings = TrainSettings()
    protocol: Protocol = "standard"
    """paper: training also on images that are else carved out for validation, hence no validation score."""
    skip_bad: Annotated[bool, LATER] = False
    """Leave examples that can't be read out of every split, and count them; else one stops the trial."""
    image_size: Annotated[int | None, Field(ge=1), LATER] = None
    """Side of the model's square input in pixels; None: the model's own."""
    evaluate: Annotated[EvaluateSettings, LATER] = EvaluateSettings()
    """How a language model is judged."""

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
        """As the function of this name."""
        return contrastive(self.adapt, self.method)

    @property
    def trial_id(self) -> str:
        """16 hexadecimal digits: the start of the SHA-256 of the configuration's canonical JSON (`identifying`)."""
        text = json.dumps(identifying(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


OWN = ("lr", "data_seed", "init_seed", "basis_seed")
OWN_TRAIN = ("weight_decay", "full_weight_decay")
"""What the trials of a pack may differ in."""


class NotPackableError(TrialError):
    """These trials can't share a model; each by itself may run."""


class UnevenTrialsError(NotPackableError):
    """These trials are out of step, as after an interruption; others of their kind may share a model."""


def alike(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a trial's configuration that it shares with every trial it may be packed with."""
    shared = {name: value for name, value in config.items() if name not in OWN}
    return shared | {"train": {n: v for n, v in config["train"].items() if n not in OWN_TRAIN}}


def check_alike(trials: Sequence[TrialConfig]) -> None:
    """Refuse trials that differ in more than they may, or whose method trains no adapter."""
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
