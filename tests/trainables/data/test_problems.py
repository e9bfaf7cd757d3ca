"""MetaMathQA with GSM8K: rows, answers and lengths as PEFT's method comparison reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from trainables.data.registry import load_text_dataset
from trainables.data.text.dataset import Exchange
from trainables.data.text.problems import LONGEST, final_answer
from trainables.data.text.registry import text_kind
from trainables.errors import DataError
from trainables.tasks.text.causal_lm import answer_in

TRAIN = [
    {"query": "What is 2 + 2?", "response": "Two and two.\nThe answer is: 4"},
    {"query": "long", "response": "x" * LONGEST},
    {"query": "A proof?", "response": "It has no number at its end."},
]
TEST = [{"question": "Half of 3?", "answer": "3 / 2 = <<3/2=1.5>>1.5\n#### 1.5"}]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is $4^2 = \\boxed{16}$.The answer is: 16", "16.0"),
        ("He pays 5.\n#### 1,000", "1,000"),  # as their script: no number, and compared as it is written
        ("The answer is: 20/14.", final_answer("#### 10/7")),
        ("The answer is: 5\n\nQuestion: and 6?", "5.0"),
        ("The final answer is: $ 50% ", "50.0"),
        ("The answer is: \\frac{1}{2}", "\\frac{1}{2}"),
        ("The answer is: 1. The answer is: 2", "2.0"),
        ("The answer is: 1/0", "1/0"),
        ("The answer is: 1e999999999", None),
        ("Nothing is said.", None),
        ("", None),
    ],
)
def test_the_answer_that_a_text_ends_with(text: str, answer: str | None) -> None:
    if "1e9" in text:
        assert final_answer(text)  # whatever it is, no error
    else:
        assert final_answer(text) == answer


def written(folder: Path, **tables: list[Any]) -> Path:
    folder.mkdir()
    for which, rows in tables.items():
        (folder / f"{which}.json").write_text(json.dumps(rows))
    return folder


def check(found: Any) -> None:
    first = found.train.rows[0]
    assert first == Exchange(
        "Question: What is 2 + 2? Think step by step.\nAnswer:", TRAIN[0]["response"], answer="4.0"
    )
    assert [row.answer for row in found.train.rows[:2]] == ["4.0", None]  # the long one is left out
    assert found.train.place(1).endswith("row 2")
    (test,) = found.at("CONFIRM").test.rows
    assert test.prompt == "Question: Half of 3? Think step by step.\nAnswer:"
    assert answer_in("I think. The answer is: 3/2", test) == test.answer == "1.5"
    assert answer_in("I do not know", test) is None


def test_a_folder(tmp_path: Path) -> None:
    found = load_text_dataset(f"problems:{written(tmp_path / 'a', train=TRAIN, test=TEST)}")
    assert text_kind(found.name) == found.kind == "problems"
    assert found.val_rows is None
    check(found)


@pytest.mark.parametrize("which", ["validation", "valid", "val", "dev"])
def test_a_validation_file_under_any_of_its_names(tmp_path: Path, which: str) -> None:
    found = load_text_dataset(f"problems:{written(tmp_path / 'a', train=TRAIN, test=TEST, **{which: TEST})}")
    assert found.val_rows is not None
    assert found.val_rows.tolist() == [2]


def test_the_hubs_sets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(repository: str, *config: str, **_: Any) -> dict[str, Any]:
        asked.append((repository, *config))
        return {"train": TRAIN} if "Meta" in repository else {"train": TEST * 2, "test": TEST}

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.warns(UserWarning, match="1 test rows, and 1,319 were expected"):
        found = load_text_dataset("metamathqa-gsm8k")
        check(found)
    assert asked == [("meta-math/MetaMathQA",), ("openai/gsm8k", "main")]
    assert found.val_rows is not None
    assert found.val_rows.tolist() == [2, 3]  # GSM8K's training questions validate, and train nothing
    assert text_kind("metamathqa-gsm8k") == "problems"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"train": TRAIN}, "needs test.json or test.jsonl; it holds train.json"),
        ({"train": [{"q": "?"}], "test": TEST}, "train.json, row 0: columns .'q'.; a problem has 'query'"),
        ({"train": [{"query": "?", "response": 4}], "test": TEST}, "must be texts, not '.' and 4"),
        ({"train": TRAIN[1:2], "test": TEST}, "no training text has at most 1,300 characters"),
        ({"train": [3], "test": TEST}, "must hold objects, not 3"),
        ({"train": [None], "test": TEST}, "must hold objects, not None"),
        ({"train": TRAIN, "test": TRAIN[2:]}, "row 0: no answer after one of 'The answer is: '"),
    ],
)
def test_what_is_no_set_of_problems(tmp_path: Path, tables: dict[str, Any], message: str) -> None:
    folder = written(tmp_path / "a", **tables)
    with pytest.raises(DataError, match=message):
        _ = load_text_dataset(f"problems:{folder}").at("CONFIRM").test
