"""The next learning rate of a local search for the best one: a parabola's vertex, or a step where that says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Real = NDArray[np.float64]

NEAR = 0.2
"""A vertex nearer to the best rate than this share of the wider gap beside it says too little to try it."""
GOLDEN = 0.382
"""Then the next rate lies in the wider gap, at this share of it: a golden section, as in Brent's search."""


def next_log_rate(log_rates: Real, scores: Real, best: NDArray[np.int64]) -> Real:
    """Return the log10 rate to try next, (...).

    Between two neighbours the best rate gives a parabola, whose vertex is tried. A vertex next to the best rate itself
    would try that one again, so the wider of its two gaps is tried then. At an end of the rates the next one lies as
    far outside as the neighbour lies inside.

    Args:
        log_rates: (..., K) log10 of the rates tried, rising. scores: (..., K) theirs.
        best: (...) which rate is the best.
    """
    import numpy as np

    last = log_rates.shape[-1] - 1
    at = best[..., None]
    (left, below), (here, top), (right, above) = (
        (np.take_along_axis(log_rates, i, -1)[..., 0], np.take_along_axis(scores, i, -1)[..., 0])
        for i in (np.maximum(at - 1, 0), at, np.minimum(at + 1, last))
    )
    lower, upper = here - left, right - here
    with np.errstate(divide="ignore", invalid="ignore"):
        rise, fall = (top - below) / lower, (top - above) / upper  # the parabola's slopes at the middles of both gaps
        vertex = here + (upper * rise - lower * fall) / (2 * (rise + fall))
    wider = np.maximum(lower, upper)
    near = ~(np.abs(vertex - here) >= NEAR * wider)  # also where all three scores are equal
    inside = np.where(near, here + np.where(upper >= lower, GOLDEN, -GOLDEN) * wider, vertex)
    return np.asarray(np.where(best == 0, here - upper, np.where(best == last, here + lower, inside)), dtype=float)
