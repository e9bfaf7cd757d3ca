"""One vector per input from a transformers encoder, and the linear head that a task puts on it.

The vector depends on the family. DINOv2, DINOv3, ViT, DeiT and similar ones give the class token after the final norm
(for DINOv2 the simplest of its authors' linear probes). BERT, RoBERTa, DeBERTa, ELECTRA and similar ones give the first
token of the last layer (ModernBERT too, whatever `classifier_pooling` its config has). Every other encoder gives what
transformers calls its pooled output (Swin, ConvNeXt and SigLIP are made to be read from it).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from randlora.files.tensors import read_tensors
from randlora.model.families import family_name
from trainables.errors import TrialError
from trainables.seeds import generator

FIRST_TOKEN = frozenset(
    {"dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "deit", "vit_msn"}
    | {"bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "distilbert"}
    | {"roberta-prelayernorm", "data2vec-text", "deberta", "deberta-v2", "electra", "modernbert"}
)
"""Model types whose first token after the last layer stands for the whole input. Their poolers are not used."""

HEAD_STD = 0.01
"""Standard deviation of a new head's weights (the released RandLoRA code and DINOv2's linear probe)."""
HEAD_FILE = "head.safetensors"
"""The file with a kept head's weights, beside the adapter's."""


def pooled(module: nn.Module, outputs: object) -> Tensor:
    """Return (B, D) float32 from the outputs of a transformers encoder. Raises TrialError if there is no pooled
    output."""
    if family_name(module) in FIRST_TOKEN:
        tokens: Tensor = outputs.last_hidden_state  # type: ignore[attr-defined]
        return tokens[:, 0].float()
    vector: Tensor | None = getattr(outputs, "pooler_output", None)
    if vector is None:
        raise TrialError(f"{type(module).__name__} gives no pooled output that a linear head could read")
    return vector.flatten(1).float()


def is_unused(module: nn.Module, name: str) -> bool:
    """Return whether no task reads a weight, so that it cannot train.

    `pooled` reads neither mask tokens nor some families' poolers. Vectors of open_clip's CoCa do not need its decoder.
    """
    last, family = name.rpartition(".")[2], family_name(module)
    return (
        last == "mask_token"
        or (family in FIRST_TOKEN and name.startswith("pooler."))
        or (family == "open_clip" and name.startswith("text_decoder."))
    )


def image_encoder(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from images (B, 3, S, S) to vectors (B, D). It interpolates positions if S is not the
    pretraining size."""
    extra: dict[str, bool] = {}
    if "interpolate_pos_encoding" in inspect.signature(module.forward).parameters:
        extra["interpolate_pos_encoding"] = True  # DINOv2 does it unasked

    def encode(images: Tensor) -> Tensor:
        return pooled(module, module(pixel_values=images, **extra))

    return encode


def hidden_size(module: nn.Module, model_id: str) -> int:
    """Return D of `pooled`, from the model's config. Raises TrialError if the config does not say."""
    config = getattr(module, "config", None)
    # convolutional families count by stage; MobileViT's last layer widens the last stage
    stages = getattr(config, "neck_hidden_sizes", None) or getattr(config, "hidden_sizes", None) or [None]
    size = getattr(config, "hidden_size", None) or stages[-1]
    if not isinstance(size, int):
        raise TrialError(f"model {model_id!r}: its config has no hidden_size, so a head cannot be sized")
    return size


def new_head(features: int, outputs: int, init_seed: int, device: torch.device) -> nn.Linear:
    """Return a linear head without bias, (outputs x features), drawn from `init_seed` on the CPU."""
    head = nn.Linear(features, outputs, bias=False, device="meta").to_empty(device="cpu")
    nn.init.normal_(head.weight, std=HEAD_STD, generator=generator(init_seed, "head"))
    return head.to(device)


class ClassifierHead(nn.Module):
    """The head that transformers puts on RoBERTa: dropout, D x D with tanh, dropout, C x D. Both layers have a bias."""

    def __init__(self, features: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dense, self.out = nn.Linear(features, features), nn.Linear(features, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return logits (B, C) for vectors (B, D)."""
        outputs: Tensor = self.out(self.dropout(torch.tanh(self.dense(self.dropout(vectors)))))
        return outputs


def new_classifier_head(
    module: nn.Module, features: int, outputs: int, init_seed: int, device: torch.device
) -> ClassifierHead:
    """Return a `ClassifierHead` for a text encoder, with its dropout and initial deviation, drawn from `init_seed`."""
    config = getattr(module, "config", None)
    dropout = getattr(config, "classifier_dropout", None)
    if dropout is None:
        dropout = getattr(config, "hidden_dropout_prob", None) or 0.0
    std: float = getattr(config, "initializer_range", None) or 0.02
    draw = generator(init_seed, "head")
    with torch.device("meta"):
        head = ClassifierHead(features, outputs, dropout)
    head.to_empty(device="cpu")
    for layer in (head.dense, head.out):
        nn.init.normal_(layer.weight, std=std, generator=draw)
        nn.init.zeros_(layer.bias)
    return head.to(device)


class TransferHead(nn.Module):
    """DePT's head: a scale and a shift (D,) of the channels of images and of texts, and one linear layer C x D for
    both."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.image_scale, self.text_scale = (nn.Parameter(torch.ones(features)) for _ in range(2))
        self.image_shift, self.text_shift = (nn.Parameter(torch.zeros(features)) for _ in range(2))
        self.out = nn.Linear(features, outputs)

    def of_images(self, vectors: Tensor) -> Tensor:
        """Return logits (B, C) for vectors (B, D) of images."""
        logits: Tensor = self.out(self.image_scale * vectors + self.image_shift)
        return logits

    def of_texts(self, vectors: Tensor) -> Tensor:
        """Return logits (B, C) for vectors (B, D) of texts."""
        logits: Tensor = self.out(self.text_scale * vectors + self.text_shift)
        return logits


def new_transfer_head(features: int, outputs: int, init_seed: int, device: torch.device) -> TransferHead:
    """Return a `TransferHead`. Its linear layer is drawn from `init_seed` as `nn.Linear` draws: uniform on +-1 /
    sqrt(D)."""
    with torch.random.fork_rng(devices=[]):
        head = TransferHead(features, outputs)
    draw, bound = generator(init_seed, "head"), features**-0.5
    for parameter in head.out.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=draw)
    return head.to(device)


def load_head(folder: Path) -> nn.Linear | ClassifierHead | TransferHead:
    """Return the head that a trial left in its adapter folder (`HEAD_FILE`)."""
    tensors = read_tensors(folder / HEAD_FILE, expect_digest=True)
    if "image_scale" in tensors:
        transfer = TransferHead(len(tensors["image_scale"]), len(tensors["out.weight"]))
        transfer.load_state_dict(tensors)
        return transfer.eval()
    if "dense.weight" in tensors:
        classifier = ClassifierHead(tensors["out.weight"].shape[1], len(tensors["out.weight"]))
        classifier.load_state_dict(tensors)
        return classifier.eval()
    outputs, features = tensors["weight"].shape
    head = nn.Linear(features, outputs, bias="bias" in tensors)
    head.load_state_dict(tensors)
    return head
