"""A worker's attempt at several orders that were packed."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from sweeps.backends import inline, trials
from sweeps.backends.backend import Finished, Order
from sweeps.spec.resources import ResourceSection
from trainables.config import TrialConfig

CONFIG = TrialConfig(
    stage="TUNE",
    cell_id="c",
    model="embedded:tiny-clip",
    adapt="vision",
    targets=("attn.in_proj_weight",),
    dataset="embedded:fashion-mnist",
    train_size=0.1,
    method="lora",
    lr=1e-3,
    data_seed=0,
    init_seed=0,
    basis_seed=0,
).model_dump(mode="json")
"""A trial's configuration, which nothing here trains."""


def ends_badly(configs: list[TrialConfig], **given: Any) -> Generator[dict[int, dict[str, Any]], Any, None]:
    """Finish all trials in one step, and fail when the pack is closed."""
    try:
        report = {"done": True, "epoch": 1, "train_loss": 0.1, "val_score": 0.5}
        yield {place: {**report, "result": {}} for place in range(len(configs))}
    finally:
        raise RuntimeError("the clean-up failed")


def test_an_error_after_the_last_outcome_takes_no_outcome_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "load_trial", lambda name: ends_badly)
    backend = inline.InlineBackend(ResourceSection(), 2, None)
    folder = tmp_path / "results" / "trials"
    folder.mkdir(parents=True)
    backend.start([Order(name, "t", "t", CONFIG, folder / name, None, False) for name in "ab"])
    events = backend.events(0.1)
    backend.close()
    assert [event.trial_id for event in events if isinstance(event, Finished)] == ["a", "b"]
