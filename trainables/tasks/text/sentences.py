"""Turn labelled sentences into tokens, and read them with a text encoder: the parts of sentence classification."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainables.data.text.batches import padded
from trainables.data.text.dataset import Labelled, TextSplit
from trainables.errors import TrialError
from trainables.models.encoders import pooled
from trainables.runtime import Autocast
from trainables.tasks.text.rows import TokenRows, check_tokenizer, positions_of

DEFAULT_MAX_TOKENS = 128
"""The default number of tokens of a sentence or a pair (GLUE runs of LoRA and RandLoRA)."""


def window_of(module: nn.Module, tokenizer: Any) -> int | None:
    """Return the number of tokens that fit into the model; None if neither its config nor its tokenizer says."""
    positions = positions_of(getattr(module, "config", None))
    stated = getattr(tokenizer, "model_max_length", None)
    limits = [n for n in (positions, stated) if isinstance(n, int) and 0 < n < 10**6]  # "unlimited" is 10**30
    return min(limits, default=None)


@dataclass(frozen=True, eq=False)
class Sentence:
    """One row in tokens: ids (L,), and, if the model needs it, which of the two sentences each belongs to (L,).

    `cut` tells whether something of it was left out.
    """

    ids: Tensor
    types: Tensor | None
    cut: bool

    def __len__(self) -> int:
        return len(self.ids)


class SentenceEncoder:
    """A tokenizer with a largest number of tokens. A longer text loses tokens at its end; of a pair, the longer
    sentence first.

    The tokenizer's special tokens stay. A tokenizer without a pad token needs none, because padding is masked.
    """

    def __init__(self, tokenizer: Any, max_tokens: int | None, module: nn.Module, model_id: str) -> None:
        window = window_of(module, tokenizer)
        check_tokenizer(tokenizer, max_tokens, window, model_id)
        self.max_tokens = max_tokens or min(DEFAULT_MAX_TOKENS, window or DEFAULT_MAX_TOKENS)
        config: Any = getattr(module, "config", None)
        candidates = (tokenizer.pad_token_id, getattr(config, "pad_token_id", None), tokenizer.eos_token_id)
        self.pad: int = next((token for token in candidates if token is not None), 0)
        self._tokenizer = tokenizer
        self._typed = "token_type_ids" in inspect.signature(module.forward).parameters

    def __call__(self, rows: Sequence[Labelled]) -> list[Sentence]:
        """Return at least one row in tokens."""
        if not rows:
            return []
        pairs = len(rows[0].sentences) > 1
        columns = [[row.sentences[i] for row in rows] for i in range(2 if pairs else 1)]
        encodings = self._tokenizer(
            *columns, truncation="longest_first" if pairs else True, max_length=self.max_tokens, padding=False
        )
        # a text that fills the window was cut if the tokenizer makes more tokens of it
        full = [i for i, ids in enumerate(encodings["input_ids"]) if len(ids) >= self.max_tokens]
        uncut = self._tokenizer(*([c[i] for i in full] for c in columns), verbose=False)["input_ids"] if full else ()
        cut = {i for i, ids in zip(full, uncut, strict=True) if len(ids) > self.max_tokens}
        types = encodings.get("token_type_ids") if self._typed else None
        return [
            Sentence(torch.tensor(ids), None if types is None else torch.tensor(types[i]), i in cut)
            for i, ids in enumerate(encodings["input_ids"])
        ]


class SentenceRows(TokenRows[Sentence]):
    """The labelled sentences of a split in tokens."""

    def __init__(self, part: TextSplit, encoder: SentenceEncoder) -> None:
        super().__init__(part)
        self._encoder = encoder

    def encode(self, rows: Sequence[int]) -> list[Sentence]:
        texts = []
        for row in rows:
            labelled = self.part.rows[row]
            if not isinstance(labelled, Labelled):
                raise TrialError(
                    f"{self.part.place(row)}: a prompt with a response, and a text encoder classifies labelled "
                    "sentences; use a causal language model"
                )
            texts.append(labelled)
        sentences = self._encoder(texts)
        for row, sentence in zip(rows, sentences, strict=True):
            if not len(sentence):
                raise TrialError(f"{self.part.place(row)}: the tokenizer makes no token of it")
        return sentences


def labels_of(part: TextSplit, rows: Tensor) -> Tensor:
    """Return the classes of labelled sentences, (n,) int64, or the numbers of a regression, float32."""
    sentences = [part.rows[row] for row in rows.tolist()]
    return torch.tensor([row.label for row in sentences if isinstance(row, Labelled)])


class SentenceReader:
    """A text encoder that makes one vector of every sentence."""

    def __init__(self, module: nn.Module, autocast: Autocast, pad: int) -> None:
        self.module, self._autocast, self._pad = module, autocast, pad

    def __call__(self, sentences: Sequence[Sentence]) -> Tensor:
        """Return the vectors (B, D), float32, of B sentences."""
        device = next(self.module.parameters()).device
        ids = padded([s.ids for s in sentences], self._pad)
        lengths = torch.tensor([len(s) for s in sentences])
        mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).to(torch.int64)
        more = {}
        if all(s.types is not None for s in sentences):
            more["token_type_ids"] = padded([s.types for s in sentences if s.types is not None], 0).to(device)
        with self._autocast():
            out = self.module(input_ids=ids.to(device), attention_mask=mask.to(device), **more)
            return pooled(self.module, out)
