"""The one place that makes the task of a model: a line per kind."""

from __future__ import annotations

from trainables.errors import TrialError
from trainables.task import Parts, Task


def make_task(parts: Parts) -> Task:
    """The task that trains and evaluates a model of this kind.

    Raises:
        TrialError: a kind that cannot be trained, or settings that its task does not take.
        TrainablesError: bad data.
    """
    kind = parts.loaded.kind
    if kind == "clip":
        from trainables.images import clip_task

        return clip_task(parts)
    if kind == "causal-lm":
        from trainables.causal_lm import causal_lm_task

        return causal_lm_task(parts)
    raise TrialError(
        f"model {parts.trial.model!r} is of kind {kind!r}, which cannot be trained; choose an open_clip: model or the "
        "embedded one"
    )
