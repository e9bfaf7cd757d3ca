"""Results folders of a few rows, written by hand: what a sweep leaves where things go wrong, or little was run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from analysis.store.store import Store, open_store
from analysis.store.tables import write_part
from tests.analysis.synthetic import START, _cell

Row = dict[str, Any]
NOT_A_NUMBER = "nan"
"""In place of a score: the run finished without one."""
Key = tuple[str, str | None, str]
Scores = Mapping[int, float | str | None]
Cells = dict[Key, Scores]


def odd_results(
    folder: Path,
    cells: Mapping[Key, Scores],
    *,
    tune: Sequence[float | None] = (0.5, 0.6, 0.55),
    seeds: int = 3,
    seed_rule: str | None = None,
) -> Path:
    """A folder with these cells' CONFIRM scores.

    Args:
        folder: to make.
        cells: (method, reference, data set) -> score by seed; None: the run failed; `NOT_A_NUMBER`: it has no score.
        tune: validation scores of the learning rates tried, None for a failed trial; empty: nothing was tuned.
        seeds: planned for CONFIRM.
        seed_rule: as in `cells`; none: an import.
    """
    folder.mkdir(parents=True)
    sweep, planned, trials, choices = folder.name, [], list[Row](), []
    for (method, reference, dataset), scores in cells.items():
        cell = _cell(sweep, dataset, "1.0", method, reference, seeds)
        lr = cell["lr_centre"]
        cell |= {"tune_trials": len(tune) if lr else 0, "seed_rule": seed_rule}
        planned.append(cell)
        runs = [("TUNE", lr * 10 ** (k - 1), 10**6, v) for k, v in enumerate(tune)] if lr else []
        for stage, rate, seed, score in [*runs, *(("CONFIRM", lr, s, v) for s, v in scores.items())]:
            shared = (
                "model",
                "adapt",
                "dataset",
                "train_size",
                "method",
                "allocation",
                "reference",
                "budget",
                "capacity",
            )
            value = None if isinstance(score, str) else score
            trials.append(
                {k: cell[k] for k in ("sweep", "cell_id", *shared)}
                | {"trial_id": f"{len(trials):016x}", "attempt": 1, "stage": stage, "slot": seed, "lr": rate}
                | dict.fromkeys(("data_seed", "init_seed", "basis_seed"), seed)
                | {"status": "failed" if score is None else "finished", "reason": None if score is not None else "lost"}
                | {"val_score": value, "test_score": value if stage == "CONFIRM" else None}
                | {"adapter_params": cell["count"], "stored_bytes": 0, "seconds_total": 1.0, "epochs": 1}
                | {"started_at": START, "ended_at": START + timedelta(seconds=1)}
            )
        if lr and tune:
            choices.append(_choice(sweep, cell["cell_id"], lr, START))
    for name, rows in (("cells", planned), ("trials", trials), ("choices", choices)):
        if rows:
            write_part(folder, name, rows)
    (folder / "journal.jsonl").write_text(json.dumps({"ev": "sweep", "name": sweep}) + "\n")
    identity = {"name": sweep, "protocol": "standard", "model": {"id": "embedded:tiny-clip"}, "train": {"epochs": 1}}
    (folder / "spec.json").write_text(json.dumps({"identity": identity}))
    return folder


def _choice(sweep: str, cell: str, lr: float, at: datetime) -> Row:
    row = {"sweep": sweep, "cell_id": cell, "lr": lr, "mean_val": 0.6, "n_trials": 3, "n_rerun_seeds": 0}
    return row | {"edge": None, "chosen_at": at}


def without_validation(folder: Path, cells: Cells, **more: Any) -> Store:
    """Its CONFIRM runs have no validation score, so the noise of a run is not known."""
    store = open_store(odd_results(folder, cells, **more))
    rows = store.table("trials").to_pylist()
    write_part(folder, "trials", [r | {"val_score": None} for r in rows if r["stage"] == "CONFIRM"])
    return open_store(folder)
