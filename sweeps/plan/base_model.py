"""Facts about a sweep's base model, each computed once."""

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
    """Facts about a base model. Only `digest` reads its weights. Every property is computed once.

    Each property raises ModelError if the model is unknown or its config can't be read.

    Attributes:
        id: the model, as the sweep file names it.
    """

    id: str

    @functools.cached_property
    def parsed(self) -> ModelId:
        """Return the parts of the id."""
        return parse_id(self.id)

    @functools.cached_property
    def kind(self) -> Kind:
        """Return the kind of model, which decides the task that trains it."""
        return model_kind(self.id)

    @functools.cached_property
    def module(self) -> nn.Module:
        """Return its modules on the meta device. A caller that attaches an adapter must detach it again."""
        return meta_model(self.id)

    @functools.cached_property
    def size(self) -> int:
        """Return its number of parameters."""
        return model_size(self.module)

    @functools.cached_property
    def default_targets(self) -> tuple[str, ...]:
        """Return the patterns of the weights that are adapted by default."""
        return tuple(default_targets(self.module))

    def target_shapes(self, targets: Sequence[str], adapt: str) -> dict[str, Shape]:
        """Return (out, in) of the weights that `targets` names, by their names, in the model's order."""
        return shapes_in(self.module, targets, adapt)

    def method_shapes(self, method: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the shapes that a method counts on: the target weights of `shapes`, the place of prompts, or both."""
        return method_shapes(method, self.module, shapes)

    def digest(self) -> str | None:
        """Return a digest of its files as they are now, or its commit; None if it has neither or can't be read."""
        return model_digest(self.id)
