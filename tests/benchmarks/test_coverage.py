"""Intervals hold the truth as often as they say."""

from __future__ import annotations

import pytest
from scipy import stats

from benchmarks.coverage import KINDS, covered

QUICK = {kind: 60 if kind in ("crossing", "budget needed") else 400 for kind in KINDS}
"""Tables to simulate; draws of isotonic fits take their time."""


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("kind", sorted(set(QUICK) - {"crossing"}))
def test_intervals_cover(kind: str, seeds: int) -> None:
    hit, count = covered(kind, seeds, QUICK[kind] if seeds == 3 else QUICK[kind] // 2)
    assert hit >= stats.binom.ppf(0.001, count, 0.94), f"{hit} of {count}"


def test_a_crossing_is_where_its_interval_says() -> None:
    hit, count = covered("crossing", 3, 30)
    assert hit >= stats.binom.ppf(0.001, count, 0.94), f"{hit} of {count}"
