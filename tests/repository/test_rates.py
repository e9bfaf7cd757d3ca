"""docs/results/rates.parquet and docs/rates.md: the file is what the stores say, and the page what the file says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.analysis.synthetic import make_results
from tests.support import ROOT
from tools import pages, rates

PAGE = (ROOT / "docs" / "rates.md").read_text(encoding="utf-8")


def test_the_file_is_what_the_stores_say() -> None:
    found, written = rates.atlas().to_pylist(), rates.read()
    assert rates.agree(found, written), "run python -m tools.rates, then python -m tools.pages"
    assert {r["study"] for r in written} >= {"quickstart", "images", "league", "texts"}
    assert all(r["lowest"] <= r["best"] <= r["highest"] for r in written)
    assert all((r["outside"] is not None) == (r["best"] in (r["lowest"], r["highest"])) for r in written)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows[:-1], rows[-1] | {"best": 1.001 * rows[-1]["best"]}],
        lambda rows: [*rows[:-1], rows[-1] | {"reference": "lora-7"}],
    ],
)
def test_another_cell_or_number_is_seen(change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
    written = rates.read()
    assert rates.agree(written, written) and not rates.agree(change(written), written)


def test_a_store_that_is_added_has_its_cells_in_the_atlas(tmp_path: Path) -> None:
    make_results(tmp_path / "made")
    table = rates.atlas(tmp_path)
    assert table.schema == rates.SCHEMA
    rows = table.to_pylist()
    assert {r["study"] for r in rows} == {"made"} and {"lora", "randlora", "full"} <= {r["method"] for r in rows}
    assert all(r["parameters"] == 12_288 * int(r["reference"][5:]) for r in rows if r["method"] == "lora")


def test_the_page_is_up_to_date_and_its_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages.rates_page() == PAGE
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    exec(compile(code, "rates.md", "exec"), names)
    best = {(method, reference) for method, reference, *_ in names["best"]}  # type: ignore[attr-defined]
    assert {("lora", "lora-1"), ("full", None)} <= best
    figures = rates.draw(rates.read()).axes
    assert [axes.get_title(loc="left") for axes in figures] == list(rates.MODELS.values())
