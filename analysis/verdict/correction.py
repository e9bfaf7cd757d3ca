"""Step 7: Holm's correction for several tests, with the level at which each was decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.verdict.inference import LEVEL, Array


@dataclass(frozen=True)
class Steps:
    """What Holm's step-down procedure decides about one hypothesis.

    Attributes:
        adjusted: p value that is at most `1 - LEVEL` exactly if the hypothesis is rejected; None if it cannot be
            tested.
        level: level at which the hypothesis was decided: that of its own step if it was rejected, else that of the last
            step. An interval of this level excludes the tested value exactly if the hypothesis was rejected.
        first: level of the first step.
    """

    adjusted: float | None
    level: float
    first: float


def holm_steps(
    pvalues: Sequence[float | None], weights: Sequence[float] | None = None, level: float = 1 - LEVEL
) -> list[Steps]:
    """Return what Holm's step-down procedure (Scand. J. Statist. 6, 1979) decides about each hypothesis.

    The chance of any false rejection is at most `level`. A rejected hypothesis leaves its share of the level to the
    others.

    Args:
        pvalues: p value of each hypothesis. None cannot be tested, and takes no share of the level.
        weights: share of the level that each hypothesis gets; default: equal shares.
        level: level of the whole family; may be 0.
    """
    shares = [1.0] * len(pvalues) if weights is None else list(weights)
    tested = [i for i, p in enumerate(pvalues) if p is not None]
    p = np.array([pvalues[i] for i in tested], dtype=float)
    w = np.array([shares[i] for i in tested], dtype=float)
    decisions = [Steps(None, level, level)] * len(pvalues)
    if not tested:
        return decisions
    cost = (1 - LEVEL) / level if level else math.inf
    adjusted = np.minimum(step_down(np.minimum(cost * p, 1.0) if level else np.ones_like(p), w), 1.0)
    last_weight = w.sum() - w[adjusted <= 1 - LEVEL].sum()
    for k, i in enumerate(tested):
        if adjusted[k] <= 1 - LEVEL:  # hypotheses with a smaller ratio, or the same and before it, were rejected first
            ratio = p / w
            gone = (ratio < ratio[k]) | ((ratio == ratio[k]) & (np.arange(len(p)) < k))
            remaining = w.sum() - w[gone].sum()
        else:
            remaining = last_weight
        decisions[i] = Steps(float(adjusted[k]), float(level * w[k] / remaining), float(level * w[k] / w.sum()))
    return decisions


def step_down(p: Array, weights: ArrayLike = 1.0) -> Array:
    """Return Holm's adjusted p values along the last axis, in the shape of `p`; `weights` as in `holm_steps`."""
    shares = np.broadcast_to(np.asarray(weights, dtype=float), p.shape)
    order = np.argsort(p / shares, axis=-1, kind="stable")
    sorted_shares = np.take_along_axis(shares, order, axis=-1)
    remaining = np.cumsum(sorted_shares[..., ::-1], axis=-1)[..., ::-1]
    steps = np.take_along_axis(p, order, axis=-1) * remaining / sorted_shares
    raised = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    return np.take_along_axis(raised, np.argsort(order, axis=-1), axis=-1)
