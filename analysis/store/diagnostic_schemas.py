"""The tables of the diagnostics (`sweeps analyze`): every column with its type and meaning; part of `schemas`."""

from __future__ import annotations

import pyarrow as pa

_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()
_TIME = pa.timestamp("us", tz="UTC")

Columns = tuple[tuple[str, pa.DataType, str], ...]

_PLACE: Columns = (
    ("sweep", _TEXT, "Name of the sweep."),
    (
        "unit",
        _TEXT,
        "The task that computed the row: 16 hexadecimal digits, a hash of the trials it looked at and its settings.",
    ),
    ("model", _TEXT, "Base model id."),
    ("dataset", _TEXT, "Data set name."),
    ("train_size", _TEXT, "'16-shot', or a fraction as text."),
)
_TRIAL: Columns = (
    ("method", _TEXT, "Method name."),
    ("reference", _TEXT, "What defines the budget, 'lora-8'; null without a budget."),
    ("adapter_params", _INT, "Trainable adapter parameters, counted."),
    ("trial_id", _TEXT, "The CONFIRM trial whose kept weights were looked at."),
)
_WHEN: Columns = (("computed_at", _TIME, "When it was computed."),)
_FORM: Columns = (
    ("weight", _TEXT, "Name of the target weight."),
    ("out_features", _INT, "Its rows, outputs."),
    ("in_features", _INT, "Its columns, inputs."),
)

_CKA: Columns = (
    *_PLACE,
    *_TRIAL[:3],
    ("trial_id", _TEXT, "The CONFIRM trial compared; null for the untouched base model (method 'zero-shot')."),
    ("against", _TEXT, "The trial of full fine-tuning that it is compared with."),
    ("layer", _TEXT, "Name of the repeated block whose output is compared."),
    ("depth", _INT, "Its number, from 0 at the input."),
    (
        "cka",
        _REAL,
        "Linear CKA, HSIC unbiased and averaged over mini-batches; at most 1, about 0 where unrelated; "
        "null where a layer's outputs are constant or not finite.",
    ),
    ("examples", _INT, "Training and validation examples of the trial that both models saw; one vector each."),
    ("batch_size", _INT, "Examples of a mini-batch of the estimator."),
    *_WHEN,
)

_LANDSCAPE: Columns = (
    *_PLACE,
    ("reference", _TEXT, "The budget of LoRA and RandLoRA, 'lora-8'."),
    ("corner_0", _TEXT, "Trial of LoRA, at (0, 0)."),
    ("corner_1", _TEXT, "Trial of RandLoRA, at (1, 0)."),
    ("corner_2", _TEXT, "Trial of full fine-tuning, at (0.5, 1)."),
    ("kind", _TEXT, "'plane': a point of the grid; 'edge': a point of the straight path between two corners."),
    ("split", _TEXT, "'train' or 'val': whose examples the loss is of."),
    ("x", _REAL, "Position across; the barycentric weights of the corners are 1 - x - y / 2, x - y / 2, and y."),
    ("y", _REAL, "Position up."),
    ("a", _INT, "Corner where the edge begins; null on the plane."),
    ("b", _INT, "Corner where it ends; null on the plane."),
    ("t", _REAL, "Share of the way from a to b; null on the plane."),
    ("loss", _REAL, "The task's own training loss, per image or target token; null where it is not finite."),
    (
        "barrier",
        _REAL,
        "Of the edge: greatest height of its loss over the straight line between its ends, 0 where there is none; null "
        "on the plane.",
    ),
    ("examples", _INT, "Examples that the loss is a mean of."),
    ("points", _INT, "Points of a row of the grid, and of an edge."),
    *_WHEN,
)

_SPECTRUM: Columns = (
    *_PLACE,
    *_TRIAL,
    *_FORM,
    ("frobenius", _REAL, "Frobenius norm of the update."),
    ("spectral", _REAL, "Its largest singular value."),
    ("stable_rank", _REAL, "sum s^2 / s_1^2."),
    ("effective_rank", _REAL, "exp of the entropy of s / sum s."),
    ("rank", _INT, "Singular values above float32's rounding."),
    ("overlap_k", _INT, "Leading left singular directions that `overlap` compares."),
    (
        "overlap",
        _REAL,
        "Share of their subspace that full fine-tuning's leading directions share: 1 the same, about overlap_k / "
        "out_features by chance; null for full fine-tuning, without it, and where a rank is below overlap_k.",
    ),
    ("singular_values", pa.list_(_REAL), "All of them, from the largest."),
    *_WHEN,
)

_APPROXIMATION: Columns = (
    *_PLACE,
    ("trial_id", _TEXT, "The trial of full fine-tuning whose update is approximated."),
    *_FORM,
    ("form", _TEXT, "'lora' (the exact optimum), 'randlora' and 'vera' (fitted: upper bounds)."),
    ("lora_rank", _INT, "LoRA rank whose parameters are spent."),
    ("capacity", _INT, "The form's own rank."),
    ("parameters", _INT, "Parameters that the form trains on this weight."),
    ("error", _REAL, "Relative Frobenius error of the approximation."),
    *_WHEN,
)

COLUMNS: dict[str, Columns] = {
    "cka": _CKA,
    "landscape": _LANDSCAPE,
    "spectrum": _SPECTRUM,
    "approximation": _APPROXIMATION,
}

DOCS = {
    "cka": "One row per kept trial and layer: how like full fine-tuning's its activations are. `sweeps analyze cka`.",
    "landscape": "One row per point of the loss plane through LoRA, RandLoRA and full fine-tuning, and of the edges "
    "between them. `sweeps analyze landscape`.",
    "spectrum": "One row per kept trial and target weight: its update's singular values. `sweeps analyze spectrum`.",
    "approximation": "One row per target weight, form and budget: how well it can approximate full fine-tuning's "
    "update. `sweeps analyze spectrum`.",
}

KEYS: dict[str, tuple[str, ...]] = {
    "cka": ("sweep", "unit", "layer"),
    "landscape": ("sweep", "unit", "kind", "split", "x", "y"),
    "spectrum": ("sweep", "unit", "weight"),
    "approximation": ("sweep", "unit", "weight", "form", "lora_rank"),
}
