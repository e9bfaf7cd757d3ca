"""Proposes the next point of a cell: from a grid, from a sampler, past the edge of the range, or by a local fit.

A proposal is a function of the search seed, the cell, the slot and the cell's known trials. So a search that is rebuilt
from the journal goes on as if it had never stopped. It never repeats a point.
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
from sweeps.spec.space import Dimension, Extra, Point, Space, round_to_six_digits

_RETRIES = 16


def check_sampler(name: str, spaces: Sequence[tuple[str, Space, int]] = ()) -> None:
    """Check that a sampler can search the spaces of the cells.

    Args:
        name: `search.sampler`.
        spaces: label, space and number of points of every tuned cell.

    Raises:
        SpecError: the sampler is "cmaes" and fewer than two ordered hyperparameters are searched, or its package is
            missing; the lists of a grid have more combinations than there are points; or a range has no more values of
            six digits than there are points.
    """
    for label, space, points in spaces:
        for d in (Dimension("lr", space.low, space.high), *space.dimensions):
            if (count := _values_of(d)) <= points:  # a grid takes its values in pairs, so it may look for one more
                field = "search.lr" if d.name == "lr" else f"search.space.{d.name}"
                rule = f"too narrow for {label}: it has {count} values of six digits, and the allowance leaves {points}"
                remedy = (
                    "{ decades = 3 }, or a wider range in [methods.NAME] lr"
                    if d.name == "lr"
                    else "a wider range, or a list of one value"
                )
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
                raise SpecError(
                    [Problem("search.sampler", name, rule, "qmc, or a larger search.trials or search.allowance")]
                )


def _values_of(d: Dimension) -> float:
    """Return how many values of six digits a range has, at least; infinity for lists and whole numbers."""
    if d.values or d.integer or d.low is None or d.high is None:
        return math.inf
    step = 10.0 ** (math.floor(math.log10(max(abs(d.low), abs(d.high)))) - 5)
    return math.floor((d.high - d.low) / step) + 1


def ask_seed(search_seed: int, cell_id: str, slot: int, retry: int = 0) -> int:
    """Return the seed of one proposal: 31 bits of SHA-256 over (search seed, cell, slot, retry)."""
    digest = hashlib.sha256(f"{search_seed}|{cell_id}|{slot}|{retry}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def propose(sampler: str, search_seed: int, cell_id: str, slot: int, space: Space, tried: Sequence[Tried]) -> Point:
    """Return the point that a sampler proposes for a slot. It is never one that the cell has tried.

    Args:
        sampler: "grid" (`grids.nested`), "qmc" (scrambled Sobol points), "random", "tpe", "gp" or "cmaes" (Optuna's
            samplers).
        search_seed: the sweep's `search.seed`.
        cell_id: the cell.
        slot: position among the sampler's points, from 0.
        space: the searched space.
        tried: the cell's points so far. "grid", "qmc" and "random" use them only to avoid repeats.

    Returns:
        A point of the space. Its numbers are rounded to 6 significant digits, so that ids do not depend on the last
        bit.
    """
    tried_points = {t.point for t in tried}
    if sampler == "grid":
        return next(point for point in itertools.islice(nested(space), slot, None) if point not in tried_points)
    for retry in range(_RETRIES):
        seed = ask_seed(search_seed, cell_id, slot, retry)
        if sampler == "qmc":  # a cell has one sequence, so asking again would give the same point
            proposed = sobol(space, ask_seed(search_seed, cell_id, 0), slot)
        else:
            proposed = ask(sampler, space, seed, tried)
        point = Point(min(max(round_to_six_digits(proposed.lr), space.low), space.high), proposed.extra)
        if point not in tried_points:
            return point
        if sampler == "qmc":
            break
    return Point(_widest_gap(space, tried_points, point.extra), point.extra)


def beyond(space: Space, tried: Sequence[Tried], best: Point, edge: str) -> Point:
    """Return the best point with a learning rate one step past the edge of the tried rates.

    A step is the mean distance of neighbouring rates inside the range, on the log scale.

    Args:
        space: the searched space.
        tried: the cell's points so far.
        best: the best point.
        edge: "high" or "low": the edge at which the best rate is.
    """
    rates = [t.lr for t in tried]
    low, high = round_to_six_digits(space.low), round_to_six_digits(space.high)  # as tried rates are
    inside = {lr for lr in rates if low <= lr <= high}
    step = float((space.high / space.low) ** (1 / max(1, len(inside) - 1)))
    return Point(round_to_six_digits(max(rates) * step if edge == "high" else min(rates) / step), best.extra)


def refine(space: Space, tried: Sequence[Tried], best: Point) -> Point:
    """Return the point that a local fit around the best one proposes (`refining.next_log_rate`).

    A rate that failed or was stopped early counts as the worst score that finished, so that it bounds the fit.
    """
    import numpy as np

    worst = min(t.score for t in tried if t.score is not None)
    scores = {t.lr: worst if t.score is None else t.score for t in tried}
    rates = sorted(scores)
    log_rates, values = np.log10(rates), np.array([scores[lr] for lr in rates])
    lr = round_to_six_digits(10.0 ** float(next_log_rate(log_rates, values, np.array(rates.index(best.lr)))))
    tried_points = {t.point for t in tried}
    return Point(
        lr if Point(lr, best.extra) not in tried_points else _widest_gap(space, tried_points, best.extra), best.extra
    )


def _widest_gap(space: Space, taken: set[Point], extra: Extra) -> float:
    """Return the middle of the widest gap between tried rates, on the log scale.

    Only points whose other values are `extra` count as tried.
    """
    rates = {point.lr for point in taken if point.extra == extra}
    marks = sorted({space.low, space.high, *(lr for lr in rates if space.low <= lr <= space.high)})
    for left, right in sorted(itertools.pairwise(marks), key=lambda ends: ends[0] / ends[1]):
        middle = round_to_six_digits(math.sqrt(left * right))
        if middle not in rates:
            return middle
    return round_to_six_digits(space.low)  # low == high: the range has only one rate
