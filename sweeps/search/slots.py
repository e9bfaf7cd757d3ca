"""A slot is one planned trial of a cell. A choice is the learning rate that a cell's TUNE trials select.

A slot's configuration is fixed when it is made, and its trial id is the hash of that configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sweeps.spec.space import Extra, Point

Seeds = tuple[int, int, int]
Edge = Literal["low", "high"]


@dataclass(frozen=True)
class Slot:
    """One planned trial of a cell.

    Attributes:
        cell_id: the cell.
        stage: "TUNE" or "CONFIRM".
        slot: its number in the stage.
        trial_id: hash of the configuration.
        config: the trial's configuration as JSON values.
        lr: the learning rate; None if nothing is trained.
        seeds: the declared (data, init, basis) seeds, the same for all data sets. The configuration has the derived
            seeds that the trial trains with.
        extra: searched hyperparameters other than the learning rate.
        origin: what proposed the point: "published", "neighbour", "refined" or "widened"; None for the sampler.
    """

    cell_id: str
    stage: str
    slot: int
    trial_id: str
    config: Mapping[str, Any] = field(repr=False)
    lr: float | None
    seeds: Seeds
    extra: Extra = ()
    origin: str | None = None

    @property
    def point(self) -> Point:
        """Return its hyperparameters. The trial must have a learning rate."""
        if self.lr is None:
            raise AssertionError(f"trial {self.trial_id} has no learning rate")
        return Point(self.lr, self.extra)


@dataclass(frozen=True)
class Choice:
    """The learning rate that a cell's TUNE trials select, with the evidence for it.

    Attributes:
        lr: the chosen rate.
        mean_val: its mean validation score over its seeds; None if nothing was tuned.
        n_trials: number of trials that the choice is based on: the tried rates and the re-runs.
        n_rerun_seeds: number of further seeds on which the chosen rate was run.
        edge: "low" or "high" if it is the lowest or highest tried rate, which suggests a wider range; else None.
        extra: the other chosen hyperparameters.
    """

    lr: float
    mean_val: float | None
    n_trials: int
    n_rerun_seeds: int
    edge: Edge | None
    extra: Extra = ()

    @property
    def point(self) -> Point:
        """Return the chosen hyperparameters."""
        return Point(self.lr, self.extra)
