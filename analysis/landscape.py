"""The loss on the plane through three trained models, and the barriers between them (Figure 4b of arXiv 2502.00987).

The models sit at (0, 0), (1, 0) and (0.5, 1); a point's parameters are their barycentric combination, so the corners
are the models themselves. Losses are of images of the training pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.func import functional_call

from analysis.kept import Bench, Kept, bench, full_of, kept_trials, need_full, resumable, trained_state
from analysis.store import Store
from trainables.evaluate import Classifier

Row = dict[str, Any]
State = Mapping[str, Tensor]

CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.5, 1.0))


def barycentric(x: float, y: float) -> tuple[float, float, float]:
    """Weights of the three corners at a point; they sum to 1 and are negative outside the triangle."""
    return 1.0 - x - 0.5 * y, x - 0.5 * y, y


def mixed(states: Sequence[State], base: State, weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of states; a parameter that a state lacks is the base's there."""
    names = sorted({name for state in states for name in state})
    return {
        n: sum((w * s.get(n, base[n]) for w, s in zip(weights, states, strict=True)), torch.zeros(())) for n in names
    }


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, task: Classifier) -> None:
        super().__init__()
        self.model, self._task = model, task

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self._task.loss_sum(images, labels)


@torch.no_grad()
def loss_at(one: Bench, state: State) -> float:
    """Mean loss over the bench's images under other parameters; the model itself is not written to."""
    module = _Loss(one.loaded.module, one.task)
    named = {f"model.{n}": t for n, t in state.items()}
    total = sum(float(functional_call(module, named, batch)) for batch in one.batches)
    return total / sum(len(labels) for _, labels in one.batches)


def barrier(losses: Sequence[float]) -> float:
    """Greatest height of the loss along a segment over the straight line between its ends; 0 where there is none."""
    n = len(losses) - 1
    line = [losses[0] + (losses[-1] - losses[0]) * i / n for i in range(n + 1)]
    return max(0.0, *(found - wanted for found, wanted in zip(losses, line, strict=True)))


def plane(
    one: Bench, states: Sequence[State], *, points: int = 9, segment: int = 9, margin: float = 0.5
) -> tuple[list[Row], list[Row]]:
    """Losses on a grid from -margin to 1 + margin in x and y, and on the three edges of the triangle.

    Returns:
        Rows (x, y, loss), and rows (a, b, t, loss, barrier) with a and b the corners' numbers.
    """
    base = {n: p.detach() for n, p in one.loaded.module.named_parameters()}
    ticks = [-margin + (1 + 2 * margin) * i / (points - 1) for i in range(points)]
    grid = [
        {"x": x, "y": y, "loss": loss_at(one, mixed(states, base, barycentric(x, y)))} for y in ticks for x in ticks
    ]
    edges: list[Row] = []
    for a, b in combinations(range(3), 2):
        steps = [i / (segment - 1) for i in range(segment)]
        weights = [[(1 - t) if k == a else t if k == b else 0.0 for k in range(3)] for t in steps]
        losses = [loss_at(one, mixed(states, base, w)) for w in weights]
        height = barrier(losses)
        edges += [{"a": a, "b": b, "t": t, "loss": v, "barrier": height} for t, v in zip(steps, losses, strict=True)]
    return grid, edges


def landscape(store: Store, images: int = 128, points: int = 9) -> pa.Table:
    """The plane of every place: LoRA at (0, 0), RandLoRA at (1, 0), full fine-tuning at (0.5, 1).

    LoRA and RandLoRA are those of the largest budget that both have. One row per grid point (`kind` 'plane') and per
    point of an edge (`kind` 'edge', corners `a` and `b`, position `t`, and the edge's `barrier`).

    Raises:
        StoreError: nothing kept, no full fine-tuning, or no budget at which LoRA and RandLoRA are both kept.
    """
    trials = kept_trials(store)
    need_full(trials)

    def rows(kept: Kept) -> list[Row]:
        trio = _trio(trials, kept)
        if trio is None:
            return []
        one = bench(kept.row, images)
        states = [trained_state(one.loaded.module, k) for k in trio]
        grid, edges = plane(one, states, points=points)
        empty = dict.fromkeys(("x", "y", "a", "b", "t", "barrier"))
        named = {k: kept.named[k] for k in ("sweep", "model", "dataset", "train_size")}
        named |= {"reference": trio[0].row["reference"]}
        planes = [named | empty | {"kind": "plane"} | r for r in grid]
        return planes + [named | empty | {"kind": "edge"} | r for r in edges]

    return resumable(store.path, "landscape", [k for k in trials if k.row["method"] == "full"], rows)


def _trio(trials: Sequence[Kept], full: Kept) -> tuple[Kept, Kept, Kept] | None:
    mine = {(k.row["method"], k.row["reference"]): k for k in trials if k.place == full.place and not k.full}
    both = [r for m, r in mine if m == "lora" and ("randlora", r) in mine]
    if not both or full_of(trials, full) is None:
        return None
    best = max(both, key=lambda r: mine["lora", r].row["budget"] or 0)
    return mine["lora", best], mine["randlora", best], full
