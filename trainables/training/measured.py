"""What a trial measures: the columns of the results tables that its workers fill, each with its sentence and unit.

`analysis.store.rows` makes rows of these columns. To measure one more number, add a field here and fill it in
`worker.Run`: schema, journal and docs/tables.md follow from the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def about(sentence: str, unit: str | None = None) -> Mapping[str, Any]:
    """Return the metadata of a dataclass field that is a column: one sentence, and its unit if it has one."""
    return {"doc": sentence, "unit": unit}


def column(sentence: str, unit: str | None = None) -> Any:
    """Make a dataclass field for a column that may be null; it is None if nobody fills it."""
    return dataclasses.field(default=None, metadata=about(sentence, unit))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one attempt of a trial measured. The lane fills in where it ran; None means not known."""

    metric: str | None = column("What scores measure, such as 'accuracy', 'accuracy (generation)' or 'bleu'.")
    val_score: float | None = column("Validation score at the last step.", "fraction")
    test_score: float | None = column("Test score. It is null in stage TUNE.", "fraction")
    further: Mapping[str, Any] | None = column("JSON: further metrics under 'val' and 'test'.")
    train_loss: float | None = column("Mean training loss of the last epoch, per image or target token.")
    epochs: int | None = column("Number of epochs trained.")
    adapter_params: int | None = column("Trainable adapter parameters, counted in the model.")
    head_params: int | None = column("Trainable parameters of a new head, which are outside the budget.")
    stored_bytes: int | None = column("Size of frozen bases and stored starting points.", "bytes")
    train_examples: int | None = column("Training examples, each counted once.")
    samples: int | None = column("Examples seen in training, repeats counted.")
    skipped: int | None = column("Unreadable examples left out; in CONFIRM also those of the test split.")
    unit: str | None = column("What an example is: 'images' or 'texts'.")
    seconds_setup: float | None = column("Time before the first step.", "s")
    seconds_train: float | None = column("Time of the optimiser steps.", "s")
    seconds_eval: float | None = column("Time of validation and test.", "s")
    seconds_total: float | None = column(
        "Time from lease to result. After a resume only that of the last lease; the view `cost` counts all.", "s"
    )
    samples_per_second: float | None = column("`samples / seconds_train`.", "1/s")
    peak_memory_bytes: int | None = column(
        "Peak memory of the device; on CPUs the resident set of the process, shared pages included.", "bytes"
    )
    device: str | None = column("'cpu', or the accelerator's name.")
    precision: str | None = column("'fp32' or 'bf16'.")
    backend: str | None = column("Matrix-multiply back end.")
    micro_batch_size: int | None = column("Most examples of a forward pass. It is halved when memory runs out.")
    packed: int | None = column("Trials on one base model at once, itself included. Times are then shares.")
    workers: int | None = column("Number of workers that trained the trial together.")
    processor: str | None = column("Model of the node's CPU.")
    host: str | None = column("Name of the node.")
    versions: Mapping[str, Any] | None = column("JSON: package versions.")


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What a trial measured in one epoch."""

    epoch: int = dataclasses.field(metadata=about("Number of the epoch, from 1."))
    train_loss: float | None = column("Mean training loss of the epoch. It is null if it was not finite.")
    val_score: float | None = column("Validation score after the epoch.", "fraction")
    seconds: float | None = column("Training time of the epoch.", "s")
    samples: int | None = column("Examples seen since the start.")
    samples_per_second: float | None = column("Training speed in the epoch.", "1/s")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Which test examples a trial got right. Nothing is known if the score is not made of right and wrong answers."""

    n_examples: int | None = column("Number of test examples.")
    correct: bytes | None = column("One bit for each example, 1 if it is right, as numpy.packbits packs them.")
    examples_hash: str | None = column("Hash of the examples' ids. Rows can be compared only if it agrees.")


@dataclass(frozen=True)
class Result:
    """What a finished trial hands to the sweep: its numbers, and in stage CONFIRM its predictions on the test split."""

    measured: Measured
    predicted: Predicted = Predicted()
