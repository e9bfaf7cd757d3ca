"""The interface of a task, as the training loop knows it: rows, a summed loss, a weight to divide it by, and scores.

A task owns the model and the data of one trial. The loop owns the optimiser, the steps, checkpoints and reports.
`trainables.tasks.make.make_task` makes the task of a model by its kind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.distributed
from torch import Tensor, nn

from trainables.config import TrialConfig
from trainables.models.loading import LoadedModel
from trainables.runtime import Autocast
from trainables.tasks.lane_cache import LaneCache

Which = Literal["val", "test"]
Split = Literal["train", "val"]

Alone = Callable[[int], AbstractContextManager[None]]
"""Returns a block in which random numbers are those of the trial at a place in a pack."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """The result of one evaluation.

    Attributes:
        score: the value of the task's metric; higher is better.
        n_examples: the number of rows that were evaluated.
        examples_hash: a hash of the list of example ids. Two evaluations can be compared only if it agrees.
        correct: whether each example was right, (n_examples,) bool on the CPU, in the order of the rows. None if the
            metric is not a share of right answers.
        further: other metrics by name.
        skipped: the number of examples, of any split, that the trial has left out so far because they cannot be read.
    """

    score: float
    n_examples: int
    examples_hash: str
    correct: Tensor | None
    further: Mapping[str, float] = field(default_factory=dict)
    skipped: int = 0


LIKELIHOOD = "likelihood"
"""The name of the score exp(-loss)."""
LOSS = "loss"
"""The key in `Scores.further` of the mean loss on held-out examples, which every task has. Of language models: per
token."""


def by_loss(scores: Scores, metric: str) -> Scores:
    """Return the same evaluation with exp(-loss) as its score. The task's own `metric` becomes one of the other
    metrics.

    The score lies between 0 and 1, and higher is better. No example counts as right or wrong.
    """
    further = dict(scores.further) if metric == LIKELIHOOD else {**scores.further, metric: scores.score}
    return dataclasses.replace(scores, score=math.exp(-scores.further[LOSS]), correct=None, further=further)


def named_by_loss(metric: str) -> str:
    """Return the name of the score of `by_loss`. It also names the task's own metric, if that is another one."""
    return metric if metric == LIKELIHOOD else f"{LIKELIHOOD} ({metric})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """The parts of which a task is made.

    Attributes:
        lane: caches models, data and features between trials.
        loaded: the base model on the lane's device, as it was loaded.
        autocast, precision: the mixed-precision context, and its name, "fp32" or "bf16".
        world: the number of workers that share the trial.
        micro_batch_size: used instead of the configured one after memory ran out; else None.
    """

    trial: TrialConfig
    lane: LaneCache
    loaded: LoadedModel
    autocast: Autocast
    precision: str
    world: int = 1
    micro_batch_size: int | None = None


class Task(Protocol):
    """Model and data of one trial, as the loop sees them.

    Rows are numbers of training examples, in int64 tensors on the CPU. Only the task knows which examples they number.
    """

    @property
    def metric(self) -> str:
        """Return the name of the score."""

    @property
    def unit(self) -> str:
        """Return what a row is, in the plural: "images", "texts"."""

    @property
    def head(self) -> nn.Module | None:
        """Return the task's head, which is new in this trial; None if there is none.

        It is trained beside the adapter with its own learning rate, and counted and saved separately.
        """

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """Return the rows (b,) of every optimiser step of an epoch, over all workers and micro-batches.

        They depend on the trial's `data_seed` and the epoch (counted from 1) alone. Every epoch has the same number of
        batches.
        """

    def weight(self, batch: Tensor) -> float:
        """Return what the summed loss of a whole batch is divided by: its number of images, or of target tokens.

        It is that of the global batch, so that neither micro-batches nor workers change the gradient.
        """

    def draw(self, batch: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return the random augmentation of the rows of a whole batch (b, ...); None if there is none.

        It is drawn on the CPU, and is the same on every worker.
        """

    def rows(self, which: Split) -> Tensor:
        """Return the trial's training or validation rows (n,), which `weight` and `loss_sum` take."""

    def validated(self) -> Tensor:
        """Return the validation rows (n,) that `evaluate` takes, in the order in which their loss is computed."""

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        """Return the summed loss of b > 0 rows of a batch: a scalar with gradient, on the device.

        Args:
            rows: (b,) the rows.
            plan: the part of `draw` for these rows.
        """

    def width(self, rows: Tensor) -> int | None:
        """Return the number of tokens that `rows` are padded to in their own forward pass; None if rows are not
        texts."""

    def packed_losses(
        self, tasks: Sequence[Any], rows: Sequence[Tensor], plans: Sequence[Tensor | None], alone: Alone
    ) -> list[Tensor]:
        """Return `loss_sum` of every trial of a pack (`trainables.packing`), from one pass through the model.

        Args:
            tasks: the tasks of the trials, this one among them. All are of one kind.
            rows: (b,) for each trial, the same number.
            plans: the part of `draw`, for each trial.
            alone: the block for a trial's own dropout outside the shared model.
        """

    def evaluate(self, which: Which, *, batch_size: int, rank: int = 0, world: int = 1) -> Scores | None:
        """Return the scores of the model as it is now, in eval mode; None if the split has no rows.

        If several workers evaluate, each takes a share, and all get the whole result.

        Args:
            which: the split.
            batch_size: examples of one forward pass at most.
            rank, world: this worker's number, and the number of workers.

        Raises:
            SplitError: for "test" in stage TUNE.
        """


def eval_batch_size(trial: TrialConfig, micro_batch_size: int | None, world: int) -> int:
    """Return the number of examples in a forward pass without gradients.

    If `micro_batch_size` is smaller than configured, it shrinks in the same ratio.
    """
    train = trial.train
    if micro_batch_size is None:
        return train.eval_batch_size
    configured = train.micro_batch_size or math.ceil(train.global_batch_size / world)
    return max(1, min(train.eval_batch_size, train.eval_batch_size * micro_batch_size // configured))


def summed(values: Tensor, world: int, device: torch.device) -> Tensor:
    """Return the sum of `values` over the workers. Each worker has zeros in the rows of the others.

    Args:
        values: this worker's values.
        world: the number of workers.
        device: where the values are added.
    """
    if world == 1:
        return values
    on_device = values.to(device)
    torch.distributed.all_reduce(on_device)
    return on_device.cpu()
