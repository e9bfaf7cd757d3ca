"""The trials of a cell: a slot is one of them, asked or to be asked; a choice is what the tuning ones say.

A slot's configuration is fixed when it is asked, and its trial id is the hash of that configuration.
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
    """One trial of a cell.

    Attributes:
        config: the trial's configuration as JSON values.
        seeds: (data, init, basis) as declared, alike for all data sets; the configuration has those it trains with.
        extra: searched hyperparameters beside the rate.
        origin: what proposed it where that is not the sampler: "published", "neighbour", "refined" or "widened".
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
        """Its hyperparameters; of a trial with a learning rate."""
        if self.lr is None:
            raise AssertionError(f"trial {self.trial_id} has no learning rate")
        return Point(self.lr, self.extra)


@dataclass(frozen=True)
class Choice:
    """The learning rate that a cell's TUNE trials pick, with the evidence for it.

    Attributes:
        lr: the chosen rate.
        mean_val: its mean validation score over its seeds; None where nothing was tuned.
        n_trials: trials that the choice rests on: the rates tried and the re-runs.
        n_rerun_seeds: further seeds on which the chosen rate was run.
        edge: "low" or "high" when it is the end of the rates tried, which suggests a wider range.
        extra: the other chosen hyperparameters: a point is chosen as a whole.
    """

    lr: float
    mean_val: float | None
    n_trials: int
    n_rerun_seeds: int
    edge: Edge | None
    extra: Extra = ()

    @property
    def point(self) -> Point:
        """The chosen hyperparameters."""
        return Point(self.lr, self.extra)
