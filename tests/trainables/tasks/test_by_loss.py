"""Scores that stand for the held-out loss, for whatever task."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from trainables.config import EvaluateSettings
from trainables.tasks.task import LOSS, Scores, by_loss


def test_the_score_is_e_to_the_minus_loss_and_the_tasks_own_stands_beside_it() -> None:
    own = Scores(
        score=0.75,
        n_examples=4,
        examples_hash="h",
        correct=torch.tensor([1, 1, 1, 0]).bool(),
        further={LOSS: 0.7, "x": 1.0},
    )
    found = by_loss(own, "accuracy")
    assert found.score == pytest.approx(math.exp(-0.7))
    assert found.further == {LOSS: 0.7, "x": 1.0, "accuracy": 0.75}
    assert found.correct is None  # a likelihood is no share of right answers
    assert (found.n_examples, found.examples_hash) == (own.n_examples, own.examples_hash)
    assert (
        by_loss(Scores(score=0.75, n_examples=4, examples_hash="h", correct=None, further={LOSS: 0.8}), "a").score
        < found.score
    )


def test_it_is_the_geometric_mean_of_the_probabilities_of_the_right_classes() -> None:
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    own = Scores(
        score=0.5, n_examples=6, examples_hash="h", correct=None, further={LOSS: float(cross_entropy(logits, labels))}
    )
    right = logits.softmax(dim=1)[torch.arange(6), labels]
    assert by_loss(own, "accuracy").score == pytest.approx(float(right.prod() ** (1 / 6)))


def test_the_metric_is_the_tasks_own_or_the_loss() -> None:
    assert EvaluateSettings().metric is None and EvaluateSettings(metric="loss").metric == "loss"
    with pytest.raises(ValueError, match="loss"):
        EvaluateSettings.model_validate({"metric": "accuracy"})
