"""Train one finished trial again in this process, as the journal has it: does it give the same number?"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from analysis import Store, open_store
from analysis.format import Row
from analysis.words.parity import PACKAGES
from sweeps.errors import Problem, SpecError, nearest
from sweeps.exporting.kept import config_of
from sweeps.spec.paths import anchored
from trainables.config import TrialConfig

if TYPE_CHECKING:
    from trainables.training.measured import Measured

CLOSE = 0.02
"""By how much a score may differ on other hardware or with other versions: 2 points."""


@dataclass(frozen=True)
class Again:
    """What a trial scored in the sweep, and now. Scores are fractions; None where there is none.

    Attributes:
        elsewhere: hardware and versions that differ from those of the sweep; empty: none is known to differ.
    """

    trial_id: str
    val_score: float | None
    val_again: float | None
    test_score: float | None
    test_again: float | None
    elsewhere: tuple[str, ...] = ()

    @property
    def word(self) -> Literal["the same", "close", "NOT the same"]:
        """The same to the last bit; close: within `CLOSE`, on other hardware or with other versions."""
        if self.same:
            return "the same"
        pairs = ((self.val_score, self.val_again), (self.test_score, self.test_again))
        near = all(a == b or (a is not None and b is not None and abs(a - b) <= CLOSE) for a, b in pairs)
        return "close" if near and self.elsewhere else "NOT the same"

    @property
    def same(self) -> bool:
        """To the last bit."""
        return (self.val_score, self.test_score) == (self.val_again, self.test_again)


def again(folder: Path, trial: str) -> Again:
    """Train and evaluate one finished trial of a results folder again; nothing is written to the folder.

    Args:
        folder: the results folder, with its journal.
        trial: trial id, or an unambiguous beginning of one.

    Raises:
        SpecError: no such trial, one that did not finish, or a folder without the trial's configuration.
    """
    import torch

    from sweeps.backends.memory import MicroBatch
    from trainables.training.worker import run_trial

    store = open_store(folder)
    rows = [r for r in store.table("last_attempts").to_pylist() if r["status"] == "finished"]
    found = [r for r in rows if trial and r["trial_id"].startswith(trial)]
    if len(found) != 1:
        rule = f"matches {len(found)} finished trials; one is needed" if found else "no such finished trial"
        ids = [r["trial_id"] for r in found or rows]
        near = nearest(trial, ids) or f"{ids[0]}, or another of `sweeps query`" if ids else None
        raise SpecError([Problem("trial", trial, rule, near)])
    (row,) = found
    asked, cpus = config_of(store, row["trial_id"]), _cpus(store, row["trial_id"])
    config = TrialConfig.model_validate(anchored(asked.model_dump()))  # as its worker had it: draws depend on it
    before = torch.get_num_threads()
    torch.set_num_threads(cpus)  # as its worker had: sums depend on it
    try:
        with tempfile.TemporaryDirectory() as place:
            micro: int | None = row["micro_batch_size"]
            if config.contrastive or micro == MicroBatch(Path(place), config.model_dump(), 1).asked:
                micro = None  # memory did not run out, and the sweep asked for none either
            *_, last = run_trial(config, warm={}, directory=Path(place), micro_batch_size=micro)
    finally:
        torch.set_num_threads(before)
    now = last["result"].measured
    scores = row["val_score"], now.val_score, row["test_score"], now.test_score
    return Again(row["trial_id"], *scores, _elsewhere(row, now))


def _elsewhere(row: Row, now: Measured) -> tuple[str, ...]:
    """What of the hardware and the versions is known to differ between a trial's row and now."""
    from sweeps.backends.reports import processor

    then = json.loads(row["versions"] or "{}")
    pairs = [("processor", row["processor"], processor()), ("device", row["device"], now.device)]
    pairs += [(package, then.get(package), (now.versions or {}).get(package)) for package in PACKAGES]
    return tuple(f"{name} {old}, here {new}" for name, old, new in pairs if None not in (old, new) and old != new)


def _cpus(store: Store, trial: str) -> int:
    """CPUs of a worker in the run that finished the trial, as the journal has them; a later run may have others."""
    latest, its = 1, None
    for event in store.events():
        if event["ev"] == "sweep" and event.get("lanes"):
            latest = max(1, int(event["lanes"][0]["per_worker"].get("CPU", 1)))
        elif event["ev"] == "finish" and event["row"].get("trial_id") == trial:
            its = latest
    return latest if its is None else its
