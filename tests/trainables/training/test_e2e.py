"""GPT-2 on E2E by the protocol of LoRA's paper, and the five scores of generated texts."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from randlora import load
from tests.trainables.support import one_tower_trial, run
from tests.trainables.tiny_language import save_model, write_e2e
from trainables.config import EvaluateSettings, TrialConfig
from trainables.data.registry import load_text_dataset
from trainables.data.text.dataset import Exchange
from trainables.errors import DataError, TrialError
from trainables.metrics.texts import EXTRA, caption_scores, check_installed, score_texts
from trainables.models.loading import load_model
from trainables.models.shapes import target_shapes
from trainables.tasks.text.encoding import Encoder
from trainables.tasks.text.generation import generate
from trainables.training.adapting import adapted, start_training

java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR and the PTB tokenizer are Java programs")
pytest.importorskip("sacrebleu", reason=f"the extra {EXTRA} is not installed")

MakeTrial = Callable[..., TrialConfig]
TRAIN = {
    "epochs": 4, "global_batch_size": 8, "weight_decay": 0.01, "label_smoothing": 0.1, "schedule": "linear",
    "min_lr_ratio": 0.0, "warmup_fraction": 0.02,
}  # fmt: skip
EVALUATE = {"num_beams": 10, "max_new_tokens": 24, "length_penalty": 0.8, "no_repeat_ngram": 4}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e2e")
    save_model(folder / "gpt2", "gpt2")
    write_e2e(folder / "restaurants")
    return folder


@pytest.fixture
def e2e_trial(place: Path) -> MakeTrial:
    def make(method: str = "lora", **given: Any) -> TrialConfig:
        where = {"model": place / "gpt2", "dataset": f"e2e:{place / 'restaurants'}"}
        usual = {"lr": 2e-2, "train": TRAIN, "evaluate": EvaluateSettings(**EVALUATE)}
        return one_tower_trial(method, **(where | usual | given))

    return make


@pytest.mark.filterwarnings("ignore:java is not on")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "randlora"])
def test_gpt2_end_to_end(e2e_trial: MakeTrial, place: Path, tmp_path: Path, method: str) -> None:
    trial = e2e_trial(method)
    reports = run(trial, tmp_path, keep=True)
    result = reports[-1]["result"]
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    assert (result.measured.metric, result.predicted.correct, result.predicted.n_examples) == ("bleu", None, 4)
    of_captions = {"meteor", "rouge-l", "cider"} if shutil.which("java") else set()
    assert set(result.measured.further["test"]) == {"nist", "loss", "cut-train-texts"} | of_captions
    assert "meteor" not in result.measured.further["val"]  # it takes seconds, and nothing is chosen by it
    loaded = load_model(trial.model)
    load(loaded.module, tmp_path / "adapter")
    test = load_text_dataset(trial.dataset, stage="CONFIRM").test
    encoder = Encoder(loaded.text_tokenizer, 256, 256, trial.model)
    rows = [row for row in test.rows if isinstance(row, Exchange)]
    written = generate(
        loaded.module, encoder.prompts(rows), encoder, trial.evaluate, batch_size=512, autocast=torch.no_grad
    )
    assert score_texts(written, [r.references for r in rows])["bleu"] == pytest.approx(result.measured.test_score)


def test_the_base_models_dropout_can_be_off(e2e_trial: MakeTrial, place: Path) -> None:
    """GPT-2's own is 0.1; the released training has none but the adapters'."""
    trial = e2e_trial(train=TRAIN | {"base_dropout": False}, options=(("dropout", 0.1),))
    loaded = load_model(trial.model)
    with adapted(loaded.module, trial) as trainables:
        assert trainables.added is not None
        for on in (True, False):
            start_training(loaded.module, trial.train.model_copy(update={"base_dropout": on}))
            drops = [m for m in loaded.module.modules() if isinstance(m, nn.Dropout)]
            assert drops and {m.training for m in drops} == {on}
            assert all(adapter.dropping for adapter in trainables.added.adapters.values())
    with pytest.raises(ValueError, match="leave gradient_checkpointing out"):
        e2e_trial(train=TRAIN | {"base_dropout": False, "gradient_checkpointing": True})


def test_the_default_targets_are_conv1d(place: Path) -> None:
    shapes = target_shapes(f"local:{place / 'gpt2'}")
    assert list(shapes.values()) == [(96, 32), (128, 32), (32, 128)] * 2  # (out, in), though Conv1D keeps (in, out)


def test_a_row_is_a_meaning_the_bos_and_a_text(place: Path) -> None:
    data = load_text_dataset(f"e2e:{place / 'restaurants'}", stage="CONFIRM")
    first, tested = data.train.rows[0], data.test.rows[0]
    assert isinstance(first, Exchange) and isinstance(tested, Exchange)
    assert first.prompt.startswith("name : Place0 | Type : ")
    assert first.prompt.endswith(" | family friendly : no")
    assert (len(first.references), len(tested.references)) == (1, 2)  # a tested meaning stands once, with all its texts
    loaded = load_model(f"local:{place / 'gpt2'}")
    (encoded,) = Encoder(loaded.text_tokenizer, 256, 256, "m").exchanges([first])
    assert int(encoded.prompt[-1]) == loaded.text_tokenizer.bos_token_id
    assert int(encoded.response[-1]) == loaded.text_tokenizer.eos_token_id


def test_scores_of_known_texts() -> None:
    references = [["the cat sat on the mat", "a cat sat there"], ["there is a cheap pub near the river"]]
    best = score_texts([r[0] for r in references], references)
    assert best["bleu"] == pytest.approx(1.0)
    assert score_texts(["a b c d e"], [["a b c d e"]])["bleu"] <= 1.0  # sacrebleu's own has a rounding error more
    worse = score_texts(["the cat lay on the mat", "there is a pub by the river"], references)
    assert all(0 < worse[name] < best[name] for name in best)
    assert score_texts(["", ""], references) == {"bleu": 0.0, "nist": 0.0}


@pytest.mark.slow
@java
def test_caption_scores_of_known_texts() -> None:
    references = [["The cat sat on the mat.", "a cat sat there"], ["there is a cheap pub near the river"]]
    best = caption_scores(["the cat sat, on the mat", references[1][0]], references)  # punctuation doesn't count
    assert best["rouge-l"] == pytest.approx(1.0) and 0.9 < best["meteor"] <= 1.0 and best["cider"] > 0
    assert caption_scores(["", ""], references) == {"meteor": 0.0, "rouge-l": 0.0, "cider": 0.0}


def test_without_java_three_scores_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert caption_scores(["a b"], [["a b"]]) == {}
    with pytest.warns(UserWarning, match="METEOR, ROUGE-L and CIDEr are left out"):
        check_installed()


def meanings() -> tuple[list[str], list[list[str]]]:
    """Of each meaning of E2E's test set with several texts the first as an answer, the others as its references."""
    with (Path(os.environ["SWEEPS_TEST_ASSETS"]) / "text/e2e/testset_w_refs.csv").open(encoding="utf-8") as file:
        by_meaning: dict[str, list[str]] = {}
        for row in csv.DictReader(file):
            by_meaning.setdefault(row["mr"], []).append(row["ref"])
    several = [texts for texts in by_meaning.values() if len(texts) > 1]
    return [texts[0] for texts in several], [texts[1:] for texts in several]


@pytest.mark.slow
@pytest.mark.skipif("SWEEPS_TEST_ASSETS" not in os.environ, reason="E2E is in the folder of test assets")
@java
def test_the_five_scores_are_those_of_e2e_metrics() -> None:
    """Values that the script of the E2E challenge gives for these 616 meanings: its pymteval for BLEU and NIST, its
    coco-caption for the rest."""
    texts, references = meanings()
    assert len(texts) == 616
    official = {"bleu": 0.605, "nist": 8.899, "meteor": 0.456, "rouge-l": 0.638, "cider": 1.857}
    found = score_texts(texts, references) | caption_scores(texts, references)
    assert {name: round(value, 3) for name, value in found.items()} == official


def test_log_likelihood_cannot_judge_references(e2e_trial: MakeTrial, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="reference texts instead of choices; use 'generation'"):
        run(e2e_trial(evaluate=EvaluateSettings(protocol="log-likelihood")), tmp_path)


def test_missing_libraries_are_named_before_training(
    e2e_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(TrialError, match=r"pycocoevalcap, which is not installed: .*\[text-metrics\]"):
        run(e2e_trial(), tmp_path)


def test_missing_and_malformed_files_are_named(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "restaurants"
    shutil.copytree(place / "restaurants", folder)
    (folder / "trainset.csv").write_text('mr,ref\n"name[A]",""\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"trainset\.csv, row 0: no text"):
        load_text_dataset(f"e2e:{folder}")
    for name in ("trainset", "devset", "testset_w_refs"):  # meanings of training rows would validate them
        (folder / f"{name}.csv").rename(folder / f"{name}.old")
        with pytest.raises(
            DataError, match=rf"no {name}\.csv in .*restaurants, which needs trainset\.csv, devset\.csv"
        ):
            load_text_dataset(f"e2e:{folder}")
        (folder / f"{name}.old").rename(folder / f"{name}.csv")


@pytest.mark.slow
def test_the_real_files(e2e_trial: MakeTrial, tmp_path: Path) -> None:
    if "SWEEPS_TEST_ASSETS" not in os.environ:
        pytest.skip("SWEEPS_TEST_ASSETS is not set")
    source = Path(os.environ["SWEEPS_TEST_ASSETS"]) / "text" / "e2e"
    folder = tmp_path / "e2e"
    folder.mkdir()
    shutil.copy(source / "devset.csv", folder / "trainset.csv")  # the training file is not among the assets
    for name in ("devset.csv", "testset_w_refs.csv"):
        shutil.copy(source / name, folder / name)
    data = load_text_dataset(f"e2e:{folder}", stage="CONFIRM")
    assert len(data.test) == 630
    assert len(data.val_rows if data.val_rows is not None else ()) == 547
    trial = e2e_trial(
        dataset=f"e2e:{folder}",
        train_size=0.005,
        train={"epochs": 1, "global_batch_size": 8},
        evaluate=EvaluateSettings(num_beams=2, max_new_tokens=16, validation_rows=4, test_rows=6),
    )
    assert run(trial, tmp_path / "run")[-1]["result"].predicted.n_examples == 6
