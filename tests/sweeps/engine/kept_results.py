"""Results folders of real trials that kept their weights, made in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.store.tables import write_part
from trainables.config import TrialConfig
from trainables.training.worker import run_trial


def keep_trials(results: Path, trials: Sequence[TrialConfig], scores: Sequence[float] | None = None) -> Path:
    """Train every trial and write what a sweep would: weights, rows of `trials`, asked configurations.

    `scores` stand in the tables in place of the validation scores; a test score falls as they rise.
    """
    rows, lines = [], [json.dumps({"ev": "sweep", "name": "s"})]
    warm: dict[str, Any] = {}
    for place, trial in enumerate(trials):
        work = results / "work"
        work.mkdir(parents=True)
        *_, last = run_trial(trial, warm=warm, directory=work, keep=True)
        (results / "adapters").mkdir(exist_ok=True)
        shutil.move(work / "adapter", results / "adapters" / trial.trial_id)
        shutil.rmtree(work)
        score = last["val_score"] if scores is None else scores[place]
        rows.append(
            {
                **{"sweep": "s", "trial_id": trial.trial_id, "cell_id": trial.cell_id, "attempt": 1, "slot": place},
                **{"stage": "CONFIRM", "status": "finished", "model": trial.model, "dataset": trial.dataset},
                **{"train_size": str(trial.train_size), "method": trial.method, "reference": "lora-4", "lr": trial.lr},
                **{"val_score": score, "test_score": 1.0 - score, "data_seed": 0, "init_seed": 0, "basis_seed": 0},
            }
        )
        lines.append(json.dumps({"ev": "ask", "trial_id": trial.trial_id, "config": trial.model_dump(mode="json")}))
    write_part(results, "trials", rows)
    (results / "journal.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return results
