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

# neighbouring columns with one sentence have one row in docs/tables.md
_SEEDS = "Declared seeds of data order, of start and dropout, of frozen bases; runs that agree in all are paired."
_SECONDS = "Before the first step; optimiser steps; validation and test; from lease to result."
_RUN_BY = "The machine; package versions as JSON; commit, '-dirty' with changes."
_SCORES = "Scores at the last step; test is null in TUNE."
_STAGE = "'TUNE' or 'CONFIRM'; position in the cell's stage, from 0."
_STATUS = "'finished', 'failed' or 'pruned'; why not finished."
_SEEN = "Training examples, each counted once; examples seen, repeats counted."
_DEVICE = "'cpu' or the accelerator's name; 'fp32' or 'bf16'; matrix-multiply back end."
_EPOCH = "The attempt that reported; epoch, from 1."
_DOF = "Degrees of freedom of the updates; whether measured on a small weight, for want of a formula."
_RESIDUAL = "`count - budget` (or `dof - budget`); as a share of the budget."
_FEASIBLE = "Whether the cell runs; why not, and what would help."
_ALLOWANCE = "The allowance in TUNE trials; in training examples, where so given."
_FROM = "TUNE trials it was chosen from; further seeds of each re-run rate."
_WHEN = "When it was made; its number, from 1: the highest counts."
_SPAN = "When the attempt started and ended."
_RANGE = "Ends and centre of the learning-rate range."
_NEAREST = "JSON: the nearest reachable capacity and count on either side of the budget."
_EXAMPLES = "Examples it validates and tests on."
_WEIGHTS = "Parameters of the base model, and of its target weights."
_TRIALS = (
    SWEEP,
    ("trial_id", TEXT, "Hash of its configuration."),
    ("cell_id", TEXT, "Its cell."),
    ("attempt", INT, "From 1; a try after a failure has its own row."),
    ("stage", TEXT, _STAGE),
    ("slot", INT, _STAGE),
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
    ("data_seed", INT, _SEEDS),
    ("init_seed", INT, _SEEDS),
    ("basis_seed", INT, _SEEDS),
    ("status", TEXT, _STATUS),
    ("reason", TEXT, _STATUS),
    ("metric", TEXT, "What scores measure: 'accuracy', 'accuracy (generation)', 'bleu', ..."),
    ("val_score", REAL, _SCORES),
    ("test_score", REAL, _SCORES),
    ("further", TEXT, "JSON: further metrics under 'val' and 'test'."),
    ("train_loss", REAL, "Mean training loss of the last epoch, per image or target token."),
    ("epochs", INT, "Epochs trained."),
    ("adapter_params", INT, "Trainable adapter parameters, counted."),
    ("head_params", INT, "Those of a new head, outside the budget."),
    ("stored_bytes", INT, "Frozen bases and stored starting points."),
    ("train_examples", INT, _SEEN),
    ("samples", INT, _SEEN),
    ("skipped", INT, "Unreadable examples left out, in CONFIRM of test too."),
    ("unit", TEXT, "What an example is: 'images' or 'texts'."),
    ("seconds_setup", REAL, _SECONDS),
    ("seconds_train", REAL, _SECONDS),
    ("seconds_eval", REAL, _SECONDS),
    ("seconds_total", REAL, _SECONDS),
    ("samples_per_second", REAL, "`samples / seconds_train`."),
    ("peak_memory_bytes", INT, "Of the device; on CPUs the resident set, shared pages included."),
    ("device", TEXT, _DEVICE),
    ("precision", TEXT, _DEVICE),
    ("backend", TEXT, _DEVICE),
    ("micro_batch_size", INT, "Most examples of a forward pass; halved where memory ran out."),
    ("packed", INT, "Trials on one base model at once, itself included; times are shares."),
    ("workers", INT, "Workers that trained it together."),
    ("processor", TEXT, _RUN_BY),
    ("host", TEXT, _RUN_BY),
    ("versions", TEXT, _RUN_BY),
    ("git_commit", TEXT, _RUN_BY),
    ("started_at", TIME, _SPAN),
    ("ended_at", TIME, _SPAN),
)

_METRICS = (
    SWEEP,
    ("trial_id", TEXT, "Hash of its configuration."),
    ("cell_id", TEXT, "Its cell."),
    ("attempt", INT, _EPOCH),
    ("epoch", INT, _EPOCH),
    ("train_loss", REAL, "Mean training loss of the epoch; null: not finite."),
    ("val_score", REAL, "Score after the epoch."),
    ("seconds", REAL, "Training time of the epoch."),
    ("samples", INT, "Training examples seen since the start."),
    ("samples_per_second", REAL, "Training examples per second in the epoch."),
)

_PREDICTIONS = (
    SWEEP,
    ("trial_id", TEXT, "Hash of its configuration."),
    ("cell_id", TEXT, "Its cell."),
    ("n_examples", INT, "Test examples."),
    ("correct", BITS, "A bit per test example, 1 = right, as numpy.packbits packs them."),
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
    ("title", TEXT, "The method's title; null for a variant."),
    ("label", TEXT, "The cell in words."),
    REFERENCE,
    BUDGET,
    ("allocation", TEXT, "Capacity over layers: 'uniform', 'per-layer', 'fill'."),
    ("capacity", INT, "The one capacity of all layers: a rank, NoLA's k."),
    ("capacities", TEXT, "JSON: capacity by weight."),
    ("count", INT, "Parameters of the solution; equals `trials.adapter_params`."),
    ("model_params", INT, _WEIGHTS),
    ("target_params", INT, _WEIGHTS),
    ("update_rank", REAL, "Largest rank of a weight's update, mean over weights."),
    ("dof", INT, _DOF),
    ("dof_measured", FLAG, _DOF),
    ("residual", INT, _RESIDUAL),
    ("residual_fraction", REAL, _RESIDUAL),
    ("feasible", FLAG, _FEASIBLE),
    ("reason", TEXT, _FEASIBLE),
    ("negatives", INT, "Images that a contrastive loss compares, itself included."),
    ("absent", TEXT, "Why `--available` left it out."),
    ("below", TEXT, _NEAREST),
    ("above", TEXT, _NEAREST),
    ("lr_low", REAL, _RANGE),
    ("lr_high", REAL, _RANGE),
    ("lr_centre", REAL, _RANGE),
    ("space", TEXT, "JSON: what is searched beside the rate."),
    ("tune_trials", INT, _ALLOWANCE),
    ("allowance_samples", INT, _ALLOWANCE),
    ("confirm_seeds", INT, "CONFIRM trials of the cell."),
    ("classes", INT, "Classes of the data set."),
    ("val_examples", INT, _EXAMPLES),
    ("test_examples", INT, _EXAMPLES),
    ("test_lacks", TEXT, "JSON: classes without a test example."),
    ("seed_rule", TEXT, "'per-data-set': derived by data set and size; 'shared', null: as declared."),
    ("seeds", TEXT, "The file's, 'data/init/basis', a space between; null: all count."),
)

_CHOICES = (
    SWEEP,
    ("cell_id", TEXT, "Its cell."),
    ("lr", REAL, "The chosen learning rate."),
    ("hyperparameters", TEXT, "JSON: what is searched beside the rate."),
    ("mean_val", REAL, "Its mean validation score."),
    ("n_trials", INT, _FROM),
    ("n_rerun_seeds", INT, _FROM),
    ("edge", TEXT, "'low' or 'high': the choice is that end of the range."),
    ("chosen_at", TIME, _WHEN),
    ("sequence", INT, _WHEN),
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
