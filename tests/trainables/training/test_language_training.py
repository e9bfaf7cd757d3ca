"""Causal language models: the loss against a plain one, generation, resuming, families, workers, unions, real files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, XLNetConfig, XLNetLMHeadModel

import trainables.training.checkpoints
from tests.trainables.support import one_tower_trial, outcome, run, saved_reports, work
from tests.trainables.tiny_language import instruction_rows, save_model, write_rows
from tests.trainables.tiny_sentences import save_encoder, write_sst2
from trainables.config import EvaluateSettings, TrialConfig
from trainables.data.registry import load_text_dataset
from trainables.data.text.dataset import Exchange
from trainables.errors import TrialError
from trainables.models.loading import load_model
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts, eval_batch_size
from trainables.tasks.text import classifier, generation, scoring
from trainables.tasks.text.causal_lm import CausalLMTask
from trainables.tasks.text.encoding import Encoder
from trainables.tasks.text.generation import generate
from trainables.training.worker import run_trial

MakeTrial = Callable[..., TrialConfig]


@pytest.fixture
def lm_trial(llama: Path, rows: Path) -> MakeTrial:
    """Makes a TrialConfig on the tiny Llama and the colour questions."""

    def make(method: str = "lora", *, train: dict[str, Any] | None = None, **given: Any) -> TrialConfig:
        settings = {"epochs": 2, "global_batch_size": 16} | (train or {})
        given = {"model": llama, "dataset": f"json:{rows}", "train_size": 0.5} | given
        return one_tower_trial(method, train=settings, **given)

    return make


def task_of(trial: TrialConfig) -> tuple[CausalLMTask, Any]:
    lane = LaneCache({}, torch.device("cpu"))
    loaded = lane.model(trial.model)
    task = make_task(Parts(trial=trial, lane=lane, loaded=loaded, autocast=torch.no_grad, precision="fp32"))
    assert isinstance(task, CausalLMTask)
    return task, loaded


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "phi3"])
def test_the_families_train(lm_trial: MakeTrial, tmp_path: Path, family: str) -> None:
    trial = lm_trial("randlora", model=f"local:{save_model(tmp_path / family, family)}", train={"epochs": 1})
    result = run(trial, tmp_path / "run")[-1]["result"]
    assert 0 <= result.measured.test_score <= 1
    assert result.measured.adapter_params > 0


def test_a_model_that_sees_later_tokens_is_refused(lm_trial: MakeTrial, tmp_path: Path) -> None:
    """Its loss would see the tokens that it asks for. XLNet's usual head is named like a causal one."""
    folder = save_model(tmp_path / "xlnet", "llama")  # for the tokenizer
    words = len(AutoTokenizer.from_pretrained(folder))
    config = XLNetConfig(vocab_size=words, d_model=16, n_layer=1, n_head=2, d_inner=16)
    XLNetLMHeadModel(config).save_pretrained(folder)
    with pytest.raises(TrialError, match="no causal language model"):
        task_of(lm_trial("full").model_copy(update={"model": f"local:{folder}"}))


def test_the_loss_is_the_responses_mean_cross_entropy(lm_trial: MakeTrial) -> None:
    for on_prompt, smoothing in ((False, 0.0), (True, 0.0), (False, 0.1)):
        task, loaded = task_of(lm_trial(train={"loss_on_prompt": on_prompt, "label_smoothing": smoothing}))
        batch = task.batches(1)[0]
        ours = float(task.loss_sum(batch, None)) / task.weight(batch)
        data = load_text_dataset(task._dataset.name)
        total, count = 0.0, 0
        for row in batch.tolist():  # one at a time, without padding
            found = data.train.rows[row]
            assert isinstance(found, Exchange)
            prompt = loaded.text_tokenizer(found.prompt)["input_ids"]
            whole = [*prompt, *loaded.text_tokenizer(found.response, add_special_tokens=False)["input_ids"], 1]
            ids = torch.tensor(whole[-256:])
            start = 1 if on_prompt else max(len(prompt) - (len(whole) - len(ids)), 1)
            with torch.no_grad():
                logits = loaded.module(input_ids=ids[None]).logits[0]
            of_row = cross_entropy(logits[start - 1 : -1], ids[start:], reduction="none")
            uniform = -logits[start - 1 : -1].log_softmax(-1).mean(-1)
            total += float(((1 - smoothing) * of_row + smoothing * uniform).sum())
            count += len(ids) - start
        assert ours == pytest.approx(total / count, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Passing `no_repeat_ngram_size` with `inputs_embeds`")
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_transformers_own_without_padding(llama: Path, beams: int) -> None:
    """No n-gram comes twice in what is generated; what the prompt holds may be copied, as in LoRA's code."""
    loaded = load_model(f"local:{llama}")
    encoder = Encoder(loaded.text_tokenizer, 256, 256, "m")
    penalty = {"length_penalty": -2.0} if beams > 1 else {}
    own = {"num_beams": beams, "max_new_tokens": 12} | penalty
    prompts = encoder.prompts([Exchange("Which colour has sky?", ""), Exchange("Which?", "")])
    prompts.append(torch.arange(3, 200))  # half of all words, so that any text copies some
    for rule in (0, 1):
        settings = EvaluateSettings(**own, no_repeat_ngram=rule)
        ours = generate(loaded.module, prompts, encoder, settings, batch_size=8, autocast=torch.no_grad)
        for prompt, text in zip(prompts, ours, strict=True):
            alone = loaded.module.generate(  # transformers applies the rule to the tokens it knows: of a prompt, none
                inputs_embeds=loaded.module.get_input_embeddings()(prompt[None]), do_sample=False, pad_token_id=2,
                eos_token_id=1, attention_mask=torch.ones_like(prompt)[None], no_repeat_ngram_size=rule, **own,
            )  # fmt: skip
            assert loaded.text_tokenizer.decode(alone[0], skip_special_tokens=True) == text


@pytest.mark.parametrize("protocol", ["log-likelihood", "generation", None])
def test_after_memory_ran_out_evaluation_takes_fewer_texts(
    lm_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str | None
) -> None:
    """Also where the limit on tokens binds, and not the one on rows."""
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 16 * 256)
    monkeypatch.setattr(generation, "BATCH_TOKENS", 16 * 256)
    monkeypatch.setattr(classifier, "EVAL_TOKENS", 16 * 24)
    evaluate = EvaluateSettings(protocol=protocol, num_beams=1, max_new_tokens=2)
    given = {"model": save_encoder(tmp_path / "roberta"), "dataset": f"glue:{write_sst2(tmp_path / 'SST-2')}"}
    if protocol:
        given = {"dataset": f"json:{write_rows(tmp_path / 'rows', test=24)}"}
    trial = lm_trial(evaluate=evaluate, **given)
    lane = LaneCache({}, torch.device("cpu"))
    loaded = lane.model(trial.model)
    task = make_task(Parts(trial=trial, lane=lane, loaded=loaded, autocast=torch.no_grad, precision="fp32"))
    loaded.module.eval()
    seen: list[int] = []

    def note(_module: object, _arguments: object, named: dict[str, Any]) -> None:
        seen.append(len(named["input_ids"]))

    loaded.module.register_forward_pre_hook(note, with_kwargs=True)
    largest, scores = [], []
    for micro in (16, 8, 4, 2, 1):
        seen.clear()
        found = task.evaluate("test", batch_size=eval_batch_size(trial, micro, 1))
        assert found is not None
        largest.append(max(seen))
        scores.append(found.score)
    assert largest == sorted(set(largest), reverse=True)
    assert len(set(scores)) == 1


def test_resuming_is_exact(lm_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainables.training.checkpoints, "CHECKPOINT_SHARE", 1e9)  # after every epoch
    trial = lm_trial("randlora")
    whole = run(trial, tmp_path / "whole")
    generator = run_trial(trial, warm={}, directory=tmp_path / "cut")
    seen = [next(generator)]
    generator.close()
    again = run(trial, tmp_path / "cut")
    assert again[:1] == seen  # with its times: it was not trained again
    assert outcome(again) == outcome(whole)


@pytest.mark.parametrize("method", ["lora", "randlora"])
def test_base_weights_in_bfloat16_train_float32_adapters(lm_trial: MakeTrial, tmp_path: Path, method: str) -> None:
    evaluate = {"validation_rows": 2, "test_rows": 2}
    warm: dict[str, Any] = {}
    losses = {}
    for weights in ("fp32", "bf16"):
        trial = lm_trial(method, train={"epochs": 1, "base_weights": weights}, evaluate=evaluate)
        losses[weights] = run(trial, tmp_path / weights, warm, keep=True)[-1]["train_loss"]
        (loaded,) = warm["models"].values()  # one at a time, and still there: the trial left it as it was
        kinds = {p.dtype for p in loaded.module.parameters()}
        assert kinds == {torch.float32 if weights == "fp32" else torch.bfloat16}
        assert all(b.dtype != torch.bfloat16 for b in loaded.module.buffers())
        kept = load_file(str(tmp_path / weights / "adapter" / "adapter.safetensors"))
        assert {t.dtype for t in kept.values()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_workers_equal_one(lm_trial: MakeTrial, tmp_path: Path) -> None:
    trial = lm_trial("lora", train={"global_batch_size": 17})
    alone = run(trial, tmp_path / "alone")
    torch.multiprocessing.spawn(work, args=(2, trial, str(tmp_path)), nprocs=2)
    both = [saved_reports(tmp_path, rank) for rank in (0, 1)]
    for reports in both:
        assert [r["train_loss"] for r in reports] == pytest.approx([r["train_loss"] for r in alone], rel=1e-4)
    assert both[0][-1]["result"].predicted.correct == both[1][-1]["result"].predicted.correct


def test_a_union_of_tasks_is_averaged_over_them(lm_trial: MakeTrial, tmp_path: Path) -> None:
    folder = tmp_path / "union"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(instruction_rows(20)), encoding="utf-8")
    for task, n in (("one", 9), ("two", 3)):
        (folder / task).mkdir()
        (folder / task / "test.json").write_text(json.dumps(instruction_rows(n, seed=n)), encoding="utf-8")
    result = run(lm_trial(dataset=f"json:{folder}", train={"epochs": 1}), tmp_path / "run")[-1]["result"]
    further = result.measured.further["test"]
    assert result.measured.test_score == pytest.approx((further["accuracy: one"] + further["accuracy: two"]) / 2)


@pytest.mark.parametrize("task", ["ARC-Easy", "openbookqa"])
def test_the_real_files(lm_trial: MakeTrial, tmp_path: Path, task: str) -> None:
    if "SWEEPS_TEST_ASSETS" not in os.environ:
        pytest.skip("SWEEPS_TEST_ASSETS is not set")
    folder = Path(os.environ["SWEEPS_TEST_ASSETS"]) / "text" / "commonsense" / task
    evaluate = {"validation_rows": 8, "test_rows": 12}
    trial = lm_trial(dataset=f"questions:{folder}", train_size=0.005, train={"epochs": 1}, evaluate=evaluate)
    result = run(trial, tmp_path)[-1]["result"]
    assert (result.measured.metric, result.predicted.n_examples) == ("accuracy (log-likelihood per byte)", 12)
