"""No more trials are begun than the lanes take: an adaptive search would ask before it was told. None has a process."""

from __future__ import annotations

import contextlib
import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil

from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from tests.fakes import TRIAL, fake_plan
from tests.sweeps.support import PAIR, go


def test_trials_begun_and_not_over(tmp_path: Path, pool: Pool) -> None:
    assert go(fake_plan(tmp_path / "r", PAIR), pool).finished == 16
    lines = (tmp_path / "r" / "journal.jsonl").read_text().splitlines()
    steps = [{"ask": 1, "finish": -1}.get(json.loads(line)["ev"], 0) for line in lines]
    assert sum(steps) == 0
    assert max(accumulate(steps)) <= pool.trials + 1  # Tune asks one ahead


class Titles:
    """A display that notes what Ray's processes call themselves while trials run."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def start(self, state: Any) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self, state: Any) -> None: ...

    def update(self, state: Any) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # children come and go
                self.seen.add(process.cmdline()[0].partition(".")[0])


def test_a_tune_trial_has_no_process(tmp_path: Path, pool: Pool) -> None:
    titles = Titles()
    assert run(fake_plan(tmp_path / "r", PAIR), trial=TRIAL, progress=titles, backend=using(pool)).finished == 16
    assert {"ray::BrokerActor", "ray::RayTrainWorker"} <= titles.seen
    assert not [title for title in titles.seen if "Trainable" in title or "Proxy" in title]
