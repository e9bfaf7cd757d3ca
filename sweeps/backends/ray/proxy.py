"""The Tune trial. It trains nothing and has no process: it passes Tune's calls to the broker.

Tune makes an actor for each trial that runs, and an actor is a process of 120 MB with `ray.tune` in it. This avoids it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.actor import ActorClass


class _Method(NamedTuple):
    """A method of an actor's handle."""

    remote: Callable[..., ray.ObjectRef]


class _Handle:
    """Stands in for the handle of a trial's actor. Tune may give it to another trial by `reset`.

    Only `train` has an effect outside. So nothing happens if Tune makes a handle for a trial and then reuses another.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._broker, self._key, self._steps = ray.get_actor(config["broker"]), config["key"], 0
        self.__ray_ready__ = self.stop = _Method(lambda: ray.put(None))
        self.get_auto_filled_metrics = _Method(lambda **_: ray.put({}))
        self.reset = _Method(self._reset)
        self.train = _Method(self._train)

    def _train(self) -> ray.ObjectRef:
        self._steps += 1
        return self._broker.step.remote(self._key, self._steps)

    def _reset(self, config: dict[str, Any], **_: Any) -> ray.ObjectRef:
        self._key, self._steps = config["key"], 0
        return ray.put(True)


class Proxy(tune.Trainable):  # type: ignore[misc]  # Ray's classes carry no types for us
    """The Tune trial of the lease `config["key"]` of the broker `config["broker"]`.

    Ray makes a subclass of it, the actor class. That class returns handles, and starts no process for them.
    """

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        if issubclass(cls, ActorClass):
            cls.options = lambda self, **_: self
            cls.remote = lambda self, config, **_: _Handle(config)
