"""`[search]` of a sweep file: sampler, search space, allowance, warm starts, and the keys that may change later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sweeps.spec.space import Value
from trainables.config import LATER

MOST_TRIALS = 100_000
"""Most trials of a cell."""
FIXED_SAMPLERS = ("grid", "qmc", "random")
"""Samplers whose proposals do not depend on results. So an interrupted search proposes the same points."""
MOST_REFINED = 4
"""The most rates of an allowance that `refine = "auto"` gives to the local fit."""
FEWEST_SPREAD = 3
"""The fewest rates that are spread over the range before a local fit: it needs a best one between two others."""


class Section(BaseModel):
    """A part of a sweep file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Rate = Annotated[float | None, Field(ge=1e-30, le=1e6)]
"""A learning rate. Products and powers of ten of rates beyond these bounds would leave a float's range."""


class LrRange(Section):
    """A learning-rate range: a centre and a width in decades, or its two ends."""

    centre: _Rate = None
    """Centre of a range that is `search.lr.decades` wide."""
    low: _Rate = None
    """Low end. It needs `high`."""
    high: _Rate = None
    """High end."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        ends = self.low is not None and self.high is not None
        if ends == (self.centre is not None) or (self.low is None) != (self.high is None):
            raise ValueError("give either centre, or both low and high")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low must lie below high, got low {self.low:g}, high {self.high:g}")
        return self


class LrSearch(Section):
    """`search.lr`: width of every method's range, in decades, centred on the method's published rate."""

    decades: float = Field(default=3.0, gt=0, le=12)
    """Width of every method's range in powers of ten."""


class SpaceEntry(Section):
    """One line of `[search.space]`: `{ low = 1, high = 64, log = true }`, or a list of values."""

    low: float | None = None
    """Low end of a range. It needs `high`."""
    high: float | None = None
    """High end."""
    log: bool = False
    """Spread the values evenly in the logarithm."""
    values: tuple[Value, ...] = ()
    """Values to choose from. A plain list means the same."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.values) == (self.low is not None) or (self.low is None) != (self.high is None):
            raise ValueError("give either a list of values, or both low and high")
        if self.low is not None and self.high is not None:
            if self.low >= self.high:
                raise ValueError(f"low must lie below high, got low {self.low:g}, high {self.high:g}")
            if self.log and self.low <= 0:
                raise ValueError(f"a range with log = true starts above 0, got low {self.low:g}")
        elif len(set(map(repr, self.values))) != len(self.values):
            raise ValueError("each value may stand once")
        return self


def _read_space(value: object) -> object:
    if not isinstance(value, Mapping):
        return value  # for the validator to judge
    return {k: {"values": v} if isinstance(v, list | tuple) else v for k, v in value.items()}


ListsAreValues = BeforeValidator(_read_space)
"""In a search space, a plain list means `SpaceEntry(values=...)`."""
OneOrMany = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,))
"""A single value means a list of one."""


class Allowance(Section):
    """`search.allowance`: the tuning effort of a cell in training samples, instead of `trials`."""

    samples: int = Field(ge=1)
    """Training samples of a cell."""


class SearchSection(Section):
    """`[search]`: stage TUNE. The allowance of a cell is `trials`, with the re-runs on further seeds.

    `allowance = { samples = N }` gives every cell N training samples instead. A pruned trial then counts only the
    samples that it trained on, so that pruning allows more points.
    """

    trials: int = Field(default=13, ge=1, le=MOST_TRIALS)
    """Trials of stage TUNE of every cell, its **allowance**. They include the re-runs: 13 are 9 rates and 2 x 2
    re-runs."""
    allowance: Annotated[Allowance | None, LATER] = None
    """The allowance in training samples, in place of `trials`: `{ samples = 500_000 }` (docs/fairness.md)."""
    sampler: Literal["grid", "qmc", "random", "tpe", "gp", "cmaes"] = "grid"
    """What proposes learning rates. grid: the centre of the range, its ends, quarters, eighths. 3, 5, 9 and 17 rates
    are evenly spaced. qmc, random: drawn over the range. tpe, gp, cmaes: learn from the trials so far."""
    lr: LrSearch = LrSearch()
    """Width of every method's range in powers of ten: `{ decades = 3 }`, the default."""
    space: Annotated[dict[str, SpaceEntry], ListsAreValues, LATER] = {}
    """What is searched besides the learning rate: `dropout = [0.0, 0.1]`, `alpha = { low = 1, high = 64 }`, with `log =
    true` if logarithmic. A key is an option of a method, searched for the methods that have it, or `epochs`,
    `weight_decay`, `grad_clip`, `min_lr_ratio`, `warmup_fraction`, `schedule` or `global_batch_size` of `[train]`."""
    warm_start: Annotated[tuple[Literal["published", "neighbour"], ...], OneOrMany, LATER] = ()
    """Points that are tried first. published: the centre of the method's range, with the options that it has if none
    are searched. neighbour: what was chosen at the next smaller budget."""
    rerun_rates: int = Field(default=2, ge=0, le=MOST_TRIALS)
    """How many of a cell's best rates run again on further seeds. The best mean is then chosen."""
    rerun_seeds: int = Field(default=2, ge=0, le=MOST_TRIALS)
    """On how many further seeds each of these rates runs again."""
    refine: Annotated[int, Field(ge=0, le=MOST_TRIALS)] | Literal["auto"] = "auto"
    """How many of the allowance's rates are tried last, one after another, where a fit to the scores so far expects the
    best rate. auto: less than half of the rates, 4 at most; none if the sampler learns."""
    widen: Annotated[int, Field(ge=0, le=MOST_TRIALS), LATER] = 0
    """If the best rate of a cell is at the edge of its range, up to this many rates beyond the edge are tried too, on
    top of the allowance."""
    pruner: Literal["none", "asha", "median"] = "none"
    """Stops bad TUNE trials early. asha: after epochs 1, 3, 9, ... the best third of a cell's trials continues. median:
    a trial stops if it is worse than the median of the others."""
    seed: int = Field(default=0, ge=0)
    """Seed of the samplers that draw at random (all but grid)."""

    @field_validator("lr", mode="before")
    @classmethod
    def _width(cls, value: object) -> object:
        ends = isinstance(value, Mapping) and value.keys() & LrRange.model_fields.keys()
        if ends or not isinstance(value, Mapping | LrSearch):
            raise ValueError(
                "the width of every method's range: lr = { decades = 3 }; where a method's lies is its own key, "
                "[methods.NAME] lr = 1e-3, or lr = { low = 1e-4, high = 1e-2 }"
            )
        return value

    @property
    def reruns(self) -> int:
        """Return the number of trials of the allowance that run the best points again on further seeds."""
        return self.rerun_rates * self.rerun_seeds

    @property
    def rates(self) -> int:
        """Return the number of different points of a cell if the allowance is in trials: all but the re-runs."""
        return self.trials - self.reruns

    def refined(self, trials: int) -> int:
        """Return how many of a cell's `trials` try a rate that a local fit proposes.

        With "auto", the sampler proposes more rates than the local fit, and at least `FEWEST_SPREAD`. It is 0 for
        samplers that learn from results, since they search like this themselves.
        """
        if self.sampler not in FIXED_SAMPLERS:
            return 0
        if self.refine != "auto":
            return self.refine
        rates = trials - self.reruns - len(self.warm_start)
        return max(0, min(MOST_REFINED, (rates - 1) // 2, rates - FEWEST_SPREAD))

    @property
    def least(self) -> int:
        """Return the fewest trials of a cell that are enough for its re-runs, warm starts and local fit."""
        spread = max(1, len(self.warm_start) + 1)
        if self.refine != "auto" and self.refine:
            spread = max(spread, FEWEST_SPREAD) + self.refine
        return self.reruns + max(spread, self.rerun_rates if self.rerun_seeds else 1)

    @property
    def given(self) -> dict[str, int]:
        """Return the allowance of a cell as {"trials": N} or {"samples": N}."""
        return {"trials": self.trials} if self.allowance is None else self.allowance.model_dump()

    @model_validator(mode="after")
    def _room(self) -> Self:
        if len(set(self.warm_start)) != len(self.warm_start):
            raise ValueError("warm_start may name each start once")
        if self.refine not in ("auto", 0) and self.sampler not in FIXED_SAMPLERS:
            rule = f"the sampler {self.sampler} learns from the trials itself; leave refine out"
            raise ValueError(f"refine = {self.refine} goes with the samplers {', '.join(FIXED_SAMPLERS)}: {rule}")
        if self.allowance is not None:
            if "trials" in self.model_fields_set:
                raise ValueError("give trials or allowance, not both")
            return self
        if self.trials < self.least:
            refined = "" if self.refine in ("auto", 0) else f", with refine = {self.refine},"
            raise ValueError(
                f"trials = {self.trials} leaves {self.rates} learning rates after rerun_rates x rerun_seeds = "
                f"{self.rerun_rates} x {self.rerun_seeds} re-runs, and {self.least - self.reruns} are needed{refined}; "
                f"the least that works is trials = {self.least}"
            )
        return self


MAY_CHANGE = ("trials", "allowance", "widen")
"""Keys that may change in a sweep with results: a larger allowance and `widen` only add trials."""
