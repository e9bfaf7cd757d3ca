"""Training, validation and test rows of a trial: nested subsets, one validation split, and a test split closed
in TUNE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor

from trainables.config import EvaluateSettings, Protocol, Stage, TrainSettings, TrainSize, TrialConfig, shots
from trainables.errors import DataError, SplitError
from trainables.seeds import generator

VAL_SEED = 0
VAL_FRACTION = 0.1
VAL_MOST = 5000
VAL_SHOTS = 4


R = TypeVar("R")
"""The type of a split: N rows with `labels`, (N,)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SplitSet(Generic[R]):
    """A data set, of images or of text: a pool for training and validation, and a test split that stage TUNE cannot
    open.

    Attributes:
        name: the id by which it was loaded.
        class_names: one name per class from which K-shot subsets are drawn; () if rows have no classes.
        train: the pool from which training and validation rows are drawn.
        open_test: loads the test split. Use `test` instead, which checks the stage.
        val_rows: rows of `train` that the data set's authors set aside for validation; None if they set none aside.
        stage: TUNE closes the test split.
    """

    name: str
    class_names: tuple[str, ...]
    train: R
    open_test: Callable[[], R] = field(repr=False)
    val_rows: Tensor | None = None
    stage: Stage = "TUNE"

    @property
    def test(self) -> R:
        """Return the test split. Raises SplitError in stage TUNE."""
        if self.stage != "CONFIRM":
            raise SplitError(
                f"the test split of {self.name!r} is closed in stage {self.stage}: validation picks, test reports; "
                "open it in stage CONFIRM (dataset.at('CONFIRM'))"
            )
        return self.open_test()

    def at(self, stage: Stage) -> Self:
        """Return the same data as `stage` may see it."""
        return dataclasses.replace(self, stage=stage)


@dataclass(frozen=True, eq=False)
class Splits:
    """The rows of `dataset.train` to train and validate on, and the rows of `dataset.test` to report on.

    Attributes:
        train_idx: (N,) int64, ascending.
        val_idx: (V,) int64, ascending, disjoint from train_idx.
    """

    stage: Stage
    train_idx: Tensor
    val_idx: Tensor
    dataset: SplitSet[Any]

    @property
    def test_idx(self) -> Tensor:
        """Return all rows of the test split. Raises SplitError in stage TUNE."""
        return torch.arange(len(self.dataset.at(self.stage).test))

    def of(self, which: Literal["train", "val", "test"]) -> Tensor:
        """Return the rows of a part. Raises SplitError for "test" in stage TUNE."""
        if which == "test":
            return self.test_idx
        return self.train_idx if which == "train" else self.val_idx


def split_of(dataset: SplitSet[Any], trial: TrialConfig) -> Splits:
    """Return the rows of a trial. A trial that selects its weights on validation has validation rows in every
    protocol."""
    keep = kept_rows(trial.train, trial.evaluate)
    return split(dataset, trial.train_size, trial.data_seed, trial.stage, trial.protocol, keep)


def kept_rows(train: TrainSettings, evaluate: EvaluateSettings) -> int:
    """Return how many rows protocol "paper" keeps aside at most, for trials that select their weights on validation."""
    return (evaluate.validation_rows or VAL_MOST) if train.select == "best" else 0


def split(
    dataset: SplitSet[Any],
    train_size: TrainSize,
    data_seed: int,
    stage: Stage,
    protocol: Protocol = "standard",
    keep: int = 0,
) -> Splits:
    """Return a trial's rows.

    "k-shot": k images of every class, and min(k, 4) other images of every class for validation. If a class has fewer,
    it gives what it has (`fewer_shots` counts such classes): all that its authors gave for training, or at least half
    of its images if they set no validation aside. The images of a smaller k are among those of a larger k with the same
    seed.

    A fraction: that share of the training rows that remain after the validation split, nested in the same way. The
    validation split is the authors' own, or 10 % of the training rows and 5,000 at most, drawn once with seed 0.

    Args:
        dataset: the data set.
        train_size: "k-shot" or a fraction.
        data_seed: the seed of the subset.
        stage: TUNE or CONFIRM.
        protocol: "paper" validates on nothing. Rows that would be set aside here are trained on; those that the authors
            set aside are not, as in the paper's released loaders.
        keep: the largest number of rows that protocol "paper" sets aside and validates on after all.

    Raises:
        DataError: a class has no row to train or validate on, or the fraction is less than one row.
    """
    k = shots(train_size)
    if k is not None:
        train, val = _few_shot(dataset, k, data_seed, "standard" if keep else protocol)
    else:
        assert not isinstance(train_size, str)
        train, val = _fraction(dataset, train_size, data_seed, VAL_MOST if protocol == "standard" else keep)
    return Splits(stage, train.sort().values, val.sort().values, dataset)


def fewer_shots(
    dataset: SplitSet[Any], train_size: TrainSize, protocol: Protocol = "standard", keep: int = 0
) -> dict[str, int]:
    """Return class -> number of training images, for each class that has fewer than `train_size` asks for; {} for
    fractions."""
    k = shots(train_size)
    if k is None:
        return {}
    rows = split(dataset, train_size, 0, "TUNE", protocol, keep).train_idx
    counts = torch.bincount(dataset.train.labels[rows], minlength=len(dataset.class_names)).tolist()
    return {name: n for name, n in zip(dataset.class_names, counts, strict=True) if n < k}


def _few_shot(dataset: SplitSet[Any], k: int, data_seed: int, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Return the training and validation rows of a k-shot subset."""
    if not dataset.class_names:
        raise DataError(
            f"train_size '{k}-shot' of {dataset.name!r}: its rows have no classes to draw {k} from each; write a "
            f"fraction, {min(1.0, k / len(dataset.train)):.3g} for about {k} rows"
        )
    labels = dataset.train.labels
    own_val = torch.zeros(len(labels), dtype=torch.bool)
    if dataset.val_rows is not None:
        own_val[dataset.val_rows] = True
    n_val = 0 if protocol == "paper" else min(k, VAL_SHOTS)
    counts = torch.bincount(labels, minlength=len(dataset.class_names)).tolist()
    of_class = labels.argsort(stable=True).split(counts)
    train, val = [], []
    for index, (name, rows) in enumerate(zip(dataset.class_names, of_class, strict=True)):
        draw = rows[torch.randperm(len(rows), generator=generator(data_seed, "subset", index))]
        if dataset.val_rows is not None:
            pool, validation = draw[~own_val[draw]], draw[own_val[draw]][:n_val]
        else:  # validation rows come from the end of the same permutation
            most = min(n_val, len(draw) // 2)
            pool, validation = draw[: len(draw) - most], draw.flip(0)[:most]
        if not len(pool) or (n_val and not len(validation)):
            raise DataError(
                f"train_size '{k}-shot' of {dataset.name!r}: class {name!r} has {len(pool)} examples to train on and "
                f"{len(validation)} to validate on, and one of each is needed; add examples, or leave the class out"
            )
        train.append(pool[:k])
        val.append(validation)
    return torch.cat(train), torch.cat(val)


def _fraction(dataset: SplitSet[Any], fraction: float, data_seed: int, most: int) -> tuple[Tensor, Tensor]:
    """Return the training and validation rows of a fraction."""
    n = len(dataset.train)
    val = torch.zeros(n, dtype=torch.bool)
    if dataset.val_rows is not None:
        val[dataset.val_rows] = True
    elif most:
        n_val = min(int(VAL_FRACTION * n), most)
        val[torch.randperm(n, generator=generator(VAL_SEED, "validation"))[:n_val]] = True
        if not val.any():
            raise DataError(f"{dataset.name!r} has {n} training examples: too few for a validation split of 10 %")
    rest = (~val).nonzero().flatten()
    n_train = round(fraction * len(rest))
    if n_train < 1:
        raise DataError(
            f"train_size {fraction} of {dataset.name!r} is no example at all: {len(rest)} training examples; "
            f"the smallest that works is {1 / len(rest):.3g}"
        )
    order = torch.randperm(len(rest), generator=generator(data_seed, "subset"))
    validation = val.nonzero().flatten()
    return rest[order[:n_train]], validation if most else validation[:0]
