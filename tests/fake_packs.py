"""Packs of the trial that trains nothing: the contract of `trainables.packing.together.run_pack` over `tests.fakes`.

A cell's options set the faults of its packs: `refuse_pack` (they can't be packed), `pack_oom_above` (trials that fit,
known after the first epoch), `pack_kill` ("once" or "always": the worker dies in epoch 2 of a pack of several). `log`
gets a line for every pack that starts, "pack" and its trials' ids.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.fakes import TRIAL, analytic_trial
from trainables.config import TrialConfig
from trainables.errors import TrialError
from trainables.packing.alike import NotPackableError, UnevenTrialsError

TOGETHER = {TRIAL: "tests.fake_packs:analytic_pack"}
Told = Generator[dict[int, Any], set[int] | None, None]


def analytic_pack(
    given: Sequence[TrialConfig],
    *,
    warm: dict[str, Any],
    directories: Sequence[Path],
    keep: Sequence[bool],
) -> Told:
    """Every trial as it is by itself, an epoch each in turn."""
    options = dict(given[0].options)
    if "refuse_pack" in options:
        raise NotPackableError("this fake is not packed")
    if len({_finished(directory) for directory in directories}) > 1:
        raise UnevenTrialsError("the trials' checkpoints stand at different epochs")
    if "log" in options:
        with Path(options["log"]).with_suffix(".packs").open("a") as file:
            file.write(" ".join(directory.name for directory in directories) + "\n")
    trials = {
        k: analytic_trial(trial, warm=warm, directory=directories[k], keep=keep[k]) for k, trial in enumerate(given)
    }
    while trials:
        reports: dict[int, Any] = {}
        for k, trial in list(trials.items()):
            try:
                reports[k] = next(trial)
            except TrialError as error:
                reports[k] = error
        trials = {k: trial for k, trial in trials.items() if not _over(reports[k])}
        for k in (yield reports) or ():
            trials.pop(k, None)
        if len(trials) > options.get("pack_oom_above", math.inf):
            raise torch.OutOfMemoryError(f"{len(trials)} trials do not fit")
        if len(trials) > 1 and _strikes(options.get("pack_kill"), directories[0]):
            os.kill(os.getpid(), signal.SIGKILL)


def _over(report: Any) -> bool:
    return isinstance(report, TrialError) or bool(report["done"])


def _finished(directory: Path) -> int:
    state = directory / "state.json"
    return len(json.loads(state.read_text())) if state.exists() else 0


def _strikes(kind: str | None, directory: Path) -> bool:
    if kind is None:
        return False
    marker = directory / "pack_killed"
    first = not marker.exists()
    marker.touch()
    return first or kind == "always"
