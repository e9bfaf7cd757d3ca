"""Language models and text encoders in a pack: texts of unequal length, dropout of the base, scores, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainables.support import one_tower_trial
from tests.trainables.tiny_language import save_model, uneven_rows, write_e2e
from tests.trainables.tiny_sentences import save_encoder, write_sst2, write_stsb
from tests.trainables.training.support import ATOL, OWN, alone, check_weights, together
from trainables.config import EvaluateSettings, TrialConfig
from trainables.errors import TrialError
from trainables.models.loading import load_model
from trainables.packing.alike import NotPackableError
from trainables.packing.together import run_pack
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts, Task
from trainables.training.trainer import Trainer

Make = Callable[..., list[TrialConfig]]
DECAY = (0.0, 0.1, 0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed-text")
    save_model(folder / "llama", "llama")
    for family in ("gpt2", "phi3", "qwen2"):
        save_model(folder / family, family)
    save_model(folder / "gpt2-drops", "gpt2", resid_pdrop=0.1, attn_pdrop=0.2, embd_pdrop=0.1)
    save_model(folder / "llama-drops", "llama", attention_dropout=0.2)
    for family in ("bert", "roberta"):
        save_encoder(folder / family, family)
        save_encoder(folder / f"{family}-drops", family, dropout=0.1)
    uneven_rows(folder / "rows", train=26, test=8)
    write_e2e(folder / "restaurants")
    write_sst2(folder / "SST-2", train=32, test=10)
    write_stsb(folder / "STS-B", train=32, test=10)
    return folder


@pytest.fixture
def make(place: Path) -> Make:
    """Trials of a pack that differ in rates, seeds and decay."""

    def trials(model: str, data: str, method: str = "lora", count: int = 2, **given: Any) -> list[TrialConfig]:
        form, _, name = data.partition(":")
        train = {"epochs": 1, "global_batch_size": 5, "head_lr": 1e-2} | given.pop("train", {})
        return [
            one_tower_trial(
                method,
                model=place / model,
                dataset=f"{form}:{place / name}",
                train={**train, "weight_decay": decay},
                **({"train_size": 0.75} | given | own),
            )
            for own, decay in zip(OWN[:count], DECAY, strict=False)
        ]

    return trials


def task_of(trial: TrialConfig) -> Task:
    lane = LaneCache({}, torch.device("cpu"))
    loaded = lane.model(trial.model)
    return make_task(Parts(trial=trial, lane=lane, loaded=loaded, autocast=torch.no_grad, precision="fp32"))


def check(trials: list[TrialConfig], tmp_path: Path) -> list[dict[str, Any]]:
    """Losses, scores and trained tensors of a pack are those of separate trials; returns the last reports."""
    warm: dict[str, Any] = {}
    packed = together(trials, tmp_path, keep=True, warm=warm)
    for k, trial in enumerate(trials):
        want = alone(trial, tmp_path / f"alone{k}", keep=True)
        assert len(want) == len(packed)
        for reports, expected in zip(packed, want, strict=True):
            got: Any = reports[k]
            assert got["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
            assert got["val_score"] == pytest.approx(expected["val_score"], abs=1e-3)
            assert got["val_further"] == pytest.approx(expected["val_further"], rel=1e-3, abs=1e-3)
            assert (got["epoch"], got["samples"]) == (expected["epoch"], expected["samples"])
        result, wanted = got["result"], want[-1]["result"]
        assert result.measured.test_score == pytest.approx(wanted.measured.test_score, abs=1e-3)
        assert result.measured.further["test"] == pytest.approx(wanted.measured.further["test"], rel=1e-3, abs=1e-3)
        assert result.predicted == wanted.predicted
        for name in ("adapter_params", "head_params", "metric"):
            assert getattr(result.measured, name) == getattr(wanted.measured, name)
        check_weights(tmp_path, k, tmp_path / f"alone{k}")
        heads = [tmp_path / f"{where}{k}" / "adapter" / "head.safetensors" for where in ("packed", "alone")]
        assert heads[0].exists() == heads[1].exists() == (result.measured.head_params > 0)
        if heads[0].exists():
            of = [load_file(str(head)) for head in heads]
            assert all(torch.allclose(of[0][n], v, rtol=0, atol=ATOL) for n, v in of[1].items())
    module, fresh = warm["models"][trials[0].model].module, load_model(trials[0].model).module
    assert all(torch.equal(v, fresh.state_dict()[n]) for n, v in module.state_dict().items())
    assert all("forward" not in vars(m) for m in module.modules())
    losses = [reports["train_loss"] for reports in packed[-1].values()]  # type: ignore[index]
    assert len(set(losses)) == len(losses)
    return [packed[-1][k] for k in range(len(trials))]  # type: ignore[misc]


def slow(*values: Any) -> list[Any]:
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize(
    "method", ["lora", "randlora", *slow("dora", "vera", "nola", "adalora", "svft", "pissa", "lora-ga")]
)
@pytest.mark.parametrize("model", ["llama", "gpt2", *slow("phi3", "qwen2")])
def test_language_models_equal_separate_trials(make: Make, tmp_path: Path, model: str, method: str) -> None:
    check(make(model, "json:rows", method, count=3), tmp_path)


def test_the_batches_of_a_pack_are_padded_to_different_lengths(make: Make) -> None:
    """Else the tests here would show little."""
    for model, data in (("llama", "json:rows"), ("bert", "glue:SST-2")):
        tasks = [task_of(trial) for trial in make(model, data)]
        widths = [[task.width(batch) for batch in task.batches(1)] for task in tasks]
        assert sum(len(set(step)) > 1 for step in zip(*widths, strict=True)) >= 2


@pytest.mark.parametrize("method", ["lora", "randlora", *slow("dora", "vera", "nola", "adalora", "hydralora")])
@pytest.mark.parametrize("family", ["bert", *slow("roberta")])
def test_text_encoders_equal_separate_trials(make: Make, tmp_path: Path, family: str, method: str) -> None:
    check(make(family, "glue:SST-2", method, count=3, train={"epochs": 2}), tmp_path)


DROPPED = (("dropout", 0.3),)


@pytest.mark.parametrize(
    ("model", "data", "options"),
    [
        ("gpt2-drops", "json:rows", ()),
        ("bert-drops", "glue:SST-2", DROPPED),
        pytest.param("llama", "json:rows", DROPPED, marks=pytest.mark.slow),
        pytest.param("llama-drops", "json:rows", (), marks=pytest.mark.slow),
        pytest.param("llama-drops", "json:rows", DROPPED, marks=pytest.mark.slow),
        pytest.param("roberta-drops", "glue:SST-2", (), marks=pytest.mark.slow),
    ],
)
def test_dropout_is_that_of_separate_trials(
    make: Make, tmp_path: Path, model: str, data: str, options: tuple[tuple[str, float], ...]
) -> None:
    """Of the base model, of the head, and of the adapters, each on texts as long as they are alone."""
    check(make(model, data, options=options), tmp_path)


def test_a_method_without_a_stacked_product_drops_as_alone(make: Make, tmp_path: Path) -> None:
    check(make("bert-drops", "glue:SST-2", "randlora", options=DROPPED), tmp_path)


def test_numbers_of_pairs(make: Make, tmp_path: Path) -> None:
    last = check(make("bert", "glue:STS-B", "randlora"), tmp_path)
    assert last[0]["result"].measured.metric == "pearson"


FEW = EvaluateSettings(num_beams=2, max_new_tokens=6, test_rows=4, validation_rows=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:java is not on")
def test_references(make: Make, tmp_path: Path) -> None:
    last = check(make("gpt2", "e2e:restaurants", evaluate=FEW), tmp_path)
    assert last[0]["result"].measured.metric == "bleu"


@pytest.mark.slow
def test_generated_answers(make: Make, tmp_path: Path) -> None:
    evaluate = FEW.model_copy(update={"protocol": "generation"})
    last = check(make("llama", "json:rows", evaluate=evaluate), tmp_path)
    assert last[0]["result"].measured.metric == "accuracy (generation)"


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("llama", {"micro_batch_size": 2, "loss_on_prompt": True, "label_smoothing": 0.1}),
        pytest.param("gpt2", {"micro_batch_size": 3, "gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_other_settings_too(make: Make, tmp_path: Path, model: str, given: dict[str, Any]) -> None:
    check(make(model, "json:rows", train=given), tmp_path)


def test_checkpointed_layers_repeat_the_adapters_dropout(make: Make, tmp_path: Path) -> None:
    check(make("llama", "json:rows", options=DROPPED, train={"gradient_checkpointing": True}), tmp_path)


@pytest.mark.slow
def test_parts_of_a_fused_weight(make: Make, tmp_path: Path) -> None:
    names = [f"transformer.h.{i}.attn.c_attn.weight[{part}]" for i in range(2) for part in "qv"]
    trials = make("gpt2", "json:rows", targets=tuple(names), capacities=tuple((name, 3) for name in names))
    check(trials, tmp_path)


@pytest.mark.slow
def test_a_trial_that_diverges_fails_alone(make: Make, tmp_path: Path) -> None:
    trials = make("gpt2-drops", "json:rows", count=3)
    trials[1] = trials[1].model_copy(update={"lr": 1e30})
    packed = together(trials, tmp_path, keep=True)
    error = next(reports[1] for reports in packed if isinstance(reports.get(1), TrialError))
    with pytest.raises(TrialError) as raised:
        alone(trials[1], tmp_path / "alone1")
    assert str(error) == str(raised.value)
    for k in (0, 2):
        alone(trials[k], tmp_path / f"alone{k}", keep=True)
        check_weights(tmp_path, k, tmp_path / f"alone{k}")


def test_a_step_that_diverges_as_an_epoch_ends_fails_its_trial_alone(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is finite and the evaluation's is not, which a checkpoint has to take."""
    update = Trainer.update

    def diverging(self: Trainer, epoch: int, index: int) -> None:
        update(self, epoch, index)
        if self._trial.lr == trials[1].lr and (epoch, index + 1) == (1, self._steps):
            with torch.no_grad():
                for parameter in self._parameters:
                    parameter.fill_(torch.nan)

    trials = make("llama", "json:rows", train={"epochs": 2})
    monkeypatch.setattr(Trainer, "update", diverging)
    packed = together(trials, tmp_path)
    first: Any = packed[0][1]
    assert math.isfinite(first["train_loss"]) and math.isnan(first["val_further"]["loss"])
    assert str(packed[1][1]).startswith("loss became nan at step 5 of 8 (epoch 2)")
    assert packed[1][0]["done"]  # type: ignore[index]
    with pytest.raises(TrialError) as raised:
        alone(trials[1], tmp_path / "alone")
    assert str(raised.value) == str(packed[1][1])
    with pytest.raises(TrialError) as raised:  # from its checkpoint
        alone(trials[1], tmp_path / "alone")
    assert str(raised.value) == str(packed[1][1])


def test_an_abandoned_pack_goes_on_where_it_was(make: Make, tmp_path: Path) -> None:
    trials = make("bert-drops", "glue:SST-2", train={"epochs": 2})
    places = [tmp_path / f"packed{k}" for k in range(2)]
    pack = run_pack(trials, warm={}, directories=places, keep=[False] * 2)
    first = next(pack)
    pack.close()
    resumed, whole = together(trials, tmp_path), together(trials, tmp_path / "whole")
    assert resumed[0] == first
    for k in range(2):
        assert resumed[-1][k]["train_loss"] == whole[-1][k]["train_loss"]  # type: ignore[index]


def test_what_is_not_packed_says_why(make: Make, place: Path, tmp_path: Path) -> None:
    head = {"targets": ("lm_head.weight",), "capacities": (("lm_head.weight", 2),)}
    embedding = "transformer.wpe.weight"
    cases = [
        (make("llama", "json:rows", **head), "lm_head.weight is the output layer"),
        (
            make("gpt2", "json:rows", targets=(embedding,), capacities=((embedding, 2),)),
            "1 rows are not 2 equal slices",
        ),
        (
            make("bert-drops", "glue:SST-2", train={"gradient_checkpointing": True}),
            "gradient_checkpointing would repeat the base model's dropout",
        ),
    ]
    for trials, words in cases:
        warm: dict[str, Any] = {}
        with pytest.raises(NotPackableError, match=words):
            together(trials, tmp_path / words[:5], warm=warm)
        module = warm["models"][trials[0].model].module
        assert all("forward" not in vars(m) for m in module.modules())
        assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_a_gradient_that_diverges_in_the_last_step_fails_its_trial_alone(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later loss shows it."""
    update = Trainer.update

    def diverging(self: Trainer, epoch: int, index: int) -> None:
        if self._trial.lr == trials[1].lr and (epoch, index + 1) == (2, self._steps):
            for parameter in self._parameters:
                assert parameter.grad is not None
                parameter.grad.fill_(torch.nan)
        update(self, epoch, index)

    trials = make("llama", "json:rows", train={"epochs": 2})
    monkeypatch.setattr(Trainer, "update", diverging)
    packed = together(trials, tmp_path)
    assert str(packed[-1][1]).startswith("the gradient's norm became nan at step 8 of 8 (epoch 2)")
    assert packed[-1][0]["done"]  # type: ignore[index]
    with pytest.raises(TrialError) as raised:
        alone(trials[1], tmp_path / "alone")
    assert str(raised.value) == str(packed[-1][1])
