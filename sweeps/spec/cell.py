"""A cell: one study of learning rates, then one set of CONFIRM seeds."""

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
    """One model, data set, training size, method and budget: one study of learning rates, then one set of seeds.

    Attributes:
        reference: what defines the budget, 'lora-8'; None for a method without one.
        solution: the solver's answer at the budget; None for a method without one.
        dof: degrees of freedom of its updates.
        dof_measured: whether they were measured on a small weight, because no formula is known.
        dof_at_most: whether they are an upper bound.
        update_rank: the largest rank that a target weight's update can have, mean over target weights; None where there
            is none, or nobody has said.
        step_memory_bytes, step_flops, forward_flops, saved_bytes: what training takes (`trainables.training.costs`),
            from `Plan.with_costs`; None if that was not called, or cannot find it.
        model_params, target_params: parameters of the base model and of the target weights.
        classes: of the data set; None where it has none, or has not been read.
        lr_low, lr_high, lr_centre: the learning-rate range; None where nothing trains.
        dimensions: what is searched beside the learning rate; published: its values where nothing is searched.
        micro_batch_size: the method's own; None if `train.micro_batch_size` holds.
        epochs: of a trial, unless they are searched: `data.epochs`, else `train.epochs`; None where nothing trains.
        epoch_samples: training samples of an epoch; known where the allowance is in samples, else None.
        allowance_samples: the allowance where it is in samples; `tune_trials` is then how many whole trials these are.
        keep: rows that protocol "paper" keeps for selection (`trainables.data.splits.kept_rows`).
        skip_bad: leave unreadable examples out and count them; evaluate: how a language model is judged.
        val_examples, test_examples: what it validates and tests on; None where the data has not been read.
        test_lacks: classes of which the test split has no example.
        negatives: images that the contrastive loss compares each with, itself among them; None for another loss.
        absent: why its data is not on this machine, if it is left out for that.
        base: the method in the registry; `method` is its name in the sweep file, another one for a variant.
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
        """The solution; None if the budget is out of reach, or if the method has none."""
        return self.solution if isinstance(self.solution, Solution) else None

    @property
    def budget(self) -> int | None:
        """Trainable adapter parameters, or the amount of what the budget limits; None for a method without a budget."""
        return None if self.solution is None else self.solution.budget

    @property
    def capacities(self) -> dict[str, int]:
        """Capacity of every target weight, by qualified name; {} without a solution."""
        return {} if self.solved is None else self.solved.capacities

    @property
    def count(self) -> int | None:
        """Trainable adapter parameters of the solution."""
        return None if self.solved is None else self.solved.count

    @property
    def reason(self) -> str | None:
        """Why the cell does not run, and what would help; None if it runs."""
        if self.absent is not None:
            return f"no data: {self.absent}"
        if isinstance(self.solution, Infeasible):
            return f"{self.solution.reason}; {self.solution.lever}"
        return None

    @property
    def feasible(self) -> bool:
        """Whether the cell runs."""
        return self.reason is None

    @property
    def space(self) -> Space | None:
        """What the cell's study searches; None where nothing trains."""
        if self.lr_low is None or self.lr_high is None:
            return None
        return Space(self.lr_low, self.lr_high, self.dimensions)

    @property
    def label(self) -> str:
        """The cell in words, for tables and messages."""
        parts = [self.method, self.reference or "", self.dataset, str(self.train_size)]
        return " ".join(p for p in parts if p)

    def trial(
        self, stage: str, lr: float | None, seeds: tuple[int, int, int], train: TrainSettings, extra: Extra = ()
    ) -> TrialConfig:
        """The configuration of one trial of this cell.

        Args:
            seeds: (data_seed, init_seed, basis_seed).
            extra: searched hyperparameters beside the rate; they replace the sweep file's options and settings.
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

    def identify(self, config: Mapping[str, Any]) -> str:
        """The trial id that a journaled configuration of this cell has. Raises ValidationError: it is none."""
        return TrialConfig.model_validate(config).trial_id

    def anchored(self) -> Cell:
        """This cell with absolute paths, for a process in any folder."""
        return replace(self, model=absolute(self.model), dataset=absolute(self.dataset))

    def settings(self, train: TrainSettings) -> TrainSettings:
        """A sweep's training settings as they hold for this cell."""
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
    """A reachable count as the columns `below` and `above` have it."""
    return None if neighbour is None else json.dumps({"capacity": neighbour.capacity, "count": neighbour.count})
