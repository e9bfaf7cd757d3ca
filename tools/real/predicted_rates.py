"""Test whether the curvature at the start predicts the best learning rates of methods, from two committed leagues.

    python -m tools.real.predicted_rates LEAGUE LANGUAGE-LEAGUE

Both folders need the table `curvature` (`sweeps analyze curvature FOLDER`), of the leagues in docs/results. Each league
has 37 methods at LoRA-8's count, each with five learning rates, half a decade apart, about a rate from the literature.

Declared before the curvature of any cell of a league was computed:

    question    A user knows LoRA's best rate on a task. Do curvatures, LoRA's and another method's at the start of
                training, say at which rate to search the other method?
    prediction  the rate of LoRA times (x / x of LoRA)^b. x is the rate of Adam's first step (`first_rate`) in the first
                question and 1 / sharpness in the second. b is the slope of log10 of the best rate against log10 of x
                over the methods of the image league. LoRA itself is not predicted, in either league
    tested on   the language league: another model, another task, and rates that the fit has not seen. A cell searches
                the three of its five rates that are nearest to the prediction. Its loss is the best validation score of
                all five minus the best of these three
    compared    the three rates in the middle, which a user takes who has the rate from the literature alone
    success     the mean loss of the predicted three is below 1 point, and it is not larger than that of the middle
                three. Otherwise no rate is offered from curvatures
    described   the rank correlations in both leagues, and the same losses in the image league, where b was fitted
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from analysis import open_store
from analysis.format import Row

NEAR = 3
"""The number of rates that are searched around a prediction."""
PREDICTIONS = ("first_rate", "1 / sharpness")


def cells(folder: Path) -> list[Row]:
    """Return method, chosen rate, both values of x, centre and (rate, validation score) pairs of each cell."""
    store = open_store(folder)
    centres = {(r["method"], r["reference"]): r["lr_centre"] for r in store.table("cells").to_pylist()}
    scores: dict[tuple[str, str], dict[float, float]] = {}
    query = "select method, reference, lr, avg(val_score) as score from trials where stage = 'TUNE' group by all"
    for r in store.sql(query).to_pylist():
        scores.setdefault((r["method"], r["reference"]), {})[r["lr"]] = r["score"]
    found = []
    for r in store.table("curvature").to_pylist():
        key = r["method"], r["reference"]
        sharp = r["sharpness"]
        x = {"first_rate": r["first_rate"], "1 / sharpness": 1 / sharp if sharp and sharp > 0 else None}
        found.append({"method": r["method"], "lr": r["lr"], "x": x, "centre": centres[key], "scores": scores[key]})
    return found


def slope(rows: list[Row], name: str) -> float:
    """Return the least-squares slope of log10 of the best rate against log10 of x."""
    known = [(math.log10(r["x"][name]), math.log10(r["lr"])) for r in rows if r["x"][name]]
    x, y = np.array(known).T
    return float(np.polyfit(x, y, 1)[0])


def loss(row: Row, rate: float) -> float:
    """Return what the rates nearest to `rate` lose against all rates, in points of the validation score."""
    near = sorted(row["scores"], key=lambda lr: abs(math.log10(lr / rate)))[:NEAR]
    return 100 * (max(row["scores"].values()) - max(row["scores"][lr] for lr in near))


def judged(rows: list[Row], name: str, b: float) -> Row:
    """Return the mean losses of predicted and of middle rates over the cells that have a prediction, except LoRA's."""
    (lora,) = (r for r in rows if r["method"] == "lora")
    others = [r for r in rows if r["method"] != "lora" and r["x"][name]]
    predicted = [loss(r, lora["lr"] * (r["x"][name] / lora["x"][name]) ** b) for r in others]
    middle = [loss(r, r["centre"]) for r in others]
    ranks = spearmanr([r["x"][name] for r in others], [r["lr"] for r in others]).statistic
    return {
        "cells": len(others),
        "rank correlation": float(ranks),
        "loss of predicted": float(np.mean(predicted)),
        "loss of middle": float(np.mean(middle)),
        "worst of predicted": max(predicted),
        "worst of middle": max(middle),
    }


def main() -> None:
    images, language = (cells(Path(folder)) for folder in sys.argv[1:3])
    for name in PREDICTIONS:
        b = slope([r for r in images if r["method"] != "lora"], name)
        fitted, tested = judged(images, name, b), judged(language, name, b)
        success = tested["loss of predicted"] < 1 and tested["loss of predicted"] <= tested["loss of middle"]
        print(json.dumps({"x": name, "b": b, "image league": fitted, "language league": tested, "success": success}))


if __name__ == "__main__":
    main()
