"""Makes nested grids: the k-th point of a grid is the same for every number of points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from sweeps.spec.space import Dimension, Point, Space, Value, extra_of


def nested(space: Space) -> Iterator[Point]:
    """Yield the points of a grid, from coarse to fine. The first n points are the grid of n points.

    The points of one range are its centre, its low and high end, the quarters, then the eighths, and so on. They come
    in pairs around the centre, from the centre outwards, the lower one first. So 3, 5, 9 and 17 points are equally
    spaced. Several ranges give the product of their points, level by level. In a level, points that leave the centre
    in fewer ranges come first, and among these the ones that leave it in the rate. Each point comes with all
    combinations of the lists.
    """
    lists = [[(d.name, value) for value in d.values] for d in space.dimensions if d.values]
    ranges = [d for d in space.dimensions if not d.values]
    sources = [_values(Dimension("lr", space.low, space.high, log=True)), *map(_values, ranges)]
    axes: list[list[Value]] = [[] for _ in sources]
    for level in itertools.count():
        for axis, source in zip(axes, sources, strict=True):
            axis.extend(itertools.islice(source, 2 if level else 1))
        places = itertools.product(*(range(len(axis)) for axis in axes))
        new = [place for place in places if max((k + 1) // 2 for k in place) == level]
        for place in sorted(new, key=lambda place: (sum(k > 0 for k in place), place[::-1])):
            lr, *others = (axis[k] for axis, k in zip(axes, place, strict=True))
            named = {d.name: value for d, value in zip(ranges, others, strict=True)}
            for chosen in itertools.product(*lists):
                yield Point(float(lr), extra_of(named | dict(chosen)))


def _values(d: Dimension) -> Iterator[Value]:
    """Yield the values of a range from coarse to fine, each once. A range of whole numbers ends when all are there."""
    assert d.low is not None and d.high is not None, "lists have no values between"
    seen: set[Value] = set()
    for share in _shares():
        value = _at(d, share)
        if value not in seen:
            seen.add(value)
            yield value
        if d.integer and len(seen) > round(d.high) - round(d.low):
            return


def _shares() -> Iterator[float]:
    """Yield 1/2, 0, 1, 1/4, 3/4, 3/8, 5/8, 1/8, 7/8, and so on."""
    yield from (0.5, 0.0, 1.0)
    for depth in itertools.count(2):
        for k in range(2 ** (depth - 1) - 1, 0, -2):
            yield from (k / 2**depth, 1 - k / 2**depth)


def _at(d: Dimension, share: float) -> Value:
    """Return the value of a range at a fraction of its width (on the log scale if the range is logarithmic)."""
    if d.low is None or d.high is None:
        raise AssertionError(f"{d.name} is no range")
    low, high = (math.log(d.low), math.log(d.high)) if d.log else (d.low, d.high)
    value = low + share * (high - low)
    return d.nearest(math.exp(value) if d.log else value)
