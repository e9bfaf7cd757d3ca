"""A lane worker's line to the broker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

REST_S = 60.0
"""For which a worker takes no trial after storage trouble, so that a node in trouble draws few of them."""


class Line:
    """What a worker needs of the broker, under its name and the token of this process.

    Attributes:
        warm: what stays from trial to trial: models and data.
        troubled: whether the last trial that ended here met storage trouble.
    """

    def __init__(self, broker: Any, name: str, token: str) -> None:
        self.broker, self.name, self.token = broker, name, token
        self.warm: dict[str, Any] = {}
        self.troubled = False

    def send(self, what: str, *arguments: Any) -> Any:
        """Call one of the broker's methods; a reference to its answer."""
        return getattr(self.broker, what).remote(self.name, self.token, *arguments)

    def ask(self, what: str, *arguments: Any) -> Any:
        """Call one of the broker's methods and wait for its answer."""
        return ray.get(self.send(what, *arguments))

    def report(self, reports: Mapping[str, dict[str, Any]]) -> dict[str, str]:
        """Tell reports of several trials, by their keys; return the verdict on each."""
        asked = {key: self.send("report", key, report) for key, report in reports.items()}
        return dict(zip(asked, ray.get(list(asked.values())), strict=True))

    def unpack(self, keys: Sequence[str], reason: str, cause: str) -> None:
        """Give trials of a pack back, to be run one by one."""
        self.ask("unpack", keys, reason, cause)

    def finish(self, key: str, last: dict[str, Any] | None, outcome: dict[str, Any]) -> None:
        """Tell a trial's end: its last report, if any, and its outcome."""
        self.troubled = outcome.get("storage") is not None
        self.ask("finish", key, last, outcome)

    def rest(self) -> None:
        """After storage trouble wait `REST_S`, or until the lanes are told to return."""
        end = time.monotonic() + (REST_S if self.troubled else 0.0)
        while time.monotonic() < end and ray.get(self.broker.status.remote())["dead"] is None:
            time.sleep(1.0)
