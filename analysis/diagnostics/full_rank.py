"""The probability that RandLoRA's update has full rank (appendix C.6 of arXiv 2502.00987): bounded, and counted.

The paper bounds the chance that two rows of a sparse basis are collinear. That says something of B_1 .. B_n side by
side; the update also has the one A of r rows, and a sparse A has columns of zeros, each of which costs a rank. So the
ranks of updates with random lambda and gamma are counted beside the bound.
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
    """log10 of the union bound on two of `rows` rows being equal or opposite, `width` entries each, 0 or +-1.

    Entries are -1 and +1 with probability 1 / s each, so two are equal with 2 / s^2 + (1 - 2 / s)^2, and opposite (or
    both 0) as often: the bound is rows (rows - 1) times that to the power of `width`. Above 0 it says nothing.
    """
    agree = 2 / sparsity**2 + (1 - 2 / sparsity) ** 2
    return math.log10(rows * (rows - 1)) + width * math.log10(agree)


def plan(store: Store) -> list[Unit]:
    """A unit per shape of target weight that RandLoRA adapts in a kept trial, at its rank there.

    Raises StoreError: nothing kept, or no RandLoRA.
    """
    found = [kept for kept in kept_trials(store) if not kept.full and kept.row["method"] == "randlora"]
    if not found:
        raise StoreError('RandLoRA alone has bases to look at, and none was kept; set [keep] adapters = "confirm"')
    return [Unit("full_rank", (kept.brief,), {"draws": DRAWS}, {}) for kept in found]


def rows(folder: Path, unit: Unit, warm: dict[str, Any]) -> list[Row]:
    """Rows of one kept trial (arguments: `analyze.compute`): per shape and rank `ranks` of every basis."""
    kept = Kept.of(unit.trials[0], folder)
    capacities: dict[str, int] = read_meta(kept.folder)["capacities"]
    sites = select(LaneCache(warm, torch.device("cpu")).model(kept.row["model"]).module, list(capacities))
    several = {(tuple(sites[name].shape), r) for name, r in capacities.items()}
    return [
        unit.place | kept.named | row
        for shape, r in sorted(several)
        for row in ranks((shape[0], shape[1]), r, draws=unit.settings["draws"])
    ]


def ranks(shape: tuple[int, int], r: int, *, draws: int = DRAWS) -> list[Row]:
    """Per basis of `BASES`, and with a sparse A: the bound, and the ranks of `draws` random updates (out, in)."""
    found: list[Row] = []
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
            found.append(row)
    return found


def _rank(shape: tuple[int, int], r: int, seed: int, options: dict[str, Any]) -> int:
    """The rank of one update whose lambda and gamma are random."""
    host = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a sparse A loses rank is what is counted
        config = randlora.RandLoraConfig(r=r, **options)
    adapted = randlora.attach(host, config, ["0.weight"], basis_seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(generator=draw)
        delta = adapted.deltas()["0.weight"].double()
    adapted.detach()
    return numerical_rank(torch.linalg.svdvals(delta), shape)
