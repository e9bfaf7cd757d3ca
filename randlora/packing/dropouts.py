"""Dropout of a frozen model that several adapters share: each slice of the batch gets the masks of a separate run.

Inside `OwnDropout(turn)`, torch's dropout and the dropout inside its attention work slice by slice, with the members'
own random numbers (`randlora.packing.turns.Streams`). `drops_activations` refuses models that draw random numbers in
another way. `Streams.check` finds those that it missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from randlora.packing.turns import PackingError, Turn, narrowed, widened


def drops_activations(model: nn.Module) -> bool:
    """Return whether a model drops activations at random in training.

    Raises:
        PackingError: it drops layers, paths or channels, which cannot be done slice by slice.
    """
    drops = False
    for name, module in model.named_modules():
        for key, value in _probabilities(module):
            if type(module) is not nn.Dropout and "dropout" not in key and not key.endswith("pdrop"):
                raise PackingError(
                    f"the base model leaves out parts of itself at random ({name or 'its'}.{key} = {value:g}), for "
                    "all adapters at once"
                )
            drops = True
    return drops


def _probabilities(module: nn.Module) -> Iterable[tuple[str, float]]:
    """Yield the names and values of the probabilities with which a module drops."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return [("p", float(module.p))] if module.p > 0.0 else []
    return [(k, v) for k, v in vars(module).items() if "drop" in k and isinstance(v, float) and v > 0.0]


class OwnDropout(TorchFunctionMode):
    """A torch function mode in which dropout works slice by slice."""

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self._turn = turn

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if not self._turn.sliced:
            if func is dropout:
                return self._dropped(*args, **keywords)
            if func is scaled_dot_product_attention:
                return self._attended(*args, **keywords)
            rate = keywords.get("dropout_p", args[10] if len(args) > 10 else 0.0)
            if func is multi_head_attention_forward and keywords.get("training", True) and rate > 0.0:
                raise PackingError("the base model has dropout inside nn.MultiheadAttention, which is not taken apart")
        return func(*args, **keywords)

    def _dropped(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Return the input after dropout, slice by slice."""
        if not training or p == 0.0:
            return dropout(input, p, training, inplace)
        return self._turn.each(lambda _, part: dropout(part, p), input, cut=True)

    def _attended(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        **more: Any,
    ) -> Tensor:
        """Return torch's attention with dropout, slice by slice.

        Queries, keys and values are (K b, heads, T, d). A mask is (K b or 1, heads or 1, T or 1, T).
        """
        if dropout_p == 0.0:
            return scaled_dot_product_attention(query, key, value, attn_mask, **more)
        turn, count = self._turn, len(self._turn.active)
        if attn_mask is not None and attn_mask.shape[0] == 1:
            attn_mask = attn_mask.expand(query.shape[0], *attn_mask.shape[1:])
        masks = [None] * count if attn_mask is None else attn_mask.chunk(count)
        parts = []
        for position, part in enumerate(zip(turn.slices(query), key.chunk(count), value.chunk(count), strict=True)):
            (q, k, v), mask = part, masks[position]
            if turn.widths is not None:
                width = turn.widths[position]
                if query.shape[2] != turn.width or key.shape[2] != turn.width:
                    raise PackingError(f"attention of {query.shape[2]} to {key.shape[2]} tokens, not {turn.width}")
                q, k, v = (narrowed(t, (2,), width) for t in part)
                if mask is not None:
                    mask = narrowed(mask, [d for d in (2, 3) if mask.shape[d] == turn.width], width)
            with turn.only(position):
                y = scaled_dot_product_attention(q, k, v, mask, dropout_p, **more)
            parts.append(y if turn.widths is None else widened(y, (2,), turn.width))
        return torch.cat(parts)
