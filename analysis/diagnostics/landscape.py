"""The loss on the plane through three trained models, and the barriers between them (Figure 4b of arXiv 2502.00987).

The models sit at (0, 0), (1, 0) and (0.5, 1); a point's parameters are their barycentric combination, so the corners
are the models themselves. That includes the task's head where there is one: it is trained with each. Losses are the
task's own, of its training rows and of its validation rows.
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
from analysis.format import Row
from analysis.store.store import Store
from analysis.tables.diagnostics import CORNERS
from trainables.tasks.task import Split

EXAMPLES, POINTS = 128, 9
LEFT = -0.5
BOTTOM = -0.5
WIDTH = 2.5
"""The plane that is looked at, WIDTH a side. It is the paper's, seen from behind: the released code has RandLoRA at
(0, 0), LoRA at (1, 0) and x in [-1, 1.5), which is (-0.5, 2] here; y is in [-0.5, 2)."""
SPLITS: tuple[Split, ...] = ("train", "val")


def ticks(points: int) -> tuple[list[float], list[float]]:
    """The grid's positions across and up."""
    step = WIDTH / points
    across = [round(LEFT + step * (i + 1), 12) for i in range(points)]
    return across, [round(BOTTOM + step * i, 12) for i in range(points)]


def barycentric(x: float, y: float) -> tuple[float, float, float]:
    """Weights of the three corners at a point; they sum to 1 and are negative outside the triangle."""
    return 1.0 - x - 0.5 * y, x - 0.5 * y, y


def mixed(states: Sequence[State], base: State, weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of states; a parameter that a state lacks is the base's there."""
    names = sorted({name for state in states for name in state})
    mixture = {}
    for n in names:
        first, *rest = (w * s.get(n, base[n]) for w, s in zip(weights, states, strict=True))
        mixture[n] = sum(rest, first)
    return mixture


def barrier(losses: Sequence[float]) -> float:
    """Greatest height of the loss along a segment over the straight line between its ends; 0 where there is none."""
    n = len(losses) - 1
    line = [losses[0] + (losses[-1] - losses[0]) * i / n for i in range(n + 1)]
    return max(0.0, *(found - wanted for found, wanted in zip(losses, line, strict=True)))


def plan(store: Store, *, examples: float = EXAMPLES, points: int = POINTS) -> list[Unit]:
    """Units of every place: a row of the grid each, and an edge of the triangle each.

    LoRA is at (0, 0), RandLoRA at (1, 0), full fine-tuning at (0.5, 1); the first two of the largest budget that both
    keep. Raises StoreError: nothing kept, no full fine-tuning, or no budget at which LoRA and RandLoRA are both kept.
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
        there = ", ".join(sorted({f"{k.row['method']} {k.row['reference'] or ''}".strip() for k in trials}))
        raise StoreError(
            "the loss plane goes through LoRA, RandLoRA and full fine-tuning, and there is no budget at which the two "
            f"former are both kept; kept: {there}"
        )
    return units


def rows(folder: Path, unit: Unit, warm: dict[str, Any]) -> list[Row]:
    """Losses along one row of the grid, or along one edge of the triangle; on training and validation rows.

    Arguments: `analyze.compute`.
    """
    bench = Bench(unit.facts, unit.trials[-1], warm)
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
    found: list[Row] = []
    for which in SPLITS:
        examples = bench.examples((which,), settings["examples"])
        if len(examples):
            losses = [bench.loss(mixed(states, base, barycentric(x, y)), examples) for x, y in where]
            height = None if edge is None or not all(map(math.isfinite, losses)) else barrier(losses)
            for i, ((x, y), value) in enumerate(zip(where, losses, strict=True)):
                one: Row = {"split": which, "x": x, "y": y, "loss": value, "barrier": height, "examples": len(examples)}
                found.append(about | one | ({} if edge is None else {"t": i / (points - 1)}))
    return found


def _corners(trials: Sequence[Kept], full: Kept) -> tuple[Kept, Kept, Kept] | None:
    mine = {(k.row["method"], k.row["reference"]): k for k in trials if k.place == full.place and not k.full}
    both = [r for m, r in mine if m == "lora" and ("randlora", r) in mine]
    if not both:
        return None
    best = max(both, key=lambda r: mine["lora", r].row["budget"] or 0)
    return mine["lora", best], mine["randlora", best], full
