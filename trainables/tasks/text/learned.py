"""Which tokens of a completion or a conversation a model learns: those that TRL's SFT trainer has a loss over.

A completion is tokenised in one piece with its prompt, the EOS behind it. A conversation is what the tokenizer's chat
template writes. Of a prompt and a completion of messages, all that follows the prompt (and the header of the answer,
which the template writes for generation) is learned. Of `messages` alone, it is what the template marks with
`{% generation %}`; without marks, what each answer adds to the conversation before it.
"""

from __future__ import annotations

import re
from typing import Any

from trainables.data.text.dataset import Chat, Completion
from trainables.errors import TrialError, first_line

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


def completion_tokens(tokenizer: Any, row: Completion) -> tuple[list[int], list[bool]]:
    """The ids of prompt, completion and EOS, and which of them are learned: all that the prompt alone does not have.

    A token may hold the end of the prompt and the start of the completion; it is learned.
    """
    end: str = tokenizer.eos_token
    closed = row.completion if row.completion.endswith(end) else row.completion + end
    ids = _unclosed(tokenizer(row.prompt + closed)["input_ids"], tokenizer.eos_token_id, least=2)
    prompt = _unclosed(tokenizer(row.prompt)["input_ids"], tokenizer.eos_token_id, least=1)
    shared = _shared(prompt, ids)
    return ids, [at >= shared for at in range(len(ids))]


def _unclosed(ids: list[int], eos: int, *, least: int) -> list[int]:
    """Without the EOS with which some tokenizers close every text; the text itself ends with `least` - 1 of them."""
    return list(ids[:-1] if len(ids) >= least and all(each == eos for each in ids[-least:]) else ids)


def _shared(first: list[int], second: list[int]) -> int:
    """Tokens with which both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def chat_tokens(tokenizer: Any, row: Chat, place: str, model_id: str) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and which of them are learned.

    Raises TrialError: no chat template, a conversation that it refuses, or one whose start it writes otherwise when
    more follows, so that what an answer adds is not defined.
    """
    try:
        template: str | None = tokenizer.get_chat_template()
    except ValueError:  # none, or several without a default
        template = None
    if template is None:
        raise TrialError(
            f"the tokenizer of {model_id!r} has no chat template, and {place} is a conversation; use a model that has "
            "one (often called instruct or chat), or texts in 'prompt' and 'completion'"
        )
    messages = [{"role": role, "content": content} for role, content in row.messages]

    def write(count: int, **more: Any) -> Any:
        try:
            return tokenizer.apply_chat_template(messages[:count], tokenize=True, return_dict=True, **more)
        except Exception as error:  # a template raises what it likes, its own exceptions among them
            raise TrialError(f"{place}: the chat template of {model_id!r} refuses it ({first_line(error)})") from error

    if row.learned_from is None and _MARKED.search(template):
        found = write(len(messages), return_assistant_tokens_mask=True)
        return list(found["input_ids"]), [bool(each) for each in found["assistant_masks"]]
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


def _spans(row: Chat) -> list[tuple[int, int]]:
    """The messages that are learned, as (first, behind the last)."""
    if row.learned_from is not None:
        return [(row.learned_from, len(row.messages))]
    return [(at, at + 1) for at, (role, _) in enumerate(row.messages) if role == "assistant"]


def asked_tokens(tokenizer: Any, text: str, model_id: str) -> list[int]:
    """The ids of a user's message with the header of the answer, which a model then writes."""
    row = Chat((("user", text),))
    if tokenizer.chat_template is None:
        chat_tokens(tokenizer, row, "what is asked", model_id)  # which says so
    messages = [{"role": "user", "content": text}]
    found = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    return list(found["input_ids"])
