"""Centred kernel alignment of activations (Kornblith et al. 2019), linear, unbiased and over mini-batches.

1 means equal representations up to rotation and scale. `rows` compares the outputs of the attention and of the MLP of
every block of a fine-tuned model with full fine-tuning's, on the same examples (Figure 4a of arXiv 2502.00987). An
example is one vector per layer, the mean over its tokens: CKA is over examples, and tokens of one example are not
independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.diagnostics.bench import Bench
from analysis.diagnostics.units import Unit, sweep_facts
from analysis.diagnostics.weights import Kept, full_of, kept_trials
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store

EXAMPLES = 256
BATCH = 64
LEAST = 4
ROUNDING = 1e-6
"""Features that differ by less, as a share of the largest, are constant: float32 knows seven digits."""


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741  the kernels' usual names
    """The unbiased estimator HSIC_1 (Song et al. 2012) of two kernel matrices (n, n), n >= 4."""
    n = k.shape[0]
    if n < 4:
        raise ValueError(f"unbiased HSIC needs at least 4 examples, got {n}")
    k, l = (m.double() - torch.diag(torch.diagonal(m.double())) for m in (k, l))  # noqa: E741
    ones = torch.ones(n, dtype=torch.double)
    trace = (k * l.T).sum()
    means = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (ones @ k @ l @ ones)
    return (trace + means - cross) / (n * (n - 3))


def minibatch_cka(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """CKA from HSIC_1 averaged over mini-batches (Nguyen et al. 2021): its expectation does not depend on their size.

    Raises:
        ValueError: no batch, batches of fewer than 4 examples, features (n, p) and (n, q) of unlike numbers of rows, or
            features without spread.
    """
    sums = torch.zeros(3, dtype=torch.double)
    for x, y in pairs:
        if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
            raise ValueError(f"CKA needs features (n, p) and (n, q) of the same examples, got {x.shape} and {y.shape}")
        k, l = (v @ v.T for v in (_spread(x), _spread(y)))  # noqa: E741
        sums += torch.stack([unbiased_hsic(k, l), unbiased_hsic(k, k), unbiased_hsic(l, l)])
    down = float((sums[1] * sums[2]).clamp_min(0).sqrt())
    if down == 0.0:
        raise ValueError("CKA needs at least one batch of features that differ between examples")
    return float(sums[0]) / down


def _spread(features: Tensor) -> Tensor:
    """Features without their mean, which the estimator does not see; zeros where the rest is rounding."""
    whole = features.double()
    rest = whole - whole.mean(0)
    return torch.zeros_like(rest) if rest.abs().max() <= ROUNDING * whole.abs().max() else rest


def plan(store: Store, *, examples: float = EXAMPLES) -> list[Unit]:
    """A unit per kept trial, all its layers against full fine-tuning in the same place; and one of the base model.

    Raises:
        StoreError: nothing kept, or no full fine-tuning.
    """
    trials = kept_trials(store, need_full=True)
    facts, settings = sweep_facts(store), {"examples": examples}
    units = []
    for kept in trials:
        full = full_of(trials, kept)
        if full is not None:  # full itself stands for the base model
            pair = (kept.brief,) if kept.row["trial_id"] == full.row["trial_id"] else (kept.brief, full.brief)
            units.append(Unit("cka", pair, settings, facts))
    return units


def rows(folder: Path, unit: Unit, warm: dict[str, Any]) -> list[Row]:
    """One row per layer: `cka` of a trial, or of the untouched base model, with full fine-tuning.

    Arguments: `analyze.compute`. Raises StoreError: a model without layers to compare, or too few examples.
    """
    full = Kept.of(unit.trials[-1], folder)
    bench = Bench(unit.facts, unit.trials[-1], warm)
    one = None if len(unit.trials) == 1 else Kept.of(unit.trials[0], folder)
    named = one.named if one else {"method": "zero-shot", "reference": None, "adapter_params": 0, "trial_id": None}
    examples = bench.examples(("train", "val"), unit.settings["examples"])
    if len(examples) < LEAST:
        raise StoreError(f"{unit.label}: {len(examples)} examples, and unbiased CKA needs at least {LEAST}")
    size = len(examples) // max(1, len(examples) // BATCH)
    batches = [b for b in torch.split(examples, size) if len(b) == size]
    layers = bench.layers()

    def outputs(of: Kept | None) -> list[dict[str, Tensor]]:
        with bench.trained(of) as state:
            return [bench.activations(state, batch, layers) for batch in batches]

    both = list(zip(outputs(one), outputs(full), strict=True))
    pairs = {name: [(mine[name], theirs[name]) for mine, theirs in both] for name in layers}
    about = unit.place | named | {"against": full.row["trial_id"], "examples": size * len(batches), "batch_size": size}
    return [
        about | {"layer": name, "depth": depth, "cka": _cka_or_none(found)}
        for depth, (name, found) in enumerate(pairs.items())
    ]


def _cka_or_none(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    """None where a layer says nothing: constant or not finite."""
    try:
        found = minibatch_cka(pairs)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
