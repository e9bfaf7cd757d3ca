"""The points of one study.

Nothing here lives across restarts: a proposal is a function of the search seed, the cell, the slot and the trials of
the cell that are known, so a search rebuilt from the journal goes on as if it had never stopped, and never repeats a
point.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence

from sweeps.errors import Problem, SpecError
from sweeps.search.grids import nested
from sweeps.search.refining import next_log_rate
from sweeps.search.samplers import Tried, ask, has_cmaes, sobol
from sweeps.spec.space import Dimension, Extra, Point, Space

_RETRIES = 16


def check_sampler(name: str, spaces: Sequence[tuple[str, Space, int]] = ()) -> None:
    """Refuse a sampler that can't search what the cells search.

    Args:
        name: `search.sampler`.
        spaces: label, space and number of points of every cell that is tuned.

    Raises:
        SpecError: "cmaes" over fewer than two ordered hyperparameters, or without its package; a grid whose lists
            alone have more combinations than there are points; a range with fewer values of six digits than that.
    """
    for label, space, points in spaces:
        for d in (Dimension("lr", space.low, space.high), *space.dimensions):
            if (count := _values_of(d)) < points:
                field = "search.lr" if d.name == "lr" else f"search.space.{d.name}"
                rule = f"too narrow for {label}: it has {count} values of six digits, and the allowance leaves {points}"
                remedy = "{ decades = 3 }" if d.name == "lr" else "a wider range, or a list of one value"
                raise SpecError([Problem(field, f"{d.low!r} to {d.high!r}", f"{rule} points", remedy)])
    if name == "cmaes":
        narrow = [label for label, space, _ in spaces if space.ordered < 2]
        if narrow or not spaces:
            where = f" in {narrow[0]}" if narrow else ""
            rule = f"CMA-ES needs two or more ordered hyperparameters, and{where} the learning rate is the only one"
            raise SpecError([Problem("search.sampler", name, rule, "tpe, or a [search.space] with a range")])
        if not has_cmaes():
            rule = "needs the package cmaes: pip install 'randlora-sweeps[cmaes]'"
            raise SpecError([Problem("search.sampler", name, rule, "tpe")])
    if name == "grid":
        for label, space, points in spaces:
            lists = math.prod(len(d.values) for d in space.dimensions if d.values)
            if lists > points:
                rule = f"the lists of {label} make {lists} combinations, and the allowance leaves {points} points"
                raise SpecError([Problem("search.sampler", name, rule, "qmc, or a larger search.trials")])


def _values_of(d: Dimension) -> float:
    """How many values of six digits a range has, at least; lists and whole numbers may have few."""
    if d.values or d.integer or d.low is None or d.high is None:
        return math.inf
    step = 10.0 ** (math.floor(math.log10(max(abs(d.low), abs(d.high)))) - 5)
    return math.floor((d.high - d.low) / step) + 1


def ask_seed(search_seed: int, cell_id: str, slot: int, retry: int = 0) -> int:
    """Seed of one ask, 31 bits of SHA-256 over (search seed, cell, slot, retry)."""
    digest = hashlib.sha256(f"{search_seed}|{cell_id}|{slot}|{retry}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def propose(sampler: str, search_seed: int, cell_id: str, slot: int, space: Space, tried: Sequence[Tried]) -> Point:
    """The point of a slot, never one that the cell has tried already.

    Args:
        sampler: "grid" (`grids.nested`), "qmc" (scrambled Sobol points), "random", "tpe", "gp" or "cmaes" (Optuna's
            samplers).
        search_seed: the sweep's `search.seed`.
        cell_id: the study.
        slot: position among the sampler's points, from 0.
        space: what is searched.
        tried: the cell's points so far. The fixed samplers read them to avoid repeats only.

    Returns:
        A point of the space, its numbers rounded to 6 significant digits (so that ids do not hang on a last bit).
    """
    taken = {t.point for t in tried}
    if sampler == "grid":
        return next(point for point in itertools.islice(nested(space), slot, None) if point not in taken)
    for retry in range(_RETRIES):
        seed = ask_seed(search_seed, cell_id, slot, retry)
        if sampler == "qmc":  # one sequence a cell; a point of it that is taken has no second try
            found = sobol(space, ask_seed(search_seed, cell_id, 0), slot)
        else:
            found = ask(sampler, space, seed, tried)
        point = Point(min(max(_rounded(found.lr), space.low), space.high), found.extra)
        if point not in taken:
            return point
        if sampler == "qmc":
            break
    return Point(_widest_gap(space, taken, point.extra), point.extra)


def beyond(space: Space, tried: Sequence[Tried], best: Point, edge: str) -> Point:
    """One step past the end of the rates tried, everything else as in the best point.

    A step is as far as neighbouring rates lie apart at the density of the search: the range over its rates.
    """
    rates = [t.lr for t in tried]
    inside = {lr for lr in rates if _rounded(space.low) <= lr <= _rounded(space.high)}  # the rates tried are rounded
    step = float((space.high / space.low) ** (1 / max(1, len(inside) - 1)))
    return Point(_rounded(max(rates) * step if edge == "high" else min(rates) / step), best.extra)


def refine(space: Space, tried: Sequence[Tried], best: Point) -> Point:
    """Return the point that a local fit around the best one proposes (`refining.next_log_rate`).

    A rate that failed or was stopped early counts as no better than the worst that finished: it bounds the search.
    """
    import numpy as np

    worst = min(t.score for t in tried if t.score is not None)
    scores = {t.lr: worst if t.score is None else t.score for t in tried}
    rates = sorted(scores)
    log_rates, values = np.log10(rates), np.array([scores[lr] for lr in rates])
    lr = _rounded(10.0 ** float(next_log_rate(log_rates, values, np.array(rates.index(best.lr)))))
    taken = {t.point for t in tried}
    return Point(lr if Point(lr, best.extra) not in taken else _widest_gap(space, taken, best.extra), best.extra)


def _rounded(lr: float) -> float:
    return float(f"{lr:.6g}")


def _widest_gap(space: Space, taken: set[Point], extra: Extra) -> float:
    """Middle, on the log scale, of the widest stretch of the range without a rate tried at these other values."""
    rates = {point.lr for point in taken if point.extra == extra}
    marks = sorted({space.low, space.high, *(lr for lr in rates if space.low <= lr <= space.high)})
    for left, right in sorted(itertools.pairwise(marks), key=lambda ends: ends[0] / ends[1]):
        middle = _rounded(math.sqrt(left * right))
        if middle not in rates:
            return middle
    return _rounded(space.low)  # low == high: the range holds one rate
