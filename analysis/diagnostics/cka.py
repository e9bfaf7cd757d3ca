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
from analysis.diagnostics.weights import Kept, full_fine_tuning_of, kept_trials
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store

EXAMPLES = 256
BATCH = 64
LEAST = 4
ROUNDING = 1e-6
"""Features whose differences are below this share of the largest value count as constant (float32 has seven digits)."""


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741  the kernels' usual names
    """Return the unbiased estimator HSIC_1 (Song et al. 2012) of two kernel matrices (n, n), n >= 4."""
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
    """Return CKA from HSIC_1, averaged over mini-batches of features (n, p) and (n, q) (Nguyen et al. 2021).

    Its expectation does not depend on the size of the batches.

    Raises:
        ValueError: there is no batch, a batch has fewer than 4 examples, the two sides of a pair have different numbers
            of rows, or features have no spread.
    """
    sums = torch.zeros(3, dtype=torch.double)
    for x, y in pairs:
        if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
            raise ValueError(f"CKA needs features (n, p) and (n, q) of the same examples, got {x.shape} and {y.shape}")
        k, l = (v @ v.T for v in (_centred(x), _centred(y)))  # noqa: E741
        sums += torch.stack([unbiased_hsic(k, l), unbiased_hsic(k, k), unbiased_hsic(l, l)])
    down = float((sums[1] * sums[2]).clamp_min(0).sqrt())
    if down == 0.0:
        raise ValueError("CKA needs at least one batch of features that differ between examples")
    return float(sums[0]) / down


def _centred(features: Tensor) -> Tensor:
    """Return features minus their mean, or zeros if the difference is a rounding error."""
    values = features.double()
    centred = values - values.mean(0)
    return torch.zeros_like(centred) if centred.abs().max() <= ROUNDING * values.abs().max() else centred


def plan(store: Store, *, examples: float = EXAMPLES) -> list[Unit]:
    """Return a unit for each kept trial, which compares all its layers with full fine-tuning in the same place.

    The base model gets a unit as well.

    Raises:
        StoreError: no weights are kept, or none of full fine-tuning.
    """
    trials = kept_trials(store, need_full=True)
    facts, settings = sweep_facts(store), {"examples": examples}
    units = []
    for kept in trials:
        full = full_fine_tuning_of(trials, kept)
        if full is not None:  # the unit of full fine-tuning itself is for the base model
            pair = (kept.brief,) if kept.row["trial_id"] == full.row["trial_id"] else (kept.brief, full.brief)
            units.append(Unit("cka", pair, settings, facts))
    return units


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return a row for each layer: the CKA of a trial, or of the base model, with full fine-tuning.

    Arguments as in `analyze.compute`. Raises StoreError if the model has no layers to compare, or too few examples.
    """
    full = Kept.of(unit.trials[-1], folder)
    bench = Bench(unit.facts, unit.trials[-1], cache)
    trial = None if len(unit.trials) == 1 else Kept.of(unit.trials[0], folder)
    named = trial.named if trial else {"method": "zero-shot", "reference": None, "adapter_params": 0, "trial_id": None}
    examples = bench.examples(("train", "val"), unit.settings["examples"])
    if len(examples) < LEAST:
        raise StoreError(f"{unit.label}: {len(examples)} examples, and unbiased CKA needs at least {LEAST}")
    size = len(examples) // max(1, len(examples) // BATCH)
    batches = [b for b in torch.split(examples, size) if len(b) == size]
    layers = bench.layers()

    def outputs(of: Kept | None) -> list[dict[str, Tensor]]:
        with bench.trained(of) as state:
            return [bench.activations(state, batch, layers) for batch in batches]

    batch_pairs = list(zip(outputs(trial), outputs(full), strict=True))
    pairs = {
        name: [(trial_outputs[name], full_outputs[name]) for trial_outputs, full_outputs in batch_pairs]
        for name in layers
    }
    about = unit.place | named | {"against": full.row["trial_id"], "examples": size * len(batches), "batch_size": size}
    return [
        about | {"layer": name, "depth": depth, "cka": _cka_or_none(layer_pairs)}
        for depth, (name, layer_pairs) in enumerate(pairs.items())
    ]


def _cka_or_none(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    """Return the CKA of a layer, or None if its features are constant or not finite."""
    try:
        value = minibatch_cka(pairs)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
