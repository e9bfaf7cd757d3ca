"""Scores of predicted labels and numbers, by GLUE's names: accuracy, Matthews, F1, Pearson, Spearman."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LABEL_METRICS = ("accuracy", "matthews")
NUMBER_METRICS = ("pearson", "spearman")


def label_scores(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Return the scores of predicted classes (n,) against the right ones (n,), both int64.

    `accuracy`; for two classes also `matthews` (the correlation of the two columns of 0 and 1; 0 if one of them is
    constant, as is usual) and `f1` of class 1 (0 if it is neither predicted nor present).
    """
    scores = {"accuracy": float((predicted == labels).double().mean())}
    if classes == 2:
        scores["matthews"] = correlation(predicted, labels)
        hits = int((predicted & labels).sum())
        occurrences = int(predicted.sum() + labels.sum())
        scores["f1"] = 2.0 * hits / occurrences if occurrences else 0.0
    return scores


def number_scores(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the `pearson` and `spearman` correlation of numbers (n,) with the right ones (n,)."""
    return {"pearson": correlation(predicted, labels), "spearman": correlation(predicted, labels, ranks=True)}


def correlation(a: Tensor, b: Tensor, *, ranks: bool = False) -> float:
    """Return Pearson's correlation of two columns (n,), or Spearman's if `ranks`; 0 if a column is constant."""
    from scipy import stats

    x, y = a.to(torch.float64).numpy(), b.to(torch.float64).numpy()
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return 0.0
    return float((stats.spearmanr if ranks else stats.pearsonr)(x, y).statistic)


def pack(correct: Tensor) -> bytes:
    """Pack correctness (n,) bool into bits, eight to a byte, the first example in the highest bit."""
    return np.packbits(correct.numpy()).tobytes()
