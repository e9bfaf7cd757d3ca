"""A base model with the weights that a trial kept put in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import randlora
from randlora.adapted.adapted import Adapted
from randlora.files.checkpoint import META
from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING, TrialConfig
from trainables.errors import TrialError
from trainables.models.encoders import HEAD_FILE, ClassifierHead, load_head
from trainables.models.loading import LoadedModel, load_model
from trainables.predicting.facts import FACTS_FILE, Facts, facts_of
from trainables.tasks.lane_cache import Warm

FULL_WEIGHTS = "weights.safetensors"
"""Base weights after full fine-tuning, as `trainables.training.adapting` leaves them."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A model as a trial left it, on the CPU, in eval mode.

    Attributes:
        loaded: the base model, with the adapter in its forward or the trained weights in place of its own.
        facts: what its outputs mean.
        adapted: the adapter; None where there is none.
        head: the trained head; None where the model has its own outputs.
    """

    loaded: LoadedModel
    facts: Facts
    adapted: Adapted | None
    head: nn.Linear | ClassifierHead | None


def load_trained(trial: TrialConfig, folder: Path) -> Trained:
    """The model of a trial whose weights are in `folder`.

    Weights that were kept before there was a `predict.json` need the trial's data, for the names of its classes.

    Raises:
        ModelError, CheckpointError: a base model that can't be had, or that is not the one of the weights.
        TrialError: trained weights that are missing.
        TrainablesError, TrialError: facts that are damaged, or that were not kept and whose data can't be read.
    """
    loaded = load_model(trial.model)
    known = (folder / FACTS_FILE).is_file()
    facts = Facts.read(folder) if known else facts_of(trial, loaded, Warm({}, torch.device("cpu")))
    facts = facts.model_copy(update={"model": trial.model, "dataset": trial.dataset})  # paths may have moved since
    needed = _needed(trial.method)
    if needed is not None and not (folder / needed).is_file():
        raise TrialError(f"{folder / needed} is missing, which holds what {trial.method} trained; train the trial anew")
    adapted = randlora.load(loaded.module, folder) if needed == META else None
    if needed == FULL_WEIGHTS:
        other = loaded.module.load_state_dict(load_file(folder / FULL_WEIGHTS), strict=False).unexpected_keys
        if other:
            raise TrialError(f"{folder / FULL_WEIGHTS} has {other[0]!r}, which is no weight of {trial.model!r}")
    head = load_head(folder) if (folder / HEAD_FILE).is_file() else None
    loaded.module.eval()
    return Trained(loaded, facts, adapted, head)


def _needed(method: str) -> str | None:
    """The file that holds what a method trains; None where it trains nothing."""
    if method in FULL_METHODS:
        return FULL_WEIGHTS
    return {LINEAR_PROBE: HEAD_FILE, NO_TRAINING: None}.get(method, META)
