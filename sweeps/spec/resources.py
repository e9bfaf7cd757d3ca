"""`[resources]` and `[limits]` of a sweep file: resources of trials, the order of cells, and limits of a run."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sweeps.spec.search import OneOrMany, Section

Order = Literal["spread", "methods", "budgets"]


class ResourceSection(Section):
    """`[resources]`: the resources of a trial, and how many trials run at once."""

    workers: int = Field(default=1, ge=1)
    """Workers that train one trial together (data-parallel)."""
    concurrent: int | Literal["auto"] = "auto"
    """Trials at a time. auto: as many as CPUs and GPUs allow; memory is not considered (docs/running.md)."""
    min_concurrent: int | None = Field(default=None, ge=1)
    """With `--address`: the run starts when the cluster has room for this many trials at a time (docs/clusters.md)."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Most trials at a time, also after nodes are added to the cluster."""
    start_timeout: float = Field(default=600, gt=0)
    """Seconds that the start waits for `min_concurrent`. After that the run is refused."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs of a worker."""
    gpus_per_worker: float | Literal["auto"] = "auto"
    """GPUs of a worker; 0.5 is half a GPU. auto: a part of a GPU, as its memory allows (docs/running.md)."""
    pack: int | Literal["auto"] = 1
    """Trials of a cell that a worker may train at once on one base model; 1: no packs (docs/running.md)."""
    isolated: bool = False
    """Give every trial a fresh process. For methods and models that leave something behind in theirs."""
    trial_timeout: float | None = Field(default=None, gt=0)
    """Kill a trial's worker after this many seconds without a report. A report comes after each epoch with its
    evaluation; loading comes before the first. Default: never."""
    attempts: int = Field(default=3, ge=1)
    """How often a trial is started if its worker dies each time. After that the trial has failed."""
    order: Order = "spread"
    """Which cells run first. spread: those of the smallest budget, then of the largest, then of those between. budgets:
    from the smallest to the largest budget. methods: method after method. Except with methods, cells without a budget
    come first."""
    priority: Annotated[tuple[Annotated[str | float, Field(union_mode="left_to_right")], ...], OneOrMany] = ()
    """Methods, budgets, data sets or training sizes that run first. Cells with the first name of the list run before
    all others; among cells that are alike in this, those with the second name; and so on."""

    @field_validator("concurrent", "gpus_per_worker")
    @classmethod
    def _enough(cls, value: float | str, info: ValidationInfo) -> float | str:
        least = 1 if info.field_name == "concurrent" else 0
        if not isinstance(value, str) and value < least:
            raise ValueError(f"{info.field_name} is 'auto' or at least {least}")
        return value

    @field_validator("priority")
    @classmethod
    def _distinct(cls, value: tuple[str | float, ...]) -> tuple[str | float, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each name may stand once")
        return value

    @field_validator("pack", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        if value != "auto" and (type(value) is not int or value < 1):
            raise ValueError("a number of trials, at least 1, or 'auto'")
        return value

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        least, most = self.min_concurrent, self.max_concurrent
        if self.concurrent != "auto" and (least is not None or most is not None):
            name = "min_concurrent" if least is not None else "max_concurrent"
            raise ValueError(f"concurrent = {self.concurrent} is a fixed number, and {name} a bound; leave one out")
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_concurrent = {least} is more than max_concurrent = {most}")
        return self

    @property
    def most(self) -> float:
        """Return the largest number of trials at a time; inf if only the nodes limit it."""
        if self.concurrent != "auto":
            return self.concurrent
        return math.inf if self.max_concurrent is None else self.max_concurrent

    @model_validator(mode="after")
    def _packs(self) -> Self:
        if self.pack not in (1, "auto") and (self.workers > 1 or self.isolated):
            other = "isolated = true" if self.isolated else f"workers = {self.workers}"
            why = "a process of its own for every trial" if self.isolated else "one trial on several workers"
            raise ValueError(f"pack = {self.pack} puts several trials on a worker, and {other} is {why}; leave one out")
        return self


class LimitsSection(Section):
    """`[limits]`: limits that end a run cleanly. The same command with a larger limit goes on.

    `max_hours` is the wall time of one run. Accelerator time and cost are those of the whole sweep. An accelerator is a
    GPU, or a worker if trials take no GPU. `price_per_hour` is its price, in the currency of `max_cost`.
    """

    max_hours: float | None = Field(default=None, gt=0)
    """Wall time of one run, in hours. What comes before its backend starts does not count: data, estimate."""
    max_accelerator_hours: float | None = Field(default=None, gt=0)
    """Accelerator-hours of the whole sweep."""
    max_cost: float | None = Field(default=None, gt=0)
    """Cost of the whole sweep, in the price's currency."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """Price of an accelerator for an hour. An accelerator is a GPU, or a worker if trials use no GPU."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost is not None and self.price_per_hour is None:
            raise ValueError(f"max_cost = {self.max_cost:g} needs price_per_hour, the price of one accelerator-hour")
        return self
