"""Texts to tokens for causal language models: prompt and response apart, one rule for what is too long, all counted.

Prompt and response are tokenised separately, so that a prompt has the same tokens in training, where a response
follows, and in evaluation, where none is known yet. (LLM-Adapters tokenises both as one text in training; a tokenizer
may then merge characters across the boundary.) The prompt has the tokenizer's own special tokens in front, the response
its EOS at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.data.text.dataset import Exchange, TextSplit
from trainables.errors import TrialError
from trainables.models.loading import LoadedModel
from trainables.tasks.text.rows import TokenRows, check_tokenizer, positions_of

DEFAULT_MAX_TOKENS = 256
"""LLM-Adapters' cutoff_len."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One row in tokens. `cut` tells whether something of it was left out."""

    prompt: Tensor
    response: Tensor
    cut: bool

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


class Encoder:
    """A tokenizer with a longest sequence.

    Rows that are too long lose tokens from the start of their prompt, its leading BOS kept: the end of a prompt, where
    the question and the header of the response stand, is what the response depends on. A response that does not fit
    beside one token of its prompt is cut at its end, and then has no EOS.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, window: int | None, model_id: str) -> None:
        check_tokenizer(tokenizer, max_tokens, window, model_id)
        if tokenizer.eos_token_id is None:
            raise TrialError(
                f"the tokenizer of {model_id!r} has no EOS token, so a response could not end; set eos_token in its "
                "tokenizer_config.json"
            )
        if max_tokens < 2:
            raise TrialError(f"train.max_tokens {max_tokens} leaves no room for a prompt and a response; at least 2")
        self.tokenizer, self.max_tokens, self.window = tokenizer, max_tokens, window
        self.eos: int = tokenizer.eos_token_id
        # a token that is only ever padded with: behind the text in training, masked in generation
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def prompts(self, rows: Sequence[Exchange]) -> list[Tensor]:
        """Whole prompts, with the special tokens that the tokenizer puts before a text."""
        texts = [row.prompt for row in rows]
        found = []
        for row, ids in zip(rows, self.tokenizer(texts)["input_ids"] if texts else (), strict=True):
            kept = ids[:-1] if ids and ids[-1] == self.eos else ids  # some tokenizers close every text
            if row.bos_between:
                kept = [*kept, self.eos if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id]
            if not kept:
                raise TrialError(f"the prompt {row.prompt!r} has no tokens")
            found.append(torch.tensor(kept, dtype=torch.int64))
        return found

    def continuations(self, texts: Sequence[str]) -> list[Tensor]:
        """Responses without an EOS."""
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else ()
        return [torch.tensor(found, dtype=torch.int64) for found in ids]

    def shortened(self, prompt: Tensor, room: int) -> Tensor:
        """A prompt of at most `room` tokens, without tokens of its start but with its BOS."""
        if len(prompt) <= room:
            return prompt
        if room > 1 and int(prompt[0]) == self.tokenizer.bos_token_id:
            return torch.cat([prompt[:1], prompt[len(prompt) - room + 1 :]])
        return prompt[len(prompt) - room :]

    def exchanges(self, rows: Sequence[Exchange]) -> list[Encoded]:
        """Rows as they are trained on: prompt, response and EOS, at most `max_tokens` together."""
        end = torch.tensor([self.eos])
        encoded = []
        for prompt, found in zip(self.prompts(rows), self.continuations([r.response for r in rows]), strict=True):
            response = torch.cat([found, end])
            fitting = response[: self.max_tokens - 1]
            short = self.shortened(prompt, self.max_tokens - len(fitting))
            encoded.append(Encoded(short, fitting, len(short) + len(fitting) < len(prompt) + len(response)))
        return encoded


def encoder_of(loaded: LoadedModel, max_tokens: int | None) -> Encoder:
    """The encoder of a language model; the longest sequence is, unless given, the default or the model's window."""
    window = positions_of(loaded.module.config)
    most = max_tokens or min(DEFAULT_MAX_TOKENS, window or DEFAULT_MAX_TOKENS)
    return Encoder(loaded.text_tokenizer, most, window, loaded.model_id)


class EncodedRows(TokenRows[Encoded]):
    """The prompts and responses of a split in tokens."""

    def __init__(self, part: TextSplit, encoder: Encoder) -> None:
        super().__init__(part)
        self._encoder = encoder

    def encode(self, rows: Sequence[int]) -> list[Encoded]:
        return self._encoder.exchanges([exchange(self.part, row) for row in rows])


def exchange(split: TextSplit, row: int) -> Exchange:
    """A row that has a prompt and a response. Raises TrialError for a row of another kind."""
    found = split.rows[row]
    if not isinstance(found, Exchange):
        raise TrialError(
            f"{split.place(row)}: a labelled sentence, and a language model is trained on prompts and responses; "
            "use a text encoder such as RoBERTa for GLUE"
        )
    return found
