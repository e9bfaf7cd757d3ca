"""The one place that makes the task of a model: a line per kind."""

from __future__ import annotations

from trainables.config import LINEAR_PROBE, NO_TRAINING
from trainables.errors import TrialError
from trainables.tasks.images.clip import BothTask, LinearProbe, VisionTask
from trainables.tasks.images.images import ImageTask, preprocess_of
from trainables.tasks.images.probe import FrozenTask
from trainables.tasks.images.vision import vision_task
from trainables.tasks.task import Parts, Task
from trainables.tasks.text.causal_lm import causal_lm_task
from trainables.tasks.text.classifier import text_task


def make_task(parts: Parts) -> Task:
    """The task that trains and evaluates a model of this kind.

    Raises:
        TrialError: settings that the task does not take.
        TrainablesError: bad data.
    """
    kind = parts.loaded.kind
    if kind == "clip":
        return clip_task(parts)
    if kind == "hf-vision":
        return vision_task(parts)
    if kind == "causal-lm":
        return causal_lm_task(parts)
    return text_task(parts)


def clip_task(parts: Parts) -> ImageTask:
    """CLIP on labelled images: one tower or both. Raises TrialError for what the contrastive loss cannot do."""
    trial, lane, loaded = parts.trial, parts.lane, parts.loaded
    if trial.adapt == "all":
        raise TrialError("adapt = 'all' is for models of one tower; a CLIP model takes 'vision' or 'both'")
    contrastive = trial.adapt == "both" and trial.method != LINEAR_PROBE
    if contrastive and parts.world > 1:
        raise TrialError(
            f"adapt = 'both' on {parts.world} workers: the contrastive loss compares all images of a batch, which are "
            "on different workers; set resources.workers = 1 or adapt = 'vision'"
        )
    preprocess = preprocess_of(loaded)
    dataset = lane.dataset(trial.dataset, trial.stage)
    module, autocast = loaded.module, parts.autocast
    if contrastive:
        both = BothTask(module, lane.class_tokens(loaded, dataset), autocast)
        return (FrozenTask if trial.method == NO_TRAINING else ImageTask)(parts, dataset, both, preprocess)
    classes = lane.class_embeddings(loaded, dataset, autocast, parts.precision)
    if trial.method == LINEAR_PROBE:
        probe = LinearProbe(module, classes, autocast)
        return FrozenTask(parts, dataset, probe, preprocess, probe.head)
    vision = VisionTask(module, classes, autocast)
    return (FrozenTask if trial.method == NO_TRAINING else ImageTask)(parts, dataset, vision, preprocess)
