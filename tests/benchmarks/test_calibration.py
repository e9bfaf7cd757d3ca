"""The simulation of a method against itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.calibration import CURVATURES, REGIMES, Protocol, between_table, proportion_interval, simulate, table


def test_proportion_interval_known_numbers() -> None:
    assert proportion_interval(1, 20) == pytest.approx((0.001265, 0.248733), abs=1e-5)


def test_the_default_protocol_keeps_one_table_of_twenty() -> None:
    found = simulate(Protocol(), tables=300)
    assert found.interval[0] <= 0.05 and found.share <= 0.06
    assert found.given_rates > found.any_found  # what taking the rates for given gets wrong
    assert 0.0 < found.change <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("budgets", [1, 6])
@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("regime", REGIMES)
def test_one_table_of_twenty_at_most_has_a_false_difference(regime: str, seeds: int, budgets: int) -> None:
    protocol = replace(REGIMES[regime], seeds=seeds, budgets=budgets)
    assert simulate(protocol, tables=2400 // budgets).interval[0] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.5, 1.0])
def test_luck_that_budgets_share_is_seen(shared: float) -> None:
    """Choices of a method's budgets then go wrong together; were they taken for independent, it would be 6 in 100."""
    found = simulate(Protocol(shared=shared, seeds=10), tables=600)
    assert found.share <= 0.05


@pytest.mark.slow
def test_data_sets_are_kept_too() -> None:
    assert simulate(Protocol(datasets=8, budgets=4, seeds=3), tables=400).interval[0] <= 0.05


def test_a_planted_difference_is_found() -> None:
    found = simulate(Protocol(advantage=0.02), tables=100)
    assert found.overall > 0.9 and found.cells > 0.6
    assert simulate(Protocol(fall=0.04), tables=100).change > 0.9 > 0.1 > found.change
    assert simulate(Protocol(advantage=0.02), tables=50) == simulate(Protocol(advantage=0.02), tables=50)


def test_the_table_has_a_line_for_each() -> None:
    lines = list(table({"steep": Protocol(curvature=0.2, rates=3)}, rows=16))
    assert len(lines) == 2 + 3 and all(line.count("|") == 18 for line in lines)


def test_the_table_of_rates_between_the_grids_has_a_line_for_each() -> None:
    lines = list(between_table(tables=4, steeper=(20.0,)))
    assert [line.split("|")[1:3] for line in lines[2:]] == [[f" {c} ", " 20 times as steep "] for c in CURVATURES]
    assert {line.count("|") for line in lines} == {18}


def test_too_little_to_simulate_is_refused() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        simulate(replace(Protocol(), seeds=1))
