"""The loss on the plane through three trained models, and the barriers between them (Figure 4b of arXiv 2502.00987).

The models are at (0, 0), (1, 0) and (0.5, 1). The parameters of a point are the barycentric combination of theirs, so
the corners are the models themselves. The task's head is combined as well, if there is one. Losses are the task's own,
on its training rows and on its validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from analysis.diagnostics.bench import Bench, State
from analysis.diagnostics.units import Unit, sweep_facts
from analysis.diagnostics.weights import Kept, kept_trials
from analysis.errors import StoreError
from analysis.findings.diagnostics.sheets import CORNERS
from analysis.format import Row
from analysis.store.store import Store
from trainables.tasks.task import Split

EXAMPLES, POINTS = 128, 9
LEFT = -0.5
BOTTOM = -0.5
WIDTH = 2.5
"""The left and lower end of the plane, and its width and height. It is the paper's plane with x mirrored: the released
code has RandLoRA at (0, 0), LoRA at (1, 0) and x in [-1, 1.5), which is (-0.5, 2] here; y is in [-0.5, 2)."""
SPLITS: tuple[Split, ...] = ("train", "val")


def ticks(points: int) -> tuple[list[float], list[float]]:
    """Return the x and the y positions of the grid."""
    step = WIDTH / points
    across = [round(LEFT + step * (i + 1), 12) for i in range(points)]
    return across, [round(BOTTOM + step * i, 12) for i in range(points)]


def barycentric(x: float, y: float) -> tuple[float, float, float]:
    """Return the weights of the three corners at a point. They sum to 1, and outside the triangle some are negative."""
    return 1.0 - x - 0.5 * y, x - 0.5 * y, y


def mix_states(states: Sequence[State], base: State, weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted sum of states. A parameter that a state lacks is taken from `base`."""
    names = sorted({name for state in states for name in state})
    mixture = {}
    for n in names:
        first, *others = (w * s.get(n, base[n]) for w, s in zip(weights, states, strict=True))
        mixture[n] = sum(others, first)
    return mixture


def barrier(losses: Sequence[float]) -> float:
    """Return how far the losses along a segment rise above the straight line between its ends; 0 if they do not."""
    n = len(losses) - 1
    line = [losses[0] + (losses[-1] - losses[0]) * i / n for i in range(n + 1)]
    return max(0.0, *(loss - straight for loss, straight in zip(losses, line, strict=True)))


def plan(store: Store, *, examples: float = EXAMPLES, points: int = POINTS) -> list[Unit]:
    """Return a unit for each row of the grid, and for each edge of the triangle, in every place.

    LoRA is at (0, 0), RandLoRA at (1, 0) and full fine-tuning at (0.5, 1). LoRA and RandLoRA have the largest budget at
    which both are kept. Raises StoreError if there is no such budget, or if full fine-tuning is not kept.
    """
    trials = kept_trials(store, need_full=True)
    facts, units = sweep_facts(store), []
    for full in (k for k in trials if k.row["method"] == "full"):
        corners = _corners(trials, full)
        if corners is not None:
            parts: list[Row] = [{"line": i} for i in range(points)]
            parts += [{"edge": list(edge)} for edge in combinations(range(3), 2)]
            settings = {"examples": examples, "points": points}
            units += [Unit("landscape", tuple(k.brief for k in corners), settings | part, facts) for part in parts]
    if not units:
        kept_names = ", ".join(sorted({f"{k.row['method']} {k.row['reference'] or ''}".strip() for k in trials}))
        raise StoreError(
            "the loss plane goes through LoRA, RandLoRA and full fine-tuning, and there is no budget at which the two "
            f"former are both kept; kept: {kept_names}"
        )
    return units


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return the losses on one row of the grid or one edge of the triangle, for training and validation rows.

    Arguments as in `analyze.compute`.
    """
    bench = Bench(unit.facts, unit.trials[-1], cache)
    states = [bench.state(Kept.of(t, folder)) for t in unit.trials]
    base, settings = bench.base(), unit.settings
    points: int = settings["points"]
    edge: list[int] | None = settings.get("edge")
    if edge is None:
        across, up = ticks(points)
        where = [(x, up[settings["line"]]) for x in across]
    else:
        (ax, ay), (bx, by) = (list(CORNERS.values())[i] for i in edge)
        shares = [i / (points - 1) for i in range(points)]
        where = [(ax + (bx - ax) * t, ay + (by - ay) * t) for t in shares]
    about = unit.place | {"reference": unit.trials[0]["reference"], "points": points}
    about |= {f"corner_{i}": t["trial_id"] for i, t in enumerate(unit.trials)}
    about |= {"kind": "plane"} if edge is None else {"kind": "edge", "a": edge[0], "b": edge[1]}
    loss_rows: list[Row] = []
    for which in SPLITS:
        examples = bench.examples((which,), settings["examples"])
        if len(examples):
            losses = [bench.loss(mix_states(states, base, barycentric(x, y)), examples) for x, y in where]
            height = None if edge is None or not all(map(math.isfinite, losses)) else barrier(losses)
            for i, ((x, y), value) in enumerate(zip(where, losses, strict=True)):
                point: Row = {
                    "split": which,
                    "x": x,
                    "y": y,
                    "loss": value,
                    "barrier": height,
                    "examples": len(examples),
                }
                loss_rows.append(about | point | ({} if edge is None else {"t": i / (points - 1)}))
    return loss_rows


def _corners(trials: Sequence[Kept], full: Kept) -> tuple[Kept, Kept, Kept] | None:
    kept_here = {(k.row["method"], k.row["reference"]): k for k in trials if k.place == full.place and not k.full}
    shared_budgets = [r for m, r in kept_here if m == "lora" and ("randlora", r) in kept_here]
    if not shared_budgets:
        return None
    best = max(shared_budgets, key=lambda r: kept_here["lora", r].row["budget"] or 0)
    return kept_here["lora", best], kept_here["randlora", best], full
