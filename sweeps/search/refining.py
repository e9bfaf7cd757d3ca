"""Computes the next learning rate of a local search around the best one: the vertex of a parabola, or a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Real = NDArray[np.float64]

NEAR = 0.2
"""A vertex is not tried if its distance from the best rate is less than this fraction of the wider gap beside it."""
GOLDEN = 0.382
"""The next rate is then in the wider gap, at this fraction of it: a golden section, as in Brent's search."""


def next_log_rate(log_rates: Real, scores: Real, best: NDArray[np.int64]) -> Real:
    """Return the log10 of the rate to try next, of shape (...).

    The best rate and its two neighbours give a parabola, whose vertex is tried. A vertex close to the best rate would
    try almost the same rate again, so the wider of the two gaps is tried instead. If the best rate is the lowest or the
    highest, the next one is as far outside as its neighbour is inside.

    Args:
        log_rates: (..., K) log10 of the tried rates, increasing.
        scores: (..., K) their scores.
        best: (...) index of the best rate.
    """
    import numpy as np

    last = log_rates.shape[-1] - 1
    at = best[..., None]
    (left, below), (centre, top), (right, above) = (
        (np.take_along_axis(log_rates, i, -1)[..., 0], np.take_along_axis(scores, i, -1)[..., 0])
        for i in (np.maximum(at - 1, 0), at, np.minimum(at + 1, last))
    )
    lower, upper = centre - left, right - centre
    with np.errstate(divide="ignore", invalid="ignore"):
        rise, fall = (top - below) / lower, (top - above) / upper  # slopes of the parabola in the middle of both gaps
        vertex = centre + (upper * rise - lower * fall) / (2 * (rise + fall))
    wider = np.maximum(lower, upper)
    near = ~(np.abs(vertex - centre) >= NEAR * wider)  # also true if all three scores are equal
    inside = np.where(near, centre + np.where(upper >= lower, GOLDEN, -GOLDEN) * wider, vertex)
    return np.asarray(np.where(best == 0, centre - upper, np.where(best == last, centre + lower, inside)), dtype=float)
