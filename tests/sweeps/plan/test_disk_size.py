"""The bytes that `[keep]` will leave, against what trials leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps.plan.disk_size import keep_bytes
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from trainables.training.worker import ADAPTER_FOLDER, run_trial


def plan(protocol: str = "standard", **keep: Any) -> Plan:
    tree = {
        "name": "kept",
        "protocol": protocol,
        "model": {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["attn.in_proj_weight"]},
        "data": {"datasets": ["embedded:fashion-mnist-turned"], "train_size": ["1-shot"]},
        "budgets": {"lora_rank": [4]},
        "methods": {"lora": {}, "randlora": {}, "full": {}, "zero-shot": {}},
        "search": {"trials": 6},
        "confirm": {"seeds": 3},
        "train": {"epochs": 1, "global_batch_size": 16},
        "keep": keep,
    }
    return Plan.from_spec(SweepSpec.parse(tree))


def test_the_estimate_is_what_trials_leave(tmp_path: Path) -> None:
    planned = plan(adapters="all", full=True)
    warm: dict[str, Any] = {}
    for cell in planned.feasible[:3]:
        folder = tmp_path / cell.method
        config = cell.trial("CONFIRM", cell.lr_centre, (0, 0, 0), planned.spec.train)
        list(run_trial(config, warm=warm, directory=folder, keep=True))
        made = sum(path.stat().st_size for path in (folder / ADAPTER_FOLDER).iterdir())
        trials = 1 if cell.method == "full" else 9
        assert keep_bytes(planned, [cell]) / trials == pytest.approx(made, rel=0.15), cell.method


def test_what_is_not_kept_counts_nothing() -> None:
    assert keep_bytes(plan(adapters="none")) == 0
    best, confirm, everything = (keep_bytes(plan(adapters=kind)) for kind in ("best", "confirm", "all"))
    assert 0 < best == confirm / 3 == everything / 9
    assert keep_bytes(plan("paper", adapters="best")) == confirm  # without validation scores none is the best
    full = keep_bytes(plan(adapters="best", full=True)) - best
    assert full > best  # one seed of the whole tower
