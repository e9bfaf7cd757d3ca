"""Trains one finished trial again in this process, and tells whether it gives the same scores."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from analysis import Store, open_store
from analysis.findings.parity.words import PACKAGES
from analysis.format import Row
from sweeps.errors import Problem, SpecError, nearest
from sweeps.exporting.kept import config_of
from sweeps.spec.paths import with_absolute_paths
from trainables.config import TrialConfig

if TYPE_CHECKING:
    from trainables.training.measured import Measured

CLOSE = 0.02
"""The largest difference of a score that counts as close, on other hardware or with other versions (2 points)."""


@dataclass(frozen=True)
class Rerun:
    """The scores of a trial in the sweep and now. Scores are fractions; None if there is none.

    Attributes:
        trial_id: the trial.
        val_score: the validation score in the sweep.
        val_again: the validation score now.
        test_score: the test score in the sweep.
        test_again: the test score now.
        elsewhere: texts that name the hardware and versions which differ from those of the sweep; () if none are known
            to differ.
    """

    trial_id: str
    val_score: float | None
    val_again: float | None
    test_score: float | None
    test_again: float | None
    elsewhere: tuple[str, ...] = ()

    @property
    def verdict(self) -> Literal["the same", "close", "NOT the same"]:
        """Return "the same" if the scores are equal to the last bit, and "close" if they may differ by that much.

        Scores on other hardware or with other versions may differ by up to `CLOSE`.
        """
        if self.same:
            return "the same"
        pairs = ((self.val_score, self.val_again), (self.test_score, self.test_again))
        near = all(a == b or (a is not None and b is not None and abs(a - b) <= CLOSE) for a, b in pairs)
        return "close" if near and self.elsewhere else "NOT the same"

    @property
    def same(self) -> bool:
        """Return whether both scores are equal to the last bit."""
        return (self.val_score, self.test_score) == (self.val_again, self.test_again)


def train_again(folder: Path, trial: str) -> Rerun:
    """Train and evaluate one finished trial of a results folder again. Write nothing into the folder.

    Args:
        folder: the results folder, with its journal.
        trial: a trial id, or an unambiguous beginning of one.

    Raises:
        SpecError: there is no such trial, it did not finish, or the folder lacks its configuration.
    """
    import torch

    from sweeps.backends.memory import MicroBatch
    from trainables.training.worker import run_trial

    store = open_store(folder)
    rows = [r for r in store.table("last_attempts").to_pylist() if r["status"] == "finished"]
    matches = [r for r in rows if trial and r["trial_id"].startswith(trial)]
    if len(matches) != 1:
        rule = f"matches {len(matches)} finished trials; one is needed" if matches else "no such finished trial"
        ids = [r["trial_id"] for r in matches or rows]
        near = nearest(trial, ids) or f"{ids[0]}, or another of `sweeps query`" if ids else None
        raise SpecError([Problem("trial", trial, rule, near)])
    (row,) = matches
    stored_config = config_of(store, row["trial_id"])
    config = TrialConfig.model_validate(with_absolute_paths(stored_config.model_dump()))  # as in the worker
    before = torch.get_num_threads()
    torch.set_num_threads(_cpus(store, row["trial_id"]))  # as in the worker, because sums depend on it
    try:
        with tempfile.TemporaryDirectory() as place:
            micro: int | None = row["micro_batch_size"]
            if config.contrastive or micro == MicroBatch(Path(place), config.model_dump(), 1).asked:
                micro = None  # the trial ran with the configured size
            *_, last = run_trial(config, warm={}, directory=Path(place), micro_batch_size=micro)
    finally:
        torch.set_num_threads(before)
    now = last["result"].measured
    scores = row["val_score"], now.val_score, row["test_score"], now.test_score
    return Rerun(row["trial_id"], *scores, _differing_hardware_and_versions(row, now))


def _differing_hardware_and_versions(row: Row, now: Measured) -> tuple[str, ...]:
    """Return texts on the hardware and versions that are known to differ between a trial's row and now."""
    from sweeps.backends.reports import processor

    then = json.loads(row["versions"] or "{}")
    pairs = [("processor", row["processor"], processor()), ("device", row["device"], now.device)]
    pairs += [(package, then.get(package), (now.versions or {}).get(package)) for package in PACKAGES]
    return tuple(f"{name} {old}, here {new}" for name, old, new in pairs if None not in (old, new) and old != new)


def _cpus(store: Store, trial: str) -> int:
    """Return the number of CPUs of a worker in the run that finished the trial, from the journal."""
    latest = 1
    trials = None
    for event in store.events():
        if event["ev"] == "sweep" and event.get("lanes"):
            latest = max(1, int(event["lanes"][0]["per_worker"].get("CPU", 1)))
        elif event["ev"] == "finish" and event["row"].get("trial_id") == trial:
            trials = latest
    return latest if trials is None else trials
