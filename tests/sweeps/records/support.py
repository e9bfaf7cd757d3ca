"""What the engine journals for finished trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.format import finite
from sweeps.records.rows import metric_rows, prediction_row, trial_row
from sweeps.search.stages import Slot
from tests.fakes import FakeCell, FakeTrain, analytic_trial


def finish_event(seed: int, folder: Path) -> dict[str, Any]:
    """What the engine journals for one CONFIRM trial."""
    cell = FakeCell("lora")
    trial = cell.trial("CONFIRM", 1e-3, (seed, seed, seed), FakeTrain())
    slot = Slot.from_config(cell.cell_id, "CONFIRM", seed, trial.trial_id, trial.model_dump())
    events = list(analytic_trial(trial, warm={}, directory=folder / trial.trial_id))
    result = events[-1].pop("result")
    times = {"started": 1.7e9 + seed, "ended": 1.7e9 + seed + 2, "seconds_total": 2.0, "host": "here"}
    outcome = {"status": "finished", "result": result, "events": events, **times}
    return {
        "ev": "finish",
        "row": finite(trial_row("fake", cell, slot, outcome)),
        "metrics": finite(metric_rows("fake", slot, outcome)),
        "prediction": prediction_row("fake", slot, outcome),
    }


def finish_events(tmp_path: Path, count: int) -> list[dict[str, Any]]:
    for seed in range(count):
        trial = FakeCell("lora").trial("CONFIRM", 1e-3, (seed, seed, seed), FakeTrain())
        (tmp_path / "work" / trial.trial_id).mkdir(parents=True)
    return [finish_event(seed, tmp_path / "work") for seed in range(count)]
