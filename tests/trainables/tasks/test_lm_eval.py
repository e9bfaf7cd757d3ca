"""lm-eval as the oracle of the log-likelihood protocol: the same sums for every choice, the same accuracies."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from tests.trainables.tiny_language import save_model
from trainables.data.text.dataset import Exchange
from trainables.models.language import LanguageModel
from trainables.models.loading import load_model
from trainables.tasks.text.encoding import Encoder
from trainables.tasks.text.scoring import Question, choice_scores


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_choice_has_lm_evals_likelihood(family: str, tmp_path: Path) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs pip install lm-eval")
    from lm_eval.api.instance import Instance  # type: ignore[import-not-found,unused-ignore]

    loaded = load_model(f"local:{save_model(tmp_path / family, family)}")
    module, tokenizer = loaded.module.eval(), loaded.text_tokenizer
    # lm-eval moves blanks from the end of a prompt into the continuation, so there are none (docs/models.md)
    exchanges = [
        Exchange(f"{subject} is near the river.\nQuestion: what is near?\nAnswer:", f" {subject}", choices)
        for subject in ("the house", "a film", "the old warm plot")
        for choices in ((f" {subject}", " the river"), (" it", " answer1 is true", " answer2", f" {subject}"))
    ]
    encoder = Encoder(tokenizer, 256, 256, "m")
    questions = [
        Question(prompt, tuple(encoder.continuations(list(row.choices))))
        for prompt, row in zip(encoder.prompts(exchanges), exchanges, strict=True)
    ]
    model = LanguageModel(module, contextlib.nullcontext)
    ours = torch.cat(choice_scores(model, questions, batch_size=4, pad=encoder.pad))

    theirs = huggingface.HFLM(pretrained=module, tokenizer=tokenizer, backend="causal", batch_size=4, device="cpu")
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(row.prompt, choice), idx=i)
        for i, (row, choice) in enumerate((row, choice) for row in exchanges for choice in row.choices)
    ]
    expected = torch.tensor([total for total, _ in theirs.loglikelihood(requests)], dtype=torch.float64)
    assert len(expected) == len(ours) >= 18
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
