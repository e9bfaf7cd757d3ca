"""Language models: likelihoods against plain forwards, gradients by tokens, both protocols, what is cut and refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainables.support import one_tower_trial
from tests.trainables.tiny_language import WIDTH, instruction_rows, save_model, save_tokenizer, write_rows
from trainables.config import EvaluateSettings, TrialConfig
from trainables.data.registry import load_text_dataset
from trainables.data.text.dataset import Exchange
from trainables.errors import DataError, TrialError
from trainables.models.language import LanguageModel
from trainables.models.loading import load_model
from trainables.tasks.text import scoring
from trainables.tasks.text.encoding import EncodedRows, Encoder
from trainables.tasks.text.scoring import Question, choice_scores
from trainables.training.worker import run_trial

MakeTrial = Callable[..., TrialConfig]
FAMILIES = ("llama", "qwen2", "phi3", "gpt2")
UNCACHED: dict[str, dict[str, Any]] = {
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "initializer_range": 0.3},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba": {"state_size": 8},
    "gpt_neo": {"attention_types": [[["local"], 2]], "window_size": 4, "initializer_range": 0.3},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "initializer_range": 0.3},
}
"""Families whose cache can't be taken up behind padding: windows that are full, recurrence, distances by index."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("language")
    for family in FAMILIES:
        save_model(place / family, family)
    write_rows(place / "rows")
    return place


@pytest.fixture
def make(folder: Path) -> MakeTrial:
    def trial(method: str = "lora", *, train: dict[str, Any] | None = None, **given: Any) -> TrialConfig:
        settings = {"epochs": 2, "global_batch_size": 12} | (train or {})
        given = {"model": folder / "llama", "dataset": f"json:{folder / 'rows'}"} | given
        if method != "zero-shot":
            given = {"lr": 1e-2} | given
        return one_tower_trial(method, train=settings, **given)

    return trial


def run(trial: TrialConfig, directory: Path, warm: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return list(run_trial(trial, warm={} if warm is None else warm, directory=directory))


def uncached(family: str) -> torch.nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(family, **(WIDTH | UNCACHED[family]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", [*FAMILIES, *UNCACHED])
def test_choices_score_as_in_a_plain_forward_of_each(folder: Path, family: str) -> None:
    module = uncached(family) if family in UNCACHED else load_model(f"local:{folder / family}").module.eval()
    model = LanguageModel(module, contextlib.nullcontext)
    draw = torch.Generator().manual_seed(0)

    def tokens(n: int) -> torch.Tensor:
        return torch.randint(3, 400, (n,), generator=draw)

    shared = tokens(2)
    questions = [
        Question(tokens(5), (tokens(1), tokens(3), tokens(2))),
        Question(tokens(9), tuple(torch.cat([shared, tokens(k)]) for k in (1, 2))),
        Question(tokens(3), (tokens(1), tokens(1))),
    ]
    found = choice_scores(model, questions, batch_size=8, pad=2)
    for question, scores in zip(questions, found, strict=True):
        for choice, score in zip(question.choices, scores, strict=True):
            ids = torch.cat([question.prompt, choice])
            with torch.no_grad():
                logp = module(ids.unsqueeze(0)).logits[0].log_softmax(-1)
            at = torch.arange(len(question.prompt) - 1, len(ids) - 1)
            assert float(score) == pytest.approx(float(logp[at, choice].sum()), abs=1e-4)


@pytest.mark.parametrize(("window", "passes"), [(12, 2), (11, 1 + 6)])
def test_whole_texts_run_only_where_a_window_is_full(monkeypatch: pytest.MonkeyPatch, window: int, passes: int) -> None:
    """And then within the limit of tokens: 6 texts of 9 + 3 tokens make 6 passes, not one."""
    monkeypatch.setitem(UNCACHED, "gemma3_text", UNCACHED["gemma3_text"] | {"sliding_window": window})
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 20)
    module, sizes = uncached("gemma3_text"), list[int]()
    module.register_forward_pre_hook(lambda _, __, given: sizes.append(given["input_ids"].numel()), with_kwargs=True)
    question = Question(torch.arange(3, 12), tuple(torch.tensor([20 + i, 5, 6, 7]) for i in range(6)))
    choice_scores(LanguageModel(module, contextlib.nullcontext), [question], batch_size=8, pad=2)
    assert len(sizes) == passes
    assert passes == 2 or max(sizes) <= 20


def test_micro_batches_divide_by_the_tokens_of_the_whole_batch(make: MakeTrial, tmp_path: Path) -> None:
    """Rows differ in length, so an average of micro-batches' averages would differ."""
    whole = run(make(), tmp_path / "whole")
    parts = run(make(train={"micro_batch_size": 5}), tmp_path / "parts")
    assert [r["train_loss"] for r in parts] == pytest.approx([r["train_loss"] for r in whole], rel=1e-5)
    further = [json.loads(json.dumps(r[-1]["result"].measured.further)) for r in (whole, parts)]
    assert further[1]["test"]["loss"] == pytest.approx(further[0]["test"]["loss"], rel=1e-4)


def test_checkpointed_activations_change_nothing(make: MakeTrial, tmp_path: Path) -> None:
    plain = run(make(), tmp_path / "plain")
    saving = run(make(train={"gradient_checkpointing": True}), tmp_path / "saving")
    assert [r["train_loss"] for r in saving] == pytest.approx([r["train_loss"] for r in plain], rel=1e-6)


@pytest.mark.parametrize("method", ["lora", "randlora", "full"])
def test_it_learns_the_rows_it_trains_on(make: MakeTrial, tmp_path: Path, method: str) -> None:
    rate = 3e-3 if method == "full" else 2e-2
    reports = run(make(method, lr=rate, train={"epochs": 6}), tmp_path)
    losses = [r["train_loss"] for r in reports]
    assert losses[-1] < losses[0] - 0.3
    result = reports[-1]["result"]
    assert (result.measured.metric, result.measured.unit) == ("accuracy (log-likelihood)", "texts")


def test_the_loss_may_cover_the_prompt(make: MakeTrial, tmp_path: Path) -> None:
    response = run(make(train={"epochs": 1}), tmp_path / "response")[-1]["train_loss"]
    both = run(make(train={"epochs": 1, "loss_on_prompt": True}), tmp_path / "both")[-1]["train_loss"]
    assert response != pytest.approx(both, rel=1e-3)


def test_generation_is_read_by_the_rules_of_llm_adapters(make: MakeTrial, tmp_path: Path) -> None:
    evaluate = EvaluateSettings(protocol="generation", max_new_tokens=4, num_beams=2, test_rows=5)
    result = run(make(evaluate=evaluate), tmp_path)[-1]["result"]
    assert result.measured.metric == "accuracy (generation)"
    assert result.predicted.n_examples == 5
    assert {"without-answer", "loss"} <= set(result.measured.further["test"])


def test_problems_are_generated_and_judged_by_their_numbers(make: MakeTrial, tmp_path: Path) -> None:
    folder = tmp_path / "problems"
    folder.mkdir()
    for which in ("train", "test"):
        rows = [{"query": f"{which}: what is {i} + 1?", "response": f"The answer is: {i + 1}"} for i in range(20)]
        (folder / f"{which}.json").write_text(json.dumps(rows), encoding="utf-8")
    evaluate = EvaluateSettings(max_new_tokens=4, num_beams=1, test_rows=5)
    given = {"dataset": f"problems:{folder}", "evaluate": evaluate}
    result = run(make(**given), tmp_path / "trial")[-1]["result"]
    assert (result.measured.metric, result.predicted.n_examples) == ("accuracy (generation)", 5)
    assert {"without-answer", "loss"} <= set(result.measured.further["test"])
    likelihood = evaluate.model_copy(update={"protocol": "log-likelihood"})
    with pytest.raises(TrialError, match="have numbers as answers instead of choices; use 'generation'"):
        run(make(**given | {"evaluate": likelihood}), tmp_path / "refused")


def test_zero_shot_is_the_model_as_it_is(make: MakeTrial, tmp_path: Path) -> None:
    result = run(make("zero-shot"), tmp_path)[-1]["result"]
    assert result.measured.adapter_params == 0
    assert 0 <= result.measured.test_score <= 1


def row(prompt: str, response: str = "the correct answer is answer1") -> Exchange:
    return Exchange(prompt=prompt, response=response)


def test_a_long_text_loses_the_start_of_its_prompt_and_says_so(folder: Path) -> None:
    tokenizer = load_model(f"local:{folder / 'llama'}").text_tokenizer
    short, long = Encoder(tokenizer, 24, 256, "m"), Encoder(tokenizer, 256, 256, "m")
    text = " ".join(r["instruction"] for r in instruction_rows(2))
    cut, whole = short.exchanges([row(text)])[0], long.exchanges([row(text)])[0]
    assert (cut.cut, len(cut), whole.cut) == (True, 24, False)
    assert torch.equal(cut.response, whole.response) and int(cut.response[-1]) == tokenizer.eos_token_id
    kept = len(cut.prompt) - 1  # without a leading BOS, or its place
    assert torch.equal(cut.prompt[-kept:], whole.prompt[-kept:])


def test_the_share_of_texts_that_are_cut_is_told(make: MakeTrial, folder: Path, tmp_path: Path) -> None:
    tokenizer = load_model(f"local:{folder / 'llama'}").text_tokenizer
    train = load_text_dataset(f"json:{folder / 'rows'}").train
    rows = EncodedRows(train, Encoder(tokenizer, 256, 256, "m"))
    lengths = sorted(len(rows[i]) for i in range(len(train)))
    for limit, share in ((lengths[-1], 0.0), (lengths[0] - 1, 1.0)):
        result = run(make(train={"max_tokens": limit}), tmp_path / str(limit))[-1]["result"]
        assert result.measured.further["test"]["cut-train-texts"] == share


def test_a_tokenizer_without_pad_or_eos(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_model(f"local:{folder / 'llama'}").text_tokenizer
    assert tokenizer.pad_token_id is None
    assert Encoder(tokenizer, 32, 256, "m").pad == tokenizer.eos_token_id
    save_tokenizer(tmp_path, eos=False)
    import transformers

    endless = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    with pytest.raises(TrialError, match="no EOS token"):
        Encoder(endless, 32, 256, "m")
    with pytest.raises(TrialError, match="the largest that works is 256"):
        Encoder(tokenizer, 300, 256, "m")


def test_rows_that_cannot_be_judged_are_named(make: MakeTrial, folder: Path, tmp_path: Path) -> None:
    broken = instruction_rows(12)
    broken[3].pop("output")
    for which in ("train", "test"):
        (tmp_path / f"{which}.json").write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises((DataError, TrialError), match=r"train\.json.*(row|:)\D*3"):
        run(make(dataset=f"json:{tmp_path}"), tmp_path / "run")
