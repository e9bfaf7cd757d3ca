"""What the training loop knows of any task: rows, a summed loss, a weight to divide it by, and scores.

A task owns the model and the data of one trial; the loop owns the optimiser, the steps, checkpoints and reports.
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
from trainables.tasks.lane_cache import Warm

Which = Literal["val", "test"]
Split = Literal["train", "val"]

Alone = Callable[[int], AbstractContextManager[None]]
"""Makes the context in which random numbers are those of the trial at a place in a pack."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """One evaluation.

    Attributes:
        score: the value of the task's metric, higher is better.
        n_examples: rows evaluated.
        examples_hash: hash of the list of example ids; two evaluations compare only where it agrees.
        correct: (n_examples,) bool on the CPU, in the order of the rows; None for a metric that is no share of right
            answers.
        further: values of further metrics by name.
        skipped: examples that the trial has left out so far, of any split, because they can't be read.
    """

    score: float
    n_examples: int
    examples_hash: str
    correct: Tensor | None
    further: Mapping[str, float] = field(default_factory=dict)
    skipped: int = 0


LIKELIHOOD = "likelihood"
"""Name of the score exp(-loss)."""
LOSS = "loss"
"""Name in `Scores.further` of the mean loss on held-out examples, which every task has. Language models: per token."""


def by_loss(scores: Scores, metric: str) -> Scores:
    """The same evaluation, with e to the minus loss for its score; the task's own `metric` becomes a further one.

    It lies between 0 and 1, and higher is better, as for every other score. No example is right or wrong then.
    """
    further = dict(scores.further) if metric == LIKELIHOOD else {**scores.further, metric: scores.score}
    return dataclasses.replace(scores, score=math.exp(-scores.further[LOSS]), correct=None, further=further)


def named_by_loss(metric: str) -> str:
    """Return the name of the score of `by_loss`. It also names the task's own metric, if that is another one."""
    return metric if metric == LIKELIHOOD else f"{LIKELIHOOD} ({metric})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """What a task is made of.

    Attributes:
        lane: keeps models, data and features from trial to trial.
        loaded: the base model, on the lane's device, as it was loaded.
        autocast, precision: the mixed-precision context and its name, "fp32" or "bf16".
        world: workers that share the trial.
        micro_batch_size: in place of the configured one, after memory ran out.
    """

    trial: TrialConfig
    lane: Warm
    loaded: LoadedModel
    autocast: Autocast
    precision: str
    world: int = 1
    micro_batch_size: int | None = None


class Task(Protocol):
    """Model and data of one trial, as the loop sees them.

    Rows are numbers of training examples, in int64 tensors on the CPU; what they number is the task's own affair.
    """

    @property
    def metric(self) -> str:
        """Name of the score."""

    @property
    def unit(self) -> str:
        """What a row is, in the plural: "images", "texts"."""

    @property
    def head(self) -> nn.Module | None:
        """A task head, new in this trial: trained beside the adapter at a rate of its own, counted and saved apart."""

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """The rows (b,) of every optimiser step of an epoch (from 1), over all workers and micro-batches.

        A function of the trial's `data_seed` and the epoch alone. Every epoch has equally many batches.
        """

    def weight(self, batch: Tensor) -> float:
        """What the summed loss of a whole batch is divided by: its images, or its target tokens.

        Taken over the global batch, so that neither micro-batches nor workers change the gradient.
        """

    def draw(self, batch: Tensor, generator: torch.Generator) -> Tensor | None:
        """Augmentation of the rows of a whole batch (b, ...), drawn on the CPU alike on every worker; None for none."""

    def rows(self, which: Split) -> Tensor:
        """The trial's training or validation rows (n,): numbers that `weight` and `loss_sum` take."""

    def validated(self) -> Tensor:
        """The validation rows (n,) that `evaluate` takes, in the order in which their loss is computed."""

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        """Summed loss of b > 0 rows of a batch, a scalar with gradient on the device; `plan`: their part of `draw`."""

    def width(self, rows: Tensor) -> int | None:
        """Tokens that `rows` are padded to in a forward pass of their own; None where rows are no texts."""

    def packed_losses(
        self, tasks: Sequence[Any], rows: Sequence[Tensor], plans: Sequence[Tensor | None], alone: Alone
    ) -> list[Tensor]:
        """`loss_sum` of every trial of a pack (`trainables.training.packed`), by one pass through the model.

        Args:
            tasks: those of the trials, all of this one's kind; this one is among them.
            rows: (b,) for each trial, equally many.
            plans: for each trial.
            alone: what surrounds a trial's own dropout outside the shared model.
        """

    def evaluate(self, which: Which, *, batch_size: int, rank: int = 0, world: int = 1) -> Scores | None:
        """Scores of the model as it is now, in eval mode; None where the split has no rows.

        With several workers each takes a share, and all get the whole answer. Raises SplitError for "test" in stage
        TUNE.
        """


def eval_batch_size(trial: TrialConfig, micro_batch_size: int | None, world: int) -> int:
    """Examples of one forward pass without gradients: as much fewer than configured as `micro_batch_size` says."""
    train = trial.train
    if micro_batch_size is None:
        return train.eval_batch_size
    asked = train.micro_batch_size or math.ceil(train.global_batch_size / world)
    return max(1, min(train.eval_batch_size, train.eval_batch_size * micro_batch_size // asked))


def summed(values: Tensor, world: int, device: torch.device) -> Tensor:
    """The sum over workers, each of which has zeros where the others' rows are; `device` is where they meet."""
    if world == 1:
        return values
    there = values.to(device)
    torch.distributed.all_reduce(there)
    return there.cpu()
