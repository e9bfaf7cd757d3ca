"""The Tune trial: a light stand-in that forwards the reports of the lane which trains."""

from __future__ import annotations

from typing import Any

import ray
from ray import tune

POLL_S = 30.0


class Proxy(tune.Trainable):  # type: ignore[misc]  # Ray's classes carry no types for us
    """One `step()` is one epoch of the trial `config["key"]`, which the driver has queued at `config["broker"]`.

    Neither `setup` nor `reset_config` has an effect outside: Tune may build an actor for a trial and then run the
    trial in a cached one. A result with `status` "stopped" means that the trial did not end: the sweep is being
    interrupted, or the broker has lost the lease.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._broker_name, self._key = config["broker"], config["key"]
        self._seen = 0

    def step(self) -> dict[str, Any]:
        broker = ray.get_actor(self._broker_name)
        while True:
            event, state = ray.get(broker.poll.remote(self._key, self._seen, POLL_S))
            if event is not None:
                self._seen = int(event["epoch"])
                values = {
                    "epoch": event["epoch"],
                    "train_loss": event.get("train_loss"),
                    "score": event.get("val_score"),
                    "seconds": (event.get("seconds") or 0.0) + (event.get("seconds_eval") or 0.0),
                }
                return {**values, "done": bool(event.get("done")), "status": state}
            if state not in ("queued", "running"):
                over = {"done": True, "status": state if state in ("failed", "finished") else "stopped"}
                return {"epoch": self._seen, "train_loss": None, "score": None, "seconds": 0.0} | over

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        return None
