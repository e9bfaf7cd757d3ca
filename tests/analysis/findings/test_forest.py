"""The question's differences on one axis: every one that the table has, with its verdict, and the means apart."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from analysis import open_store
from analysis.drawing.picture import MOST_ROWS
from analysis.findings.comparisons.figure import MARGIN
from analysis.findings.forest.figure import draw_forest
from analysis.findings.forest.finding import forest_pictures
from analysis.format import change_text
from analysis.store.store import Store
from analysis.verdict.comparisons import COMPARISONS, comparisons
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import make_results
from tools.forest import declared, name
from tools.pictures import RESULTS, STUDIES


def made(path: Path, datasets: str, budgets: int = 2) -> Store:
    plan = {method: [f"lora-{2**b}" for b in range(budgets)] for method in ("lora", "randlora", "vera")}
    folder = make_results(path, plan=plan, datasets=list(datasets), advantage=0.03)
    (folder / "sweep.json").write_text(json.dumps({"name": path.name, "confirm": {"margin": 0.01}}), encoding="utf-8")
    return open_store(folder)


def test_a_row_for_every_difference_and_mean(tmp_path: Path) -> None:
    store = made(tmp_path / "r", "ab")
    [picture] = forest_pictures(store)
    rows = [r for r in comparisons(store).to_pylist() if r["method"] == "randlora"]
    [axes] = picture.figure.axes
    names = ["a, lora-1", "a, lora-2", "b, lora-1", "b, lora-2", "mean, all budgets", "data sets like these"]
    assert [t.get_text() for t in axes.get_yticklabels()] == names[: len(rows)] and len(rows) >= 5
    assert [t.get_text().replace("\n", " ") for t in axes.texts] == [r["verdict"] for r in rows]
    dots = {line.get_ydata()[0]: (line.get_xdata()[0], line.get_marker()) for line in axes.lines if line.get_gid()}
    assert [at for at, _ in dots.values()] == pytest.approx([100 * r["difference"] for r in rows])
    assert [marker for _, marker in dots.values()] == ["o"] * 4 + ["D"] * (len(rows) - 4)
    ends = {path.vertices[0, 1]: path.vertices[:, 0] for c in axes.collections for path in c.get_paths()}
    known = [r for r in rows if r["low"] is not None]  # the means of sets that share seeds have none
    assert [x for at in ends.values() for x in at] == pytest.approx(
        [100 * r[end] for r in known for end in ("low", "high")]
    )
    assert len(known) >= 5
    [strip] = [p for p in axes.patches if p.get_gid() == f"0:{MARGIN}"]
    assert (strip.get_x(), strip.get_width()) == pytest.approx((-1.0, 2.0))
    assert any(tip.startswith("RandLoRA at all budgets on 2 data sets: +") for tip in picture.figure.tips.values())
    assert sum(", 2 data sets; " in tip for tip in picture.figure.tips.values()) == 1  # not pairs


def test_methods_in_question_are_groups_of_rows(tmp_path: Path) -> None:
    folder = make_results(
        tmp_path / "every", plan=dict.fromkeys(("lora", "randlora", "dora"), ("lora-4",)), datasets=["a", "b"]
    )
    declaration = {"ev": "declare", "name": "every", "seeds": [0, 1, 2], "max_seeds": None, "margin": 0.02, "scored": 0}
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(declaration | {"question": "all"}) + "\n")
    [picture] = forest_pictures(open_store(folder))
    [axes] = picture.figure.axes
    kinds = ("a", "b", "mean", "sets like these")
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"{m}: {k}" for m in ("RandLoRA", "DoRA") for k in kinds]
    assert axes.get_xlabel() == "test accuracy: each method minus LoRA (points)"


def test_a_mean_of_one_budget_says_which(tmp_path: Path) -> None:
    table = comparisons(made(tmp_path / "one", "ab", budgets=1)).to_pylist()
    rows = pa.Table.from_pylist([r for r in table if r["method"] == "randlora"], schema=COMPARISONS)
    [axes] = draw_forest(rows, score="test accuracy").axes
    assert "mean, lora-1" in [t.get_text() for t in axes.get_yticklabels()]


def test_a_mean_over_some_budgets_says_how_many(tmp_path: Path) -> None:
    cells: Cells = {
        (m, f"lora-{rank}", d): {s: 0.6 + 0.01 * s**2 * (m == "randlora") for s in range(3)}
        for m in ("lora", "randlora")
        for d, ranks in (("a", (1, 8)), ("b", (1,)))
        for rank in ranks
    }
    figure = draw_forest(comparisons(open_store(odd_results(tmp_path / "some", cells))), score="test accuracy")
    assert "mean, 1 of 2 budgets" in [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert any("at 1 of 2 budgets on 2 data sets: " in tip for tip in figure.tips.values())


def test_it_is_for_several_data_sets_with_intervals_and_as_many_rows_as_can_be_read(tmp_path: Path) -> None:
    untested = {(m, "lora-1", d): {0: 0.6, 1: 0.7} for m in ("lora", "randlora") for d in "ab"}
    stores = [
        made(tmp_path / "one", "a", 3),
        made(tmp_path / "many", "abcdefghij", MOST_ROWS // 10),
        open_store(odd_results(tmp_path / "untested", untested)),
    ]
    for store in stores:
        assert forest_pictures(store) == [], store.path.name
    with pytest.raises(ValueError, match="no difference to draw"):
        draw_forest(comparisons(store).slice(0, 0), score="test accuracy")


@pytest.mark.parametrize(
    ("study", "rows", "last"),
    [
        ("images", 7, "mean of 3 sets: +1.3 [+0.7, +1.9] higher"),
        ("photos", 4, "mean of 3 sets: +2.3 [\N{MINUS SIGN}2.3, +6.9] not distinguishable"),
        ("texts", 3, "mean of 2 sets: +1.2 [\N{MINUS SIGN}5.1, +7.6] not distinguishable"),
    ],
)
def test_what_was_added_to_a_study_later_changes_no_declared_answer(study: str, rows: int, last: str) -> None:
    asked = next(one for one in STUDIES if one.folder == study)
    found = declared(asked, open_store(RESULTS / asked.folder))
    assert len(found) == rows and {r["reference"] for r in found} - {None} == set(asked.budgets)
    assert f"{name(found[-1], asked)}: {change_text(found[-1])} {found[-1]['verdict']}" == last


def test_a_budget_that_was_added_has_its_rows_alone() -> None:
    """The mean over all budgets is of the declared ones too, and stands in no row of either."""
    [asked] = [one for one in STUDIES if one.folder == "photos" and one.added]
    found = declared(asked, open_store(RESULTS / asked.folder))
    assert [r["dataset"] is not None and r["reference"] for r in found] == ["lora-39"] * 3
    assert all(r["added"] and r["verdict"] == "not distinguishable" for r in found)
