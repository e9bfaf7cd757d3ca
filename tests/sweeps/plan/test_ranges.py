"""The ranges of learning rates: equally wide for every method, around the rate of its publication."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sweeps import Plan, SweepSpec
from sweeps.spec.methods import published_lr

SWEEP = {
    "name": "ranges",
    "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
    "data": {"datasets": ["embedded:fashion-mnist"]},
    "budgets": {"lora_rank": [4]},
}


def ranges(methods: dict[str, Any], search: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """The low end, the high end and the centre of the range of each method."""
    cells = Plan.from_spec(SweepSpec.parse(SWEEP | {"methods": methods, "search": search})).cells
    found = {}
    for cell in cells:
        assert cell.lr_low is not None and cell.lr_high is not None and cell.lr_centre is not None
        found[cell.method] = (cell.lr_low, cell.lr_high, cell.lr_centre)
    return found


@pytest.mark.parametrize("decades", [None, 1.0, 2.0])
def test_all_methods_have_the_same_width_around_their_published_rate(decades: float | None) -> None:
    names = ("lora", "dora", "vera", "nola", "randlora", "randlora-a", "pissa", "full")
    found = ranges({name: {} for name in names}, {} if decades is None else {"lr": {"decades": decades}})
    assert found.keys() == set(names)
    for method, (low, high, centre) in found.items():
        assert math.log10(high / low) == pytest.approx(3.0 if decades is None else decades), method
        assert math.sqrt(low * high) == pytest.approx(centre) and centre == published_lr(method)


def test_a_methods_own_range_moves_no_other() -> None:
    methods = {"lora": {"lr": 5e-3}, "vera": {"lr": {"low": 1e-3, "high": 1e-1}}, "randlora": {}}
    found = ranges(methods, {"lr": {"decades": 2.0}})
    assert found["lora"] == pytest.approx((5e-4, 5e-2, 5e-3))
    assert found["vera"] == pytest.approx((1e-3, 1e-1, 1e-2))
    rate = published_lr("randlora")
    assert rate is not None and found["randlora"] == pytest.approx((rate / 10, rate * 10, rate))
