"""A comparison at equal degrees of freedom is called that wherever one at equal parameters would be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from analysis import open_store
from analysis.findings.answer.answer import conclusion
from analysis.findings.parity.finding import parity_rows, parity_sheet
from analysis.findings.parity.words import parity_says
from analysis.findings.rank.numbers import scores_by_rank
from analysis.report.facts import facts
from analysis.store.columns import limited
from analysis.store.store import Store
from analysis.store.tables import write_part
from analysis.verdict.comparisons import comparisons


@pytest.fixture
def of_dof(folder: Path, tmp_path: Path) -> Store:
    """The same results, their budgets in degrees of freedom, of which LoRA's parameters are 10 % more."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "journal.jsonl").unlink()
    for name in ("trials", "cells"):
        rows = open_store(folder).table(name).to_pylist()
        for row in rows:
            row["reference"] = row["reference"] and f"dof-{row['reference']}"
            if name == "cells" and row["budget"]:
                row |= {"dof": row["count"], "dof_measured": row["method"] == "vera"}
                row["dof_at_most"] = row["method"] in ("lora", "nola")
            if row["method"] == "lora":
                part = "count" if name == "cells" else "adapter_params"
                row[part] = row[part] * 11 // 10
        shutil.rmtree(copy / "tables" / name)
        write_part(copy, name, rows)
    return open_store(copy)


def test_it_is_said_in_the_answer_the_question_the_evidence_and_the_tables(of_dof: Store) -> None:
    assert "compared at equal degrees of freedom" in conclusion(of_dof)
    ratios = {r["dof_ratio"] for r in comparisons(of_dof).to_pylist() if r["reference"]}
    assert all(abs(ratio - 1) < 0.05 for ratio in ratios)
    assert "at the same number of degrees of freedom" in facts(of_dof)["question"]
    said = parity_says(parity_rows(of_dof))
    assert said[0].startswith("Degrees of freedom: the largest distance of a count from its budget")
    assert said[1].startswith("What acts: updates have at most 90.9 (LoRA at")
    sheet = parity_sheet(parity_rows(of_dof))
    cells = {column.head: column for column in sheet.columns}
    assert "budget, degrees of freedom" in cells
    shown = {r["method"]: cells["degrees of freedom"].text(r) for r in sheet.rows if r["budget"]}
    assert shown["vera"].startswith("\N{ALMOST EQUAL TO} ")
    assert shown["lora"].startswith("\N{LESS-THAN OR EQUAL TO} ")
    assert shown["randlora"][0].isdigit()
    assert scores_by_rank(of_dof).num_rows == 0  # parameters are not equal there


def test_budgets_of_both_kinds_are_called_both() -> None:
    assert limited(["lora-8", None]) == limited([]) == "trainable parameters"
    assert limited(["dof-lora-8", "lora-8"]) == "trainable parameters or degrees of freedom"
