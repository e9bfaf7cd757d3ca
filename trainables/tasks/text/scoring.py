"""Multiple choice by log-likelihood: which continuation of a prompt a model finds most likely.

The choices of a row share their prompt, and often the start of the continuation. This common part runs once. What
differs runs on copies of its key-value cache, and not at all if it is a single token. Some models cannot continue from
a padded cache (recurrent layers, full windows); then the whole texts run instead. Rows are sorted by length, and a
batch has a limited number of tokens, so that memory does not depend on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from randlora.model.families import family_name
from trainables.data.text.batches import length_batches, padded
from trainables.models.language import LanguageModel, log_likelihood, positions

BATCH_TOKENS = 8192
"""Padded tokens of one forward pass in evaluation. It shrinks if memory runs out."""
_BY_INDEX = ("gpt_neo", "mpt")
"""Families that measure distance by the place in the cache, which contains padding, instead of by the position."""


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt (L,) with its choices, each (K_i,) with at least one token."""

    prompt: Tensor
    choices: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class _Split:
    """A question as its head (what all choices share) and its tails, each with at least one token."""

    head: Tensor
    shared: int
    tails: tuple[Tensor, ...]


@torch.no_grad()
def choice_scores(
    model: LanguageModel, questions: Sequence[Question], *, batch_size: int, pad: int, configured: int | None = None
) -> list[Tensor]:
    """Return the log-probability of every choice, summed over its tokens: for each question float64 (choices,), on the
    CPU.

    Args:
        model: the language model.
        questions: prompts with choices.
        batch_size: questions of a forward pass at most.
        pad: the padding token.
        configured: the configured batch size. If `batch_size` is smaller, the tokens of a pass shrink in the same
            ratio.
    """
    most = BATCH_TOKENS * batch_size // (configured or batch_size)
    parts = [_split(question) for question in questions]
    scores: list[Tensor] = [torch.zeros(len(p.tails), dtype=torch.float64) for p in parts]
    for batch in length_batches([len(p.head) for p in parts], batch_size, most):
        scores_of_batch = _score_batch(model, [parts[i] for i in batch], pad, batch_size, most)
        for i, values in zip(batch, scores_of_batch, strict=True):
            scores[i] = values
    return scores


def _split(question: Question) -> _Split:
    """Return a question as head and tails."""
    choices = question.choices
    most = min(map(len, choices)) - 1  # at least one token of every choice stays in its tail
    shared = 0
    while shared < most and len({int(c[shared]) for c in choices}) == 1:
        shared += 1
    head = torch.cat([question.prompt, choices[0][:shared]])
    return _Split(head, shared, tuple(c[shared:] for c in choices))


def _score_batch(model: LanguageModel, parts: Sequence[_Split], pad: int, batch_size: int, most: int) -> list[Tensor]:
    """Return the scores of the choices of one batch of questions."""
    heads = [part.head for part in parts]
    rows, columns, targets = positions(heads, [len(part.head) - 1 - part.shared for part in parts])
    # one row of logits for the first tokens of all tails
    at = torch.cat([rows, torch.arange(len(parts))]), torch.cat([columns, torch.tensor([len(h) - 1 for h in heads])])
    longer = any(len(tail) > 1 for part in parts for tail in part.tails)
    logits, cache = model.logits(padded(heads, pad), *at, use_cache=longer)
    shared_logits, last_logits = logits[: len(rows)], logits[len(rows) :]
    total = torch.zeros(len(parts), dtype=torch.float64)
    total.index_add_(0, rows, log_likelihood(shared_logits, targets).double().cpu())
    owner = torch.tensor([i for i, part in enumerate(parts) for _ in part.tails])
    owners = owner.to(logits.device)
    firsts = torch.stack([tail[0] for part in parts for tail in part.tails]).to(logits.device)
    first = last_logits[owners, firsts] - last_logits.logsumexp(dim=1)[owners]
    scores = total[owner] + first.double().cpu()
    if longer:
        length = max(map(len, heads)) + max(len(tail) for part in parts for tail in part.tails) - 1
        if _by_position(model, cache, length):
            scores += _score_tails(model, parts, owner, cache, pad)
        else:
            scores += _score_whole(model, parts, owner, pad, batch_size, most)
    return list(torch.split(scores, [len(part.tails) for part in parts]))


def _by_position(model: LanguageModel, cache: Any, length: int) -> bool:
    """Return whether padding inside a cache that grows to `length` is only masked keys to the model."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if type(cache) is not DynamicCache or family_name(model.module) in _BY_INDEX:
        return False

    def holds_all(layer: Any) -> bool:
        if type(layer) is DynamicSlidingWindowLayer:
            return bool(length <= layer.sliding_window)
        return type(layer) is DynamicLayer  # exact classes: subclasses of the plain cache hold more than keys

    return bool(cache.layers) and all(map(holds_all, cache.layers))


def _score_whole(
    model: LanguageModel, parts: Sequence[_Split], owner: Tensor, pad: int, batch_size: int, most: int
) -> Tensor:
    """Return what `_score_tails` returns, from forward passes of heads and tails together, each within both limits."""
    tails = [tail for part in parts for tail in part.tails]
    chosen = [i for i, tail in enumerate(tails) if len(tail) > 1]
    heads = [parts[int(owner[i])].head for i in chosen]
    texts = [torch.cat([head, tails[i]]) for head, i in zip(heads, chosen, strict=True)]
    scores = torch.zeros(len(tails), dtype=torch.float64)
    for batch in length_batches([len(w) - 1 for w in texts], batch_size, most):
        rows, columns, targets = positions([texts[i] for i in batch], [len(heads[i]) for i in batch])
        logits, _ = model.logits(padded([texts[i][:-1] for i in batch], pad), rows, columns)
        owners = torch.tensor([chosen[i] for i in batch])[rows]
        scores.index_add_(0, owners, log_likelihood(logits, targets).double().cpu())
    return scores


def _score_tails(model: LanguageModel, parts: Sequence[_Split], owner: Tensor, cache: object, pad: int) -> Tensor:
    """Return the log-probabilities (choices of all parts,) of the tails' tokens after their first."""
    tails = [tail for part in parts for tail in part.tails]
    chosen = [i for i, tail in enumerate(tails) if len(tail) > 1]
    owners = owner[chosen]
    past = max(len(part.head) for part in parts)
    widths = torch.tensor([len(part.head) for part in parts])[owners]
    ids = padded([tails[i][:-1] for i in chosen], pad)
    now = ids.shape[1]
    device = model.device
    cache.batch_select_indices(owners.to(device))  # type: ignore[attr-defined]
    visible = (torch.arange(past) < widths.unsqueeze(1)).to(torch.int64)
    mask = torch.cat([visible, torch.ones(len(chosen), now, dtype=torch.int64)], dim=1)
    places = widths.unsqueeze(1) + torch.arange(now)
    rows, columns, targets = positions([tails[i] for i in chosen], [0] * len(chosen))
    logits, _ = model.logits(
        ids, rows, columns, cache=cache, attention_mask=mask.to(device), position_ids=places.to(device), use_cache=True
    )
    likelihoods = log_likelihood(logits, targets).double().cpu()
    scores = torch.zeros(len(tails), dtype=torch.float64)
    return scores.index_add_(0, torch.tensor(chosen)[rows], likelihoods)
