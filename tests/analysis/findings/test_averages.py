"""Means over data sets: what differs between the training sizes of one line is a range."""

from __future__ import annotations

from pathlib import Path

from analysis import open_store
from analysis.findings.scaling.finding import averages_sheet
from analysis.store.tables import write_part
from tests.analysis.synthetic import make_results


def test_seeds_of_a_line_are_those_of_all_its_sizes(tmp_path: Path) -> None:
    plan, sizes = {"lora": ("lora-1",), "randlora": ("lora-1",)}, ("16-shot", "1.0")
    folder = make_results(tmp_path / "r", plan=plan, sizes=sizes, datasets=("d", "e"), seal=1.0)
    (folder / "journal.jsonl").unlink()
    rows = open_store(folder).table("confirmed").to_pylist()
    third = [r for r in rows if (r["method"], r["train_size"], r["slot"]) == ("lora", "1.0", 2)]
    write_part(folder, "trials", [r | {"status": "failed"} for r in third])
    sheet = averages_sheet(open_store(folder))
    shown = {line[0]: dict(zip(sheet.header, line, strict=True)) for line in sheet.cells}
    assert {name: (line["data sets"], line["seeds"]) for name, line in shown.items()} == {
        "LoRA": ("2", "2 to 3"),
        "RandLoRA": ("2", "3"),
    }
