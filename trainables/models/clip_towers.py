"""CLIP's two towers as functions: unit features of images and of texts, and the embeddings of a data set's classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from trainables.models.forward import first_token_only
from trainables.runtime import Autocast

Tokenizer = Callable[[list[str]], Tensor]

TEXTS_AT_ONCE = 1024


def encode_texts(model: nn.Module, tokens: Tensor, autocast: Autocast, *, at_once: int = TEXTS_AT_ONCE) -> Tensor:
    """Unit-length text features (n, D), float32, of token ids (n, context), `at_once` in a forward pass."""
    encode: Callable[[Tensor], Tensor] = model.encode_text  # type: ignore[assignment]
    with autocast():
        parts = [encode(part) for part in torch.split(tokens, at_once)]
    return normalize(torch.cat(parts).float(), dim=-1)


def encode_images(model: nn.Module, images: Tensor, autocast: Autocast) -> Tensor:
    """Unit-length image features (B, D), float32."""
    encode: Callable[[Tensor], Tensor] = model.encode_image  # type: ignore[assignment]
    with autocast(), first_token_only(model.get_submodule("visual")):
        features = encode(images)
    return normalize(features.float(), dim=-1)


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
    """(C, D): per class the mean of its prompts' unit features, made unit again (CLIP's prompt ensemble)."""
    texts = [t.format(c) for c in class_names for t in templates]
    features = encode_texts(model, tokenizer(texts).to(device), autocast)
    return normalize(features.view(len(class_names), len(templates), -1).mean(dim=1), dim=-1)


def logit_scale(model: nn.Module) -> Tensor:
    """exp of the model's logit_scale, a scalar without gradient: it stays as pretrained for every method."""
    scale = model.get_parameter("logit_scale")
    return scale.detach().exp().reshape(())
