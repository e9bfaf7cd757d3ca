"""The simulation of a method against itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.calibration import Protocol, simulate


def test_given_equal_choices_the_family_keeps_its_rate() -> None:
    flat = simulate(
        Protocol(curvature=0.0, widened=False), tables=400
    )  # every rate is as good: the choice cannot matter
    assert flat.low <= 0.05
    assert flat.share <= 0.07


def test_the_default_protocol_keeps_one_table_of_twenty_with_the_choice_included() -> None:
    found = simulate(Protocol(), tables=200)
    assert found.low <= 0.05 and found.share <= 0.06
    assert simulate(Protocol(widened=False), tables=200).share > found.share


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(),
        Protocol(seeds=3),
        Protocol(rates=4, decades=1.2, rerun_seeds=1),  # the quickstart's
        Protocol(curvature=0.2),
        Protocol(cliff=5.0),
    ],
    ids=["default", "3 seeds", "6 trials", "steep", "cliff"],
)
def test_with_the_choice_included_one_table_of_twenty_at_most_has_a_false_difference(protocol: Protocol) -> None:
    found = simulate(protocol, tables=400)
    assert found.low <= 0.05 and found.share <= 0.06
    assert simulate(replace(protocol, widened=False), tables=400).share > found.share


def test_picking_a_rate_on_one_seed_costs_more_than_re_running_the_best() -> None:
    one = simulate(Protocol(rerun_rates=1, rerun_seeds=0), tables=400)
    again = simulate(Protocol(rerun_rates=3, rerun_seeds=4, widened=False), tables=400)
    assert one.share > 0.1
    assert again.share < one.share / 2


def test_a_planted_difference_is_found() -> None:
    assert simulate(Protocol(advantage=0.02, widened=False), tables=200).cells_found > 0.8
    assert simulate(Protocol(advantage=0.02), tables=100).cells_found > 0.6
    assert simulate(Protocol(advantage=0.02), tables=50) == simulate(Protocol(advantage=0.02), tables=50)


def test_too_little_to_simulate_is_refused() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        simulate(replace(Protocol(), seeds=1))
