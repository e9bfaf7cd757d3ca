"""The small functions of language-model evaluation: which rows, which choices, what is read, how workers add up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor

from trainables.data.splits import VAL_SEED, generator
from trainables.data.text.dataset import Exchange, TextSplit
from trainables.data.text.prompts import extract_answer
from trainables.errors import TrialError

CUT = "cut-train-texts"
"""Further metric of text tasks: the share of training texts that were longer than `train.max_tokens`."""


def limited(part: TextSplit, rows: Tensor, most: int | None, which: str) -> Tensor:
    """At most `most` of the rows of every task, ascending; the same ones in every trial, fewer among more."""
    if most is None:
        return rows
    kept = []
    of = part.group_of[rows]
    for group in torch.unique(of).tolist():
        those = rows[of == group]
        draw = generator(VAL_SEED, "evaluated rows", which, part.groups[group])
        kept.append(those[torch.randperm(len(those), generator=draw)[:most]])
    return torch.cat(kept).sort().values if kept else rows


def mean_of_groups(part: TextSplit, rows: Tensor, values: Tensor) -> float:
    """The mean over tasks of their means, as the paper's tables average; of one task, its mean."""
    of = part.group_of[rows]
    means = [float(values[of == group].mean()) for group in torch.unique(of).tolist()]
    return sum(means) / len(means)


def choices_of(row: Exchange, place: str) -> tuple[str, ...]:
    """The responses that compete. Raises TrialError, naming the row, where there are none."""
    if len(row.choices) < 2:
        raise TrialError(
            f"{place}: no choices to compare; the instruction should end with 'Answer format: a/b/...' and the row "
            "have an 'answer', or a list 'choices'; otherwise set evaluate.protocol = 'generation'"
        )
    if row.response not in row.choices:
        raise TrialError(f"{place}: the response {row.response!r} is not among the choices {list(row.choices)}")
    return row.choices


def answer_in(text: str, row: Exchange, place: str) -> str | None:
    """The answer read from generated text; None where it holds none. Raises TrialError for a row without an answer."""
    if row.answer is None:
        raise TrialError(f"{place}: the row has no 'answer', so generated text cannot be judged; add one to every row")
    return extract_answer(text, row.labels)


def positions(whole: Sequence[Tensor], starts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, columns, targets) of every token after the first `start + 1` of each sequence, by what predicts it."""
    rows, columns, targets = [], [], []
    for row, (ids, start) in enumerate(zip(whole, starts, strict=True)):
        count = len(ids) - 1 - start
        rows.append(torch.full((count,), row))
        columns.append(torch.arange(start, len(ids) - 1))
        targets.append(ids[start + 1 :])
    return torch.cat(rows), torch.cat(columns), torch.cat(targets)


def summed(values: Tensor, world: int, device: torch.device) -> Tensor:
    """The sum over workers, each of which has zeros where the others' rows are."""
    if world == 1:
        return values
    there = values.to(device)
    torch.distributed.all_reduce(there)
    return there.cpu()


def gathered(texts: Sequence[str], n: int, world: int) -> list[str]:
    """All workers' texts in the order of the rows; a worker has every `world`-th."""
    if world == 1:
        return list(texts)
    parts: list[list[str] | None] = [None] * world
    torch.distributed.all_gather_object(parts, list(texts))
    out = [""] * n
    for rank, part in enumerate(parts):
        out[rank::world] = part or []
    return out
