"""Generate responses by beam search without sampling, which is what LLM-Adapters' evaluation does in effect.

LLM-Adapters' code passes temperature 0.1, top-p 0.75 and top-k 40 along with 4 beams, but never asks for sampling. So
none of the three has an effect, and the search is deterministic. Here they are not passed at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainables.config import EvaluateSettings
from trainables.data.text.batches import length_batches, padded
from trainables.errors import TrialError
from trainables.runtime import Autocast
from trainables.tasks.text.encoding import Encoder

BATCH_TOKENS = 16384
"""Positions of one batch's key-value cache: rows times beams times (prompt + new tokens). It shrinks if memory runs
out."""


@torch.no_grad()
def generate(
    module: nn.Module,
    prompts: Sequence[Tensor],
    encoder: Encoder,
    settings: EvaluateSettings,
    *,
    batch_size: int,
    autocast: Autocast,
    configured: int | None = None,
) -> list[str]:
    """Return the generated text of every prompt (L,), without its EOS and special tokens.

    A prompt that leaves no room for `settings.max_new_tokens` in the model's window loses tokens from its start.

    Args:
        module: the language model.
        prompts: token ids (L,) of each prompt.
        encoder: the model's tokenizer.
        settings: beams, lengths and rules.
        batch_size: prompts of a batch at most.
        autocast: the mixed-precision context.
        configured: the configured batch size. If `batch_size` is smaller, the positions of a batch shrink in the same
            ratio.

    Raises:
        TrialError: the model cannot generate, or the new tokens alone fill the window.
    """
    make = getattr(module, "generate", None)
    if make is None:
        raise TrialError(f"{type(module).__name__} cannot generate; use evaluate.protocol = 'log-likelihood'")
    room = (encoder.window or encoder.max_tokens + settings.max_new_tokens) - settings.max_new_tokens
    if room < 1:
        raise TrialError(
            f"evaluate.max_new_tokens {settings.max_new_tokens} fills the model's {encoder.window} positions; "
            f"the most that leaves room for a prompt is {(encoder.window or 2) - 1}"
        )
    short = [encoder.shortened(prompt, room) for prompt in prompts]
    texts = [""] * len(short)
    device = next(module.parameters()).device
    widths = [settings.num_beams * (len(p) + settings.max_new_tokens) for p in short]
    most = BATCH_TOKENS * batch_size // (configured or batch_size)
    with _own_settings(module, encoder, settings) as config:
        for batch in length_batches(widths, batch_size, most, enough=most):  # a step costs more than a further row
            ids = padded([short[i] for i in batch], encoder.pad, left=True)
            lengths = torch.tensor([len(short[i]) for i in batch])
            mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths.unsqueeze(1)).to(torch.int64)
            with autocast():
                out = make(
                    ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=config,
                    logits_processor=_no_repeats(settings.no_repeat_ngram, ids.shape[1]),
                )
            generated = encoder.tokenizer.batch_decode(out[:, ids.shape[1] :].cpu(), skip_special_tokens=True)
            for i, text in zip(batch, generated, strict=True):
                texts[i] = text
    return texts


def _no_repeats(n: int, start: int) -> Any:
    """Return a rule that no n-gram occurs twice from position `start` on.

    transformers' own setting counts the prompt too, and so forbids copying from it.
    """
    from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor

    if not n:
        return None
    rule = NoRepeatNGramLogitsProcessor(n)
    return LogitsProcessorList([lambda ids, scores: rule(ids[:, start:], scores)])


@contextmanager
def _own_settings(module: nn.Module, encoder: Encoder, settings: EvaluateSettings) -> Iterator[Any]:
    """Yield a generation config with these settings alone. transformers would add the checkpoint's own (sampling,
    penalties)."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False,
        num_beams=settings.num_beams,
        max_new_tokens=settings.max_new_tokens,
        length_penalty=settings.length_penalty if settings.num_beams > 1 else None,
        early_stopping=False if settings.num_beams > 1 else None,
        bos_token_id=encoder.tokenizer.bos_token_id,
        eos_token_id=encoder.eos,
        pad_token_id=encoder.pad,
        use_cache=True,
    )
    before: Any = module.generation_config
    module.generation_config = config
    try:
        yield config
    finally:
        module.generation_config = before
