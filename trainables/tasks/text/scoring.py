"""Log-likelihood multiple choice: which continuation of a prompt a model finds most likely.

The choices of a row share their prompt, and often the start of the continuation. That common part runs once; what
differs runs on copies of its key-value cache, and not at all where it is a single token. Where a model can't take that
up behind padding (recurrent layers, windows that are full), the whole texts run instead. Rows are sorted by length, and
batches hold a fixed number of tokens, so that memory does not depend on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from randlora.model.families import family_name
from trainables.data.text.batches import length_batches, padded
from trainables.models.language import LanguageModel, log_likelihood, positions

BATCH_TOKENS = 8192
"""Padded tokens of one forward pass in evaluation, until memory runs out."""
_BY_INDEX = ("gpt_neo", "mpt")
"""Families that count distance by place in the cache, which has padding in it, instead of by position."""


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt (L,) with its choices, each (K_i,) with at least one token."""

    prompt: Tensor
    choices: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class _Split:
    """A question as head (what all choices share) and tails, each with at least one token."""

    head: Tensor
    shared: int
    tails: tuple[Tensor, ...]


@torch.no_grad()
def choice_scores(
    model: LanguageModel, questions: Sequence[Question], *, batch_size: int, pad: int, configured: int | None = None
) -> list[Tensor]:
    """Log-probability of every choice of every question, summed over its tokens: float64 (choices,) each, on the CPU.

    A forward pass takes `batch_size` questions at most, padded with the token `pad`, and as much fewer tokens as these
    are fewer than `configured`.
    """
    most = BATCH_TOKENS * batch_size // (configured or batch_size)
    parts = [_split(question) for question in questions]
    scores: list[Tensor] = [torch.zeros(len(p.tails), dtype=torch.float64) for p in parts]
    for batch in length_batches([len(p.head) for p in parts], batch_size, most):
        found = _score_batch(model, [parts[i] for i in batch], pad, batch_size, most)
        for i, values in zip(batch, found, strict=True):
            scores[i] = values
    return scores


def _split(question: Question) -> _Split:
    choices = question.choices
    most = min(map(len, choices)) - 1  # every choice keeps a token of its own
    shared = 0
    while shared < most and len({int(c[shared]) for c in choices}) == 1:
        shared += 1
    head = torch.cat([question.prompt, choices[0][:shared]])
    return _Split(head, shared, tuple(c[shared:] for c in choices))


def _score_batch(model: LanguageModel, parts: Sequence[_Split], pad: int, batch_size: int, most: int) -> list[Tensor]:
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
    of = owner.to(logits.device)
    firsts = torch.stack([tail[0] for part in parts for tail in part.tails]).to(logits.device)
    first = last_logits[of, firsts] - last_logits.logsumexp(dim=1)[of]
    scores = total[owner] + first.double().cpu()
    if longer:
        length = max(map(len, heads)) + max(len(tail) for part in parts for tail in part.tails) - 1
        if _by_position(model, cache, length):
            scores += _score_tails(model, parts, owner, cache, pad)
        else:
            scores += _score_whole(model, parts, owner, pad, batch_size, most)
    return list(torch.split(scores, [len(part.tails) for part in parts]))


def _by_position(model: LanguageModel, cache: object, length: int) -> bool:
    """Whether padding inside a cache that grows to `length` is nothing but masked keys to the model."""
    if type(cache).__name__ != "DynamicCache" or family_name(model.module) in _BY_INDEX:
        return False
    layers = getattr(cache, "layers", ())

    def holds_all(layer: object) -> bool:
        kind = type(layer).__name__  # exactly: what derives from a plain one, as from the cache, holds more than keys
        return kind == "DynamicLayer" or (
            kind == "DynamicSlidingWindowLayer" and length <= getattr(layer, "sliding_window", 0)
        )

    return bool(layers) and all(map(holds_all, layers))


def _score_whole(
    model: LanguageModel, parts: Sequence[_Split], owner: Tensor, pad: int, batch_size: int, most: int
) -> Tensor:
    """What `_score_tails` returns, from forward passes of heads and tails together, each within both limits."""
    tails = [tail for part in parts for tail in part.tails]
    chosen = [i for i, tail in enumerate(tails) if len(tail) > 1]
    heads = [parts[int(owner[i])].head for i in chosen]
    whole = [torch.cat([head, tails[i]]) for head, i in zip(heads, chosen, strict=True)]
    scores = torch.zeros(len(tails), dtype=torch.float64)
    for batch in length_batches([len(w) - 1 for w in whole], batch_size, most):
        rows, columns, targets = positions([whole[i] for i in batch], [len(heads[i]) for i in batch])
        logits, _ = model.logits(padded([whole[i][:-1] for i in batch], pad), rows, columns)
        of = torch.tensor([chosen[i] for i in batch])[rows]
        scores.index_add_(0, of, log_likelihood(logits, targets).double().cpu())
    return scores


def _score_tails(model: LanguageModel, parts: Sequence[_Split], owner: Tensor, cache: object, pad: int) -> Tensor:
    """Log-probabilities (choices of all parts,) of the tails' tokens after their first."""
    tails = [tail for part in parts for tail in part.tails]
    chosen = [i for i, tail in enumerate(tails) if len(tail) > 1]
    of = owner[chosen]
    past = max(len(part.head) for part in parts)
    widths = torch.tensor([len(part.head) for part in parts])[of]
    ids = padded([tails[i][:-1] for i in chosen], pad)
    now = ids.shape[1]
    device = model.device
    cache.batch_select_indices(of.to(device))  # type: ignore[attr-defined]
    seen = (torch.arange(past) < widths.unsqueeze(1)).to(torch.int64)
    mask = torch.cat([seen, torch.ones(len(chosen), now, dtype=torch.int64)], dim=1)
    places = widths.unsqueeze(1) + torch.arange(now)
    rows, columns, targets = positions([tails[i] for i in chosen], [0] * len(chosen))
    logits, _ = model.logits(
        ids, rows, columns, cache=cache, attention_mask=mask.to(device), position_ids=places.to(device), use_cache=True
    )
    found = log_likelihood(logits, targets).double().cpu()
    scores = torch.zeros(len(tails), dtype=torch.float64)
    return scores.index_add_(0, torch.tensor(chosen)[rows], found)
