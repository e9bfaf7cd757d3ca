"""Says around which rate `lr = "predicted"` searches a method: LoRA's rate times a ratio that was measured.

LoRA's rate is the centre of its range in the sweep file. The ratio is (x / x of LoRA)^`EXPONENT`. x is the learning
rate at which Adam's first step ends at the lowest point, if the loss is quadratic (`analysis.diagnostics.curvature`).
`engine.predicting` measures it before the first trial, and `spec.json` in the results folder keeps the centre for later
plans of the sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from sweeps.errors import Problem, SpecError
from sweeps.records.locks import IdentityError, stored_centres
from sweeps.spec.cell import Cell
from sweeps.spec.search import PREDICTED
from sweeps.spec.spec import SweepSpec

EXPONENT = 0.58
"""The slope of log10 of the best rate against log10 of x, over 36 methods on one image task (docs/results.md)."""
LORA = "lora"
"""The method whose best learning rate the sweep file must give, and from which all others are predicted."""


def is_predicted(name: str, spec: SweepSpec) -> bool:
    """Return whether a method's learning rate is to be predicted."""
    lr = spec.methods[name].lr
    return lr is not None and lr.predicted


def lora_beside(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """Return LoRA's cell with the budget and the data of `cell`; None if there is none that runs."""
    place = (cell.reference, cell.dataset, cell.train_size)
    same = (c for c in cells if c.method == LORA and (c.reference, c.dataset, c.train_size) == place)
    return next((c for c in same if c.feasible), None)


def check_lora_beside(cells: Sequence[Cell]) -> None:
    """Check that LoRA has a cell beside every one that is to be predicted.

    Raises:
        SpecError: it has none at some budget. There is one problem for each method and budget.
    """
    alone = dict.fromkeys(
        (c.method, c.reference) for c in cells if c.unpredicted and c.feasible and lora_beside(c, cells) is None
    )
    rule = "is predicted from LoRA's rate at the same budget, and LoRA does not run at {}; give a number"
    if alone:
        raise SpecError([Problem(f"methods.{m}.lr", PREDICTED, rule.format(reference)) for m, reference in alone])


def predicted_centre(lora_rate: float, first_rate: float, lora_first_rate: float) -> float:
    """Return the rate around which a method is searched, with two significant digits.

    Args:
        lora_rate: the centre of LoRA's range.
        first_rate: x of the method.
        lora_first_rate: x of LoRA.
    """
    return float(f"{lora_rate * (first_rate / lora_first_rate) ** EXPONENT:.1e}")


def with_centres(cells: Sequence[Cell], centres: Mapping[str, float], spec: SweepSpec) -> tuple[Cell, ...]:
    """Return the cells with ranges around predicted centres, which are given by cell id. Others stay as they are."""
    half = 10 ** (spec.search.lr.decades / 2)

    def around(cell: Cell, centre: float) -> Cell:
        return replace(cell, lr_low=centre / half, lr_high=centre * half, lr_centre=centre, unpredicted=False)

    return tuple(around(c, centres[c.cell_id]) if c.unpredicted and c.cell_id in centres else c for c in cells)


def with_known_centres(cells: Sequence[Cell], spec: SweepSpec) -> tuple[Cell, ...]:
    """Return the cells with the centres that the results folder of the sweep keeps.

    If its `spec.json` cannot be read, they stay as they are: `locks.check_identity` raises the error later.
    """
    with suppress(IdentityError):
        return with_centres(cells, stored_centres(spec.folder), spec)
    return tuple(cells)
