"""Fits, crossings and what is read off them: known answers, and silence where the data do not allow one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.findings.fits.isotonic import NO_INTERVAL, Curve, area, band, crossing, isotonic, needed, seed_areas
from analysis.verdict.inference import mean_interval

X = np.array([1e3, 4e3, 1.6e4, 6.4e4, 2.56e5])


def curve(mean: np.ndarray, noise: float = 0.0, seeds: int = 4, seed: int = 0) -> Curve:
    rng = np.random.default_rng(seed)
    return Curve(X, mean[:, None] + rng.normal(0, noise, (len(X), seeds)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=5))
def test_isotonic_never_falls_and_keeps_the_mean(values: list[float]) -> None:
    x, y = X[: len(values)], np.array(values)
    level = isotonic(x, y, x)
    assert (np.diff(level) >= -1e-12).all()
    assert level.mean() == pytest.approx(y.mean(), abs=1e-9)


def test_crossing_of_two_lines_is_where_they_meet() -> None:
    u = np.log(X)
    flat, steep = np.full(len(X), 0.6), 0.6 + 0.02 * (u - math.log(2e4))
    found = crossing(curve(steep), curve(flat))
    assert found.value == pytest.approx(2e4, rel=1e-6)
    assert found.low is found.high is found.share is None and found.note == NO_INTERVAL  # never a zero width
    assert band(curve(steep), X) is None


def test_the_band_encloses_the_fit_and_does_not_fall() -> None:
    one = curve(np.array([0.5, 0.6, 0.58, 0.7, 0.71]), noise=0.01, seeds=3)
    low, high = band(one, X) or (X, X)
    middle = isotonic(X, one.mean, X)
    assert (low < middle).all() and (middle < high).all() and (np.diff([low, high]) >= 0).all()


def test_crossing_says_so_where_there_is_none() -> None:
    above, below = curve(np.linspace(0.7, 0.8, 5)), curve(np.linspace(0.6, 0.7, 5))
    found = crossing(above, below)
    assert found.value is None
    assert found.note == "no crossing in range: above throughout"
    apart = Curve(X * 1e4, above.scores)
    assert crossing(apart, below).note == "no common range"
    with pytest.raises(ValueError, match="paired by seed"):
        crossing(above, curve(below.mean, seeds=3))


def test_one_seed_has_no_interval() -> None:
    u = np.log(X)
    steep, flat = 0.6 + 0.02 * (u - math.log(2e4)), np.full(len(X), 0.6)
    found = crossing(curve(steep, seeds=1), curve(flat, seeds=1))
    assert found.value is not None and found.low is None and found.share is None
    assert band(curve(steep, seeds=1), X) is None


def test_budget_needed_and_area() -> None:
    one = curve(np.array([0.5, 0.6, 0.7, 0.8, 0.9]))
    assert needed(one, 0.65).value == pytest.approx(8e3, rel=1e-6)  # half-way in log x
    assert needed(one, 0.95).note == "not reached in range"
    assert needed(one, 0.4).note == "reached at the smallest x already"
    assert area(one, X[0], X[-1]).value == pytest.approx(0.7)
    assert area(one, 10.0, X[-1]).value is None


def test_the_least_budget_of_a_plateau_at_the_target() -> None:
    for levels, place in (([0.5, 0.7, 0.7], 10.0), ([0.5, 0.7, 0.7, 0.8], 10.0), ([0.5, 0.9, 0.9], 10**0.5)):
        flat = Curve(np.array([10.0**k for k in range(len(levels))]), np.array([levels]).T)
        assert needed(flat, 0.7).value == pytest.approx(place)


def test_an_area_has_the_t_interval_of_the_seeds_areas() -> None:
    one = curve(np.linspace(0.5, 0.7, 5), noise=0.01, seeds=3)
    found, areas = area(one, X[0], X[-1]), seed_areas(one, X[0], X[-1])
    assert areas is not None and len(areas) == 3
    wanted = mean_interval(areas)
    assert (found.value, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))


def test_a_noisy_target_leaves_the_range_open() -> None:
    one = curve(np.array([0.5, 0.6, 0.7, 0.74, 0.75]), noise=0.02, seeds=3, seed=1)
    found = needed(one, float(one.mean[-1]) - 1e-4)
    assert found.high is None and "above" in found.note


def test_curve_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        Curve(np.array([1.0, 1.0, 2.0]), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="needs x"):
        Curve(X, np.zeros((3, 2)))
