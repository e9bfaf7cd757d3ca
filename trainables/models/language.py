"""A causal language model of transformers, as training and evaluation call it.

Logits are made only at the positions that are asked for, because with 50,000 to 150,000 words they are the largest
tensor of a step. The positions are selected before the output layer, wherever a family has it. So whatever the family
does to its logits afterwards (soft caps, scales) stays as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import TrialError
from trainables.runtime import Autocast


def output_layer(module: nn.Module) -> nn.Module | None:
    """Return the layer of a transformers model that makes logits over words; None if there is none."""
    head = getattr(module, "get_output_embeddings", lambda: None)()
    return head if isinstance(head, nn.Module) else None


class LanguageModel:
    """Computes logits from token ids. B sequences of T tokens, padded at the end; P positions; V words."""

    def __init__(self, module: nn.Module, autocast: Autocast) -> None:
        if (head := output_layer(module)) is None:
            raise TrialError(
                f"{type(module).__name__} has no output layer over words; it is not a causal language model"
            )
        self.module, self._head, self._autocast = module, head, autocast
        parameters = inspect.signature(module.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # renamed in transformers 5

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return next(self.module.parameters()).device

    def logits(self, ids: Tensor, rows: Tensor, columns: Tensor, **more: Any) -> tuple[Tensor, Any]:
        """Return logits (P, V), float32, at the positions (rows, columns) of ids (B, T), and the key-value cache if
        asked for.

        Nothing is masked unless `more` has an attention_mask: padding is at the end of a text, which causal attention
        does not see.
        """
        device = self.device
        where = (rows.to(device), columns.to(device))
        cache = more.pop("cache", None)
        if cache is not None:
            more[self._cache_name] = cache
        more.setdefault("use_cache", False)
        with self._selecting(where, tuple(ids.shape)), self._autocast():
            out = self.module(input_ids=ids.to(device), **more)
        logits: Tensor = out.logits
        if logits.shape[0] != len(rows):
            raise TrialError(
                f"{type(self.module).__name__} made logits {tuple(logits.shape)}, but {len(rows)} positions were "
                "asked for: its output layer is not called once per forward, so it cannot be trained here"
            )
        return logits.float(), out.get(self._cache_name)

    @contextmanager
    def _selecting(self, where: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> Iterator[None]:
        def select(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = arguments[0]
            return (hidden[where], *arguments[1:]) if tuple(hidden.shape[:2]) == shape else arguments

        handle = self._head.register_forward_pre_hook(select)
        try:
            yield
        finally:
            handle.remove()


def positions(whole: Sequence[Tensor], starts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return (rows, columns, targets) of every token after the first `start + 1` of each sequence.

    The model predicts each target at its row and column.
    """
    rows, columns, targets = [], [], []
    for row, (ids, start) in enumerate(zip(whole, starts, strict=True)):
        count = len(ids) - 1 - start
        rows.append(torch.full((count,), row))
        columns.append(torch.arange(start, len(ids) - 1))
        targets.append(ids[start + 1 :])
    return torch.cat(rows), torch.cat(columns), torch.cat(targets)


def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities (P,) of the targets (P,) under logits (P, V)."""
    chosen = logits.gather(1, targets.to(logits.device).unsqueeze(1)).squeeze(1)
    return chosen - logits.logsumexp(dim=1)
