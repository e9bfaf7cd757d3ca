"""Says what the trials of a pack must have in common, and refuses others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING, TrialConfig, identifying
from trainables.errors import TrialError

OWN = ("lr", "data_seed", "init_seed", "basis_seed")
OWN_TRAIN = ("weight_decay", "full_weight_decay")
"""What the trials of a pack may differ in."""


class NotPackableError(TrialError):
    """These trials cannot share a model. Each of them may run alone."""


class UnevenTrialsError(NotPackableError):
    """These trials are at different epochs, as after an interruption. Others of their kind may share a model."""


def alike(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a trial's configuration in which all trials of a pack must agree."""
    shared = {name: value for name, value in config.items() if name not in OWN}
    return shared | {"train": {n: v for n, v in config["train"].items() if n not in OWN_TRAIN}}


def check_alike(trials: Sequence[TrialConfig]) -> None:
    """Raise NotPackableError if trials differ in more than they may, or if their method trains no adapter."""
    shared = [alike(identifying(trial)) for trial in trials]
    for other in shared:
        differ = sorted(n for n in {*shared[0], *other} if shared[0].get(n) != other.get(n))
        if differ:
            raise NotPackableError(f"trials of a pack may differ in {', '.join(OWN)} alone, not in {', '.join(differ)}")
    if trials[0].train.base_weights == "int8":
        raise NotPackableError(
            "train.base_weights = 'int8' takes outliers of the whole batch out of each product, so trials would mix"
        )
    method = trials[0].method
    if method in (*FULL_METHODS, LINEAR_PROBE, NO_TRAINING):
        raise NotPackableError(f"method {method!r} adds no adapter to the base model, so there is nothing to pack")
