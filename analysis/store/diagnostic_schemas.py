"""The tables of the diagnostics (`sweeps analyze`): every column with its type and meaning; part of `schemas`."""

from __future__ import annotations

import pyarrow as pa

from analysis.store.columns import DATASET, FLAG, INT, MODEL, REAL, REFERENCE, SIZE, SWEEP, TEXT, TIME, Table

_PLACE = (
    SWEEP,
    ("unit", TEXT, "Hash of the trials and settings it is computed from."),
    MODEL,
    DATASET,
    SIZE,
)
_METHOD = (
    ("method", TEXT, "Method name."),
    REFERENCE,
    ("adapter_params", INT, "Trainable adapter parameters, counted."),
)
_WHEN = ("computed_at", TIME, "When it was computed.")
_FORM = (
    ("weight", TEXT, "Name of the target weight."),
    ("out_features", INT, "Outputs of the target weight."),
    ("in_features", INT, "Its inputs."),
)

_CKA = (
    *_PLACE,
    *_METHOD,
    ("trial_id", TEXT, "The CONFIRM trial; null for the untouched base model."),
    ("against", TEXT, "The trial of full fine-tuning beside it."),
    ("layer", TEXT, "Attention or MLP of a block; older rows: the block."),
    ("depth", INT, "The layer's place from the input on, from 0."),
    ("cka", REAL, "Linear, unbiased, mean over mini-batches; null: constant or not finite."),
    ("examples", INT, "Examples that both models saw, one vector each."),
    ("batch_size", INT, "Examples of a mini-batch."),
    _WHEN,
)

_LANDSCAPE = (
    *_PLACE,
    ("reference", TEXT, "The budget of LoRA and RandLoRA, 'lora-8'."),
    ("corner_0", TEXT, "Trial of LoRA, at (0, 0)."),
    ("corner_1", TEXT, "Trial of RandLoRA, at (1, 0)."),
    ("corner_2", TEXT, "Trial of full fine-tuning, at (0.5, 1)."),
    ("kind", TEXT, "'plane', or 'edge': of a path between two corners."),
    ("split", TEXT, "'train' or 'val': whose examples the loss is of."),
    ("x", REAL, "Across; the corners weigh 1 - x - y / 2, x - y / 2, y."),
    ("y", REAL, "Upwards."),
    ("a", INT, "Corner where the edge begins."),
    ("b", INT, "Corner where it ends."),
    ("t", REAL, "Share of the way from a to b."),
    ("loss", REAL, "The task's training loss; null: not finite."),
    ("barrier", REAL, "Most that the edge lies above the line between its ends."),
    ("examples", INT, "Examples that the loss is a mean of."),
    ("points", INT, "Points of a row of the grid, and of an edge."),
    _WHEN,
)

_SPECTRUM = (
    *_PLACE,
    *_METHOD,
    ("trial_id", TEXT, "The CONFIRM trial of the weights."),
    *_FORM,
    ("frobenius", REAL, "Frobenius norm of the update."),
    ("spectral", REAL, "Its largest singular value."),
    ("stable_rank", REAL, "sum s^2 / s_1^2."),
    ("effective_rank", REAL, "exp of the entropy of s / sum s."),
    ("rank", INT, "Singular values above float32's rounding."),
    ("overlap_k", INT, "Leading left directions that `overlap` compares."),
    ("overlap", REAL, "Share of their subspace in full fine-tuning's; by chance overlap_k / out_features."),
    ("singular_values", pa.list_(REAL), "All of them, from the largest."),
    _WHEN,
)

_APPROXIMATION = (
    *_PLACE,
    ("trial_id", TEXT, "The trial of full fine-tuning that is approximated."),
    *_FORM,
    ("target", TEXT, "'trained' or null: its update; 'random': a normal matrix of its shape."),
    ("form", TEXT, "'lora' (the exact optimum), 'randlora' and 'vera' (fitted: upper bounds)."),
    ("lora_rank", INT, "Rank of LoRA whose parameters are spent."),
    ("capacity", INT, "The form's own rank."),
    ("parameters", INT, "What it trains on this weight."),
    ("error", REAL, "Relative Frobenius error."),
    ("bound", REAL, "RandLoRA's bound of it (equation 7)."),
    _WHEN,
)

_FULL_RANK = (
    *_PLACE,
    *_METHOD,
    ("trial_id", TEXT, "The kept trial of RandLoRA."),
    ("out_features", INT, "Outputs of the target weight."),
    ("in_features", INT, "Its inputs."),
    ("capacity", INT, "RandLoRA's rank on them."),
    ("distribution", TEXT, "Of the bases."),
    ("sparsity", REAL, "s, an entry is not 0 with probability 2 / s; 2: binary; null: dense."),
    ("sparse_a", FLAG, "Whether A is sparse too."),
    ("log10_collinear", REAL, "log10 of appendix C.6's bound on two collinear rows of B; null where it is 0."),
    ("draws", INT, "Random updates drawn."),
    ("full", REAL, "Share of them with full rank."),
    ("mean_rank", REAL, "Their mean rank, as a share of it."),
    _WHEN,
)

TABLES: dict[str, Table] = {
    "full_rank": Table(
        "One row per shape of weight and kind of bases: how probable it is that RandLoRA's update has full rank. "
        "`sweeps analyze full_rank`.",
        ("sweep", "unit", "out_features", "in_features", "capacity", "distribution", "sparsity", "sparse_a"),
        _FULL_RANK,
    ),
    "cka": Table(
        "One row per kept trial and layer: how like full fine-tuning's its activations are. `sweeps analyze cka`.",
        ("sweep", "unit", "layer"),
        _CKA,
    ),
    "landscape": Table(
        "One row per point of the loss plane through LoRA, RandLoRA and full fine-tuning, and of the edges between "
        "them. `sweeps analyze landscape`.",
        ("sweep", "unit", "kind", "split", "x", "y"),
        _LANDSCAPE,
    ),
    "spectrum": Table(
        "One row per kept trial and target weight: its update's singular values. `sweeps analyze spectrum`.",
        ("sweep", "unit", "weight"),
        _SPECTRUM,
    ),
    "approximation": Table(
        "One row per target weight, form and budget: how well it can approximate full fine-tuning's update. "
        "`sweeps analyze spectrum`.",
        ("sweep", "unit", "weight", "target", "form", "lora_rank"),
        _APPROXIMATION,
    ),
}
