"""The probability that RandLoRA's update has full rank (appendix C.6 of arXiv 2502.00987): its bound, and a count.

The paper bounds the chance that two rows of a sparse basis are collinear. The bound is about B_1 .. B_n side by side.
The update also has one A of r rows, and each column of zeros of a sparse A lowers the rank by one. So this module also
computes the ranks of updates with random lambda and gamma.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import randlora
from analysis.diagnostics.spectrum import numerical_rank
from analysis.diagnostics.units import Unit
from analysis.diagnostics.weights import Kept, kept_trials
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from randlora.files.checkpoint import read_meta
from randlora.model.targets import select
from trainables.tasks.lane_cache import LaneCache

DRAWS = 5
BASES: tuple[tuple[str, float | str | None], ...] = (
    ("uniform", None),
    ("normal", None),
    ("binary", 2.0),
    ("ternary", 6.0),
    ("ternary", "sqrt"),
    ("ternary", 100.0),
    ("ternary", 200.0),
)
"""Distributions of the paper's Table 4, with the s of a ternary one."""


def collinear_bound(rows: int, width: int, sparsity: float) -> float:
    """Return log10 of a union bound on the chance that two of `rows` ternary rows are equal or opposite.

    Entries are -1 and +1 with probability 1 / s each. So two entries are equal with probability 2 / s^2 +
    (1 - 2 / s)^2, and opposite (or both 0) with the same. The bound is rows (rows - 1) times that to the power
    of `width`. If the result is above 0, it says nothing.
    """
    agree = 2 / sparsity**2 + (1 - 2 / sparsity) ** 2
    return math.log10(rows * (rows - 1)) + width * math.log10(agree)


def plan(store: Store) -> list[Unit]:
    """Return a unit for each kept trial of RandLoRA. Raises StoreError if there is none."""
    randlora_trials = [kept for kept in kept_trials(store) if not kept.full and kept.row["method"] == "randlora"]
    if not randlora_trials:
        raise StoreError('RandLoRA alone has bases to look at, and none was kept; set [keep] adapters = "confirm"')
    return [Unit("full_rank", (kept.brief,), {"draws": DRAWS}, {}) for kept in randlora_trials]


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return `ranks` for each shape and rank of one kept trial. Arguments as in `analyze.compute`."""
    kept = Kept.of(unit.trials[0], folder)
    capacities: dict[str, int] = read_meta(kept.folder)["capacities"]
    sites = select(LaneCache(cache, torch.device("cpu")).model(kept.row["model"]).module, list(capacities))
    several = {(tuple(sites[name].shape), r) for name, r in capacities.items()}
    return [
        unit.place | kept.named | row
        for shape, r in sorted(several)
        for row in ranks((shape[0], shape[1]), r, draws=unit.settings["draws"])
    ]


def ranks(shape: tuple[int, int], r: int, *, draws: int = DRAWS) -> list[Row]:
    """Return the bound, and the ranks of `draws` random updates (out, in), for each of `BASES` and with a sparse A."""
    rows_of_bases: list[Row] = []
    for distribution, sparsity in BASES:
        for sparse_a in (False, True) if distribution == "ternary" else (False,):
            options: dict[str, Any] = {"distribution": distribution, "sparse_a": sparse_a}
            options |= {"sparsity": sparsity} if distribution == "ternary" else {}
            counted = [_rank(shape, r, seed, options) for seed in range(draws)]
            s = math.sqrt(min(shape)) if sparsity == "sqrt" else sparsity
            assert s is None or isinstance(s, float)
            width = -(-min(shape) // r) * r
            row: Row = {"out_features": shape[0], "in_features": shape[1], "capacity": r, "sparsity": s}
            row |= {"distribution": distribution, "sparse_a": sparse_a, "draws": draws}
            row["log10_collinear"] = None if s is None else collinear_bound(max(shape), width, s)
            row["full"] = sum(n == min(shape) for n in counted) / draws
            row["mean_rank"] = sum(counted) / draws / min(shape)
            rows_of_bases.append(row)
    return rows_of_bases


def _rank(shape: tuple[int, int], r: int, seed: int, options: dict[str, Any]) -> int:
    """Return the rank of one update with random lambda and gamma."""
    host = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that a sparse A loses rank
        config = randlora.RandLoraConfig(r=r, **options)
    adapted = randlora.attach(host, config, ["0.weight"], basis_seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(generator=draw)
        delta = adapted.deltas()["0.weight"].double()
    adapted.detach()
    return numerical_rank(torch.linalg.svdvals(delta), shape)
