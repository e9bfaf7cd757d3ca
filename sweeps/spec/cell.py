"""A cell: one method at one budget on one model, data set and training size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from analysis.store.codec import from_values
from analysis.store.rows import CellRow
from randlora.methods.registry import METHODS
from sweeps.spec.paths import absolute
from sweeps.spec.search_space import split_extra
from sweeps.spec.solution import Answer, Infeasible, Neighbour, Solution
from sweeps.spec.space import BATCH_SIZE, Dimension, Extra, Space
from trainables.config import EvaluateSettings, TrainSettings, TrialConfig
from trainables.data.text.registry import text_loader


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method at one budget on one model, data set and training size. It tunes its learning rate, then runs seeds.

    Attributes:
        base: the method's name in the registry. `method` is its name in the sweep file, which differs for a variant.
        reference: the name of the budget, such as 'lora-8'; None for a method without a budget.
        solution: the solver's answer at the budget; None for a method without a budget.
        dof: degrees of freedom of its updates.
        dof_measured: whether they were measured on a small weight, because no formula is known.
        dof_at_most: whether they are an upper bound.
        update_rank: the largest rank that a target weight's update can have, mean over target weights; None if the
            method does not tell, or trains no target weight.
        step_memory_bytes, step_flops, forward_flops, saved_bytes: costs of training (`trainables.training.costs`); None
            if `Plan.with_costs` was not called, or cannot find them.
        model_params, target_params: number of parameters of the base model and of the target weights.
        classes: number of classes of the data set; None if it has none, or was not read.
        lr_low, lr_high, lr_centre: the learning-rate range; None if the method does not train.
        dimensions: the searched hyperparameters other than the learning rate.
        published: their values if nothing is searched.
        tune_trials, confirm_seeds: number of trials of stage TUNE and of seeds of stage CONFIRM.
        micro_batch_size: the method's own; None for `train.micro_batch_size`.
        epochs: epochs of a trial, unless they are searched; None if the method does not train.
        epoch_samples: training samples of an epoch; None if the allowance is in trials.
        allowance_samples: the allowance in samples, of which `tune_trials` is the number of whole trials; None if the
            allowance is in trials.
        keep: number of rows that protocol "paper" keeps for selection (`trainables.data.splits.kept_rows`).
        skip_bad: whether unreadable examples are left out and counted.
        evaluate: `[evaluate]`: how a language model is judged.
        val_examples, test_examples: number of validation and test examples; None if the data was not read.
        test_lacks: classes that have no test example.
        negatives: number of images that the contrastive loss compares with each other; None for another loss.
        absent: why its data is not on this machine, if the cell is left out because of that; else None.
    """

    cell_id: str
    sweep: str
    model: str
    adapt: str
    targets: tuple[str, ...]
    dataset: str
    train_size: str | float
    method: str
    base: str
    options: tuple[tuple[str, str | float | int | bool], ...]
    reference: str | None
    solution: Answer | None
    lr_low: float | None
    lr_high: float | None
    lr_centre: float | None
    tune_trials: int
    confirm_seeds: int
    protocol: str = "standard"
    keep: int = 0
    image_size: int | None = None
    dimensions: tuple[Dimension, ...] = ()
    published: Extra = ()
    epoch_samples: int | None = None
    allowance_samples: int | None = None
    epochs: int | None = None
    micro_batch_size: int | None = None
    skip_bad: bool = False
    evaluate: EvaluateSettings = field(default=EvaluateSettings())
    update_rank: float | None = None
    dof: int | None = None
    dof_measured: bool | None = None
    dof_at_most: bool | None = None
    step_memory_bytes: int | None = None
    step_flops: int | None = None
    forward_flops: int | None = None
    saved_bytes: int | None = None
    model_params: int | None = None
    target_params: int | None = None
    classes: int | None = None
    val_examples: int | None = None
    test_examples: int | None = None
    test_lacks: tuple[str, ...] = ()
    absent: str | None = None
    negatives: int | None = None

    @property
    def solved(self) -> Solution | None:
        """Return the solution; None if the budget is out of reach, or if the method has no budget."""
        return self.solution if isinstance(self.solution, Solution) else None

    @property
    def budget(self) -> int | None:
        """Return the budget as a number of parameters, or of another currency; None for a method without a budget."""
        return None if self.solution is None else self.solution.budget

    @property
    def capacities(self) -> dict[str, int]:
        """Return the capacity of every target weight, by its qualified name; {} without a solution."""
        return {} if self.solved is None else self.solved.capacities

    @property
    def count(self) -> int | None:
        """Return the number of trainable adapter parameters; None without a solution."""
        return None if self.solved is None else self.solved.count

    @property
    def reason(self) -> str | None:
        """Return why the cell does not run, and what would help; None if it runs."""
        if self.absent is not None:
            return f"no data: {self.absent}"
        if isinstance(self.solution, Infeasible):
            return f"{self.solution.reason}; {self.solution.lever}"
        return None

    @property
    def feasible(self) -> bool:
        """Return whether the cell runs."""
        return self.reason is None

    @property
    def space(self) -> Space | None:
        """Return the search space of the cell; None if the method does not train."""
        if self.lr_low is None or self.lr_high is None:
            return None
        return Space(self.lr_low, self.lr_high, self.dimensions)

    @property
    def label(self) -> str:
        """Return the cell's name for tables and messages."""
        parts = [self.method, self.reference or "", self.dataset, str(self.train_size)]
        return " ".join(p for p in parts if p)

    def trial(
        self, stage: str, lr: float | None, seeds: tuple[int, int, int], train: TrainSettings, extra: Extra = ()
    ) -> TrialConfig:
        """Return the configuration of one trial of this cell.

        Args:
            stage: "TUNE" or "CONFIRM".
            lr: the learning rate; None if the method does not train.
            seeds: (data_seed, init_seed, basis_seed).
            train: `[train]` of the sweep file.
            extra: values of searched hyperparameters. They replace options and settings of the sweep file.
        """
        data_seed, init_seed, basis_seed = seeds
        options, settings = split_extra(self.method, extra)
        train = self.settings(train)
        if settings:
            train = TrainSettings.model_validate({**train.model_dump(), **settings})
        return TrialConfig.model_validate(
            {
                "stage": stage,
                "cell_id": self.cell_id,
                "model": self.model,
                "adapt": self.adapt,
                "targets": self.targets,
                "dataset": self.dataset,
                "train_size": self.train_size,
                "method": self.base,
                "capacities": tuple(self.capacities.items()),
                "options": tuple(sorted({**dict(self.options), **options}.items())),
                "budget": self.budget,
                "lr": lr,
                "data_seed": data_seed,
                "init_seed": init_seed,
                "basis_seed": basis_seed,
                "train": train,
                "protocol": self.protocol,
                "image_size": self.image_size,
                "skip_bad": self.skip_bad,
                "evaluate": self.evaluate,
            }
        )

    def trial_id_of(self, config: Mapping[str, Any]) -> str:
        """Return the trial id of a configuration from the journal.

        Raises:
            ValidationError: it is not a valid configuration.
        """
        return TrialConfig.model_validate(config).trial_id

    def with_absolute_paths(self) -> Cell:
        """Return this cell with absolute paths, for a process in any folder."""
        return replace(self, model=absolute(self.model), dataset=absolute(self.dataset))

    def settings(self, train: TrainSettings) -> TrainSettings:
        """Return a sweep's training settings with this cell's own epochs, micro-batch size and groups of texts."""
        own = {"epochs": self.epochs, "micro_batch_size": self.micro_batch_size}
        sizes = [int(value) for d in self.dimensions if d.name == BATCH_SIZE for value in d.values]
        if sizes and train.length_group is None and text_loader(self.dataset) is not None:
            own["length_group"] = max(sizes)
        return train.model_copy(update={name: value for name, value in own.items() if value is not None})

    def row(self) -> CellRow:
        """Return this cell as a row of the `cells` table.

        A column is the attribute of the same name of the cell or of its solution, unless this function makes it.
        """
        columns = [column.name for column in fields(CellRow)]
        same = {name: getattr(self.solution, name) for name in columns if hasattr(self.solution, name)}
        same |= {name: getattr(self, name) for name in columns if hasattr(self, name)}
        own = METHODS.get(self.base) if self.base == self.method else None
        fraction = None if self.solved is None else self.solved.residual / self.solved.budget
        return from_values(
            CellRow,
            same
            | {
                "title": None if own is None else own.title,
                "train_size": str(self.train_size),
                "capacities": json.dumps(self.capacities),
                "test_lacks": json.dumps(self.test_lacks) if self.test_lacks else None,
                "space": json.dumps({d.name: d.as_dict() for d in self.dimensions}) if self.dimensions else None,
                "residual_fraction": fraction,
                "below": None if self.solution is None else _count_text(self.solution.below),
                "above": None if self.solution is None else _count_text(self.solution.above),
            },
        )


def _count_text(neighbour: Neighbour | None) -> str | None:
    """Return a reachable count as the text of the columns `below` and `above`."""
    return None if neighbour is None else json.dumps({"capacity": neighbour.capacity, "count": neighbour.count})
