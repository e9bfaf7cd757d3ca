"""The rows that docs/own-texts.md shows are read as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import ROOT
from trainables.data.registry import load_text_dataset

BLOCKS = re.findall(r"^```text\n(.*?)^```", (ROOT / "docs/own-texts.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)


def rows(word: str) -> str:
    """Return the example on the page that has this word in its first line."""
    (block,) = [block for block in BLOCKS if word in block.split("\n")[0]]
    return block


def write(folder: Path, text: str, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("prefix", "column", "suffix", "metric"),
    [
        ("sft", "completion", "jsonl", "likelihood"),
        ("json", "instruction", "jsonl", "accuracy"),
        ("glue", "sentence", "tsv", "accuracy"),
    ],
)
def test_the_rows_of_the_page_are_read(prefix: str, column: str, suffix: str, metric: str, tmp_path: Path) -> None:
    text = rows(column)
    write(tmp_path, text, f"train.{suffix}", f"test.{suffix}")
    data = load_text_dataset(f"{prefix}:{tmp_path}", stage="CONFIRM")
    assert data.metric == metric
    assert len(data.train.rows) == len(text.splitlines()) - (suffix == "tsv")  # the first line of a table is no row


def test_tasks_in_one_folder_have_scores_of_their_own(tmp_path: Path) -> None:
    names = [Path(line).relative_to("my-tasks") for line in rows("my-tasks").splitlines()]
    questions = ", ".join(rows("instruction").splitlines())
    write(tmp_path, f"[{questions}]", *map(str, names))
    data = load_text_dataset(f"json:{tmp_path}", stage="CONFIRM")
    assert data.test.groups == ("colours", "sums")
