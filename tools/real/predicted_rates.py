"""Test whether the curvature at the start predicts the best learning rates of methods, from two committed leagues.

    python -m tools.real.predicted_rates LEAGUE LANGUAGE-LEAGUE

Both folders need the table `curvature` (`sweeps analyze curvature FOLDER`), of the leagues in docs/results. Each league
has 37 methods at LoRA-8's count. Their learning rates lie half a decade apart, around a rate from the literature.

Declared before the curvature of any cell of a league was computed:

    question    A user knows LoRA's best rate on a task. Do curvatures, LoRA's and another method's at the start of
                training, tell around which rate to search the other method?
    prediction  the rate of LoRA times (x / x of LoRA)^b. x is the rate of Adam's first step (`first_rate`) in the first
                question and 1 / sharpness in the second. b is the slope of log10 of the best rate against log10 of x
                over the methods of the image league. LoRA itself is not predicted, in either league
    tested on   the language league: another model, another task, and rates that the fit has not seen. A cell searches
                the three of its rates that are nearest to the prediction. Its loss is the best validation score of all
                its rates minus the best of these three
    compared    the three rates that are nearest to the rate from the literature. A user who knows only that rate would
                search these
    success     the mean loss of the predicted three is below 1 point, and it is not larger than that of the middle
                three. Otherwise no rate is offered from curvatures. The two questions are judged separately. This is a
                rule for these methods, not a test, and it says nothing of other tasks
    described   the rank correlations in both leagues, and the same losses in the image league, where b was fitted

Corrected after that, when at most 20 curvatures of the image league were known and none of the language league: a cell
has five rates, and up to three more if its best rate lay at an edge. The declaration said "five rates" and "the three
in the middle". All rates of a cell count.

Added after the answer was known, and described only: the three rates that are nearest to LoRA's best rate itself. They
say how much of the gain needs no curvature.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr

from analysis import open_store
from analysis.findings.diagnostics.figure import predicted_rates
from analysis.format import Row
from analysis.store.tables import to_table

NEAR = 3
"""The number of rates that are searched around a prediction."""


def cells(folder: Path) -> dict[str, list[Row]]:
    """Return a league's cells by the name of the prediction x that they have.

    A row has `method`, `lr` (the best rate), `predicted` (x), `centre` (the rate from the literature) and `scores`: the
    mean validation score of each rate that was tried.
    """
    store = open_store(folder)
    centres = {r["cell_id"]: r["lr_centre"] for r in store.table("cells").to_pylist()}
    cell_ids = {r["method"]: r["cell_id"] for r in store.table("confirmed").to_pylist()}
    scores: dict[str, dict[float, float]] = {}
    query = "select cell_id, lr, avg(val_score) as score from trials where stage = 'TUNE' group by all"
    for r in store.sql(query).to_pylist():
        scores.setdefault(r["cell_id"], {})[r["lr"]] = r["score"]
    return {
        name: [
            {"method": r["method"], "lr": r["lr"], "predicted": r["predicted"]}
            | {"centre": centres[cell_ids[r["method"]]], "scores": scores[cell_ids[r["method"]]]}
            for r in rows
        ]
        for name, rows in predicted_rates(newest(store.table("curvature"))).items()
    }


def newest(curvature: pa.Table) -> pa.Table:
    """Return the rows of the table `curvature` that were computed last for each method."""
    rows = sorted(curvature.to_pylist(), key=lambda row: row["computed_at"])
    return to_table("curvature", list({row["method"]: row for row in rows}.values()))


def slope(rows: list[Row]) -> float:
    """Return the least-squares slope of log10 of the best rate against log10 of x, without LoRA."""
    points = [(math.log10(r["predicted"]), math.log10(r["lr"])) for r in rows if r["method"] != "lora"]
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


def loss(row: Row, rate: float) -> float:
    """Return what the rates nearest to `rate` lose against all rates, in points of the validation score."""
    near = sorted(row["scores"], key=lambda lr: abs(math.log10(lr / rate)))[:NEAR]
    return 100 * (max(row["scores"].values()) - max(row["scores"][lr] for lr in near))


def judged(rows: list[Row], b: float) -> Row:
    """Return the mean losses of predicted, of middle and of LoRA's rates over the cells of a league, without LoRA's.

    Args:
        rows: the cells that have a prediction. LoRA's must be among them.
        b: the slope of the fit.
    """
    (lora,) = (r for r in rows if r["method"] == "lora")
    others = [r for r in rows if r["method"] != "lora"]
    predicted = [loss(r, lora["lr"] * (r["predicted"] / lora["predicted"]) ** b) for r in others]
    as_loras = [loss(r, lora["lr"]) for r in others]
    middle = [loss(r, r["centre"]) for r in others]
    return {
        "cells": len(others),
        "rank correlation": float(spearmanr([r["predicted"] for r in others], [r["lr"] for r in others]).statistic),
        "loss of predicted": float(np.mean(predicted)),
        "loss of middle": float(np.mean(middle)),
        "loss of LoRA's rate": float(np.mean(as_loras)),
        "worst of predicted": max(predicted),
        "worst of middle": max(middle),
        "worst of LoRA's rate": max(as_loras),
    }


def main() -> None:
    images, language = (cells(Path(folder)) for folder in sys.argv[1:3])
    for name, rows in images.items():
        b = slope(rows)
        fitted, tested = judged(rows, b), judged(language[name], b)
        success = tested["loss of predicted"] < 1 and tested["loss of predicted"] <= tested["loss of middle"]
        print(json.dumps({"x": name, "b": b, "image league": fitted, "language league": tested, "success": success}))


if __name__ == "__main__":
    main()
