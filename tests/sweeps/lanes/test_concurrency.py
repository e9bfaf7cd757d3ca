"""No more trials are begun than the lanes take: an adaptive search would ask before it was told."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path

from sweeps.lanes.pool import Pool
from tests.fakes import fake_plan
from tests.sweeps.support import PAIR, go


def test_trials_begun_and_not_over(tmp_path: Path, pool: Pool) -> None:
    assert go(fake_plan(tmp_path / "r", PAIR), pool).finished == 16
    lines = (tmp_path / "r" / "journal.jsonl").read_text().splitlines()
    steps = [{"ask": 1, "finish": -1}.get(json.loads(line)["ev"], 0) for line in lines]
    assert sum(steps) == 0
    assert max(accumulate(steps)) <= pool.trials + 1  # Tune asks one ahead
