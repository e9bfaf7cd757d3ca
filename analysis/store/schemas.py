"""The results tables: every column with its type and meaning. The one place a column is defined.

Types are Arrow's. Null means "does not apply" or "not known", never zero; where a whole trial is missing a score,
`reason` says why. Accuracies are fractions in [0, 1], times are seconds, sizes are bytes, instants are UTC.
"""

from __future__ import annotations

import pyarrow as pa

from analysis.errors import StoreError, nearest
from analysis.store import diagnostic_schemas

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning or leaves; new columns alone do not raise it: old parts read as null."""

_TEXT, _INT, _REAL, _FLAG, _BITS = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.binary()
_TIME = pa.timestamp("us", tz="UTC")

Columns = tuple[tuple[str, pa.DataType, str], ...]

_TRIALS: Columns = (
    ("sweep", _TEXT, "Name of the sweep."),
    ("trial_id", _TEXT, "16 hexadecimal digits: hash of the trial's whole configuration."),
    ("cell_id", _TEXT, "The cell (model x data x size x method x budget) the trial belongs to; see `cells`."),
    ("attempt", _INT, "1 for the first try; a trial that failed and was tried again has one row per attempt."),
    (
        "stage",
        _TEXT,
        "'TUNE' (learning-rate search on validation data) or 'CONFIRM' (chosen rate, test evaluated once).",
    ),
    ("slot", _INT, "Position in the cell's stage, from 0: the k-th trial of the allowance, or the k-th seed."),
    ("model", _TEXT, "Base model id, 'open_clip:ViT-B-32/openai'."),
    ("adapt", _TEXT, "What of the model is adapted: 'vision', 'both' (CLIP's towers) or 'all'."),
    ("dataset", _TEXT, "Data set name."),
    ("train_size", _TEXT, "'16-shot', or a fraction of the training set as text, '1.0'."),
    (
        "method",
        _TEXT,
        "'lora', 'randlora', 'vera', 'nola', ...; 'full', 'linear-probe', 'zero-shot', ... have no budget.",
    ),
    ("allocation", _TEXT, "How capacity is spread over layers: 'uniform', 'per-layer', 'fill'; null without a budget."),
    ("reference", _TEXT, "What defines the budget, 'lora-8' (LoRA's count at rank 8); null without a budget."),
    ("budget", _INT, "Trainable adapter parameters aimed at; null without a budget."),
    ("capacity", _INT, "The method's one capacity (rank r; NoLA's k); null where layers differ or there is none."),
    ("lr", _REAL, "Peak learning rate; null where nothing trains."),
    ("hyperparameters", _TEXT, "JSON object: what is searched beside the rate; null where the rate is all."),
    (
        "origin",
        _TEXT,
        "What proposed a TUNE point where it was not the sampler: 'published' or 'neighbour' (warm starts), 'widened' "
        "(past the edge of the range).",
    ),
    ("data_seed", _INT, "Draws the training subset and the order of batches."),
    ("init_seed", _INT, "Draws the trainable tensors' start and dropout."),
    ("basis_seed", _INT, "Draws the frozen random bases."),
    ("status", _TEXT, "'finished', 'failed', or 'pruned' (stopped early by a pruner)."),
    ("reason", _TEXT, "Why the attempt failed or was pruned; null for a finished one."),
    (
        "metric",
        _TEXT,
        "What the scores measure, higher is better: 'accuracy', of language models with their protocol, 'accuracy "
        "(log-likelihood)', 'accuracy (generation)'; 'bleu', 'matthews', ... Null in rows older than this column.",
    ),
    ("val_score", _REAL, "Validation score at the last step."),
    ("test_score", _REAL, "Test score at the last step; null in TUNE, which cannot read the test split."),
    ("further", _TEXT, "JSON object: further metrics by name under 'val' and 'test'; null where there are none."),
    ("train_loss", _REAL, "Mean training loss of the last epoch, per image or target token."),
    ("epochs", _INT, "Epochs trained."),
    ("adapter_params", _INT, "Trainable adapter parameters, counted in the built module; the x-axis of the curve."),
    ("head_params", _INT, "Trainable parameters of a new task head, outside the budget; 0 for CLIP's towers."),
    ("stored_bytes", _INT, "Frozen bases and stored starting points of the adapter, not parameters."),
    ("samples", _INT, "Training examples seen, repeats counted."),
    ("skipped", _INT, "Examples left out because they can't be read (data.skip_bad); CONFIRM counts test ones too."),
    ("unit", _TEXT, "What an example is, which `samples` counts: 'images', or 'texts' of the text tasks."),
    ("seconds_setup", _REAL, "Before the first step: model, data, adapters."),
    ("seconds_train", _REAL, "Optimiser steps."),
    ("seconds_eval", _REAL, "Validation and test."),
    ("seconds_total", _REAL, "From lease to result; what is not set-up, training or evaluation is overhead."),
    ("samples_per_second", _REAL, "`samples / seconds_train`."),
    ("peak_memory_bytes", _INT, "Peak device memory; on CPU the process's peak resident set."),
    ("device", _TEXT, "'cpu', or the accelerator's name."),
    ("precision", _TEXT, "'fp32' or 'bf16'."),
    ("backend", _TEXT, "Matrix-multiply back end in use."),
    (
        "micro_batch_size",
        _INT,
        "Examples of one forward pass at most; below the configured number where memory ran out (journal: `memory`).",
    ),
    (
        "packed",
        _INT,
        "Trials that shared its worker's base model, itself included; 1: it had it alone (resources.pack). Its times "
        "are then its share. Null in rows older than this column, and where it never started.",
    ),
    ("workers", _INT, "Workers that trained it together (resources.workers). Null in rows older than this column."),
    (
        "processor",
        _TEXT,
        "Model of the machine's CPU; null in rows older than this column, and where it never ran.",
    ),
    ("host", _TEXT, "Name of the machine."),
    ("versions", _TEXT, "JSON object: package versions."),
    ("git_commit", _TEXT, "Commit of the code that ran, '-dirty' appended where it had changes; null outside git."),
    ("started_at", _TIME, "When the attempt started."),
    ("ended_at", _TIME, "When it ended."),
)

_METRICS: Columns = (
    ("sweep", _TEXT, "Name of the sweep."),
    ("trial_id", _TEXT, "The trial."),
    ("cell_id", _TEXT, "Its cell."),
    ("attempt", _INT, "The attempt that reported."),
    ("epoch", _INT, "Epoch, from 1."),
    ("train_loss", _REAL, "Mean training loss of the epoch; null where it was not finite."),
    ("val_score", _REAL, "Validation score after the epoch."),
    ("seconds", _REAL, "Training time of the epoch."),
    ("samples", _INT, "Training examples seen since the start."),
    ("samples_per_second", _REAL, "Training examples per second in the epoch."),
)

_PREDICTIONS: Columns = (
    ("sweep", _TEXT, "Name of the sweep."),
    ("trial_id", _TEXT, "The CONFIRM trial."),
    ("cell_id", _TEXT, "Its cell."),
    ("n_examples", _INT, "Test examples."),
    (
        "correct",
        _BITS,
        "One bit per test example, 1 = right, packed as numpy.packbits does (first example in the high bit).",
    ),
    ("examples_hash", _TEXT, "Hash of the list of example ids; two rows compare only where it agrees."),
)

_CELLS: Columns = (
    ("sweep", _TEXT, "Name of the sweep."),
    ("cell_id", _TEXT, "The cell's name, unique in the sweep."),
    ("model", _TEXT, "Base model id."),
    ("adapt", _TEXT, "What of the model is adapted."),
    ("dataset", _TEXT, "Data set name."),
    ("train_size", _TEXT, "'16-shot', or a fraction as text."),
    ("method", _TEXT, "Method name."),
    ("base", _TEXT, "The method itself where `method` is a variant of one with a name of its own; else the same."),
    ("label", _TEXT, "The cell in words."),
    ("reference", _TEXT, "What defines the budget, 'lora-8'; null without a budget."),
    ("budget", _INT, "Trainable adapter parameters aimed at; null without a budget."),
    ("allocation", _TEXT, "How the solver spread the capacity over layers."),
    ("capacity", _INT, "The one capacity of a uniform allocation; null where layers differ."),
    ("capacities", _TEXT, "JSON object: capacity by weight name."),
    ("count", _INT, "Trainable adapter parameters of the solution; `trials.adapter_params` must equal it."),
    (
        "update_rank",
        _REAL,
        "The largest rank that the update of a target weight can have, mean over them; null where it is no matrix.",
    ),
    ("residual", _INT, "`count - budget`."),
    ("residual_fraction", _REAL, "`residual / budget`."),
    ("feasible", _FLAG, "Whether the cell runs."),
    ("reason", _TEXT, "Why it does not run, with the lever that would help; null for a feasible cell."),
    ("below", _TEXT, "JSON {capacity, count}: the nearest reachable count below the budget."),
    ("above", _TEXT, "JSON {capacity, count}: the nearest reachable count above the budget."),
    ("lr_low", _REAL, "Low end of the learning-rate range; null where nothing trains."),
    ("lr_high", _REAL, "High end of the range."),
    ("lr_centre", _REAL, "Centre of the range: the published rate, unless the sweep file moves it."),
    ("space", _TEXT, "JSON object: range or values of each hyperparameter searched beside the rate; null for none."),
    ("tune_trials", _INT, "The allowance: TUNE trials of the cell; of samples, as many as they are unpruned."),
    ("allowance_samples", _INT, "The allowance where it is in training examples; null where it is not."),
    ("confirm_seeds", _INT, "CONFIRM trials of the cell."),
)

_CHOICES: Columns = (
    ("sweep", _TEXT, "Name of the sweep."),
    ("cell_id", _TEXT, "The cell."),
    ("lr", _REAL, "The chosen learning rate: best mean validation score."),
    ("hyperparameters", _TEXT, "JSON object: the rest of the chosen point; null where the rate alone is searched."),
    ("mean_val", _REAL, "That mean validation score."),
    ("n_trials", _INT, "TUNE trials the choice was made from."),
    ("n_rerun_seeds", _INT, "Seeds per re-run rate; 0 where the choice rests on one seed."),
    ("edge", _TEXT, "'low' or 'high' where the choice is the end of the range (perhaps under-tuned); null inside it."),
    ("chosen_at", _TIME, "When. The latest choice of a cell counts; CONFIRM trials at an earlier one are superseded."),
)

DOCS: dict[str, str] = {
    "trials": "One row per attempt of a trial (one training run).",
    "metrics": "One row per epoch of an attempt.",
    "predictions": "One row per CONFIRM trial: which test examples it got right.",
    "cells": "One row per cell of the plan: the budget solver's answers, infeasible ones included.",
    "choices": "One row per choice of a learning rate. A cell has a second one when its allowance was extended.",
    **diagnostic_schemas.DOCS,
}

KEYS: dict[str, tuple[str, ...]] = {
    "trials": ("sweep", "trial_id", "attempt"),
    "metrics": ("sweep", "trial_id", "attempt", "epoch"),
    "predictions": ("sweep", "trial_id"),
    "cells": ("sweep", "cell_id"),
    "choices": ("sweep", "cell_id", "chosen_at", "n_trials"),
    **diagnostic_schemas.KEYS,
}
"""Columns that identify a row. Of two rows with one key the later written counts."""


def _schema(name: str, columns: Columns) -> pa.Schema:
    fields = [pa.field(column, kind, metadata={"doc": doc}) for column, kind, doc in columns]
    return pa.schema(fields, metadata={"table": name, "schema_version": str(SCHEMA_VERSION), "doc": DOCS[name]})


SCHEMAS: dict[str, pa.Schema] = {
    name: _schema(name, columns)
    for name, columns in (
        ("trials", _TRIALS),
        ("metrics", _METRICS),
        ("predictions", _PREDICTIONS),
        ("cells", _CELLS),
        ("choices", _CHOICES),
        *diagnostic_schemas.COLUMNS.items(),
    )
}


def schema(name: str) -> pa.Schema:
    """The Arrow schema of a table, with `schema_version` in its metadata and `doc` in each field's.

    Raises:
        StoreError: unknown table, with the known ones.
    """
    if name not in SCHEMAS:
        raise StoreError(f"unknown table {name!r}; {nearest(name, SCHEMAS)}")
    return SCHEMAS[name]


def doc(field: pa.Field) -> str:
    """What a column means; empty where the schema says nothing."""
    return str((field.metadata or {}).get(b"doc", b"").decode())
