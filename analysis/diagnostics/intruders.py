"""Count intruder dimensions (arXiv 2410.21228): directions of a trained weight that its base weight does not have.

A left singular vector of W0 + delta is an intruder if its largest absolute cosine with a left singular vector of W0 is
below a threshold. As in the paper and in PEFT's code, the leading vectors are counted: those with the largest singular
values. Trailing singular values lie so close together that their vectors turn into each other under any small change.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.diagnostics.units import Unit, sweep_facts
from analysis.diagnostics.weights import Kept, deltas, kept_trials, left_out_sentence, target_names
from analysis.errors import StoreError
from analysis.findings.diagnostics.sheets import INTRUDER
from analysis.format import Row
from analysis.store.store import Store
from randlora.model.targets import select
from trainables.tasks.lane_cache import LaneCache

LEADING = 10
"""Number of leading singular vectors of W0 + delta in which intruders are counted."""


def largest_cosines(base: Tensor, delta: Tensor) -> Tensor:
    """Return for each left singular vector of base + delta its largest |cosine| with one of base, in float64.

    Args:
        base, delta: (out, in).

    Returns:
        (min(out, in),), from the largest singular value of base + delta.
    """
    before = torch.linalg.svd(base.double(), full_matrices=False)[0]
    after = torch.linalg.svd(base.double() + delta.double(), full_matrices=False)[0]
    cosines: Tensor = (after.T @ before).abs().amax(dim=1).clamp_max(1.0)
    return cosines


def plan(store: Store) -> list[Unit]:
    """Return a unit for each kept trial whose update is a matrix (see `weights.left_out_sentence`).

    Raises:
        StoreError: no such trial is kept, or the sweep's specification is missing.
    """
    trials = kept_trials(store)
    facts = sweep_facts(store)
    settings = {"leading": LEADING, "threshold": INTRUDER}
    units = [
        Unit("intruders", (kept.brief,), {"weights": target_names(trials, kept), **settings}, facts)
        for kept in trials
        if kept.matrix
    ]
    if not units:
        raise StoreError(f"no kept trial has singular vectors to compare. {left_out_sentence(store)}")
    return units


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return the rows of one unit of `plan`. Arguments as in `analyze.compute`."""
    rounded = unit.facts["train"].get("base_weights", "fp32")
    module = LaneCache(cache, torch.device("cpu")).model(unit.trials[0]["model"], rounded).module
    kept = Kept.of(unit.trials[0], folder)
    updates = deltas(module, kept, unit.settings["weights"] or None)
    bases = {name: site.base.detach().float().cpu() for name, site in select(module, list(updates)).items()}
    leading, threshold = unit.settings["leading"], unit.settings["threshold"]
    counts = intruder_rows(bases, updates, leading=leading, threshold=threshold)
    return [unit.place | kept.named | row for row in counts]


def intruder_rows(
    bases: Mapping[str, Tensor], updates: Mapping[str, Tensor], *, leading: int = LEADING, threshold: float = INTRUDER
) -> list[Row]:
    """Return a row for each weight of one trial: number and share of intruders, and the cosine of every vector."""
    rows_of_weights = []
    for name, delta in updates.items():
        cosines = largest_cosines(bases[name], delta)
        counted = min(leading, len(cosines))
        intruders = int((cosines[:counted] < threshold).sum())
        rows_of_weights.append(
            {
                "weight": name,
                "out_features": delta.shape[0],
                "in_features": delta.shape[1],
                "counted": counted,
                "threshold": threshold,
                "intruders": intruders,
                "share": intruders / counted,
                "intruders_of_all": int((cosines < threshold).sum()),
                "cosines": [float(value) for value in cosines],
            }
        )
    return rows_of_weights
