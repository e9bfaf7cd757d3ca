"""Find the tokens of a completion or a conversation that a model learns: those in the loss of TRL's SFT trainer.

A prompt and its completion are tokenised in one piece, with the EOS at the end. The tokenizer's chat template writes a
conversation as one text. Which part of it is learned depends on the form of the row:

- A prompt and a completion of messages: all that follows the prompt and the header of the answer. (The template writes
  that header when it asks a model to generate.)
- `messages` alone: what the template marks with `{% generation %}`. If it marks nothing, what each answer adds to the
  conversation before it.
"""

from __future__ import annotations

import re
from typing import Any

from trainables.data.text.dataset import Chat, Completion
from trainables.errors import TrialError, first_line

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def completion_tokens(tokenizer: Any, row: Completion) -> tuple[list[int], list[bool]]:
    """Return the ids of prompt, completion and EOS, and whether each is learned.

    The tokens that the prompt alone does not have are learned. One that holds the end of the prompt and the start of
    the completion is learned too.
    """
    end: str = tokenizer.eos_token
    closed = row.completion if row.completion.endswith(end) else row.completion + end
    ids = _unclosed(tokenizer(row.prompt + closed)["input_ids"], tokenizer.eos_token_id, least=2)
    prompt = _unclosed(tokenizer(row.prompt)["input_ids"], tokenizer.eos_token_id, least=1)
    shared = _shared(prompt, ids)
    return ids, [at >= shared for at in range(len(ids))]


def _unclosed(ids: list[int], eos: int, *, least: int) -> list[int]:
    """Remove the EOS that some tokenizers add to every text. The text itself ends with `least` - 1 of them."""
    return list(ids[:-1] if len(ids) >= least and all(each == eos for each in ids[-least:]) else ids)


_FIXED_DATE = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"
"""Takes the place of the function of this name that transformers gives to chat templates. The date is Llama 3's."""


def _shared(first: list[int], second: list[int]) -> int:
    """Return the number of tokens at the start that both have."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def chat_tokens(tokenizer: Any, row: Chat, place: str, model_id: str) -> tuple[list[int], list[bool]]:
    """Return the ids of a conversation, and whether each is learned.

    Raises TrialError if there is no chat template, or it refuses the conversation. Also if it changes how it writes the
    start of a conversation when more follows: then it is not defined what an answer adds.
    """
    template = chat_template(tokenizer, place, model_id)
    messages = [{"role": role, "content": content} for role, content in row.messages]

    def write(count: int, **more: Any) -> Any:
        try:
            return tokenizer.apply_chat_template(
                messages[:count], chat_template=template, tokenize=True, return_dict=True, **more
            )
        except Exception as error:  # a template may raise any exception, also its own
            raise TrialError(f"{place}: the chat template of {model_id!r} refuses it ({first_line(error)})") from error

    if row.learned_from is None and _MARKED.search(template):
        marked = write(len(messages), return_assistant_tokens_mask=True)
        return list(marked["input_ids"]), [bool(each) for each in marked["assistant_masks"]]
    ids = list(write(len(messages))["input_ids"])
    learned = [False] * len(ids)
    for first, behind in _spans(row):
        begin = list(write(first, add_generation_prompt=True)["input_ids"])
        end = ids if behind == len(messages) else list(write(behind)["input_ids"])
        if ids[: len(begin)] != begin or ids[: len(end)] != end:
            raise TrialError(
                f"{place}: the chat template of {model_id!r} writes the conversation before message {first} otherwise "
                "when more follows, so it does not tell what the answer adds; split it into rows that end with their "
                "one answer, as 'prompt' and 'completion'"
            )
        learned[len(begin) : len(end)] = [True] * (len(end) - len(begin))
    return ids, learned


def chat_template(tokenizer: Any, place: str, model_id: str) -> str:
    """Return the chat template. Raises TrialError if there is none, naming `place`, which needs it.

    A template that writes today's date (Llama 3's does) gets a fixed one, so that a text has the same tokens every day.
    """
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:  # none, or several without a default
        raise TrialError(
            f"the tokenizer of {model_id!r} has no chat template, and {place} is a conversation; use a model that has "
            "one (often called instruct or chat), or texts in 'prompt' and 'completion'"
        ) from error
    is_dated = "strftime_now" in template and not template.startswith(_FIXED_DATE)
    return f"{_FIXED_DATE}{template}" if is_dated else template


def _spans(row: Chat) -> list[tuple[int, int]]:
    """Return the messages that are learned, as ranges (first, one past the last)."""
    if row.learned_from is not None:
        return [(row.learned_from, len(row.messages))]
    return [(at, at + 1) for at, (role, _) in enumerate(row.messages) if role == "assistant"]


def asked_tokens(tokenizer: Any, text: str, model_id: str) -> list[int]:
    """Return the ids of a user's message and of the header of the answer, so that a model writes the answer.

    Raises TrialError if there is no chat template.
    """
    template = chat_template(tokenizer, "what is asked", model_id)
    messages = [{"role": "user", "content": text}]
    written = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    return list(written["input_ids"])
