"""Limits and the order of cells, without Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.store.journal import read_journal
from sweeps.backends.resources import LaneShape, accelerators
from sweeps.engine.limits import Meter
from sweeps.errors import SpecError
from sweeps.progress.used import hours_and_cost
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger
from sweeps.records.sealing import Sealer
from sweeps.search.stages import SweepState
from sweeps.spec.spec import SweepSpec
from tests.fakes import FakeCell, FakeLimits, fake_plan, fake_row


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def one() -> int:
    """A worker has a trial."""
    return 1


def metered(
    tmp_path: Path, clock: Clock, each: float = 1.0, busy: Callable[[], int] = one, **limits: float
) -> tuple[Meter, SweepState]:
    plan = fake_plan(tmp_path, (FakeCell("lora"), FakeCell("vera")))
    state = SweepState(plan.feasible, plan.spec)
    return Meter(FakeLimits(**limits), state, each, 0.0, busy, clock), state


def test_accelerator_time_is_what_trials_hold(tmp_path: Path) -> None:
    clock = Clock()
    busy: Counter[str] = Counter()
    meter, state = metered(tmp_path, clock, 0.5, busy.total, max_cost=3.0, price_per_hour=2.0)
    clock.now = 3600
    meter.tick()
    assert meter.accelerator_hours == 0  # nothing ran
    for _ in range(4):
        slot = state.next_slot()
        assert slot is not None
        state.start(slot)
    clock.now += 3600
    meter.tick()
    assert meter.accelerator_hours == 0  # all of them wait, as where every machine is lost
    busy["lane0"] = 2
    clock.now += 1800
    meter.tick()
    assert meter.accelerator_hours == pytest.approx(2 * 0.5 * 0.5)
    assert meter.reached() is None
    clock.now += 3600
    meter.tick()
    assert meter.cost == pytest.approx(3.0)
    assert meter.reached() == "limits.max_cost = 3 (3 spent)"


def test_earlier_runs_count_for_accelerator_time_and_not_for_wall_time(tmp_path: Path) -> None:
    clock = Clock()
    meter, state = metered(tmp_path, clock, max_accelerator_hours=1.0, max_hours=2.0)
    slot = state.next_slot()
    assert slot is not None
    state.cells["lora-1000"].rows["x"] = fake_row(slot, seconds_total=3600.0)
    again = Meter(FakeLimits(max_accelerator_hours=1.0), state, 1.0, 0.0, one, clock)
    assert again.reached() == "limits.max_accelerator_hours = 1 (1 used)"
    assert meter.reached() is None
    clock.now = 7200
    assert meter.reached() == "limits.max_hours = 2"


def test_attempts_that_no_row_knows_count_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    meter, state = metered(tmp_path, clock)
    state.used = meter
    with Journal(tmp_path / "journal.jsonl") as journal:
        ledger = Ledger(state, journal, Sealer(tmp_path), tmp_path, "none")
        slot = state.next_slot()
        assert slot is not None
        ledger.ask(slot)
        clock.now = 3600
        meter.tick()
        ledger.finish(slot, {"status": "failed", "seconds_total": 1.0})  # its last attempt's
    again = Meter(FakeLimits(), state, 1.0, 0.0, one, clock, read_journal(journal.path).events)
    assert again.accelerator_hours == pytest.approx(1.0)


def test_every_run_counts_with_its_own_resources(tmp_path: Path) -> None:
    events: list[dict[str, object]] = [
        {"ev": "used", "used": 3600.0},  # of a version that did not say
        {"ev": "sweep", "accelerators": 0.25, "price_per_hour": 2.0},
        {"ev": "finish", "used": 7200.0},
        {"ev": "used", "used": 10800.0},
        {"ev": "sweep", "accelerators": 4.0, "price_per_hour": 2.0},
        {"ev": "used", "used": 14400.0},
    ]
    clock = Clock()
    _, state = metered(tmp_path, clock, 2.0)
    limits = FakeLimits(max_accelerator_hours=8.6, price_per_hour=2.0)
    meter = Meter(limits, state, 2.0, 0.0, one, clock, events)
    assert (meter.seconds, meter.accelerator_hours) == pytest.approx((14400, 2 + 2 * 0.25 + 4))
    clock.now = 3600
    meter.tick()
    assert (meter.accelerator_hours, meter.cost) == pytest.approx((8.5, 17))
    assert meter.reached() is None
    events += [{"ev": "sweep", "accelerators": 2.0, "price_per_hour": 2.0}, {"ev": "used", "used": meter.seconds}]
    assert hours_and_cost([], events) == pytest.approx((8.5, 17))  # as `status` has it
    assert hours_and_cost([meter.seconds + 1800], events)[0] == pytest.approx(9.5)


@pytest.mark.parametrize(
    ("shape", "each"),
    [
        (LaneShape(4, False, {"CPU": 1}), 1),
        (LaneShape(4, False, {"CPU": 1, "GPU": 0.25}), 0.25),
        (LaneShape(4, True, {"CPU": 1, "GPU": 1}), 4),
        (LaneShape(4, True, {"CPU": 1}), 4),
    ],
)
def test_accelerators_of_one_trial(shape: LaneShape, each: float) -> None:
    assert accelerators([shape]) == each


def test_a_cost_needs_a_price() -> None:
    tree = {
        "name": "x",
        "model": {"id": "embedded:tiny-clip"},
        "data": {"datasets": ["digits"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}},
        "limits": {"max_cost": 5},
    }
    with pytest.raises(SpecError, match="max_cost = 5 needs price_per_hour"):
        SweepSpec.parse(tree)
    tree["limits"] = {"max_cost": 5, "price_per_hour": 1.5}
    spec = SweepSpec.parse(tree)
    assert spec.limits.max_cost == 5
    assert "limits" not in spec.identity()
    assert "resources" not in spec.identity()
