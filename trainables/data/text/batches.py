"""Make batches of texts of similar length: they need less padding, and depend on (data_seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainables.config import TrialConfig
from trainables.data.images.batches import epoch_batches
from trainables.seeds import generator

POOL_BATCHES = 32
"""The number of batches in a pool. Rows are sorted by length within a pool, so lengths are near and neighbours
change."""
ENOUGH_TOKENS = 1024
"""Of a forward pass: on a CPU matrix products hardly get faster with more."""
LIKE = 0.8
"""A row in a batch beyond `ENOUGH_TOKENS` is at least this part of the longest, so that little of it is padding."""


def bucketed_batches(rows: Tensor, length: Callable[[int], int], trial: TrialConfig, epoch: int) -> list[Tensor]:
    """Return the batches of one epoch, as `epoch_batches` counts them. Rows of a batch have similar `length` (in
    tokens).

    The epoch's order is cut into pools. Each pool is sorted by length (longest first, ties in the order drawn) and cut
    into groups (`train.length_group`; a batch each by default), and the groups of all pools are shuffled. A last group
    that is not full stays last. The groups one after another are then cut into batches, so trials with the same
    `length_group` see the same sequence of texts at every batch size.
    """
    settings, seed = trial.train, trial.data_seed
    batch_size, least = settings.global_batch_size, settings.min_batches_per_epoch
    group = settings.length_group or batch_size
    again = settings.sampling == "replacement"
    order = torch.cat(epoch_batches(rows, batch_size, least, seed, epoch, replacement=again))
    draw = generator(seed, "buckets", epoch)
    full = len(order) - len(order) % group
    groups: list[Tensor] = []
    for pool in torch.split(order[:full], POOL_BATCHES * group) if full else ():
        by_length = sorted(pool.tolist(), key=lambda row: -length(row))  # stable: ties stay in the order drawn
        groups += torch.split(torch.tensor(by_length, dtype=torch.int64), group)
    shuffled = [groups[i] for i in torch.randperm(len(groups), generator=draw).tolist()]
    return list(torch.split(torch.cat([*shuffled, order[full:]]), batch_size))


def length_batches(
    lengths: Sequence[int], most_rows: int, most_tokens: int, enough: int = ENOUGH_TOKENS
) -> list[list[int]]:
    """Positions 0..n-1 in batches for evaluation, longest first; each batch keeps both limits.

    A single row may be longer than `most_tokens`; it is a batch of its own. A batch of `enough` padded tokens takes no
    further rows that would be padded much.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    while order:
        longest = max(1, lengths[order[0]])
        most = order[: max(1, min(most_rows, most_tokens // longest))]
        alike = sum(lengths[i] >= LIKE * longest for i in most)  # the first ones, for they are sorted
        size = min(len(most), max(alike, enough // longest))
        batches.append(order[:size])
        order = order[size:]
    return batches


def padded(sequences: Sequence[Tensor], fill: int, *, left: bool = False) -> Tensor:
    """Return sequences (L_i,) as one (n, max L) int64 tensor, with `fill` after them, or before them if `left`."""
    side = "left" if left else "right"
    return pad_sequence(list(sequences), batch_first=True, padding_value=fill, padding_side=side)
