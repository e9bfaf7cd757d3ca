"""Fake sweeps that nothing disturbs, each run once a session: what sweeps that something happens to must equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps.lanes.pool import Pool
from tests.fakes import FakeCell, fake_plan
from tests.sweeps.support import Undisturbed, go, without_faults


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Undisturbed:
    """Gives the results folder of a fake sweep of some cells and sections; tests only read it."""
    made: dict[str, Path] = {}

    def results(cells: tuple[FakeCell, ...] | None = None, **sections: Any) -> Path:
        plain = None if cells is None else tuple(without_faults(cell) for cell in cells)
        key = repr((plain, sections))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("undisturbed") / "r"
            assert go(fake_plan(made[key], plain, **sections), pool).complete
        return made[key]

    return results
