"""Load a base model with the weights that a trial kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import randlora
from randlora.adapted.adapted import Adapted
from randlora.errors import CheckpointError
from randlora.files.checkpoint import META
from randlora.files.tensors import read_tensors
from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING, TrialConfig
from trainables.errors import TrialError, first_line
from trainables.models.base_weights import round_as
from trainables.models.encoders import HEAD_FILE, ClassifierHead, TransferHead, load_head
from trainables.models.loading import LoadedModel, load_model
from trainables.models.shapes import UNREADABLE
from trainables.predicting.facts import FACTS_FILE, Facts, facts_of
from trainables.tasks.lane_cache import LaneCache

FULL_WEIGHTS = "weights.safetensors"
"""The file with base weights after full fine-tuning, as `trainables.training.adapting` writes it."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A model as a trial left it, on the CPU, in eval mode.

    Attributes:
        loaded: the base model, with the adapter in its forward, or with the trained weights in place of its own.
        facts: what its outputs mean.
        adapted: the adapter; None if there is none.
        head: the trained head; None if the model has its own outputs.
    """

    loaded: LoadedModel
    facts: Facts
    adapted: Adapted | None
    head: nn.Linear | ClassifierHead | TransferHead | None


def load_trained(trial: TrialConfig, folder: Path) -> Trained:
    """Return the model of a trial whose weights are in `folder`.

    If the trial had its base in fewer bits, the weights have the rounded values, but in float32. Weights without a
    `predict.json` (of older versions) need the trial's data, for the names of its classes.

    Raises:
        ModelError: the base model cannot be had.
        ConfigError: the trial had its base in 4 or 8 bits, and bitsandbytes is missing.
        CheckpointError: trained weights are damaged, or belong to another base model.
        TrialError: trained weights are missing, or belong to another method.
        TrainablesError, TrialError: the facts are damaged, or are missing and the data cannot be read.
    """
    loaded = load_model(trial.model)
    round_as(loaded.module, trial.train.base_weights)
    has_facts = (folder / FACTS_FILE).is_file()
    facts = Facts.read(folder) if has_facts else facts_of(trial, loaded, LaneCache({}, torch.device("cpu")))
    facts = facts.model_copy(update={"model": trial.model, "dataset": trial.dataset})  # paths may have changed since
    needed = _weights_file(trial.method)
    if needed is not None and not (folder / needed).is_file():
        raise TrialError(f"{folder / needed} is missing, which holds what {trial.method} trained; train the trial anew")
    adapted = randlora.load(loaded.module, folder) if needed == META else None
    if needed == FULL_WEIGHTS:
        with _readable(folder / FULL_WEIGHTS):
            tensors = read_tensors(folder / FULL_WEIGHTS, expect_digest=True)
            unexpected = loaded.module.load_state_dict(tensors, strict=False).unexpected_keys
        if unexpected:
            raise TrialError(f"{folder / FULL_WEIGHTS} has {unexpected[0]!r}, which is no weight of {trial.model!r}")
    with _readable(folder / HEAD_FILE):
        head = load_head(folder) if (folder / HEAD_FILE).is_file() else None
    if facts.kind != loaded.kind:
        raise TrialError(f"{folder / FACTS_FILE} is of a {facts.kind} model, and {trial.model!r} is {loaded.kind}")
    last = head.out if isinstance(head, TransferHead) else head
    if isinstance(last, nn.Linear) and facts.classes and len(facts.classes) != last.out_features:
        rule = f"{len(facts.classes)} classes, and the head {last.out_features} outputs"
        raise TrialError(f"{folder / FACTS_FILE} has {rule}; one of the two is another trial's")
    loaded.module.eval()
    return Trained(loaded, facts, adapted, head)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise an error that names the file if the block fails to read it."""
    try:
        yield
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise TrialError(f"{path} can't be read ({first_line(error)}); it is damaged, or of other weights") from error


def _weights_file(method: str) -> str | None:
    """Return the name of the file that holds what a method trains; None if it trains nothing."""
    if method in FULL_METHODS:
        return FULL_WEIGHTS
    return {LINEAR_PROBE: HEAD_FILE, NO_TRAINING: None}.get(method, META)
