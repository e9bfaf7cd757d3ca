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

_TRIALS = (
    SWEEP,
    ("trial_id", TEXT, "16 hexadecimal digits: hash of the trial's whole configuration."),
    ("cell_id", TEXT, "The cell (model x data x size x method x budget) the trial belongs to; see `cells`."),
    ("attempt", INT, "1 for the first try; a trial that failed and was tried again has one row per attempt."),
    ("stage", TEXT, "'TUNE' (search on validation data) or 'CONFIRM' (at the chosen rate; test evaluated once)."),
    ("slot", INT, "Position in the cell's stage, from 0: the k-th trial of the allowance, or the k-th seed."),
    MODEL,
    ("adapt", TEXT, "What of the model is adapted: 'vision', 'both' (CLIP's towers) or 'all'."),
    DATASET,
    SIZE,
    ("method", TEXT, "'lora', 'randlora', 'vera', ...; 'full', 'linear-probe', 'zero-shot', ... have no budget."),
    ("allocation", TEXT, "How capacity is spread over layers: 'uniform', 'per-layer', 'fill'; null without a budget."),
    REFERENCE,
    BUDGET,
    ("capacity", INT, "The method's one capacity (rank r; NoLA's k); null where layers differ or there is none."),
    ("lr", REAL, "Peak learning rate; null where nothing trains."),
    ("hyperparameters", TEXT, "JSON object: what is searched beside the rate; null where the rate is all."),
    ("origin", TEXT, "'published' or 'neighbour' (warm starts), 'widened' (past the edge); null: the sampler's point."),
    (
        "data_seed",
        INT,
        "Declared seed of the training subset and the order of batches. Runs that agree in the three are paired; what "
        "a trial trains with is derived from it by `cells.seed_rule`, and stands in its journaled configuration.",
    ),
    ("init_seed", INT, "Declared seed of the trainable tensors' start and dropout."),
    ("basis_seed", INT, "Declared seed of the frozen random bases."),
    ("status", TEXT, "'finished', 'failed', or 'pruned' (stopped early by a pruner)."),
    ("reason", TEXT, "Why the attempt failed or was pruned; null for a finished one."),
    (
        "metric",
        TEXT,
        "What the scores measure, higher is better: 'accuracy', of language models with their protocol, 'accuracy "
        "(log-likelihood)', 'accuracy (generation)'; 'bleu', 'matthews', ... Null in rows older than this column.",
    ),
    ("val_score", REAL, "Validation score at the last step."),
    ("test_score", REAL, "Test score at the last step; null in TUNE, which cannot read the test split."),
    ("further", TEXT, "JSON object: further metrics by name under 'val' and 'test'; null where there are none."),
    ("train_loss", REAL, "Mean training loss of the last epoch, per image or target token."),
    ("epochs", INT, "Epochs trained."),
    ("adapter_params", INT, "Trainable adapter parameters, counted in the built module; the x-axis of the curve."),
    ("head_params", INT, "Trainable parameters of a new task head, outside the budget; 0 for CLIP's towers."),
    ("stored_bytes", INT, "Frozen bases and stored starting points of the adapter, not parameters."),
    ("train_examples", INT, "Training examples, each counted once; of few shots, fewer where classes have no more."),
    ("samples", INT, "Training examples seen, repeats counted."),
    ("skipped", INT, "Examples left out because they can't be read (data.skip_bad); CONFIRM counts test ones too."),
    ("unit", TEXT, "What an example is, which `samples` counts: 'images', or 'texts' of the text tasks."),
    ("seconds_setup", REAL, "Before the first step: model, data, adapters."),
    ("seconds_train", REAL, "Optimiser steps."),
    ("seconds_eval", REAL, "Validation and test."),
    ("seconds_total", REAL, "From lease to result; what is not set-up, training or evaluation is overhead."),
    ("samples_per_second", REAL, "`samples / seconds_train`."),
    ("peak_memory_bytes", INT, "Peak device memory; on CPU the process's peak resident set."),
    ("device", TEXT, "'cpu', or the accelerator's name."),
    ("precision", TEXT, "'fp32' or 'bf16'."),
    ("backend", TEXT, "Matrix-multiply back end in use."),
    ("micro_batch_size", INT, "Most examples of a forward pass; fewer than configured where memory ran out."),
    (
        "packed",
        INT,
        "Trials that shared its worker's base model, itself included (resources.pack); 1: it had the model alone. Its "
        "times are then its share. Null in rows older than this column, and where it never started.",
    ),
    ("workers", INT, "Workers that trained it together (resources.workers). Null in rows older than this column."),
    ("processor", TEXT, "Model of the machine's CPU; null in rows older than this column, and where it never ran."),
    ("host", TEXT, "Name of the machine."),
    ("versions", TEXT, "JSON object: package versions."),
    ("git_commit", TEXT, "Commit of the code that ran, '-dirty' appended where it had changes; null outside git."),
    ("started_at", TIME, "When the attempt started."),
    ("ended_at", TIME, "When it ended."),
)

_METRICS = (
    SWEEP,
    ("trial_id", TEXT, "The trial."),
    ("cell_id", TEXT, "Its cell."),
    ("attempt", INT, "The attempt that reported."),
    ("epoch", INT, "Epoch, from 1."),
    ("train_loss", REAL, "Mean training loss of the epoch; null where it was not finite."),
    ("val_score", REAL, "Validation score after the epoch."),
    ("seconds", REAL, "Training time of the epoch."),
    ("samples", INT, "Training examples seen since the start."),
    ("samples_per_second", REAL, "Training examples per second in the epoch."),
)

_PREDICTIONS = (
    SWEEP,
    ("trial_id", TEXT, "The CONFIRM trial."),
    ("cell_id", TEXT, "Its cell."),
    ("n_examples", INT, "Test examples."),
    ("correct", BITS, "One bit per test example, 1 = right; numpy.packbits packed them, the first in the high bit."),
    ("examples_hash", TEXT, "Hash of the list of example ids; two rows compare only where it agrees."),
)

_CELLS = (
    SWEEP,
    ("cell_id", TEXT, "The cell's name, unique in the sweep."),
    MODEL,
    ("adapt", TEXT, "What of the model is adapted."),
    DATASET,
    SIZE,
    ("method", TEXT, "Method name."),
    ("base", TEXT, "The method itself where `method` is a variant of one with a name of its own; else the same."),
    ("title", TEXT, "The method's title; null for a variant, which has its name alone, and in older parts."),
    ("label", TEXT, "The cell in words."),
    REFERENCE,
    BUDGET,
    ("allocation", TEXT, "How the solver spread the capacity over layers."),
    ("capacity", INT, "The one capacity of a uniform allocation; null where layers differ."),
    ("capacities", TEXT, "JSON object: capacity by weight name."),
    ("count", INT, "Trainable adapter parameters of the solution; `trials.adapter_params` must equal it."),
    ("update_rank", REAL, "Largest rank a weight's update can have, mean over weights; null where it has none."),
    ("dof", INT, "Degrees of freedom of the updates that these parameters make; null where it is not known."),
    ("dof_measured", FLAG, "Whether `dof` is measured on a small weight, as no formula is known."),
    ("residual", INT, "`count - budget`; where the budget limits degrees of freedom `dof - budget`."),
    ("residual_fraction", REAL, "`residual / budget`."),
    ("feasible", FLAG, "Whether the cell runs."),
    ("reason", TEXT, "Why it does not run, with the lever that would help; null for a feasible cell."),
    ("negatives", INT, "Images that the contrastive loss compares each with, itself among them; null: another loss."),
    ("absent", TEXT, "Why its data was not at hand, of a cell that `--available` left out; null for the others."),
    ("below", TEXT, "JSON {capacity, count}: the nearest reachable count below the budget."),
    ("above", TEXT, "JSON {capacity, count}: the nearest reachable count above the budget."),
    ("lr_low", REAL, "Low end of the learning-rate range; null where nothing trains."),
    ("lr_high", REAL, "High end of the range."),
    ("lr_centre", REAL, "Centre of the range: the published rate, unless the sweep file moves it."),
    ("space", TEXT, "JSON object: range or values of each hyperparameter searched beside the rate; null for none."),
    ("tune_trials", INT, "The allowance: TUNE trials of the cell; of an allowance in samples, what fits unpruned."),
    ("allowance_samples", INT, "The allowance where it is in training examples; null where it is not."),
    ("confirm_seeds", INT, "CONFIRM trials of the cell."),
    ("val_examples", INT, "Examples it validates on; null in parts older than this column."),
    ("test_examples", INT, "Test examples; null in parts older than this column."),
    ("test_lacks", TEXT, "JSON list: classes of which the test split has no example; null for none."),
    (
        "seed_rule",
        TEXT,
        "'per-data-set': trials train with seeds derived from data set, training size and declared seed; 'shared', and "
        "null: with the declared seeds, the same on all data sets.",
    ),
    (
        "seeds",
        TEXT,
        "Their declared seeds, each 'data/init/basis', a space between two. Runs on seeds that were taken out of the "
        "file stay in `trials` and are superseded. Null in parts older than this column: then all count.",
    ),
)

_CHOICES = (
    SWEEP,
    ("cell_id", TEXT, "The cell."),
    ("lr", REAL, "The chosen learning rate: best mean validation score."),
    ("hyperparameters", TEXT, "JSON object: the rest of the chosen point; null where the rate alone is searched."),
    ("mean_val", REAL, "That mean validation score."),
    ("n_trials", INT, "TUNE trials the choice was made from."),
    ("n_rerun_seeds", INT, "Seeds per re-run rate; 0 where the choice rests on one seed."),
    ("edge", TEXT, "'low' or 'high' where the choice is the end of the range (perhaps under-tuned); null inside it."),
    ("chosen_at", TIME, "When, by the driver's clock, and never before the cell's last choice."),
    (
        "sequence",
        INT,
        "Its number among the cell's choices, from 1, in the journal's order. The highest counts, whatever the clock "
        "said; CONFIRM trials at an earlier one are superseded. Null in parts older than this column.",
    ),
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
        "One row per choice of a learning rate. A cell has a second one when its allowance was extended.",
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
