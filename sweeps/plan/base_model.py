"""What is known of a sweep's base model, each thing asked once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from sweeps.plan.digests import model_digest
from trainables.models.families import Kind, ModelId, parse_id
from trainables.models.shapes import Shape, default_targets, meta_model, method_shapes, model_kind, model_size
from trainables.models.shapes import target_shapes as shapes_in


@dataclass(frozen=True)
class BaseModelInfo:
    """What is known of a base model. Nothing but `digest` reads its weights. All but `digest` is kept once asked.

    Each property raises ModelError for a model that is unknown, or whose config can't be read.

    Attributes:
        id: the model, as the sweep file names it.
    """

    id: str

    @functools.cached_property
    def parsed(self) -> ModelId:
        """The id, taken apart."""
        return parse_id(self.id)

    @functools.cached_property
    def kind(self) -> Kind:
        """The task family that can train it."""
        return model_kind(self.id)

    @functools.cached_property
    def module(self) -> nn.Module:
        """Its modules on the meta device. Whoever attaches an adapter detaches it again."""
        return meta_model(self.id)

    @functools.cached_property
    def size(self) -> int:
        """Its parameters."""
        return model_size(self.module)

    @functools.cached_property
    def default_targets(self) -> tuple[str, ...]:
        """The weights that are adapted unless others are named."""
        return tuple(default_targets(self.module))

    def target_shapes(self, targets: Sequence[str], adapt: str) -> dict[str, Shape]:
        """Names and (out, in) of the weights that are adapted, in the model's order."""
        return shapes_in(self.module, targets, adapt)

    def method_shapes(self, method: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """What a method counts on: the target weights of `shapes`, the place of prompts, or both."""
        return method_shapes(method, self.module, shapes)

    def digest(self) -> str | None:
        """A digest of its files as they are now, or its commit; None if it has neither, or can't be had."""
        return model_digest(self.id)
