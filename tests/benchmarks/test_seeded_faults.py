"""Every seeded fault has its place in the code, so that the benchmark still runs after the code was changed."""

from __future__ import annotations

from benchmarks.seeded_faults import FAULTS, check_places


def test_every_seeded_fault_has_its_place() -> None:
    assert len(FAULTS) >= 40
    check_places(FAULTS)
