"""Decides by a pruning rule whether a trial is stopped early. It compares only trials of one cell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

_REDUCTION = 3  # ASHA keeps one trial in three at each rung (Li et al. 2020, arXiv 1810.05934)
_MEDIAN_PEERS = 3


def should_stop(rule: str, epoch: int, curve: Mapping[int, float], peers: Sequence[Mapping[int, float]]) -> bool:
    """Return whether a TUNE trial is stopped after an epoch, compared with the other trials of its cell.

    Args:
        rule: "none", "asha" (at epochs 1, 3, 9, ... only the best third so far goes on) or "median" (the best score so
            far must reach the median of the peers' running means, from epoch 2 and three peers on).
        epoch: number of epochs trained, from 1.
        curve: this trial's validation score by epoch.
        peers: the same for the cell's other trials, which have finished, were stopped or still run.
    """
    if rule == "asha":
        rung = 1
        while rung < epoch:
            rung *= _REDUCTION
        others = [peer[epoch] for peer in peers if epoch in peer]
        if rung != epoch or not others:
            return False
        ranked = sorted([*others, curve[epoch]], reverse=True)
        return curve[epoch] < ranked[math.ceil(len(ranked) / _REDUCTION) - 1]
    if rule == "median":
        means = [statistics.fmean(v for e, v in peer.items() if e <= epoch) for peer in peers if epoch in peer]
        if epoch < 2 or len(means) < _MEDIAN_PEERS:
            return False
        return max(v for e, v in curve.items() if e <= epoch) < statistics.median(means)
    return False
