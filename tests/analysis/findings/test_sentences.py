"""Every figure's sentence: what the numbers allow, and 'can't tell' where they allow nothing."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest

from analysis import Store
from analysis.findings.all import pictures
from analysis.findings.comparisons.finding import conclude_differences
from analysis.findings.data_sizes.finding import conclude_sizes
from analysis.findings.finding import View
from analysis.findings.fits.finding import conclude_crossings
from analysis.findings.front.finding import conclude_front
from analysis.findings.groups import conclude_groups
from analysis.findings.published.finding import conclude_overlay
from analysis.findings.tuning.finding import conclude_effort, conclude_expected, conclude_rates, conclude_sharpness

Row = dict[str, Any]
STRONG = ("higher than", "lower than", "is above every", "better", "wins", "outperforms")


def place(**more: Any) -> Row:
    return {"sweep": "s", "model": "m", "dataset": "d", "train_size": "1.0", "reference": "lora-1", **more}


def crossing(value: float | None, low: float | None, high: float | None, share: float | None, note: str = "") -> Row:
    estimate = {"value": value, "low": low, "high": high, "share": share, "note": note}
    return place(method="randlora", baseline="lora", x="adapter_params", **estimate)


def test_crossings() -> None:
    sure, unsure = crossing(5e4, 4e4, 6e4, 1.0), crossing(5e4, None, 6e4, 0.7)
    above = crossing(None, None, None, None, "no crossing in range: above throughout")
    below = crossing(None, None, None, None, "no crossing in range: below throughout")
    assert "No conclusion on a crossing" in conclude_crossings([], "parameters")
    assert "crosses LoRA's at 50,000" in conclude_crossings([sure], "parameters")
    assert "RandLoRA's curve may cross LoRA's at" in conclude_crossings([unsure], "parameters")
    assert "on one seed, so without an interval" in conclude_crossings([crossing(5e4, None, None, None)], "x")
    none = conclude_crossings([above], "parameters")
    assert "RandLoRA's lies above throughout" in none and "a description, not a test" in none
    many = conclude_crossings([sure, unsure, above, below], "parameters")
    assert "cross in range in 1 of 4 panels" in many and "may cross in 1, where the interval leaves the range" in many
    assert "no lasting crossing in 2 (RandLoRA above throughout in 1, below throughout in 1)" in many
    assert many.endswith("not a test.")


def test_fronts() -> None:
    def cell(method: str, share: float | None, on: bool = True) -> Row:
        return place(method=method, front_share=share, on_front=on, x="adapter_params")

    assert conclude_front([cell("lora", 0.2, on=False)]) == "No confirmed cell has this cost."
    text = conclude_front([cell("lora", 1.0), cell("randlora", 0.6), cell("vera", 0.1, on=False)])
    assert "than these: LoRA at lora-1." in text and "in fewer draws: RandLoRA at lora-1 (60 %)." in text
    unsure = conclude_front([cell("lora", 0.9)])
    assert "than these: none." in unsure and "in fewer draws: LoRA at lora-1 (90 %)." in unsure
    assert "not known how sure" in conclude_front([cell("lora", None)])


def test_differences() -> None:
    def one(low: float | None, verdict: str, **more: Any) -> Row:
        ends = {"low": low, "high": low and low + 0.08, "band": low and "given the chosen rates"}
        return compared(verdict, "1.0") | {"difference": 0.03} | ends | more

    assert "nowhere are both confirmed" in conclude_differences([one(0.01, "higher", method="vera")])
    text = conclude_differences([one(0.01, "higher"), one(-0.02, "not distinguishable")])
    assert "over 2 budgets. Corrected verdicts: higher at 1, not distinguishable at 1." in text
    assert text.endswith("band excludes zero at 1 of 2.")
    assert "There is no band" in conclude_differences([one(None, "not testable")])
    ends = {"least": "lora-1", "most": "lora-8", "at_least": 0.02, "at_most": 0.0}
    change = ends | {"dataset": None, "difference": -0.02, "low": -0.03, "high": -0.01, "verdict": "lower"}
    change |= {"sweep": "s", "model": "m", "train_size": "1.0", "n_datasets": 2}
    said = " The difference is +2.0 points at lora-1 and 0.0 at lora-8{}. Its change is −2.0 [−3.0, −1.0] points: {}."
    set_a, apart = change | {"dataset": "a"}, [one(0.01, "higher")]
    of_mean = said.format(" in the mean over 2 data sets", "it falls")
    assert conclude_differences(apart, [change, set_a, set_a]).endswith(of_mean)
    none = set_a | {"verdict": "not distinguishable"}
    assert conclude_differences(apart, [none]).endswith(said.format("", "not distinguishable"))
    for silent in ([set_a, set_a | {"train_size": "0.5"}], [set_a | {"difference": None}]):
        assert conclude_differences(apart, silent) == conclude_differences(apart)


def test_tuning_effort_and_sharpness() -> None:
    def cell(method: str, *curve: float | None) -> list[Row]:
        return [place(method=method, cell_id=method, n=n, test=v) for n, v in enumerate(curve, 1)]

    text = conclude_effort([*cell("lora", 0.60, 0.62, 0.63, 0.63), *cell("vera", 0.5, 0.56), *cell("nola", None)])
    assert "3.5 points lower, mean of 2 cells; most in VeRA at lora-1, 6.0: a description" in text
    assert "No conclusion" in conclude_effort(cell("lora", 0.6))
    rows = [place(method="lora", decades=d, open=o) for d, o in ((0.4, False), (0.6, True))]
    assert "LoRA at least 0.5; nothing is tested." in conclude_sharpness(rows)


def test_one_rate_says_nothing_of_another_allowance() -> None:
    rows = [place(method=m, n=1, expected=v) for m, v in (("lora", 0.6), ("randlora", 0.7))]
    assert conclude_expected(rows).startswith("No cell tried two learning rates: a description")
    more = [place(method=m, n=2, expected=v) for m, v in (("lora", 0.61), ("randlora", 0.7))]
    said = conclude_expected([*rows, *more])
    assert "above LoRA's at 1 of 1 budgets, with 2 learning rates at 1; the last learning rate" in said


def compared(verdict: str, size: str, **more: Any) -> Row:
    return place() | {"method": "randlora", "baseline": "lora", "verdict": verdict, "train_size": size} | more


def test_training_sizes() -> None:
    rows = [compared("higher", "1.0"), compared("not distinguishable", "4-shot"), compared("lower", "4-shot")]
    rows += [compared("higher", "1.0", reference=None), compared("higher", "1.0", method="vera")]
    text = conclude_sizes(rows)
    assert "4-shot: lower at 1, not distinguishable at 1 of 2; all data: higher at 1 of 1" in text
    assert "Holm-corrected as in the table" in text and "the choice of learning rates included" in text
    cannot = conclude_sizes([compared("not testable", "4-shot"), compared("not testable", "1.0")])
    assert "higher" not in cannot and cannot.count("not testable at 1 of 1") == 2
    assert "No conclusion" in conclude_sizes([])


def test_learning_rates() -> None:
    def cell(why: str | None, allowance: int = 6) -> Row:
        return place(method="lora", allowance=allowance, under_tuned=why)

    assert conclude_rates([cell(None, 0)]) == "No cell was tuned here."
    fine = conclude_rates([cell(None), cell(None)])
    assert fine.startswith("In none of the 2 tuned cells") and fine.endswith("nothing is tested.")
    poor = conclude_rates([cell("edge low"), *[cell("between rates")] * 5, cell(None)])
    assert poor.startswith("In 6 of 7 tuned cells") and "LoRA at lora-1 (edge low)" in poor and "and 2 more" in poor


def test_overlays() -> None:
    def curve(points: dict[int, float], dataset: str = "d") -> list[Row]:
        return [
            place(method="lora", kind="curve", adapter_params=x, mean=y, dataset=dataset) for x, y in points.items()
        ]

    ours = curve({100: 0.50, 1000: 0.60, 10_000: 0.65})
    text = conclude_overlay(ours, curve({100: 0.48, 10_000: 0.68}))
    assert "LoRA −3.0 to +2.0 points" in text and text.endswith("nothing is tested.") and "differ" not in text
    away = conclude_overlay(ours, curve({10**6: 0.7, 10**7: 0.8}, "other"))
    assert "do not overlap" in away and "model or data differ" in away and "points" not in away


def test_groups() -> None:
    def line(method: str, group: str, mean: float, n: int = 5, reference: str = "lora-1") -> Row:
        return place(method=method, group=group, mean=mean, n=n, reference=reference, tested=int(n > 1))

    clear = [line("randlora", "a", 0.9), line("lora", "b", 0.8)]
    level = [line("randlora", "a", 0.9, reference="lora-4"), line("lora", "a", 0.89, reference="lora-4")]
    overlap = [line("vera", "a", 0.9, reference="lora-8"), line("lora", "ab", 0.89, reference="lora-8")]
    few = conclude_groups(clear + level)
    assert few == "lora-1: RandLoRA is above LoRA. lora-4: RandLoRA and LoRA are not distinguishable."
    third = [line("nola", "b", 0.5), line("randlora", "a", 0.9), line("lora", "a", 0.8)]
    third.sort(key=lambda r: -r["mean"])
    assert "RandLoRA and LoRA are not distinguishable and above every other" in conclude_groups(third)
    between = [line("randlora", "ab", 0.9), line("lora", "bc", 0.8), line("nola", "c", 0.7)]
    assert conclude_groups(between) == "lora-1: RandLoRA is not distinguishable from LoRA."
    told_apart = [line("randlora", "ab", 0.9), line("lora", "b", 0.8), line("nola", "a", 0.7)]
    assert conclude_groups(told_apart) == "lora-1: RandLoRA is not distinguishable from LoRA and NoLA."
    elsewhere = [r | {"dataset": "other"} for r in level]
    assert "is above every other method at 1;" in conclude_groups(clear + elsewhere)
    assert "no single method is above all others at all 2." in conclude_groups(overlap + elsewhere)
    assert "above" not in conclude_groups(level)
    assert "no two methods can be tested" in conclude_groups([line("randlora", "a", 0.9, 1), line("lora", "a", 0.5, 1)])
    assert "nothing to group" in conclude_groups([])


def test_every_figure_of_the_report_has_one(store: Store) -> None:
    found = pictures(store, View(overlay="fig1-clip"))
    stems = ["scaling_curve", "differences", "overlay", "fits", "pareto", "learning_rates", "expected_best"]
    stems += ["tuning_effort", "sharpness", "rate_ratio"]
    assert [p.stem for p in found if p.stem in stems] == stems  # a new finding may add figures of its own
    assert not {p.stem for p in found} & {"ranking", "forest", "rank", "data_size"}  # one data set and training size
    for p in found:
        assert p.says.endswith(".") and "\n" not in p.says
        assert p.says in unescape(p.svg)
        if p.stem not in ("scaling_curve", "ranking", "differences", "forest"):  # the one that is a test
            assert not any(word in p.says for word in STRONG), p.says


@pytest.mark.parametrize("seeds", [1, 2])
def test_flat_and_single_seeds_are_not_called_apart(seeds: int, tmp_path: Any) -> None:
    """No lead planted and few seeds: no sentence may say that there is one."""
    from analysis import open_store
    from tests.analysis.synthetic import make_results

    plan = {"randlora": ("lora-1", "lora-4"), "twin": ("lora-1",), "lora": ("lora-1", "lora-4"), "full": (None,)}
    made = make_results(tmp_path / "flat", seeds=seeds, noise=0.2, plan=plan, sizes=("4-shot", "1.0"))
    for p in pictures(open_store(made)):
        if p.stem in ("scaling_curve", "ranking", "differences", "forest", "data_size"):
            assert "no conclusion" in p.says.lower() or "not distinguishable" in p.says or "not testable" in p.says, (
                p.says
            )
            assert "higher than" not in p.says
