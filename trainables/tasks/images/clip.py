"""The CLIP task: classify images by the names of their classes, with one tower adapted or both.

"vision": the text tower is frozen. So the class embeddings are constants, computed once per model and data set. The
loss is the cross-entropy over exp(logit_scale) times the cosine similarities. "both": both towers train, with the
image-to-text cross-entropy within a batch (arXiv 2502.00987, section C). Each image has one prompt, made from its
class. Images of one class share the first one's prompt as target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from trainables.config import LINEAR_PROBE, NO_TRAINING
from trainables.errors import TrialError
from trainables.models.forward import first_token_only
from trainables.models.loading import Tokenizer
from trainables.runtime import Autocast
from trainables.tasks.images.images import FeatureClassifier, FrozenTask, ImageTask
from trainables.tasks.task import Parts

TEXTS_AT_ONCE = 1024


def encode_texts(
    model: nn.Module, tokens: Tensor, autocast: Autocast, *, at_once: int = TEXTS_AT_ONCE, unit: bool = True
) -> Tensor:
    """Return text features (n, D), float32, of token ids (n, context).

    Args:
        model: the CLIP.
        tokens: token ids (n, context).
        autocast: the mixed-precision context.
        at_once: texts of one forward pass.
        unit: whether to scale features to length 1.
    """
    encode: Callable[[Tensor], Tensor] = model.encode_text  # type: ignore[assignment]
    with autocast():
        parts = [encode(part) for part in torch.split(tokens, at_once)]
    features = torch.cat(parts).float()
    return normalize(features, dim=-1) if unit else features


def encode_images(model: nn.Module, images: Tensor, autocast: Autocast, *, unit: bool = True) -> Tensor:
    """Return image features (B, D), float32. If `unit`, they have length 1."""
    encode: Callable[[Tensor], Tensor] = model.encode_image  # type: ignore[assignment]
    with autocast(), first_token_only(model.get_submodule("visual")):
        features = encode(images).float()
    return normalize(features, dim=-1) if unit else features


@torch.no_grad()
def class_embeddings(
    model: nn.Module,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    device: torch.device,
    autocast: Autocast,
) -> Tensor:
    """Return (C, D): for each class the mean of its prompts' unit features, scaled to length 1 (CLIP's prompt
    ensemble)."""
    texts = [t.format(c) for c in class_names for t in templates]
    features = encode_texts(model, tokenizer(texts).to(device), autocast)
    return normalize(features.view(len(class_names), len(templates), -1).mean(dim=1), dim=-1)


def logit_scale(model: nn.Module) -> Tensor:
    """Return exp of the model's current logit_scale, a scalar. It has a gradient if logit_scale is trained."""
    return model.get_parameter("logit_scale").exp().reshape(())


class ClipClassifier(FeatureClassifier):
    """A classifier on CLIP's image tower. Unit features are compared with `_head`, (D, C), if there is one."""

    def __init__(self, model: nn.Module, autocast: Autocast) -> None:
        self._model, self._autocast = model, autocast
        self._head: Tensor | None = None

    @property
    def _scale(self) -> Tensor:
        return logit_scale(self._model)

    def features(self, images: Tensor) -> Tensor:
        return encode_images(self._model, images, self._autocast)

    def classify(self, features: Tensor) -> Tensor:
        if self._head is None:
            raise TrialError("classify was called before before_evaluation: the class embeddings do not exist yet")
        return features @ self._head


class VisionTask(ClipClassifier):
    """The classifier with a frozen text tower. `classes`: (C, D) unit class embeddings."""

    def __init__(self, model: nn.Module, classes: Tensor, autocast: Autocast) -> None:
        super().__init__(model, autocast)
        self._head = (self._scale.detach() * classes).T.contiguous()


class LinearProbe(ClipClassifier):
    """A linear classifier on unit image features, with both towers frozen. It starts as the zero-shot classifier.

    Logits are exp(logit_scale) times `head` of the features. The head's weights (C, D) start at the class embeddings.
    """

    def __init__(self, model: nn.Module, classes: Tensor, autocast: Autocast) -> None:
        super().__init__(model, autocast)
        n_classes, width = classes.shape
        self.head = nn.Linear(width, n_classes, bias=False, device="meta").to_empty(device=classes.device)
        with torch.no_grad():
            self.head.weight.copy_(classes)

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self._scale * self.head(features)
        return logits


class BothTask(ClipClassifier):
    """The classifier with both towers in training. `tokens`: (C, context), the single prompt of every class."""

    def __init__(self, model: nn.Module, tokens: Tensor, autocast: Autocast) -> None:
        super().__init__(model, autocast)
        self._tokens = tokens

    def loss_sum(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the summed contrastive loss of a whole batch, or of a part of it that is compared within itself.

        The published loss has a text column per image. Columns are equal for images of one class, and the first of them
        is the target. Encoding every present class once and adding the log of its count gives the same value:
        -log(e^s_y / sum_c n_c e^s_c), with n_c the number of images of class c in the batch.
        """
        present, target, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        return self.contrast(images, self._tokens[present], target, counts)

    def contrast(self, images: Tensor, tokens: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        """Return the summed loss of images (B, 3, S, S) against the P texts of `tokens`.

        Args:
            target: (B,) the number of each image's text.
            counts: (P,) the number of images that each text has.
        """
        texts = encode_texts(self._model, tokens, self._autocast)
        return self._contrast(encode_images(self._model, images, self._autocast), texts, target, counts)

    def loss_sums(self, heads: Sequence[FeatureClassifier], images: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
        """Return the summed losses of K trials (see `FeatureClassifier.loss_sums`).

        If one trial has fewer classes in its batch than another, it encodes one of them twice.
        """
        classes_of = [torch.unique(trial_labels, return_inverse=True, return_counts=True) for trial_labels in labels]
        most = max(len(present) for present, _, _ in classes_of)
        rows = torch.cat([nn.functional.pad(p, (0, most - len(p)), value=int(p[0])) for p, _, _ in classes_of])
        texts = encode_texts(self._model, self._tokens[rows], self._autocast, at_once=len(rows)).chunk(len(labels))
        parts = encode_images(self._model, images, self._autocast).chunk(len(labels))
        return [
            self._contrast(part, text[: len(present)], target, counts)
            for part, text, (present, target, counts) in zip(parts, texts, classes_of, strict=True)
        ]

    def _contrast(self, images_BD: Tensor, texts: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        repeats = counts.float().log()
        logits = self._scale * images_BD @ texts.T + repeats
        loss: Tensor = cross_entropy(logits, target, reduction="sum") + repeats[target].sum()
        return loss

    @torch.no_grad()
    def before_evaluation(self) -> None:
        """Embed the classes with the text tower as it is now."""
        self._head = (self._scale * encode_texts(self._model, self._tokens, self._autocast)).T.contiguous()


def clip_task(parts: Parts) -> ImageTask:
    """Return the task of CLIP on labelled images: one tower or both. Raises TrialError for what the contrastive loss
    cannot do."""
    trial, lane, loaded = parts.trial, parts.lane, parts.loaded
    if trial.adapt == "all":
        raise TrialError("adapt = 'all' is for models of one tower; a CLIP model takes 'vision' or 'both'")
    kind = FrozenTask if trial.method in (NO_TRAINING, LINEAR_PROBE) else ImageTask
    if trial.contrastive and parts.world > 1:
        raise TrialError(
            f"adapt = 'both' on {parts.world} workers: the contrastive loss compares all images of a batch, which are "
            "on different workers; set resources.workers = 1 or adapt = 'vision'"
        )
    dataset = lane.dataset(trial.dataset, trial.stage)
    module, tokenizer, autocast = loaded.module, loaded.tokenizer, parts.autocast
    assert tokenizer is not None
    if trial.contrastive:
        prompts = [dataset.prompt.format(name) for name in dataset.class_names]
        tokens = lane.words(("tokens", dataset.name), lambda: tokenizer(prompts).to(lane.device))
        return kind(parts, dataset, BothTask(module, tokens, autocast))
    names, templates = dataset.class_names, dataset.templates
    classes = lane.words(
        ("embeddings", dataset.name, parts.precision),
        lambda: class_embeddings(module, tokenizer, names, templates, device=lane.device, autocast=autocast),
    )
    if trial.method == LINEAR_PROBE:
        probe = LinearProbe(module, classes, autocast)
        return kind(parts, dataset, probe, probe.head)
    return kind(parts, dataset, VisionTask(module, classes, autocast))
