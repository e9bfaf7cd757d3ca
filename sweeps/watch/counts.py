"""What the live display, `sweeps status` and the page count alike; loads nothing, so that these answer at once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

PHASES = ("waiting", "tuning", "confirming", "done", "stuck")


def seconds_left(missing: Mapping[str, int], spent: Mapping[str, Sequence[float]], at_once: int) -> float | None:
    """Seconds for what is missing, by the mean of each method, or of all where it has none yet.

    Args:
        missing: trials by method. spent: (seconds, trials) of those that are over by method, without set-up.
        at_once: trials that run beside each other, where there are so many left.
    """
    means = {method: seconds / trials for method, (seconds, trials) in spent.items() if trials}
    if not means:
        return None
    overall = statistics.fmean(means.values())
    busy = sum(count * means.get(method, overall) for method, count in missing.items())
    return busy / max(1, min(at_once, sum(missing.values())))


def where_raised(trace: str | None) -> str | None:
    """File, line and function of the innermost frame of a traceback's text: "clip.py:88 in evaluate"."""
    lines = [line.strip() for line in (trace or "").splitlines() if line.strip().startswith('File "')]
    if not lines:
        return None
    path, _, rest = lines[-1].removeprefix('File "').partition('", line ')
    number, _, function = rest.partition(", in ")
    return f"{path.rpartition('/')[2]}:{number} in {function}"
