"""Centred kernel alignment of activations (Kornblith et al. 2019), linear; plain, unbiased and over mini-batches.

1 means equal representations up to rotation and scale. `layer_cka` compares every residual block of a fine-tuned model
with full fine-tuning's, on the same images (Figure 4a of arXiv 2502.00987).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.func import functional_call

from analysis.kept import Bench, Kept, bench, full_of, kept_trials, need_full, resumable, trained_state
from analysis.store import Store

Row = dict[str, Any]


def linear_cka(x: Tensor, y: Tensor) -> float:
    """||Yc^T Xc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F) of features (n, p) and (n, q); biased upwards for small n.

    Raises:
        ValueError: different numbers of rows, or features without spread.
    """
    _same_rows(x, y)
    xc, yc = (v.double() - v.double().mean(dim=0) for v in (x, y))
    down = (xc.T @ xc).norm() * (yc.T @ yc).norm()
    if float(down) == 0.0:
        raise ValueError("CKA needs features that differ between examples, got constant ones")
    return float((yc.T @ xc).square().sum() / down)


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


def unbiased_cka(x: Tensor, y: Tensor) -> float:
    """CKA of linear kernels with unbiased HSIC: about 0 for unrelated features, whatever n and p."""
    return minibatch_cka([(x, y)])


def minibatch_cka(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """CKA from HSIC_1 averaged over mini-batches (Nguyen et al. 2021): its expectation does not depend on their size.

    Raises:
        ValueError: no batch, or batches of fewer than 4 examples.
    """
    sums = torch.zeros(3, dtype=torch.double)
    for x, y in pairs:
        _same_rows(x, y)
        k, l = (v.double() @ v.double().T for v in (x, y))  # noqa: E741
        sums += torch.stack([unbiased_hsic(k, l), unbiased_hsic(k, k), unbiased_hsic(l, l)])
    down = float((sums[1] * sums[2]).clamp_min(0).sqrt())
    if down == 0.0:
        raise ValueError("CKA needs at least one batch of features that differ between examples")
    return float(sums[0]) / down


@torch.no_grad()
def activations(
    model: nn.Module, state: Mapping[str, Tensor], modules: Mapping[str, nn.Module], images: Tensor
) -> dict[str, Tensor]:
    """Outputs of modules for a batch under other parameters: name -> (B, features), mean over tokens."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            tokens = value if value.shape[0] == images.shape[0] else value.transpose(0, 1)
            found[name] = tokens.flatten(1) if tokens.ndim == 2 else tokens.mean(dim=1).flatten(1)

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        functional_call(_Encoder(model), {f"model.{n}": t for n, t in state.items()}, (images,))
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Encoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        encode: Any = self.model.encode_image
        features: Tensor = encode(images)
        return features


def compare(one: Bench, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """Mini-batch CKA per residual block between two sets of trained parameters."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in one.modules}
    for images, _ in one.batches:
        a = activations(one.loaded.module, mine, one.modules, images)
        b = activations(one.loaded.module, theirs, one.modules, images)
        for name, found in pairs.items():
            found.append((a[name], b[name]))
    return {name: minibatch_cka(batches) for name, batches in pairs.items()}


def layer_cka(store: Store, images: int = 256) -> pa.Table:
    """One row per kept trial and residual block: `cka` with full fine-tuning in the same place.

    The base model without training is a row of method 'zero-shot'. Images come from the training pool, never from test.

    Raises:
        StoreError: nothing kept, or no full fine-tuning.
    """
    trials = kept_trials(store)
    need_full(trials)
    benches: dict[tuple[Any, ...], Bench] = {}

    def rows(kept: Kept) -> list[Row]:
        full = full_of(trials, kept)
        if full is None:
            return []
        one = benches.setdefault(kept.place, bench(kept.row, images))
        theirs = trained_state(one.loaded.module, full)
        mine = {} if kept.full else trained_state(one.loaded.module, kept)
        named = kept.named | ({"method": "zero-shot", "adapter_params": 0, "reference": None} if kept.full else {})
        found = compare(one, mine, theirs)
        return [named | {"layer": name, "depth": i, "cka": v} for i, (name, v) in enumerate(found.items())]

    return resumable(store.path, "cka", trials, rows)


def _same_rows(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
        raise ValueError(f"CKA needs features (n, p) and (n, q) of the same examples, got {x.shape} and {y.shape}")
