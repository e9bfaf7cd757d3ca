"""Where prompts enter a CLIP of open_clip: after a text's first token, and behind an image's patches.

Prompts are not in any weight. Still they are one adapter, with the name `PLACE` among the targets, so that counting,
checkpoints and detaching treat them as adapters. A text that is encoded meanwhile must leave room for the context
(`with_room`), because the context's vectors replace the embeddings after the first token. Deep prompts replace those of
the block below.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from randlora.adapter import Adapter, Shape
from randlora.errors import AdapterError, TargetError
from randlora.model.sites import Site

PLACE = "prompts"
"""The name of the place of prompts among the targets."""


class Place(tuple[int, int]):
    """(image width, text width) of a CLIP's towers, in place of a weight's shape. It equals no weight's shape.

    Attributes:
        joint: width of the features in which images and texts are compared.
        layers: number of blocks of the smaller tower.
        room: half of the text window. Prompts may use it; the rest is for names of classes.
    """

    joint: int
    layers: int
    room: int

    def __new__(cls, image: int, text: int, *, joint: int, layers: int, room: int) -> Self:
        place = super().__new__(cls, (image, text))
        place.joint, place.layers, place.room = joint, layers, room
        return place

    def __getnewargs_ex__(self) -> tuple[tuple[int, ...], dict[str, int]]:
        """Return the arguments of `__new__` for copies and pickles, which would call it without keywords."""
        return tuple(self), {"joint": self.joint, "layers": self.layers, "room": self.room}

    def _key(self) -> tuple[object, ...]:
        return PLACE, *self, self.joint, self.layers, self.room

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True, eq=False)
class Towers:
    """The modules of a CLIP that prompts pass through."""

    embedding: nn.Embedding
    texts: nn.ModuleList
    before_images: nn.Module
    images: nn.ModuleList
    place: Place

    @classmethod
    def of(cls, model: nn.Module) -> Towers:
        """Return the towers of a model. Raises TargetError unless it is a CLIP whose towers are open_clip's own
        transformers."""
        text: Any = getattr(model, "text", model)
        visual: Any = getattr(model, "visual", None)
        embedding = getattr(text, "token_embedding", None)
        pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
        blocks: list[Any] = [
            getattr(getattr(tower, "transformer", None), "resblocks", None) for tower in (text, visual)
        ]
        plain = pool == "argmax" and getattr(visual, "pool_type", None) == "tok" and visual.attn_pool is None
        if not (plain and isinstance(embedding, nn.Embedding) and all(isinstance(b, nn.ModuleList) for b in blocks)):
            raise TargetError(
                f"prompts need a CLIP with a text transformer and a ViT of open_clip's own, and {type(model).__name__} "
                "is none; nearest: open_clip:ViT-B-32"
            )
        if not (text.transformer.batch_first and visual.transformer.batch_first):
            raise TargetError(f"prompts need the batch first, and a tower of {type(model).__name__} has it second")
        projection = text.text_projection
        joint = projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
        place = Place(
            visual.class_embedding.shape[-1],
            embedding.embedding_dim,
            joint=joint,
            layers=min(map(len, blocks)),
            room=text.positional_embedding.shape[0] // 2,
        )
        return cls(embedding, blocks[0], visual.ln_pre, blocks[1], place)


def place_of(model: nn.Module) -> Place:
    """Return what prompts of a model are counted by. Works on the meta device. Raises TargetError as
    `Towers.of` does."""
    return Towers.of(model).place


class Prompts(Adapter):
    """Prompts of both towers. `tokens` is the number of vectors in a text's context."""

    tokens: int
    resting = False
    """Whether the towers run without prompts, for a comparison with the model as it was."""

    @abstractmethod
    def of_text(self, layer: int) -> Tensor | None:
        """Return the prompts for the input of a text block; None if its input stays as it is.

        They are (tokens, text width), or (n, tokens, text width) for n texts.
        """

    @abstractmethod
    def of_image(self, layer: int) -> Tensor | None:
        """Return the prompts (k, image width) for the input of an image block; None if its input stays as it is."""

    def delta(self, base: Tensor) -> Tensor:
        raise AdapterError(
            "prompts have no delta: they are inputs of the towers, so they cannot be merged or exported as a matrix; "
            "save() keeps them themselves"
        )

    def weight(self, base: Tensor) -> Tensor:
        return self.delta(base)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return self.delta(base)


class PromptSite(Site):
    """The place of prompts in a model. It has the interface of a `Site`."""

    def __init__(self, model: nn.Module) -> None:
        self.towers = Towers.of(model)
        super().__init__(PLACE, model, PLACE, None)
        self._hooks: list[RemovableHandle] = []

    @property
    def by_activation(self) -> bool:
        return True

    @property
    def quantised(self) -> bool:
        return False

    @property
    def parameter(self) -> nn.Parameter:
        """Return the token embedding (vocabulary x text width), whose rows are words to start from."""
        return self.towers.embedding.get_parameter("weight")

    @property
    def base(self) -> Tensor:
        return self.parameter

    @property
    def shape(self) -> Shape:
        return self.towers.place

    def install(self, adapter: Adapter) -> None:
        """Put the prompts in place. Raises AdapterError for another adapter, because prompts cannot share a place."""
        if not isinstance(adapter, Prompts):
            raise AdapterError(f"{type(adapter).__name__} is no prompt")
        self.owner.add_module(PLACE, adapter)
        towers = self.towers
        # partials, because a deep copy of the model copies their arguments, but would share those of a closure
        self._hooks = [
            towers.embedding.register_forward_hook(partial(_embedded, adapter)),
            towers.before_images.register_forward_pre_hook(partial(_before, adapter, 0, insert_in_image)),
        ]
        for layer in range(1, towers.place.layers):
            if adapter.of_text(layer) is not None:
                hook = partial(_before, adapter, layer, insert_in_text)
                self._hooks.append(towers.texts[layer].register_forward_pre_hook(hook))
            if adapter.of_image(layer) is not None:
                hook = partial(_before, adapter, layer, insert_in_image)
                self._hooks.append(towers.images[layer].register_forward_pre_hook(hook))

    def remove(self) -> None:
        """Undo `install`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        del self.owner._modules[PLACE]


def _embedded(adapter: Prompts, _: nn.Module, args: Any, x: Tensor) -> Tensor:
    """Insert prompts into the embedded texts; a forward hook of the token embedding."""
    return insert_in_text(adapter, 0, x)


def _before(
    adapter: Prompts, layer: int, put: Callable[[Prompts, int, Tensor], Tensor], _: nn.Module, args: Any
) -> tuple[Any, ...]:
    """Insert prompts before a module runs; a forward pre-hook of a module whose first argument is the tokens."""
    return put(adapter, layer, args[0]), *args[1:]


def insert_in_text(prompts: Prompts, layer: int, x: Tensor) -> Tensor:
    """Return tokens (n, L, D) of texts with the prompts after the first one, in place of what was there."""
    prompt = None if prompts.resting else prompts.of_text(layer)
    if prompt is None:
        return x
    return torch.cat([x[:, :1], prompt.to(x.dtype).expand(len(x), -1, -1), x[:, 1 + prompts.tokens :]], dim=1)


def insert_in_image(prompts: Prompts, layer: int, x: Tensor) -> Tensor:
    """Return tokens (n, L, D) of images with the prompts behind them. In deeper blocks they replace the last tokens."""
    prompt = None if prompts.resting else prompts.of_image(layer)
    if prompt is None:
        return x
    patches = x if layer == 0 else x[:, : x.shape[1] - len(prompt)]
    return torch.cat([patches, prompt.to(x.dtype).expand(len(x), -1, -1)], dim=1)


def with_room(texts: Tensor, tokens: int) -> Tensor:
    """Return token ids (n, L) of texts with room for prompts after the first token. The end's id is the largest.

    Args:
        texts: token ids (n, L).
        tokens: the number of prompts.

    Raises:
        AdapterError: a text would lose its end.
    """
    longest = int(texts.argmax(dim=1).max()) + 1
    if longest + tokens > texts.shape[1]:
        raise AdapterError(
            f"a text of {longest} tokens and {tokens} prompts do not fit into the model's {texts.shape[1]} tokens; "
            f"take at most {texts.shape[1] - longest}"
        )
    return torch.cat([texts[:, :1].repeat(1, 1 + tokens), texts[:, 1 : texts.shape[1] - tokens]], dim=1)
