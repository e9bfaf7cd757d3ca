"""The trial's description: strict, hashable, and an id that follows its content alone."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ValidationError

from trainables.config import LATER, TrainSettings, TrialConfig, identifying, shots

BASE: dict[str, Any] = {
    "stage": "TUNE",
    "cell_id": "c",
    "model": "m",
    "adapt": "vision",
    "targets": ("a",),
    "dataset": "d",
    "train_size": "4-shot",
    "method": "lora",
    "capacities": (("a.weight", 4),),
    "options": (("alpha", 1.0), ("flag", True), ("n", 3)),
    "budget": 100,
    "lr": 1e-3,
    "data_seed": 0,
    "init_seed": 1,
    "basis_seed": 2,
}


def test_id_is_stable() -> None:
    assert TrialConfig(**BASE).trial_id == "93574f22f6882551"


def test_later_fields_leave_old_ids_alone() -> None:
    plain = TrialConfig(**BASE)
    assert TrialConfig(**BASE, image_size=None).trial_id == plain.trial_id
    assert TrialConfig(**BASE, train=TrainSettings(head_lr=1e-3)).trial_id == plain.trial_id
    assert TrialConfig(**BASE, image_size=56).trial_id != plain.trial_id
    assert TrialConfig(**BASE, train=TrainSettings(head_lr=2e-3)).trial_id != plain.trial_id


def test_identifying_content_goes_into_models_and_tables_of_models() -> None:
    class Inner(BaseModel):
        old: int = 1
        new: Annotated[int, LATER] = 2

    class Outer(BaseModel):
        one: Inner = Inner()
        many: dict[str, Inner] = {}
        late: Annotated[Inner, LATER] = Inner()

    assert identifying(Outer()) == {"one": {"old": 1}, "many": {}}
    full = Outer(one=Inner(new=3), many={"a": Inner(), "b": Inner(new=5)}, late=Inner(old=0))
    assert identifying(full) == {
        "one": {"old": 1, "new": 3},
        "many": {"a": {"old": 1}, "b": {"old": 1, "new": 5}},
        "late": {"old": 0},
    }


def test_json_round_trip_keeps_value_types_and_id() -> None:
    trial = TrialConfig(**BASE)
    again = TrialConfig(**json.loads(json.dumps(trial.model_dump())))
    assert again == trial
    assert hash(again) == hash(trial)
    assert again.trial_id == trial.trial_id
    assert [type(v) for _, v in again.options] == [float, bool, int]


@pytest.mark.parametrize(
    "change",
    [{"lr": 2e-3}, {"stage": "CONFIRM"}, {"data_seed": 1}, {"train": TrainSettings(epochs=2)}, {"train_size": 0.5}],
)
def test_id_follows_content(change: dict[str, Any]) -> None:
    assert TrialConfig(**(BASE | change)).trial_id != TrialConfig(**BASE).trial_id


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": None}, "not a positive finite number"),
        ({"lr": float("nan")}, "not a positive finite number"),
        ({"lr": -1.0}, "not a positive finite number"),
        ({"method": "zero-shot"}, "leave it out"),
        ({"train_size": "0-shot"}, "K-shot"),
        ({"train_size": "half"}, "K-shot"),
        ({"train_size": 4.0}, "not in"),
        ({"protocol": "paper"}, "no stage TUNE"),
        ({"surprise": 1}, "Extra inputs"),
        ({"adapt": "both", "train": TrainSettings(micro_batch_size=8)}, "contrastive loss"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrialConfig(**(BASE | change))


def test_train_settings_are_strict() -> None:
    with pytest.raises(ValidationError, match="epochs"):
        TrainSettings(epochs=0)
    with pytest.raises(ValidationError, match="Extra inputs"):
        TrainSettings(epoch=1)  # type: ignore[call-arg]


def test_shots() -> None:
    assert shots("16-shot") == 16
    assert shots(0.5) is None
