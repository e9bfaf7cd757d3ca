"""An allowance in seconds of training: what a trial's seconds are, and how many points of a search they hold.

Which points come in which order is as with any allowance; the clock decides how many of them there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.format import Row

HOPELESS = 8
"""A cell none of whose first so many points finished tries no more: trials that fail at once use up no time."""
MOST = 10_000
"""Points of a cell at most."""
SPARE = 1_000
"""Number, among the sampler's points, of the first one in place of a warm start that was tried already."""


def spent(row: Row) -> float | None:
    """Device-seconds of a trial: training, evaluation and what comes between, times its workers; None if not known.

    Set-up is left out: the first trial of a worker pays it for all that follow. Where it is not known, as of a trial
    that was pruned, what the epochs took counts alone. Of a trial that went on from a checkpoint, the training before
    that counts too. The view `parity` counts the same.
    """
    total, setup = row.get("seconds_total"), row.get("seconds_setup")
    parts = [row[name] for name in ("seconds_train", "seconds_eval") if row.get(name) is not None]
    if total is None and not parts:
        return None
    trained = sum(parts)
    if total is not None and (setup is not None or trained == 0):
        trained = max(total - (setup or 0.0), trained)
    return float(trained * (row.get("workers") or 1))


@dataclass(frozen=True)
class Room:
    """Points that an allowance of seconds holds, as far as is known now.

    Attributes:
        now: those asked, and those that may be asked at once.
        in_all: those asked, and those to begin before it is spent.
    """

    now: int
    in_all: int


def room(
    seconds: float, trials: Mapping[int, tuple[int, Row | None]], *, fewest: int, longest: int, reruns: int
) -> Room:
    """How many points begin before the allowance is spent.

    A trial that runs counts as long as the mean epoch so far makes it, and so does one that failed, if it took less.
    Until a point has ended nothing is known, and no more than `fewest` are asked; then as many run at once as have
    ended, so that a first one which happened to be short does not start too many. Points alone decide: nothing that
    comes after them (re-runs) changes their number.

    Args:
        seconds: of devices.
        trials: the points asked: configured epochs, and the row where it is over; by slot number.
        fewest: points that are tried in any case.
        longest: epochs of the longest trial.
        reruns: trials for which time is set aside.
    """
    top = max(trials, default=-1) + 1
    open_ = top - sum(row is not None for _, row in trials.values())  # a gap is a warm start that waits
    done = [row for _, row in trials.values() if row is not None and row["status"] != "failed" and row.get("epochs")]
    known = [(took, row["epochs"]) for row in done if (took := spent(row)) is not None]
    if not known:
        count = max(fewest, top, 0 if open_ else min(top + 1, HOPELESS))
        return Room(count, count)
    pace = sum(took for took, _ in known) / sum(epochs for _, epochs in known)
    gaps = top - len(trials)
    used = (reruns + gaps) * longest * pace + sum(_counted(row, epochs * pace) for epochs, row in trials.values())
    more = max(0, math.ceil((seconds - used) / max(longest * pace, 1e-6)))
    in_all = max(fewest, top, min(top + more, MOST))
    return Room(max(fewest, top, min(in_all, top + len(known) - open_)), in_all)


def _counted(row: Row | None, whole: float) -> float:
    took = None if row is None else spent(row)
    if row is None or took is None:
        return whole
    return max(took, whole) if row["status"] == "failed" else took
