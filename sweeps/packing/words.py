"""Tells which methods' trials share a worker, how many of them, and why others do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sweeps.packing.choosing import unpackable
from sweeps.packing.sizes import MOST, pack_size
from sweeps.spec.batch_sizes import batch_sizes
from sweeps.spec.cell import Cell
from sweeps.spec.search import FIXED_SAMPLERS
from sweeps.spec.spec import SweepSpec


def packing_of(spec: SweepSpec, cells: Iterable[Cell]) -> dict[str, Any]:
    """Return what is packed of a plan's feasible cells, as JSON values.

    `pack`: `resources.pack`. `cpu` and `gpu`: the largest number of trials in a pack there. `methods`: by method, why
    it is not packed, or None. `tune`: why the points of the search are not packed, or None. Re-runs and CONFIRM trials
    may always be packed.
    """
    asked = spec.resources.pack
    several = spec.resources.workers > 1 or spec.resources.isolated
    checkpointing, held = spec.train.gradient_checkpointing, spec.train.base_weights
    tune = None
    if spec.search.sampler not in FIXED_SAMPLERS:
        tune = f"search.sampler = {spec.search.sampler!r} proposes each from the results of those before it"
    elif spec.search.pruner != "none":
        tune = f"search.pruner = {spec.search.pruner!r} may stop them"
    elif batch_sizes(spec) and spec.search.sampler == "grid":
        tune = "each has another batch size than the one before it, and a pack has one"
    return {
        "pack": asked,
        "cpu": pack_size(spec.resources, None),
        "gpu": 1 if several else MOST if asked == "auto" else asked,
        "methods": {cell.method: unpackable(cell.base, cell.model, checkpointing, held) for cell in cells},
        "tune": tune,
    }


def packing_words(spec: SweepSpec, cells: Iterable[Cell]) -> list[str]:
    """Return lines about packing for the terminal; [] if `resources.pack` is 1."""
    facts = packing_of(spec, cells)
    if facts["pack"] == 1:
        return []
    many = f"up to {facts['cpu']} trials of a cell share a worker"
    if facts["pack"] == "auto":
        cpu = f"up to {facts['cpu']} trials of a cell" if facts["cpu"] > 1 else "none"
        many = f"auto: on CPUs {cpu}, on GPUs up to {facts['gpu']}, as many as the memory holds by a probe"
    together = [name for name, why in facts["methods"].items() if why is None]
    lines = [f"packing   {many}: {', '.join(together) or 'no method of this sweep'}"]
    lines += [f"          one by one: {name}, which {why}" for name, why in facts["methods"].items() if why is not None]
    if facts["tune"] is not None and together:
        lines.append(f"          one by one: the points of TUNE, since {facts['tune']}")
    return lines
