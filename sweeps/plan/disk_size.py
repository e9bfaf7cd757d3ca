"""Computes the bytes on disk of the weights that `[keep]` keeps, before anything runs. Reads no weights."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.plan.plan import Plan
from sweeps.plan.split_sizes import class_count
from sweeps.records.ledger import NEVER_KEPT
from sweeps.spec.cell import Cell
from trainables.config import FULL_METHODS
from trainables.models.encoders import hidden_size
from trainables.training.adapting import base_weight_names

_FLOAT = 4
"""Bytes of one trained number: adapters, heads and the base weights of full fine-tuning train in float32."""
_ABOUT = 6_000
"""Bytes of one kept folder other than trained numbers: names, options and shapes."""


def keep_bytes(plan: Plan, cells: Sequence[Cell] | None = None) -> int:
    """Return the bytes of the weights that a complete run leaves in `adapters/`.

    Frozen random bases are not kept, since a seed gives them. Checkpoints of running trials are in `work/` and do not
    count. With `adapters = "best"`, every CONFIRM seed of a cell is on disk until the cell is done; here only the best
    one counts.

    Args:
        plan: the plan.
        cells: cells of `plan`; None for all that will run.
    """
    return sum(_cell_bytes(cell, plan) for cell in (plan.feasible if cells is None else cells))


def _cell_bytes(cell: Cell, plan: Plan) -> int:
    keep = plan.spec.keep
    if cell.method in FULL_METHODS:
        return _ABOUT + _FLOAT * (_base_weights(cell, plan) + _head(cell, plan)) if keep.full else 0
    if cell.method in NEVER_KEPT:
        return 0
    trials = {
        "none": 0,
        "best": cell.confirm_seeds if plan.spec.protocol == "paper" else 1,  # without validation scores all are kept
        "confirm": cell.confirm_seeds,
        "all": cell.tune_trials + cell.confirm_seeds,
    }[keep.adapters]
    return trials * (_ABOUT + _FLOAT * ((cell.count or 0) + _head(cell, plan))) if trials else 0


def _base_weights(cell: Cell, plan: Plan) -> int:
    module = plan.base_model.module
    names = set(base_weight_names(module, cell.trial("CONFIRM", cell.lr_centre, (0, 0, 0), plan.spec.train)))
    return sum(p.numel() for name, p in module.named_parameters() if name in names)


def _head(cell: Cell, plan: Plan) -> int:
    """Return the number of weights of a task's head: models with one encoder have a linear head without bias."""
    model = plan.base_model
    if model.kind not in ("hf-vision", "text-encoder"):
        return 0
    return hidden_size(model.module, model.id) * class_count(cell.dataset)
