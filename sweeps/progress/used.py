"""Computes the accelerator-hours and the cost that all runs of a sweep used, from its rows and its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def used_seconds(
    taken: Iterable[float | None], events: Iterable[Mapping[str, Any]], each: float
) -> tuple[float, float]:
    """Return the worker-seconds and accelerator-seconds that all runs of this sweep used.

    The worker-seconds are the last ones in the journal, or the sum over the trials if that is more.

    Args:
        taken: seconds of every trial, from its row.
        events: the journal's events.
        each: number of accelerators of a trial, if a run's `sweep` event does not say it.
    """
    worker_seconds = 0.0
    accelerator_seconds = 0.0
    accelerators = each
    for event in events:
        if event["ev"] == "sweep":
            accelerators = event.get("accelerators") or each
        more = max(0.0, (event.get("used") or 0.0) - worker_seconds)
        worker_seconds += more
        accelerator_seconds += more * accelerators
    more = max(0.0, sum(seconds or 0.0 for seconds in taken) - worker_seconds)
    return worker_seconds + more, accelerator_seconds + more * each


def hours_and_cost(taken: Iterable[float | None], events: Sequence[Mapping[str, Any]]) -> tuple[float, float | None]:
    """Return the accelerator-hours of all trials (also of lost attempts), and their cost (None without a price).

    The price and the number of accelerators of a trial are those of the last run.

    Args:
        taken: seconds of every trial, from its row.
        events: the journal's events.
    """
    last: Mapping[str, Any] = next((e for e in reversed(events) if "price_per_hour" in e), {})
    if not last:  # an older version wrote the journal
        last = next((e["estimate"] for e in reversed(events) if e["ev"] == "estimate"), {})
        last = {**last, **({"price_per_hour": last["cost"] / last["accelerator_hours"]} if last.get("cost") else {})}
    _, accelerator_seconds = used_seconds(taken, events, last.get("accelerators", 1.0))
    hours = accelerator_seconds / 3600
    price = last.get("price_per_hour")
    return hours, None if price is None else hours * price
