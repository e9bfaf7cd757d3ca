"""A results folder with really trained weights, made in seconds: the embedded model, few images, no Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.store.tables import write_part
from sweeps.plan.plan import Plan
from sweeps.records.rows import prediction_row, trial_row
from sweeps.search.stages import Slot
from sweeps.spec.spec import SweepSpec
from trainables.training.worker import run_trial

RATES = {"lora": 1e-2, "dora": 1e-2, "randlora": 1e-2, "full": 1e-4}


def tiny_results(folder: Path, seeds: int = 1, **sections: Any) -> Path:
    """LoRA, RandLoRA (count of LoRA rank 2) and full fine-tuning, 2-shot, two epochs; all weights kept.

    Rates are fixed, as if chosen; nothing is tuned. `sections` replace those of the sweep file.
    """
    spec = SweepSpec.parse(
        {
            "name": folder.name,
            "output": str(folder),
            "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
            "data": {"datasets": ["embedded:fashion-mnist"], "train_size": "2-shot"},
            "budgets": {"lora_rank": [2]},
            "methods": {"lora": {}, "randlora": {}, "full": {}},
            "search": {"trials": 1, "rerun_rates": 0, "rerun_seeds": 0},
            "confirm": {"seeds": seeds},
            "train": {"epochs": 2, "global_batch_size": 20, "min_batches_per_epoch": 4},
            "keep": {"adapters": "confirm", "full": True},
        }
        | sections
    )
    (folder / "work").mkdir(parents=True, exist_ok=True)
    cells = Plan.from_spec(spec).feasible
    warm: dict[str, Any] = {}
    trials, predictions = [], []
    lines = [json.dumps({"ev": "sweep", "name": spec.name})]
    for cell in cells:
        for k in range(seeds):
            lr = None if cell.lr_centre is None else RATES.get(cell.method, 1e-2)
            config = cell.trial("CONFIRM", lr, (k, k, k), spec.train)
            slot = Slot(cell.cell_id, "CONFIRM", k, config.trial_id, config.model_dump(mode="json"), lr, (k, k, k))
            lines.append(json.dumps({"ev": "ask", "trial_id": config.trial_id, "config": slot.config}))
            work = folder / "work" / config.trial_id
            events = list(run_trial(config, warm=warm, directory=work, keep=True))
            outcome = {"status": "finished", "result": events[-1]["result"], "events": events, "seconds_total": 1.0}
            trials.append(trial_row(spec.name, cell, slot, outcome))
            found = prediction_row(spec.name, slot, outcome)
            predictions += [found] if found else []
            kept = folder / "adapters" / config.trial_id
            kept.parent.mkdir(parents=True, exist_ok=True)
            (work / "adapter").rename(kept)
    write_part(folder, "cells", [cell.row() for cell in cells])
    write_part(folder, "trials", trials)
    write_part(folder, "predictions", predictions)
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "spec.json").write_text(json.dumps({"identity": spec.identity()}))
    return folder


def numbers(table: pa.Table) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "computed_at"} for r in table.to_pylist()]
