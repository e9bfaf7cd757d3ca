"""The results tables: every column with its type and meaning. The one place a column is defined.

Types are Arrow's. Null means "does not apply" or "not known", never zero; where a whole trial is missing a score,
`reason` says why. Accuracies are fractions in [0, 1], times are seconds, sizes are bytes, instants are UTC.
"""

from __future__ import annotations

import pyarrow as pa

from analysis.errors import StoreError, nearest
from analysis.store import diagnostic_schemas
from analysis.store.columns import (
    BITS,
    BUDGET,
    DATASET,
    FLAG,
    INT,
    MODEL,
    REAL,
    REFERENCE,
    SIZE,
    SWEEP,
    TEXT,
    TIME,
    Table,
)

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning or leaves; new columns alone do not raise it: old parts read as null."""

WIDENED, LATE = 100_000, 200_000
"""Slot number of the first point past the edge of a range, which no allowance reaches, and of the first past an edge
that re-runs chose."""

_TRIALS = (
    SWEEP,
    ("trial_id", TEXT, "Hash of its configuration."),
    ("cell_id", TEXT, "Its cell."),
    ("attempt", INT, "From 1; a try after a failure has its own row."),
    ("stage", TEXT, "'TUNE' or 'CONFIRM'."),
    ("slot", INT, "Position in the stage, from 0; of rates past an edge from 100,000."),
    MODEL,
    ("adapt", TEXT, "'vision', 'both' (CLIP's towers) or 'all'."),
    DATASET,
    SIZE,
    ("method", TEXT, "Method name."),
    ("allocation", TEXT, "Capacity over layers: 'uniform', 'per-layer', 'fill'."),
    REFERENCE,
    BUDGET,
    ("capacity", INT, "The one capacity of all layers: a rank, NoLA's k."),
    ("lr", REAL, "Peak learning rate."),
    ("hyperparameters", TEXT, "JSON: what is searched beside the rate."),
    ("origin", TEXT, "'published', 'neighbour': warm starts; 'widened': past the edge; null: the sampler's."),
    ("data_seed", INT, "Declared seed of the subset and its order."),
    ("init_seed", INT, "Of start and dropout."),
    ("basis_seed", INT, "Of frozen bases; runs that agree in all three are paired."),
    ("status", TEXT, "'finished', 'failed' or 'pruned'."),
    ("reason", TEXT, "Why not finished."),
    ("metric", TEXT, "What scores measure; higher is better: 'accuracy', 'accuracy (generation)', 'bleu', ..."),
    ("val_score", REAL, "Validation score at the last step."),
    ("test_score", REAL, "Test score; null in TUNE."),
    ("further", TEXT, "JSON: further metrics under 'val' and 'test'."),
    ("train_loss", REAL, "Mean training loss of the last epoch, per image or target token."),
    ("epochs", INT, "Epochs trained."),
    ("adapter_params", INT, "Trainable adapter parameters, counted."),
    ("head_params", INT, "Those of a new head, outside the budget."),
    ("stored_bytes", INT, "Frozen bases and stored starting points."),
    ("train_examples", INT, "Training examples, each counted once."),
    ("samples", INT, "Examples seen, repeats counted."),
    ("skipped", INT, "Unreadable examples left out, in CONFIRM of test too."),
    ("unit", TEXT, "What an example is: 'images' or 'texts'."),
    ("seconds_setup", REAL, "Before the first step."),
    ("seconds_train", REAL, "Optimiser steps."),
    ("seconds_eval", REAL, "Validation and test."),
    ("seconds_total", REAL, "From lease to result."),
    ("samples_per_second", REAL, "`samples / seconds_train`."),
    ("peak_memory_bytes", INT, "Of the device; on CPUs the resident set, shared pages included."),
    ("device", TEXT, "'cpu', or the accelerator's name."),
    ("precision", TEXT, "'fp32' or 'bf16'."),
    ("backend", TEXT, "Matrix-multiply back end."),
    ("micro_batch_size", INT, "Most examples of a forward pass; halved where memory ran out."),
    ("packed", INT, "Trials on one base model at once, itself included; times are shares."),
    ("workers", INT, "Workers that trained it together."),
    ("processor", TEXT, "The machine's CPU."),
    ("host", TEXT, "Name of the machine."),
    ("versions", TEXT, "JSON: package versions."),
    ("git_commit", TEXT, "Commit of the code; '-dirty': with changes."),
    ("started_at", TIME, "When the attempt started."),
    ("ended_at", TIME, "When it ended."),
)

_METRICS = (
    SWEEP,
    ("trial_id", TEXT, "Hash of its configuration."),
    ("cell_id", TEXT, "Its cell."),
    ("attempt", INT, "The attempt that reported."),
    ("epoch", INT, "Epoch, from 1."),
    ("train_loss", REAL, "Mean of the epoch; null: not finite."),
    ("val_score", REAL, "Score after the epoch."),
    ("seconds", REAL, "Training time of the epoch."),
    ("samples", INT, "Examples seen since the start."),
    ("samples_per_second", REAL, "In the epoch."),
)

_PREDICTIONS = (
    SWEEP,
    ("trial_id", TEXT, "Hash of its configuration."),
    ("cell_id", TEXT, "Its cell."),
    ("n_examples", INT, "Test examples."),
    ("correct", BITS, "A bit for each, 1 = right, as numpy.packbits packs them."),
    ("examples_hash", TEXT, "Hash of the examples' ids; rows compare only where it agrees."),
)

_CELLS = (
    SWEEP,
    ("cell_id", TEXT, "Its cell."),
    MODEL,
    ("adapt", TEXT, "'vision', 'both' (CLIP's towers) or 'all'."),
    DATASET,
    SIZE,
    ("method", TEXT, "Method name."),
    ("base", TEXT, "The method that `method` is a variant of, or itself."),
    ("title", TEXT, "Its title; null for a variant."),
    ("label", TEXT, "The cell in words."),
    REFERENCE,
    BUDGET,
    ("allocation", TEXT, "Capacity over layers: 'uniform', 'per-layer', 'fill'."),
    ("capacity", INT, "The one capacity of all layers: a rank, NoLA's k."),
    ("capacities", TEXT, "JSON: capacity by weight."),
    ("count", INT, "Parameters of the solution; equals `trials.adapter_params`."),
    ("model_params", INT, "Parameters of the base model."),
    ("target_params", INT, "Of the target weights."),
    ("update_rank", REAL, "Largest rank of a weight's update, mean over weights."),
    ("dof", INT, "Degrees of freedom of the updates."),
    ("dof_measured", FLAG, "Whether measured on a small weight, for want of a formula."),
    ("dof_at_most", FLAG, "Whether `dof` is a bound that may not be reached."),
    ("residual", INT, "`count - budget`, or `dof - budget`."),
    ("residual_fraction", REAL, "As a share of the budget."),
    ("feasible", FLAG, "Whether the cell runs."),
    ("reason", TEXT, "Why not, and what would help."),
    ("negatives", INT, "Images that a contrastive loss compares, itself included."),
    ("absent", TEXT, "Why `--available` left it out."),
    ("below", TEXT, "JSON: the nearest reachable capacity and count below the budget."),
    ("above", TEXT, "Those above it."),
    ("lr_low", REAL, "Low end of the learning-rate range."),
    ("lr_high", REAL, "High end."),
    ("lr_centre", REAL, "Centre."),
    ("space", TEXT, "JSON: what is searched beside the rate."),
    ("tune_trials", INT, "The allowance in TUNE trials."),
    ("allowance_samples", INT, "The allowance in training examples, where so given."),
    ("confirm_seeds", INT, "CONFIRM trials of the cell."),
    ("classes", INT, "Classes of the data set."),
    ("val_examples", INT, "Validation examples."),
    ("test_examples", INT, "Test examples."),
    ("test_lacks", TEXT, "JSON: classes without a test example."),
    ("seed_rule", TEXT, "'per-data-set': derived by data set and size; null, as of imports: as declared."),
    ("seeds", TEXT, "The file's, 'data/init/basis', a space between; null: all count."),
)

_CHOICES = (
    SWEEP,
    ("cell_id", TEXT, "Its cell."),
    ("lr", REAL, "The chosen learning rate."),
    ("hyperparameters", TEXT, "JSON: what is searched beside the rate."),
    ("mean_val", REAL, "Its mean validation score."),
    ("n_trials", INT, "TUNE trials it was chosen from."),
    ("n_rerun_seeds", INT, "Further seeds of each re-run rate."),
    ("edge", TEXT, "'low' or 'high': the choice is that end of the range."),
    ("chosen_at", TIME, "When it was made."),
    ("sequence", INT, "Its number, from 1; the highest counts."),
)

TABLES: dict[str, Table] = {
    "trials": Table("One row per attempt of a trial (one training run).", ("sweep", "trial_id", "attempt"), _TRIALS),
    "metrics": Table("One row per epoch of an attempt.", ("sweep", "trial_id", "attempt", "epoch"), _METRICS),
    "predictions": Table(
        "One row per CONFIRM trial: which test examples it got right.", ("sweep", "trial_id"), _PREDICTIONS
    ),
    "cells": Table(
        "One row per cell of the plan: the budget solver's answers, infeasible ones included.",
        ("sweep", "cell_id"),
        _CELLS,
    ),
    "choices": Table(
        "One row per choice of a learning rate; an extended allowance may add one.",
        ("sweep", "cell_id", "chosen_at", "n_trials"),
        _CHOICES,
    ),
    **diagnostic_schemas.TABLES,
}


def _schema(name: str, table: Table) -> pa.Schema:
    fields = [pa.field(column, kind, metadata={"doc": doc}) for column, kind, doc in table.columns]
    return pa.schema(fields, metadata={"table": name, "schema_version": str(SCHEMA_VERSION), "doc": table.doc})


SCHEMAS: dict[str, pa.Schema] = {name: _schema(name, table) for name, table in TABLES.items()}


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
