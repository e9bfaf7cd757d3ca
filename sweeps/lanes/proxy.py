"""The Tune trial. It trains nothing: it forwards the reports of the lane which trains.

Every trial in flight has a process that imports this file, so it imports Ray alone.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import tune

POLL_S = 30.0


class Proxy(tune.Trainable):  # type: ignore[misc]  # Ray's classes carry no types for us
    """The Tune trial. One `step()` is one epoch of `config["key"]`, which waits at the broker `config["broker"]`.

    Neither `setup` nor `reset_config` has an effect outside: Tune may build an actor for a trial and then run the
    trial in a cached one. A result with `status` "stopped" means that the trial did not end: the sweep is being
    interrupted, or the broker has lost the lease.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._broker_name, self._key = config["broker"], config["key"]
        self._seen = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        broker = ray.get_actor(self._broker_name)
        while True:
            event, state = ray.get(broker.poll.remote(self._key, self._seen, POLL_S))
            if event is not None:
                self._seen = int(event["epoch"])
                seconds = (event.get("seconds") or 0.0) + (event.get("seconds_eval") or 0.0)
                done, loss, score = bool(event.get("done")), event.get("train_loss"), event.get("val_score")
            elif state in ("queued", "running"):
                continue
            else:
                done, loss, score, seconds = True, None, None, 0.0
                state = state if state in ("failed", "finished") else "stopped"
            values = {"epoch": self._seen, "train_loss": loss, "score": score, "seconds": seconds}
            return {**values, "done": done, "status": state}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        return None
