"""Make the task of a model by its kind. A new kind needs one line here."""

from __future__ import annotations

from collections.abc import Callable

from randlora.methods.prompts.kinds import PREFIX
from trainables.models.families import Kind
from trainables.tasks.images.clip import clip_task
from trainables.tasks.images.images import vision_task
from trainables.tasks.images.prompts import prompt_task
from trainables.tasks.task import Parts, Task
from trainables.tasks.text.causal_lm import CausalLMTask
from trainables.tasks.text.classifier import SentenceTask

_MAKERS: dict[Kind, Callable[[Parts], Task]] = {
    "clip": clip_task,
    "hf-vision": vision_task,
    "causal-lm": CausalLMTask,
    "text-encoder": SentenceTask,
}


def make_task(parts: Parts) -> Task:
    """Return the task that trains and evaluates a model of this kind.

    Raises:
        TrialError: the task does not support the trial's settings.
    """
    if parts.trial.method.startswith(PREFIX):
        return prompt_task(parts)
    return _MAKERS[parts.loaded.kind](parts)
