"""The tables of the diagnostics (`sweeps analyze`): one frozen dataclass a table, as in `rows`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from analysis.store.codec import TableRow
from analysis.store.rows import DATASET, METHOD, MODEL, REFERENCE, SIZE, SWEEP
from trainables.training.measured import about, column

PARAMETERS = "Trainable adapter parameters, counted in the model."
WEIGHT = "Name of the target weight."
OUTPUTS = "Number of outputs of the target weight."
INPUTS = "Number of inputs of the target weight."
COMPUTED = "When the row was computed."


@dataclass(frozen=True, kw_only=True)
class _Computed:
    """The columns that name what a row is computed from."""

    sweep: str = dataclasses.field(metadata=SWEEP)
    unit: str = dataclasses.field(metadata=about("Hash of the trials and settings that the row is computed from."))
    model: str | None = column(MODEL)
    dataset: str | None = column(DATASET)
    train_size: str | None = column(SIZE)


@dataclass(frozen=True, kw_only=True)
class _OfMethod(_Computed):
    """The columns that name the adapted model that a row is computed from."""

    method: str | None = column(METHOD)
    reference: str | None = column(REFERENCE)
    adapter_params: int | None = column(PARAMETERS)


@dataclass(frozen=True, kw_only=True)
class _OfKeptTrial(_OfMethod):
    """The columns that name one kept trial of any seed."""

    trial_id: str | None = column("The CONFIRM trial of the weights.")
    data_seed: int | None = column("Seed of the trial's data.")
    init_seed: int | None = column("Seed of the trial's initial values.")
    basis_seed: int | None = column("Seed of the trial's frozen bases.")


@dataclass(frozen=True, kw_only=True)
class FullRankRow(_OfMethod, TableRow):
    """Each row says how probable it is that RandLoRA's update has full rank, for one shape of weight and kind of bases.
    `sweeps analyze full_rank` computes it.
    """

    table: ClassVar[str] = "full_rank"
    key: ClassVar[tuple[str, ...]] = (
        "sweep",
        "unit",
        "out_features",
        "in_features",
        "capacity",
        "distribution",
        "sparsity",
        "sparse_a",
    )

    trial_id: str | None = column("The trial of RandLoRA whose weights were kept.")
    out_features: int | None = column(OUTPUTS)
    in_features: int | None = column(INPUTS)
    capacity: int | None = column("RandLoRA's rank on weights of this shape.")
    distribution: str | None = column("Distribution of the bases.")
    sparsity: float | None = column(
        "The number s: an entry of the bases is not 0 with probability 2 / s. 2 means binary bases, null dense ones."
    )
    sparse_a: bool | None = column("Whether A is sparse too.")
    log10_collinear: float | None = column(
        "log10 of the bound in appendix C.6 on the probability that two rows of B are collinear. Null: the bound is 0."
    )
    draws: int | None = column("Number of random updates drawn.")
    full: float | None = column("Share of the drawn updates that have full rank.", "fraction")
    mean_rank: float | None = column("Mean rank of the drawn updates, as a share of full rank.", "fraction")
    computed_at: datetime | None = column(COMPUTED)


@dataclass(frozen=True, kw_only=True)
class CkaRow(_OfMethod, TableRow):
    """Each row says how similar the activations of one layer of a kept trial are to full fine-tuning's.
    `sweeps analyze cka` computes it.
    """

    table: ClassVar[str] = "cka"
    key: ClassVar[tuple[str, ...]] = ("sweep", "unit", "layer")

    trial_id: str | None = column("The CONFIRM trial. It is null for the untouched base model.")
    against: str | None = column("The trial of full fine-tuning that it is compared with.")
    layer: str | None = column("The attention or MLP of a block. Older rows have the block.")
    depth: int | None = column("Position of the layer, counted from the input, from 0.")
    cka: float | None = column(
        "Linear, unbiased CKA, as a mean over mini-batches. Null: the activations are constant or not finite."
    )
    examples: int | None = column("Number of examples that both models saw. Each gives one vector.")
    batch_size: int | None = column("Number of examples of a mini-batch.")
    computed_at: datetime | None = column(COMPUTED)


@dataclass(frozen=True, kw_only=True)
class LandscapeRow(_Computed, TableRow):
    """Each row is one point of the loss plane through LoRA, RandLoRA and full fine-tuning, or of an edge between two
    of them. `sweeps analyze landscape` computes it.
    """

    table: ClassVar[str] = "landscape"
    key: ClassVar[tuple[str, ...]] = ("sweep", "unit", "kind", "split", "x", "y")

    reference: str | None = column("The budget of LoRA and RandLoRA, such as 'lora-8'.")
    corner_0: str | None = column("Trial of LoRA, at (0, 0).")
    corner_1: str | None = column("Trial of RandLoRA, at (1, 0).")
    corner_2: str | None = column("Trial of full fine-tuning, at (0.5, 1).")
    kind: str | None = column("'plane' for a point of the plane, 'edge' for a point between two corners.")
    split: str | None = column("'train' or 'val': the split whose loss it is.")
    x: float | None = column("Horizontal position. The corners weigh 1 - x - y / 2, x - y / 2 and y.")
    y: float | None = column("Vertical position.")
    a: int | None = column("Corner where the edge begins.")
    b: int | None = column("Corner where the edge ends.")
    t: float | None = column("Share of the way from a to b.", "fraction")
    loss: float | None = column("The task's training loss. It is null if it was not finite.")
    barrier: float | None = column("Largest height of the edge's loss above the straight line between its ends.")
    examples: int | None = column("Number of examples that the loss is a mean of.")
    points: int | None = column("Number of points in a row of the grid, which is also that of an edge.")
    computed_at: datetime | None = column(COMPUTED)


@dataclass(frozen=True, kw_only=True)
class SpectrumRow(_OfMethod, TableRow):
    """Each row is one kept trial and target weight, with the singular values of the weight's update.
    `sweeps analyze spectrum` computes it.
    """

    table: ClassVar[str] = "spectrum"
    key: ClassVar[tuple[str, ...]] = ("sweep", "unit", "weight")

    trial_id: str | None = column("The CONFIRM trial of the weights.")
    weight: str | None = column(WEIGHT)
    out_features: int | None = column(OUTPUTS)
    in_features: int | None = column(INPUTS)
    frobenius: float | None = column("Frobenius norm of the update.")
    spectral: float | None = column("Largest singular value of the update.")
    stable_rank: float | None = column("Stable rank: sum s^2 / s_1^2, where s are the singular values.")
    effective_rank: float | None = column("Effective rank: exp of the entropy of s / sum s.")
    rank: int | None = column("Number of singular values above float32's rounding.")
    overlap_k: int | None = column("Number of leading left directions that `overlap` compares.")
    overlap: float | None = column(
        "Share of these directions in the span of full fine-tuning's. By chance it is overlap_k / out_features.",
        "fraction",
    )
    singular_values: list[float] | None = column("All singular values, from the largest.")
    computed_at: datetime | None = column(COMPUTED)


@dataclass(frozen=True, kw_only=True)
class ApproximationRow(_Computed, TableRow):
    """Each row says how well an update of one form and budget can approximate full fine-tuning's update of a weight.
    `sweeps analyze spectrum` computes it.
    """

    table: ClassVar[str] = "approximation"
    key: ClassVar[tuple[str, ...]] = ("sweep", "unit", "weight", "target", "form", "lora_rank")

    trial_id: str | None = column("The trial of full fine-tuning that is approximated.")
    weight: str | None = column(WEIGHT)
    out_features: int | None = column(OUTPUTS)
    in_features: int | None = column(INPUTS)
    target: str | None = column(
        "The matrix that is approximated: the trial's update ('trained' or null), or a random normal matrix of its "
        "shape ('random')."
    )
    form: str | None = column(
        "Form of the approximation: 'lora' (its error is the exact optimum), 'randlora' or 'vera' (fitted, so the "
        "error is an upper bound)."
    )
    lora_rank: int | None = column("Rank of LoRA that has the same number of parameters.")
    capacity: int | None = column("Rank of the form itself.")
    parameters: int | None = column("Number of parameters that the form trains on this weight.")
    error: float | None = column("Error of the approximation: the relative Frobenius norm of the rest.", "fraction")
    bound: float | None = column("RandLoRA's bound of the error (equation 7).", "fraction")
    computed_at: datetime | None = column(COMPUTED)


@dataclass(frozen=True, kw_only=True)
class IntruderRow(_OfMethod, TableRow):
    """Each row says how many singular vectors of a trained weight are unlike all of the base weight's.
    `sweeps analyze intruders` computes it.
    """

    table: ClassVar[str] = "intruders"
    key: ClassVar[tuple[str, ...]] = ("sweep", "unit", "weight")

    trial_id: str | None = column("The CONFIRM trial of the weights.")
    weight: str | None = column(WEIGHT)
    out_features: int | None = column(OUTPUTS)
    in_features: int | None = column(INPUTS)
    counted: int | None = column("Number of leading left singular vectors of the trained weight that are compared.")
    threshold: float | None = column("A vector is an intruder if its largest |cosine| is below this.")
    intruders: int | None = column("Number of intruders among the leading vectors.")
    share: float | None = column("Intruders as a share of the leading vectors.", "fraction")
    intruders_of_all: int | None = column(
        "Number of intruders among all vectors. Vectors of small singular values change direction easily."
    )
    cosines: list[float] | None = column(
        "Largest |cosine| of each left singular vector with one of the base weight, from the largest singular value."
    )
    computed_at: datetime | None = column(COMPUTED)


@dataclass(frozen=True, kw_only=True)
class RetentionRow(_OfKeptTrial, TableRow):
    """Each row is one kept trial of a language model, with its loss on general text before and after training.
    `sweeps analyze retention` computes it.
    """

    table: ClassVar[str] = "retention"
    key: ClassVar[tuple[str, ...]] = ("sweep", "unit")

    texts: str | None = column("Name of the file of general text.")
    tokens: int | None = column("Number of tokens that the loss is a mean of.")
    score: float | None = column("Test score of the trial.", "fraction")
    before: float | None = column("Mean loss of a token under the base model, without an adapter.", "nats")
    after: float | None = column("Mean loss of a token after training.", "nats")
    change: float | None = column("`after` minus `before`. It is positive if the model forgot.", "nats")
    computed_at: datetime | None = column(COMPUTED)


@dataclass(frozen=True, kw_only=True)
class ImageRetentionRow(_OfKeptTrial, TableRow):
    """Each row is one kept trial of a CLIP, with its zero-shot accuracy on another data set before and after training.
    `sweeps analyze retention --data` computes it.
    """

    table: ClassVar[str] = "image_retention"
    key: ClassVar[tuple[str, ...]] = ("sweep", "unit")

    data: str | None = column("The other data set, on which no trial was trained.")
    images: int | None = column("Number of test images of the other data set.")
    score: float | None = column("Test score of the trial on its own data set.", "fraction")
    before: float | None = column(
        "Accuracy on the other data set under the base model, without an adapter.", "fraction"
    )
    after: float | None = column("Accuracy on the other data set after training.", "fraction")
    change: float | None = column("`after` minus `before`. It is negative if the model forgot.", "fraction")
    computed_at: datetime | None = column(COMPUTED)


@dataclass(frozen=True, kw_only=True)
class CurvatureRow(_OfMethod, TableRow):
    """Each row is one cell, with the curvature of its training loss before training.
    `sweeps analyze curvature` computes it.
    """

    table: ClassVar[str] = "curvature"
    key: ClassVar[tuple[str, ...]] = ("sweep", "unit")

    lr: float | None = column("The learning rate that the cell chose.")
    examples: int | None = column("Number of training examples of the loss.")
    sharpness: float | None = column(
        "Largest eigenvalue of the Hessian of the mean loss with respect to what the cell trains, at the start. Null: "
        "Lanczos did not converge."
    )
    first_rate: float | None = column(
        "Learning rate at which Adam's first step reaches the minimum of the quadratic approximation. Null: there "
        "is none, because the curvature along the step is negative."
    )
    products: int | None = column("Number of products with the Hessian that were computed.")
    computed_at: datetime | None = column(COMPUTED)


@dataclass(frozen=True, kw_only=True)
class FurtherTaskRow(_OfMethod, TableRow):
    """Each row is one metric that lm-eval reports of a kept trial on a further task. `sweeps analyze tasks` computes
    it. No choice and no verdict uses it.
    """

    table: ClassVar[str] = "tasks"
    key: ClassVar[tuple[str, ...]] = ("sweep", "unit", "metric", "answer_filter")

    trial_id: str | None = column("The CONFIRM trial. It is null for the untouched base model.")
    task: str | None = column("Name of lm-eval's task.")
    metric: str | None = column("lm-eval's metric, such as 'acc' or 'exact_match'.")
    answer_filter: str | None = column("lm-eval's rule for taking the answer from a generated text, such as 'none'.")
    value: float | None = column("Value of the metric, in lm-eval's unit.")
    stderr: float | None = column("lm-eval's standard error over the examples. It leaves out how much seeds differ.")
    shots: int | None = column("Number of worked examples before each question.")
    examples: int | None = column("Number of examples asked. It is null for a group of tasks.")
    task_version: str | None = column("lm-eval's version of the task.")
    lm_eval: str | None = column("Version of lm-eval.")
    computed_at: datetime | None = column(COMPUTED)


ROWS: tuple[type[TableRow], ...] = (
    FullRankRow,
    CkaRow,
    LandscapeRow,
    SpectrumRow,
    ApproximationRow,
    FurtherTaskRow,
    IntruderRow,
    RetentionRow,
    ImageRetentionRow,
    CurvatureRow,
)
"""The dataclasses of this module's tables."""
