"""The workers of a lane hold one base model: they map the same file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
import pytest

from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT
from trainables.models.shared import FILE, PREFIX


def mapped() -> list[set[str]]:
    """For every lane worker of this process's Ray, the base models that it maps."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # children come and go
            if "RayTrainWorker" in " ".join(process.cmdline()):
                paths = {m.path for m in process.memory_maps() if f"/{PREFIX}" in m.path}
                found.append({path for path in paths if path.endswith(FILE)})
    return found


@pytest.mark.slow
def test_lane_workers_map_one_file(tmp_path: Path, pool: Pool) -> None:
    words = ["methods={lora={}, full={lr=1e-3}}", "budgets.lora_rank=[4]", "data.train_size=['4-shot']"]
    words += [
        "train.epochs=1",
        "search.trials=2",
        "search.rerun_rates=0",
        "confirm.seeds=1",
        f'output="{tmp_path / "r"}"',
    ]
    spec = SweepSpec.load(ROOT / "examples" / "quickstart.toml", words)
    summary = run(Plan.from_spec(spec), progress=False, backend=using(pool))
    assert summary.failed == 0
    workers = [files for files in mapped() if files]
    assert len(workers) == 2
    assert workers[0] == workers[1]
    (path,) = workers[0]
    assert Path(path).is_relative_to(os.environ["SWEEPS_CACHE"])
