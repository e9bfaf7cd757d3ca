"""The results tables of a sweep: one frozen dataclass a table, which defines every column with type, unit and meaning.

Columns are defined nowhere else, except for what a trial measures: `trainables.training.measured` defines these
columns, and `TrialRow`, `MetricRow` and `PredictionRow` inherit them. The Arrow schemas (`schemas`), the conversion to
JSON and back (`codec`), the check of a folder's parts (`tables`) and docs/tables.md are derived from these classes.

Null means "does not apply" or "not known", never zero. Scores are fractions in [0, 1], instants are UTC.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from analysis.store.codec import TableRow
from trainables.training.measured import Epoch, Measured, Predicted, about, column

SWEEP = about("Name of the sweep.")
TRIAL = about("Hash of the trial's configuration.")
CELL = about("Id of the cell.")
MODEL = "Id of the base model, such as 'open_clip:ViT-B-32/openai'."
ADAPT = "What is adapted: 'vision', 'both' (CLIP's towers) or 'all'."
DATASET = "Name of the data set."
SIZE = "'16-shot', or a fraction of the training set as text, '1.0'."
METHOD = "Name of the method."
ALLOCATION = "How capacity is spread over layers: 'uniform', 'per-layer' or 'fill'."
REFERENCE = (
    "The budget: 'lora-8' is the number of parameters that LoRA trains at rank 8, 'dof-lora-8' its degrees of freedom, "
    "'memory-lora-8' its memory. Null: no budget."
)
BUDGET = (
    "The budget's number: trainable parameters, unless its name begins with another quantity, such as memory in bytes. "
    "Null: no budget."
)
CAPACITY = "The capacity of all layers, such as the rank (for NoLA k)."
SEARCHED = "JSON: the hyperparameters that are searched besides the learning rate."


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The columns that name a row's trial."""

    sweep: str = dataclasses.field(metadata=SWEEP)
    trial_id: str = dataclasses.field(metadata=TRIAL)
    cell_id: str = dataclasses.field(metadata=CELL)


@dataclass(frozen=True, kw_only=True)
class _Attempt(_Trial):
    """The columns that name an attempt of a trial, its configuration and its end."""

    attempt: int = dataclasses.field(default=1, metadata=about("Number of the attempt, from 1. Every retry has a row."))
    stage: str = dataclasses.field(metadata=about("'TUNE' or 'CONFIRM'."))
    slot: int = dataclasses.field(
        metadata=about("Position in the stage, from 0; from 100,000 for learning rates past the edge of the range.")
    )
    model: str | None = column(MODEL)
    adapt: str | None = column(ADAPT)
    dataset: str | None = column(DATASET)
    train_size: str | None = column(SIZE)
    method: str | None = column(METHOD)
    allocation: str | None = column(ALLOCATION)
    reference: str | None = column(REFERENCE)
    budget: int | None = column(BUDGET)
    capacity: int | None = column(CAPACITY)
    lr: float | None = column("Peak learning rate.")
    global_batch_size: int | None = column(
        "Examples of an optimiser step; the last step of an epoch may have fewer. Null if nothing is trained, and in "
        "rows that an older version wrote."
    )
    hyperparameters: str | None = column(SEARCHED)
    origin: str | None = column(
        "Source of the learning rate: 'published' and 'neighbour' are warm starts, 'refined' is where a local fit "
        "expects the best rate, 'widened' is past the edge of the range, null is from the sampler."
    )
    data_seed: int | None = column("Declared seed of the training subset and its order.")
    init_seed: int | None = column("Declared seed of the start and of dropout.")
    basis_seed: int | None = column("Declared seed of frozen bases. Runs that agree in all three seeds are paired.")
    status: str = dataclasses.field(metadata=about("'finished', 'failed' or 'pruned'."))
    reason: str | None = column("Why the trial did not finish.")


@dataclass(frozen=True, kw_only=True)
class TrialRow(Measured, _Attempt, TableRow):
    """Each row is one attempt of a trial (one training run)."""

    table: ClassVar[str] = "trials"
    key: ClassVar[tuple[str, ...]] = ("sweep", "trial_id", "attempt")

    git_commit: str | None = column("Commit of the code, with '-dirty' if files differ from it.")
    started_at: datetime | None = column("When the attempt started.")
    ended_at: datetime | None = column("When the attempt ended.")

    @property
    def score(self) -> float | None:
        """The validation score, if the trial finished."""
        return self.val_score if self.status == "finished" else None


@dataclass(frozen=True, kw_only=True)
class _EpochOf(_Trial):
    attempt: int | None = column("Number of the attempt that reported the epoch.")


@dataclass(frozen=True, kw_only=True)
class MetricRow(Epoch, _EpochOf, TableRow):
    """Each row is one epoch of an attempt."""

    table: ClassVar[str] = "metrics"
    key: ClassVar[tuple[str, ...]] = ("sweep", "trial_id", "attempt", "epoch")


@dataclass(frozen=True, kw_only=True)
class PredictionRow(Predicted, _Trial, TableRow):
    """Each row says which test examples one CONFIRM trial got right."""

    table: ClassVar[str] = "predictions"
    key: ClassVar[tuple[str, ...]] = ("sweep", "trial_id")


@dataclass(frozen=True, kw_only=True)
class CellRow(TableRow):
    """Each row is one cell of the plan, with the budget solver's answer. Infeasible cells have a row too."""

    table: ClassVar[str] = "cells"
    key: ClassVar[tuple[str, ...]] = ("sweep", "cell_id")

    sweep: str = dataclasses.field(metadata=SWEEP)
    cell_id: str = dataclasses.field(metadata=CELL)
    model: str | None = column(MODEL)
    adapt: str | None = column(ADAPT)
    dataset: str | None = column(DATASET)
    train_size: str | None = column(SIZE)
    method: str | None = column(METHOD)
    base: str | None = column("The method that `method` is a variant of, or the method itself.")
    title: str | None = column("Title of the method. It is null for a variant.")
    label: str | None = column("The cell in words.")
    reference: str | None = column(REFERENCE)
    budget: int | None = column(BUDGET)
    allocation: str | None = column(ALLOCATION)
    capacity: int | None = column(CAPACITY)
    capacities: str | None = column("JSON: the capacity of every target weight.")
    count: int | None = column("Trainable parameters of the solution. It equals `trials.adapter_params`.")
    model_params: int | None = column("Parameters of the base model.")
    target_params: int | None = column("Parameters of the target weights.")
    update_rank: float | None = column("Largest rank that a weight's update can have, as a mean over weights.")
    dof: int | None = column("Degrees of freedom of the updates.")
    dof_measured: bool | None = column("Whether `dof` is measured on a small weight, because no formula is known.")
    dof_at_most: bool | None = column("Whether `dof` is a bound that may not be reached.")
    step_memory_bytes: int | None = column("Predicted peak memory of a training step, the base model included.")
    step_flops: int | None = column(
        "Floating-point operations of a forward and a backward pass, for one image or token."
    )
    forward_flops: int | None = column(
        "Floating-point operations of the base model's forward pass, for one image or token."
    )
    saved_bytes: int | None = column("Bytes of the saved adapter's tensors, or of the trained base weights.")
    residual: int | None = column(
        "What the cell uses of the budget's quantity, such as `count` or `step_flops`, minus the budget."
    )
    residual_fraction: float | None = column("`residual` as a share of the budget.")
    feasible: bool | None = column("Whether the cell runs.")
    reason: str | None = column("Why the cell does not run, and what would help.")
    negatives: int | None = column(
        "Number of images that a contrastive loss compares each image with, itself included."
    )
    absent: str | None = column("Why `--available` left the cell out.")
    below: str | None = column("JSON: the nearest reachable capacity and count below the budget.")
    above: str | None = column("JSON: the nearest reachable capacity and count above the budget.")
    lr_low: float | None = column("Lower end of the learning-rate range.")
    lr_high: float | None = column("Upper end of the learning-rate range.")
    lr_centre: float | None = column("Centre of the learning-rate range.")
    space: str | None = column(SEARCHED)
    tune_trials: int | None = column("The tuning allowance as a number of TUNE trials.")
    tune_points: int | None = column(
        "Number of learning rates that the cell tries on TUNE's first seed. If the allowance was lowered later, rates "
        "that all cells had started before still count. Null: the allowance is in training examples."
    )
    tune_refined: int | None = column(
        "Number of these rates that are tried last, where a local fit expects the best rate. Null: none, or the folder "
        "is older than this column."
    )
    allowance_samples: int | None = column("The tuning allowance in training examples, if the sweep file gives it so.")
    confirm_seeds: int | None = column("Number of CONFIRM trials of the cell.")
    classes: int | None = column("Number of classes of the data set.")
    val_examples: int | None = column("Number of validation examples.")
    test_examples: int | None = column("Number of test examples.")
    test_lacks: str | None = column("JSON: the classes that have no test example.")
    seed_rule: str | None = column(
        "'per-data-set': the seeds that train are derived from the declared ones, the data set and the size. Null, as "
        "in imports: the declared seeds train."
    )
    seeds: str | None = column(
        "The sweep file's seeds as 'data/init/basis', with a space between them. Null: all seeds count."
    )


@dataclass(frozen=True, kw_only=True)
class ChoiceRow(TableRow):
    """Each row is one choice of a cell's learning rate. A larger allowance may add another."""

    table: ClassVar[str] = "choices"
    key: ClassVar[tuple[str, ...]] = ("sweep", "cell_id", "chosen_at", "n_trials")

    sweep: str = dataclasses.field(metadata=SWEEP)
    cell_id: str = dataclasses.field(metadata=CELL)
    lr: float = dataclasses.field(metadata=about("The chosen learning rate."))
    hyperparameters: str | None = column(SEARCHED)
    mean_val: float | None = column("Mean validation score of the choice.", "fraction")
    n_trials: int = dataclasses.field(metadata=about("Number of TUNE trials that the choice rests on."))
    n_rerun_seeds: int = dataclasses.field(default=0, metadata=about("Number of further seeds of each re-run rate."))
    edge: str | None = column("'low' or 'high' if the choice is at that edge of the range.")
    chosen_at: datetime = dataclasses.field(metadata=about("When the choice was made."))
    sequence: int | None = column("Number of the choice within its cell, from 1. The highest counts.")
