"""A lane worker's calls to the broker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray

REST_S = 60.0
"""Seconds for which a worker takes no trial after a storage failure, so that a faulty node gets few trials."""


class Line:
    """Calls the broker with the worker's name and the token of this process.

    Attributes:
        warm: cache of models and data, which stays from trial to trial.
        troubled: whether storage failed in the last trial that ended here.
    """

    def __init__(self, broker: Any, name: str, token: str) -> None:
        self.broker, self.name, self.token = broker, name, token
        self.warm: dict[str, Any] = {}
        self.troubled = False

    def send(self, what: str, *arguments: Any) -> Any:
        """Call the broker's method `what`, and return a reference to its answer."""
        return getattr(self.broker, what).remote(self.name, self.token, *arguments)

    def ask(self, what: str, *arguments: Any) -> Any:
        """Call the broker's method `what`, wait for its answer, and return it."""
        return ray.get(self.send(what, *arguments))

    def unpack(self, keys: Sequence[str], reason: str, cause: str) -> None:
        """Give trials that came together back to the broker, which runs them one by one."""
        self.ask("unpack", keys, reason, cause)

    def finish(self, key: str, last: dict[str, Any] | None, outcome: dict[str, Any]) -> None:
        """Send a trial's end: its last report, if any, and its outcome."""
        self.troubled = outcome.get("storage") is not None
        self.ask("finish", key, last, outcome)

    def pause_after_storage_failure(self) -> None:
        """Wait `REST_S` seconds, or until the lanes are told to return, if storage failed in the last trial."""
        end = time.monotonic() + (REST_S if self.troubled else 0.0)
        while time.monotonic() < end and ray.get(self.broker.status.remote())["dead"] is None:
            time.sleep(1.0)
