"""What tasks on texts share: rows in tokens, batches of similar length, which rows are evaluated, and their scores."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from trainables.config import LINEAR_PROBE, EvaluateSettings, TrialConfig
from trainables.data.splits import VAL_SEED, split_of
from trainables.data.text.batches import bucketed_batches
from trainables.data.text.dataset import TextDataset, TextSplit
from trainables.errors import TrialError
from trainables.models.forward import recomputing
from trainables.seeds import generator
from trainables.tasks.task import Parts, Scores, Split, Which

CUT = "cut-train-texts"
"""A further metric of text tasks: the share of training texts that were longer than `train.max_tokens`."""

_POSITIONS_AFTER_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "ibert", "xmod"}
    | {"longformer", "luke", "lilt", "markuplm", "mpnet", "esm"}
)
"""Model types that number positions from the padding token's id + 1 on. So RoBERTa's first position has number 2."""


class Tokens(Protocol):
    """A row in tokens."""

    @property
    def cut(self) -> bool: ...
    def __len__(self) -> int: ...


T = TypeVar("T", bound=Tokens)


class TokenRows(ABC, Generic[T]):
    """The rows of a split in tokens, which are made when they are first needed."""

    def __init__(self, part: TextSplit) -> None:
        self.part = part
        self._done: dict[int, T] = {}

    @abstractmethod
    def encode(self, rows: Sequence[int]) -> list[T]:
        """Return these rows in tokens. Raises TrialError for a row of another kind, or one without a token."""

    def prepare(self, rows: Sequence[int]) -> None:
        """Encode those of these rows that are not encoded yet, all at once."""
        missing = [row for row in rows if row not in self._done]
        self._done.update(zip(missing, self.encode(missing), strict=True))

    def __getitem__(self, row: int) -> T:
        if row not in self._done:
            self.prepare([row])
        return self._done[row]

    def cut_share(self, rows: Sequence[int]) -> float:
        """Return the share of these rows that were too long."""
        self.prepare(rows)
        return sum(self._done[row].cut for row in rows) / max(1, len(rows))


class TextTask(Generic[T]):
    """One trial's texts: rows, batches and evaluated rows. A subclass says how they are learned."""

    unit = "texts"

    def __init__(
        self, parts: Parts, dataset: TextDataset, max_tokens: int, encoded: Callable[[TextSplit], TokenRows[T]]
    ) -> None:
        trial = parts.trial
        self._trial, self._dataset, self._lane, self._module = trial, dataset, parts.lane, parts.loaded.module
        self._max_tokens, self._encoded = max_tokens, encoded
        self.metric = dataset.metric
        self._rows = split_of(dataset, trial)
        self._train = self._in_tokens(dataset.train)
        self._cut = self._train.cut_share(self._rows.train_idx.tolist())

    def _in_tokens(self, part: TextSplit) -> TokenRows[T]:
        """Return a split's rows in tokens."""
        key = ("tokens", self._dataset.name, part.name, self._max_tokens)
        return self._lane.words(key, lambda: self._encoded(part))

    def batches(self, epoch: int) -> list[Tensor]:
        return bucketed_batches(self._rows.train_idx, lambda row: len(self._train[row]), self._trial, epoch)

    def rows(self, which: Split) -> Tensor:
        return self._rows.of(which)

    @property
    def train_split(self) -> TextSplit:
        """Return the texts that the numbers of training and validation rows refer to."""
        return self._dataset.train

    def validated(self) -> Tensor:
        return self._evaluated("val")[1]

    def weight(self, batch: Tensor) -> float:
        return float(len(batch))

    def draw(self, batch: Tensor, generator: torch.Generator) -> None:
        return None

    def width(self, rows: Tensor) -> int:
        return max(len(self._train[row]) for row in rows.tolist())

    def _saving(self) -> contextlib.AbstractContextManager[None]:
        """Return the block for a forward pass in training, which keeps few activations if the trial asks for that."""
        saving = self._trial.train.gradient_checkpointing and self._trial.method != LINEAR_PROBE
        return recomputing(self._module) if saving else contextlib.nullcontext()

    def _evaluated(self, which: Which) -> tuple[TextSplit, Tensor]:
        """Return the split of an evaluation, and its rows (n,) that are evaluated."""
        part = self._dataset.train if which == "val" else self._dataset.test
        return part, limited(part, self._rows.of(which), self._trial.evaluate, which)

    def _scores(
        self, part: TextSplit, rows: Tensor, score: float, correct: Tensor | None, further: Mapping[str, float]
    ) -> Scores:
        """Return the scores of some rows."""
        return Scores(
            score=score,
            n_examples=len(rows),
            examples_hash=part.examples_hash(rows),
            correct=correct,
            further={**further, CUT: self._cut},
        )


def limited(part: TextSplit, rows: Tensor, settings: EvaluateSettings, which: Which) -> Tensor:
    """Return the rows of every task that are evaluated, ascending.

    They are the same in every trial. With a smaller limit they are a subset.
    """
    most = settings.validation_rows if which == "val" else settings.test_rows
    if most is None:
        return rows
    chosen = []
    group_numbers = part.group_of[rows]
    one = settings.rows_by == "data" and len(part.groups) == 1  # whose name may be the data set's absolute path
    for group in torch.unique(group_numbers).tolist():
        those = rows[group_numbers == group]
        draw = generator(VAL_SEED, "evaluated rows", which, "" if one else part.groups[group])
        chosen.append(those[torch.randperm(len(those), generator=draw)[:most]])
    return torch.cat(chosen).sort().values if chosen else rows


def refuse_images(trial: TrialConfig, model: str) -> None:
    """Raise TrialError for settings of images. `model` is the kind of model, such as "a text encoder"."""
    if trial.adapt == "vision":
        raise TrialError(f"adapt = 'vision': {model} has no vision tower; use 'all'")
    if trial.train.augment != "none":
        raise TrialError(f"train.augment {trial.train.augment!r} is for images; leave it out for {model}")


def check_tokenizer(tokenizer: Any, max_tokens: int | None, window: int | None, model_id: str) -> None:
    """Raise TrialError if the tokenizer is missing, or if texts may be longer than the model's window."""
    if tokenizer is None:
        raise TrialError(f"model {model_id!r} has no tokenizer files; save its tokenizer into the same directory")
    if max_tokens is not None and window is not None and max_tokens > window:
        raise TrialError(
            f"train.max_tokens {max_tokens} is more than the {window} positions of {model_id!r}; the largest that "
            f"works is {window}"
        )


def positions_of(config: Any) -> int | None:
    """Return the number of positions of a model, from its config; None if the config does not say."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and getattr(config, "model_type", None) in _POSITIONS_AFTER_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    return positions
