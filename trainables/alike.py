"""Which trials may share a model (`trainables.packed`); knows nothing of models, so a driver may import it."""

from __future__ import annotations

from typing import Any

from trainables.errors import TrialError

OWN = ("lr", "data_seed", "init_seed", "basis_seed")
OWN_TRAIN = ("weight_decay", "full_weight_decay")
"""What the trials of a pack may differ in."""


class NotPackableError(TrialError):
    """These trials can't share a model; each by itself may run."""


class UnevenTrialsError(NotPackableError):
    """These trials are out of step, as after an interruption; others of their kind may share a model."""


def alike(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a trial's configuration that it shares with every trial it may be packed with."""
    shared = {name: value for name, value in config.items() if name not in OWN}
    return shared | {"train": {n: v for n, v in config["train"].items() if n not in OWN_TRAIN}}
