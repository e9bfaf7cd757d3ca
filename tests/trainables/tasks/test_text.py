"""Text encoders on labelled sentences: every method, GLUE's metrics, pairs, resuming, what is too long, real files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sklearn.metrics import f1_score, matthews_corrcoef

import trainables.training.checkpoints
from randlora import load
from randlora.files.tensors import write_tensors
from tests.trainables.support import one_tower_trial, outcome, run
from tests.trainables.tiny_sentences import save_encoder, write_sst2, write_stsb
from trainables.config import TrialConfig
from trainables.data.registry import load_text_dataset
from trainables.data.text.dataset import Labelled
from trainables.errors import TrialError
from trainables.metrics.classification import label_scores, number_scores
from trainables.models.encoders import ClassifierHead, load_head
from trainables.models.families import ModelError
from trainables.models.loading import load_model
from trainables.models.shapes import target_shapes
from trainables.predicting.trained import load_trained
from trainables.tasks.text.rows import positions_of
from trainables.tasks.text.sentences import SentenceEncoder, SentenceReader, window_of
from trainables.training.worker import run_trial

MakeTrial = Callable[..., TrialConfig]
WIDTH = 32
HEAD = WIDTH * WIDTH + WIDTH


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("tiny-roberta"))


@pytest.fixture(scope="session")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("glue") / "SST-2")


@pytest.fixture
def text_trial(roberta: Path, sst2: Path) -> MakeTrial:
    """Makes a TrialConfig on the tiny RoBERTa and the small sentiment set."""

    def make(method: str = "lora", *, train: dict[str, Any] | None = None, **given: Any) -> TrialConfig:
        settings = {"epochs": 3, "global_batch_size": 16, "head_lr": 1e-2} | (train or {})
        return one_tower_trial(method, train=settings, **({"model": roberta, "dataset": f"glue:{sst2}"} | given))

    return make


@pytest.mark.parametrize("method", ["lora", "randlora", "full", "full-targets", "linear-probe"])
def test_every_method_learns_and_gives_the_encoder_back(text_trial: MakeTrial, tmp_path: Path, method: str) -> None:
    probe = method == "linear-probe"
    trial = text_trial(method, train={"epochs": 6}, **({"lr": 0.03} if probe else {}))
    warm: dict[str, Any] = {}
    reports = run(trial, tmp_path, warm, keep=True)
    result = reports[-1]["result"]
    assert result.measured.head_params == (0 if probe else HEAD + 2) + 2 * WIDTH
    assert (result.measured.metric, result.measured.unit, result.predicted.n_examples) == ("accuracy", "texts", 24)
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    assert result.measured.test_score > 0.7  # chance is 0.5
    assert {"f1", "matthews", "loss"} <= set(result.measured.further["test"])
    fresh = load_model(trial.model).module
    module = warm["models"][trial.model].module
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in module.state_dict().items())
    head = load_head(tmp_path / "adapter")
    assert isinstance(head, torch.nn.Linear if probe else ClassifierHead)


def test_the_kept_adapter_and_head_classify_as_the_trial_did(text_trial: MakeTrial, sst2: Path, tmp_path: Path) -> None:
    trial = text_trial("randlora")
    result = run(trial, tmp_path, keep=True)[-1]["result"]
    loaded = load_model(trial.model)
    load(loaded.module, tmp_path / "adapter")
    encoder = SentenceEncoder(loaded.text_tokenizer, None, loaded.module, trial.model)
    test = load_text_dataset(f"glue:{sst2}", stage="CONFIRM").test
    with torch.no_grad():
        vectors = SentenceReader(loaded.module, torch.no_grad, encoder.pad)(encoder(list(test.rows)))
        predicted = load_head(tmp_path / "adapter")(vectors).argmax(dim=1)
    assert float((predicted == test.labels).float().mean()) == result.measured.test_score


def test_a_head_of_other_shapes_is_a_damaged_file(text_trial: MakeTrial, tmp_path: Path) -> None:
    trial = text_trial("linear-probe", train={"epochs": 1})
    run(trial, tmp_path, keep=True)
    assert isinstance(load_trained(trial, tmp_path / "adapter").head, torch.nn.Linear)
    flat, square = torch.zeros(2), torch.zeros(2, 2)
    heads = ({"weight": flat}, {"weight": flat.sum()}, {"dense.weight": square, "out.weight": flat})
    for tensors in (*heads, {"image_scale": flat.sum(), "out.weight": square}):
        write_tensors(tmp_path / "adapter" / "head.safetensors", tensors)
        with pytest.raises(TrialError, match=r"head\.safetensors can't be read \(.*it is damaged, or of other weights"):
            load_trained(trial, tmp_path / "adapter")


def test_the_default_targets_are_the_papers_six(roberta: Path) -> None:
    names = list(target_shapes(f"local:{roberta}"))
    assert len(names) == 6 * 2
    assert not [n for n in names if "pooler" in n]


@pytest.mark.parametrize("method", ["lora", "lora-ga", "linear-probe"])
def test_resuming_is_exact(text_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(trainables.training.checkpoints, "CHECKPOINT_SHARE", 1e9)  # after every epoch
    model = f"local:{save_encoder(tmp_path / 'dropout', dropout=0.1)}"  # the base's own dropout, and the head's
    trial = text_trial(method, model=model, train={"schedule": "linear", "warmup_fraction": 0.1})
    whole = run(trial, tmp_path / "whole")
    generator = run_trial(trial, warm={}, directory=tmp_path / "cut")
    seen = [next(generator), next(generator)]
    generator.close()
    again = run(trial, tmp_path / "cut")
    assert again[:2] == seen  # with their times: they were not trained again
    assert outcome(again) == outcome(whole)


def test_micro_batches_do_not_change_the_result(text_trial: MakeTrial, tmp_path: Path) -> None:
    plain = run(text_trial(), tmp_path / "a")
    micro = run(text_trial(train={"micro_batch_size": 5, "gradient_checkpointing": True}), tmp_path / "b")
    assert [r["train_loss"] for r in micro] == pytest.approx([r["train_loss"] for r in plain], rel=1e-4)


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_numbers_of_pairs(text_trial: MakeTrial, tmp_path: Path, family: str) -> None:
    data = write_stsb(tmp_path / "STS-B")
    model = f"local:{save_encoder(tmp_path / family, family)}"
    trial = text_trial(model=model, dataset=f"glue:{data}", train={"epochs": 12})
    result = run(trial, tmp_path / "run")[-1]["result"]
    assert (result.measured.metric, result.predicted.correct) == ("pearson", None)
    assert result.measured.test_score > 0.5
    assert set(result.measured.further["test"]) == {"spearman", "loss", "cut-train-texts"}
    assert result.measured.head_params == HEAD + WIDTH + 1


def test_segments_reach_a_bert(tmp_path: Path, sst2: Path) -> None:
    data = load_text_dataset(f"glue:{write_stsb(tmp_path / 'STS-B')}")
    rows = list(data.train.rows[:4])
    bert = load_model(f"local:{save_encoder(tmp_path / 'bert', 'bert')}")
    encoder = SentenceEncoder(bert.text_tokenizer, None, bert.module, "bert")
    found = encoder(rows)
    assert all(s.types is not None and set(s.types.tolist()) == {0, 1} for s in found)
    with torch.no_grad():
        ours = SentenceReader(bert.module, torch.no_grad, encoder.pad)(found)
        pairs = [list(column) for column in zip(*(r.sentences for r in rows), strict=True)]
        theirs = bert.module(**bert.text_tokenizer(*pairs, padding=True, return_tensors="pt")).last_hidden_state[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


BEHIND = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "ibert", "xmod",
    "longformer", "luke", "lilt", "markuplm", "mpnet", "esm",
)  # fmt: skip


@pytest.mark.parametrize("family", BEHIND)
def test_positions_that_start_behind_the_pad_token(family: str) -> None:
    made = {"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 18}
    sizes = {"hidden_size": 24, "intermediate_size": 32, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    more = {"longformer": {"attention_window": 4}, "luke": {"entity_vocab_size": 4}, "xmod": {"languages": ["en_XX"]}}
    config = transformers.AutoConfig.for_model(family, **made, **sizes, **more.get(family, {}))
    config.default_language = "en_XX"  # X-MOD's
    model = transformers.AutoModel.from_config(config).eval()
    window = positions_of(config)
    assert window == 16
    with torch.no_grad():
        model(input_ids=torch.full((1, window), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, window + 1), 5))


@pytest.mark.parametrize(
    "family", ["XLMRoberta", "Camembert", "Deberta", "DebertaV2", "Electra", "ModernBert", "MPNet"]
)
def test_a_pooler_that_no_file_holds_is_not_read(tmp_path: Path, family: str) -> None:
    """Masked language models are kept without one, which some have not at all; MPNet would be read from it."""
    folder = save_encoder(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    made = {k: settings[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    made |= {"intermediate_size": 64, "max_position_embeddings": 66, "pad_token_id": 1}
    config = getattr(transformers, f"{family}Config")(**made)
    getattr(transformers, f"{family}ForMaskedLM")(config).save_pretrained(folder)
    if family == "MPNet":
        with pytest.raises(ModelError, match="lack 2 of the model's tensors, pooler"):
            load_model(f"local:{folder}")
        return
    loaded = load_model(f"local:{folder}")
    encoder = SentenceEncoder(loaded.text_tokenizer, None, loaded.module, "m")
    row = encoder([Labelled(("the film is warm",), 0)])
    with torch.no_grad():
        ours = SentenceReader(loaded.module, torch.no_grad, encoder.pad)(row)
        torch.testing.assert_close(ours, loaded.module(input_ids=row[0].ids[None]).last_hidden_state[:, 0])


def test_matthews_on_cola(text_trial: MakeTrial, tmp_path: Path) -> None:
    trial = text_trial(dataset=f"glue:{write_sst2(tmp_path / 'CoLA')}", train={"epochs": 6})
    result = run(trial, tmp_path / "run")[-1]["result"]
    assert (result.measured.metric, result.predicted.correct) == ("matthews", None)
    assert 0.3 < result.measured.test_score <= 1.0


def test_metrics_are_those_of_scikit_learn_and_scipy() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        predicted, labels = torch.randint(0, 2, (2, 17), generator=draw)
        scores = label_scores(predicted, labels, 2)
        assert scores["matthews"] == pytest.approx(matthews_corrcoef(labels, predicted))
        assert scores["f1"] == pytest.approx(f1_score(labels, predicted))
    constant = label_scores(torch.zeros(5, dtype=torch.int64), torch.tensor([0, 1, 0, 1, 1]), 2)
    assert constant["matthews"] == 0.0
    found = number_scores(torch.tensor([1.0, 2.0, 4.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 30.0]))
    assert found["spearman"] == pytest.approx(0.8)
    assert set(label_scores(labels, labels, 3)) == {"accuracy"}


def test_what_is_too_long_is_cut_at_its_end(roberta: Path, tmp_path: Path) -> None:
    loaded = load_model(f"local:{roberta}")
    assert window_of(loaded.module, loaded.text_tokenizer) == 64  # 66 less the two positions up to the pad token
    encoder = SentenceEncoder(loaded.text_tokenizer, None, loaded.module, "m")
    data = load_text_dataset(f"glue:{write_stsb(tmp_path / 'STS-B')}").train.rows
    long = type(data[0])(("the film is warm " * 40, "the plot is dull"), 1.0)
    (found,) = encoder([long])
    assert found.cut
    assert len(found) == 64
    text = loaded.text_tokenizer.decode(found.ids)
    assert text.startswith("<s> the film is warm the")
    assert text.endswith("</s></s> the plot is dull</s>")  # the shorter sentence is whole
    with pytest.raises(TrialError, match=r"train\.max_tokens 65 .*64 positions.*largest that works is 64"):
        SentenceEncoder(loaded.text_tokenizer, 65, loaded.module, "m")


def test_padding_does_not_change_a_vector(tmp_path: Path, sst2: Path) -> None:
    rows = list(load_text_dataset(f"glue:{sst2}").train.rows[:6])
    loaded = load_model(f"local:{save_encoder(tmp_path / 'nopad', pad=False)}")  # a tokenizer without a pad token
    encoder = SentenceEncoder(loaded.text_tokenizer, None, loaded.module, "m")
    read = SentenceReader(loaded.module, torch.no_grad, encoder.pad)
    sentences = encoder(rows)
    assert len({len(s) for s in sentences}) > 1
    with torch.no_grad():
        torch.testing.assert_close(read(sentences), torch.cat([read([s]) for s in sentences]), rtol=1e-5, atol=1e-5)


def test_what_an_encoder_cannot_do_is_named(text_trial: MakeTrial, tmp_path: Path) -> None:
    from tests.trainables.tiny_language import write_rows

    with pytest.raises(TrialError, match="no head to classify with; use 'linear-probe'"):
        run(text_trial("zero-shot"), tmp_path)
    with pytest.raises(TrialError, match="prompts and responses"):
        run(text_trial(dataset=f"json:{write_rows(tmp_path / 'rows')}"), tmp_path)
    with pytest.raises(TrialError, match="augment 'crop-flip' is for images"):
        run(text_trial(train={"augment": "crop-flip"}), tmp_path)


@pytest.mark.parametrize(("name", "metric"), [("SST-2", "accuracy"), ("CoLA", "matthews")])
def test_the_real_files(text_trial: MakeTrial, tmp_path: Path, name: str, metric: str) -> None:
    if "SWEEPS_TEST_ASSETS" not in os.environ:
        pytest.skip("SWEEPS_TEST_ASSETS is not set")
    folder = Path(os.environ["SWEEPS_TEST_ASSETS"]) / "text" / "glue" / name
    evaluate = {"validation_rows": 40, "test_rows": 60}
    trial = text_trial(dataset=f"glue:{folder}", train_size=0.01, train={"epochs": 1}, evaluate=evaluate)
    result = run(trial, tmp_path)[-1]["result"]
    assert (result.measured.metric, result.predicted.n_examples) == (metric, 60)
