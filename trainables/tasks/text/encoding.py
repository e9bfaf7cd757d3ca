"""Turn texts into tokens for causal language models: prompt and response separately, with one rule for long texts.

Because they are tokenised separately, a prompt has the same tokens in training, where a response follows, and in
evaluation, where none is known yet. (LLM-Adapters tokenises both as one text in training; a tokenizer may then merge
characters across the boundary.) The prompt starts with the tokenizer's own special tokens. The response ends with its
EOS.

Completions and conversations (`learned`) are tokenised as in TRL, in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.data.text.dataset import Chat, Completion, Exchange, TextSplit
from trainables.errors import TrialError
from trainables.models.language import positions
from trainables.models.loading import LoadedModel
from trainables.tasks.text.learned import chat_tokens, completion_tokens
from trainables.tasks.text.rows import TokenRows, check_tokenizer, positions_of

DEFAULT_MAX_TOKENS = 256
"""LLM-Adapters' cutoff_len."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One row in tokens.

    Attributes:
        cut: whether tokens were left out.
        learned: (len(response),) whether the loss is over each token of the response; None if it is over all.
    """

    prompt: Tensor
    response: Tensor
    cut: bool
    learned: Tensor | None = None

    @property
    def targets(self) -> int:
        """Return the number of tokens that the loss is over."""
        return len(self.response) if self.learned is None else int(self.learned.sum())

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


class TooLongError(TrialError):
    """The first `train.max_tokens` tokens of a row have none that is learned. The whole row has `needed` tokens."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class Encoder:
    """A tokenizer with a largest number of tokens.

    A row that is too long loses tokens from the start of its prompt, but keeps the leading BOS: the response depends on
    the end of the prompt, where the question and the header of the response are. A response that does not fit beside
    one token of its prompt is cut at its end, and then has no EOS. Completions and conversations are cut at their end,
    as in TRL.
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
        self.tokenizer, self.max_tokens, self.window, self.model_id = tokenizer, max_tokens, window, model_id
        self.eos: int = tokenizer.eos_token_id
        # it only serves as padding: after the text in training, masked in generation
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def prompts(self, rows: Sequence[Exchange]) -> list[Tensor]:
        """Return whole prompts in tokens, with the special tokens that the tokenizer puts before a text."""
        texts = [row.prompt for row in rows]
        prompts = []
        for row, ids in zip(rows, self.tokenizer(texts)["input_ids"] if texts else (), strict=True):
            without_eos = ids[:-1] if ids and ids[-1] == self.eos else ids  # some tokenizers add an EOS to every text
            if row.bos_between:
                without_eos = [
                    *without_eos,
                    self.eos if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id,
                ]
            if not without_eos:
                raise TrialError(f"the prompt {row.prompt!r} has no tokens")
            prompts.append(torch.tensor(without_eos, dtype=torch.int64))
        return prompts

    def continuations(self, texts: Sequence[str]) -> list[Tensor]:
        """Return responses in tokens, without an EOS."""
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else ()
        return [torch.tensor(token_ids, dtype=torch.int64) for token_ids in ids]

    def shortened(self, prompt: Tensor, room: int) -> Tensor:
        """Return a prompt of at most `room` tokens. It loses tokens from its start, but keeps its BOS."""
        if len(prompt) <= room:
            return prompt
        if room > 1 and int(prompt[0]) == self.tokenizer.bos_token_id:
            return torch.cat([prompt[:1], prompt[len(prompt) - room + 1 :]])
        return prompt[len(prompt) - room :]

    def exchanges(self, rows: Sequence[Exchange]) -> list[Encoded]:
        """Return rows as they are trained on: prompt, response and EOS, at most `max_tokens` together."""
        end = torch.tensor([self.eos])
        encoded = []
        for prompt, continuation in zip(
            self.prompts(rows), self.continuations([r.response for r in rows]), strict=True
        ):
            response = torch.cat([continuation, end])
            fitting = response[: self.max_tokens - 1]
            short = self.shortened(prompt, self.max_tokens - len(fitting))
            encoded.append(Encoded(short, fitting, len(short) + len(fitting) < len(prompt) + len(response)))
        return encoded

    def whole(self, row: Completion | Chat, place: str) -> tuple[Tensor, Tensor]:
        """Return all tokens of a completion or a conversation: ids (L,), and whether each is learned (L,).

        Raises:
            TrialError: the model's chat template cannot write the conversation.
        """
        if isinstance(row, Completion):
            ids, learned = completion_tokens(self.tokenizer, row)
        else:
            ids, learned = chat_tokens(self.tokenizer, row, place, self.model_id)
        learned[0] = False  # nothing before it could predict it
        if not any(learned):
            raise TrialError(f"{place}: none of its {len(ids)} tokens is learned; remove the row")
        return torch.tensor(ids, dtype=torch.int64), torch.tensor(learned)

    def learned(self, row: Completion | Chat, place: str) -> Encoded:
        """Return a completion or a conversation as it is trained on, cut to `max_tokens`."""
        return self.fitting(*self.whole(row, place), place)

    def fitting(self, ids: Tensor, learned: Tensor, place: str) -> Encoded:
        """Cut what `whole` returns to `max_tokens`. Raises TooLongError if no token that is learned is left."""
        first = int(learned.int().argmax())
        if first >= self.max_tokens:
            raise TooLongError(
                f"{place}: what is learned begins at token {first + 1:,} of {len(ids):,}, and train.max_tokens is "
                f"{self.max_tokens:,}; raise it, or shorten or remove the row",
                len(ids),
            )
        cut = slice(first, self.max_tokens)
        return Encoded(ids[:first], ids[cut], len(ids) > self.max_tokens, learned[cut])


def encoder_of(loaded: LoadedModel, max_tokens: int | None) -> Encoder:
    """Return the encoder of a language model.

    Without `max_tokens`, the longest sequence is the default or the model's window, whichever is smaller.
    """
    return make_encoder(loaded.text_tokenizer, loaded.module.config, max_tokens, loaded.model_id)


def make_encoder(tokenizer: Any, config: Any, max_tokens: int | None, model_id: str) -> Encoder:
    """Return what `encoder_of` returns, from a model's tokenizer and config instead of the loaded model."""
    window = positions_of(config)
    most = max_tokens or min(DEFAULT_MAX_TOKENS, window or DEFAULT_MAX_TOKENS)
    return Encoder(tokenizer, most, window, model_id)


class EncodedRows(TokenRows[Encoded]):
    """The prompts and responses of a split in tokens."""

    def __init__(self, part: TextSplit, encoder: Encoder) -> None:
        super().__init__(part)
        self._encoder = encoder

    def encode(self, rows: Sequence[int]) -> list[Encoded]:
        if rows and isinstance(self.part.rows[rows[0]], Completion | Chat):
            return [self._encoder.learned(completion(self.part, row), self.part.place(row)) for row in rows]
        return self._encoder.exchanges([exchange(self.part, row) for row in rows])


def targets_of(texts: Sequence[Encoded], *, prompts: bool) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Return the token ids of each text, and (rows, columns, targets) of the tokens that the loss is over.

    The model predicts each target at its row and column. With `prompts` the targets are all tokens but the first.
    """
    token_ids = [torch.cat([t.prompt, t.response]) for t in texts]
    rows, columns, targets = positions(token_ids, [0 if prompts else len(t.prompt) - 1 for t in texts])
    if prompts or all(t.learned is None for t in texts):
        return token_ids, rows, columns, targets
    is_learned = torch.cat([torch.ones(len(t.response)).bool() if t.learned is None else t.learned for t in texts])
    return token_ids, rows[is_learned], columns[is_learned], targets[is_learned]


def completion(split: TextSplit, row: int) -> Completion | Chat:
    """Return a row that is a completion or a conversation."""
    text = split.rows[row]
    assert isinstance(text, Completion | Chat)
    return text


def exchange(split: TextSplit, row: int) -> Exchange:
    """Return a row that has a prompt and a response. Raises TrialError for a row of another kind."""
    text = split.rows[row]
    if not isinstance(text, Exchange):
        raise TrialError(
            f"{split.place(row)}: a labelled sentence, and a language model is trained on prompts and responses; "
            "use a text encoder such as RoBERTa for GLUE"
        )
    return text
