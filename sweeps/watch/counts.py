"""Functions that the live display, `sweeps status` and the page share. Imports nothing heavy, so they start at once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

PHASES = ("waiting", "tuning", "confirming", "done", "stuck")


def seconds_left(missing: Mapping[str, int], spent: Mapping[str, Sequence[float]], at_once: int) -> float | None:
    """Return the seconds that the missing trials take; None if no trial has ended yet.

    Each trial counts with the mean seconds of its method, or of all methods if its method has none yet.

    Args:
        missing: number of trials by method.
        spent: (seconds, trials) of ended trials by method, without set-up.
        at_once: number of trials that run at once.
    """
    means = {method: seconds / trials for method, (seconds, trials) in spent.items() if trials}
    if not means:
        return None
    overall = statistics.fmean(means.values())
    busy = sum(count * means.get(method, overall) for method, count in missing.items())
    return busy / max(1, min(at_once, sum(missing.values())))


def where_raised(trace: str | None) -> str | None:
    """Return where a traceback's text says that the error was raised, such as "clip.py:88 in evaluate".

    None if there is no traceback.
    """
    lines = [line.strip() for line in (trace or "").splitlines() if line.strip().startswith('File "')]
    if not lines:
        return None
    path, _, rest = lines[-1].removeprefix('File "').partition('", line ')
    number, _, function = rest.partition(", in ")
    return f"{path.rpartition('/')[2]}:{number} in {function}"
