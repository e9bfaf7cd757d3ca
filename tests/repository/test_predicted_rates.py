"""The rule that judges rates predicted from curvatures."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from analysis.store.tables import to_table
from tests.support import ROOT
from tools.real.predicted_rates import cells, judged, loss, newest, slope

RATES = [10 ** (k / 2) for k in range(-8, -1)]


def cell(method: str, predicted: float, best: int) -> dict[str, object]:
    """A cell whose best rate is `RATES[best]`. Each step away from it in `RATES` costs 2 points of the score."""
    scores = {rate: 0.9 - 0.02 * abs(k - best) for k, rate in enumerate(RATES)}
    return {"method": method, "lr": RATES[best], "predicted": predicted, "centre": RATES[2], "scores": scores}


def test_a_search_loses_what_its_best_rate_lacks() -> None:
    row = cell("vera", 1.0, best=6)
    assert loss(row, RATES[5]) == pytest.approx(0)
    assert loss(row, RATES[2]) == pytest.approx(6)  # rates 1 to 3 are searched, and the third step from 6 is the best


def test_rates_that_curvatures_predict_lose_nothing() -> None:
    rows = [cell("lora", RATES[2], 2), *(cell(str(k), RATES[k] ** 2 / RATES[2], k) for k in (1, 3, 4, 5, 6))]
    assert slope(rows) == pytest.approx(0.5)
    found = judged(rows, 0.5)
    assert (found["cells"], found["loss of predicted"]) == (5, pytest.approx(0))
    assert found["loss of middle"] == pytest.approx((0 + 0 + 2 + 4 + 6) / 5)
    assert found["worst of middle"] == pytest.approx(6) and found["rank correlation"] == pytest.approx(1)


def test_the_newest_curvature_of_a_method_counts() -> None:
    rows = [
        {"sweep": "s", "unit": str(k), "method": "lora", "sharpness": float(k)}
        | {"computed_at": datetime(2026, 12, k, tzinfo=UTC)}
        for k in (1, 3, 2)
    ]
    assert [row["sharpness"] for row in newest(to_table("curvature", rows)).to_pylist()] == [3.0]


def test_the_page_has_what_the_committed_leagues_say() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").partition("## Learning rates known beforehand")[2]
    rows = dict(re.findall(r"^\| the (?:prediction from )?(.*?) \| (\d.*) \|$", page.partition("\n## ")[0], flags=re.M))
    shown = {name: [float(each) for each in cells_.split(" | ")] for name, cells_ in rows.items()}
    images, language = (cells(ROOT / "docs" / "results" / name) for name in ("league", "league-language"))
    for x, named in (("1 / sharpness", "the sharpness"), ("rate of the first step", "Adam's first step")):
        b = slope(images[x])
        fitted, tested = judged(images[x], b), judged(language[x], b)
        found = {"rate from the literature": "middle", "best rate of LoRA": "LoRA's rate", named: "predicted"}
        for row, key in found.items():
            numbers = [fitted[f"loss of {key}"], tested[f"loss of {key}"], tested[f"worst of {key}"]]
            assert shown[row] == pytest.approx(numbers, abs=0.051), row
        assert f"b = {b:.2f}" in page and f"{tested['rank correlation']:.2f}" in page
        assert tested["cells"] == 36 and tested["loss of predicted"] < 1 < tested["loss of middle"]
