"""The learning-rate schedule."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from trainables.config import TrainSettings
from trainables.training.optim import lr_factor


def test_warm_up_in_steps_is_as_long_whatever_the_length() -> None:
    settings = TrainSettings(warmup_steps=100, schedule="linear", min_lr_ratio=0.0)
    for total in (2_500, 32_000):
        rates = [lr_factor(step, total, settings) for step in range(total)]
        assert rates.index(max(rates)) == 100
        assert rates[:100] == pytest.approx([(step + 1) / 101 for step in range(100)])
        assert rates[-1] == pytest.approx(1 / (total - 100))
    short = [lr_factor(step, 10, settings) for step in range(10)]
    assert short == sorted(short) and short[-1] == 1.0, "a shorter training still reaches the peak"


def test_two_lengths_of_one_warm_up_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"warmup_steps = 5 and warmup_fraction = 0\.1 .*leave one out"):
        TrainSettings(warmup_steps=5, warmup_fraction=0.1)
