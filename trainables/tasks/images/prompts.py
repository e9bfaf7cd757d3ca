"""CLIP with learnt prompts: compare images with the texts of all classes, which are encoded again in every step.

A prompt is the learnt context, a class's name and a full stop, as in CoOp. MaPLe may have words between context and
name (`names_as_texts`). The loss is the cross-entropy over all classes, whichever towers `adapt` names, as these
methods are published. (Adapters on both towers train on the prompts of a batch instead.) PromptSRC and DePT add their
own terms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, l1_loss, log_softmax, normalize

from randlora.methods.prompts.entry import name_of, replaced_words
from randlora.methods.prompts.kinds import WORDS
from randlora.methods.prompts.learners import CoCoOp, PromptSRC, prompts_in
from randlora.methods.registry import get_method
from randlora.model.prompted import place_of, with_room
from trainables.errors import TrialError
from trainables.models.encoders import TransferHead, new_transfer_head
from trainables.models.loading import LoadedModel, word_ids
from trainables.runtime import Autocast
from trainables.tasks.images.clip import (
    TEXTS_AT_ONCE,
    ClipClassifier,
    class_embeddings,
    encode_images,
    encode_texts,
)
from trainables.tasks.images.images import FrozenTask, ImageTask
from trainables.tasks.task import Parts

TEXT_WEIGHT, IMAGE_WEIGHT = 25.0, 10.0
"""PromptSRC: of the distances to the frozen model's features (released code)."""
TRANSFER_WEIGHT = 0.7
"""DePT's weight of its head's loss, and of its head's logits in evaluation (released code)."""


class PromptClassifier(ClipClassifier):
    """A classifier that compares images with prompts.

    `texts`: (C, context), for each class the token ids that follow the learnt context (`names_as_texts`).
    """

    def __init__(self, model: nn.Module, texts: Tensor, autocast: Autocast) -> None:
        super().__init__(model, autocast)
        self._texts = texts
        self._words: Tensor | None = None

    def words(self, *, unit: bool = True) -> Tensor:
        """Return features (C, E) of the classes' prompts as they are now. If `unit`, they have length 1."""
        texts = with_room(self._texts, prompts_in(self._model).tokens)
        return encode_texts(self._model, texts, self._autocast, unit=unit)

    @torch.no_grad()
    def before_evaluation(self) -> None:
        self._words = self.words()

    def classify(self, features: Tensor) -> Tensor:
        if self._words is None:
            raise TrialError("classify was called before before_evaluation: the prompts' features do not exist yet")
        return self._scale * features @ self._words.T

    def loss_of(self, features: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self._scale * features @ self.words().T, labels, reduction="sum")


class ConditionalClassifier(PromptClassifier):
    """CoCoOp's classifier: every image has its own prompts, so B images of C classes are B C texts."""

    def before_evaluation(self) -> None:
        """Do nothing, because no text is the same for all images."""

    def loss_of(self, features: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.classify(features), labels, reduction="sum")

    def classify(self, features: Tensor) -> Tensor:
        prompts = prompts_in(self._model)
        assert isinstance(prompts, CoCoOp)
        texts, rows = with_room(self._texts, prompts.tokens), []
        for part in torch.split(features, max(1, TEXTS_AT_ONCE // len(texts))):
            many = texts.repeat(len(part), 1)
            with prompts.conditioned(part, len(texts)):
                words = encode_texts(self._model, many, self._autocast, at_once=len(many))
            rows.append(torch.einsum("be,bce->bc", part, words.view(len(part), len(texts), -1)))
        return self._scale * torch.cat(rows)


class RegularisedClassifier(PromptClassifier):
    """PromptSRC's classifier (arXiv 2307.06948) with its released losses.

    `teacher`: (C, E) unit class embeddings before training.
    """

    def __init__(self, model: nn.Module, texts: Tensor, autocast: Autocast, teacher: Tensor) -> None:
        super().__init__(model, texts, autocast)
        self._teacher = teacher

    def loss_sum(self, images: Tensor, labels: Tensor) -> Tensor:
        prompts = prompts_in(self._model)
        assert isinstance(prompts, PromptSRC)
        with torch.no_grad(), prompts.without_prompts():
            frozen = self.features(images)
        features, words = self.features(images), self.words()
        logits = self._scale * features @ words.T
        before = log_softmax(self._scale * frozen @ self._teacher.T, dim=1)
        apart = kl_div(log_softmax(logits, dim=1), before, reduction="sum", log_target=True) / logits.numel()
        means = TEXT_WEIGHT * l1_loss(words, self._teacher) + IMAGE_WEIGHT * l1_loss(features, frozen) + apart
        return cross_entropy(logits, labels, reduction="sum") + len(images) * means


class TransferClassifier(PromptClassifier):
    """DePT's classifier (arXiv 2309.07439) with its released losses: a head on scaled channels beside the comparison
    with texts."""

    def __init__(self, model: nn.Module, texts: Tensor, autocast: Autocast, head: TransferHead) -> None:
        super().__init__(model, texts, autocast)
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        return encode_images(self._model, images, self._autocast, unit=False)

    def _compared(self, features: Tensor, words: Tensor) -> Tensor:
        """Return the logits of features compared with the texts."""
        return self._scale * normalize(features, dim=-1) @ normalize(words, dim=-1).T

    @torch.no_grad()
    def before_evaluation(self) -> None:
        self._words = self.words(unit=False)

    def classify(self, features: Tensor) -> Tensor:
        assert self._words is not None
        compared = self._compared(features, self._words)
        return (1.0 - TRANSFER_WEIGHT) * compared + TRANSFER_WEIGHT * self.head.of_images(features)

    def loss_of(self, features: Tensor, labels: Tensor) -> Tensor:
        words = self.words(unit=False)
        compared = cross_entropy(self._compared(features, words), labels, reduction="sum")
        logits = torch.cat([self.head.of_texts(words[labels]), self.head.of_images(features)])
        by_head = cross_entropy(logits, labels.repeat(2), reduction="sum") / 2
        return (1.0 - TRANSFER_WEIGHT) * compared + TRANSFER_WEIGHT * by_head


def names_as_texts(
    loaded: LoadedModel, names: Sequence[str], device: torch.device, replaced: int | None = None
) -> Tensor:
    """Return the token ids (C, context) that follow the learnt context of each class.

    Args:
        loaded: the CLIP.
        names: the names of the classes.
        device: where to put the ids.
        replaced: the number of tokens of "a photo of a NAME." that the context replaces (`replaced_words`). The other
            tokens follow it: with 2, these are "of a NAME.". If None, or more than "a photo of a" has: "NAME.".
    """
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    if replaced is None or replaced > len(word_ids(tokenizer, WORDS)):
        return tokenizer([f"{name}." for name in names]).to(device)
    texts = tokenizer([f"{WORDS} {name}." for name in names])
    padding = texts[:, -1:].repeat(1, replaced)
    return torch.cat([texts[:, :1], texts[:, 1 + replaced :], padding], dim=1).to(device)


def prompt_classifier(
    method: str, module: nn.Module, texts: Tensor, autocast: Autocast, head: TransferHead | None
) -> PromptClassifier:
    """Return the classifier that evaluates a method of prompts. `head` is DePT's head, or None."""
    if head is not None:
        return TransferClassifier(module, texts, autocast, head)
    if name_of(method).kind.learner is CoCoOp:
        return ConditionalClassifier(module, texts, autocast)
    return PromptClassifier(module, texts, autocast)


def prompt_task(parts: Parts) -> ImageTask:
    """Return the task of CLIP with a method of prompts. If the image tower does not change, it sees every image
    once."""
    trial, lane, loaded, autocast = parts.trial, parts.lane, parts.loaded, parts.autocast
    dataset, name, module = lane.dataset(trial.dataset, trial.stage), name_of(trial.method), loaded.module
    names, templates = dataset.class_names, dataset.templates
    config = get_method(trial.method).config_for(dict(trial.capacities), dict(trial.options))
    replaced = replaced_words(config)
    texts = lane.words(("names", dataset.name, replaced), lambda: names_as_texts(loaded, names, lane.device, replaced))
    if name.transfer:
        head = new_transfer_head(place_of(module).joint, len(names), trial.init_seed, lane.device)
        return ImageTask(parts, dataset, TransferClassifier(module, texts, autocast, head), head)
    if name.kind.teacher:
        tokenizer = loaded.tokenizer
        assert tokenizer is not None
        teacher = lane.words(
            ("embeddings", dataset.name, parts.precision),
            lambda: class_embeddings(module, tokenizer, names, templates, device=lane.device, autocast=autocast),
        )
        return ImageTask(parts, dataset, RegularisedClassifier(module, texts, autocast, teacher))
    kind = ImageTask if name.adapter is not None or name.kind.deep else FrozenTask
    return kind(parts, dataset, prompt_classifier(trial.method, module, texts, autocast, None))
