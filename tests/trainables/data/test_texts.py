"""Text sets from files: answers as whole words, choices made of an output, contexts, labels, lines, unions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.tiny_language import instruction_rows
from trainables.data.registry import load_text_dataset
from trainables.data.text.dataset import Exchange
from trainables.data.text.prompts import around, extract_answer, relabelled
from trainables.errors import DataError


@pytest.mark.parametrize(
    ("text", "labels", "answer"),
    [
        ("it is 15, or 1.5, or -5, or 5,000, or 5.01", "5", None),
        ("it is 5.0", "5", "5"),
        ("US$5", "$5 $10", "$5"),
        ("option-2", "1 2", "2"),
        ("written in C++17", "C C++", "C++"),
        ("__A__", "A B", "A"),
        ("it is 5.", "5", "5"),
        ("Answer: C", "A B C D", "C"),
        ("I do not know: yes", "yes no", "yes"),
        ("use C++, not C", "C C++", "C++"),
        ("Answer:(B)", "(A) (B)", "(B)"),
        ("答案是B。", "A B", "B"),
        ("the correct answer is answer10", "answer1 answer2", "answer1"),  # LLM-Adapters' own rule
    ],
)
def test_an_answer_is_a_whole_word(text: str, labels: str, answer: str | None) -> None:
    assert extract_answer(text, labels.split()) == answer


def test_choices_replace_the_last_whole_word() -> None:
    found = relabelled("no, five is not six, I know", "no", ("yes", "no"), "")
    assert found == ("yes, five is not six, I know", "no, five is not six, I know")
    assert around("the answer is a1.", "a1", "") == ("the answer is ", ".")
    assert around("B fits, A does not: B.", "B", "") == ("B fits, A does not: ", ".")
    with pytest.raises(DataError, match=r"row 3: .* does not hold the answer 'no' as a word .*leave 'output' out"):
        relabelled("I know", "no", ("yes", "no"), "row 3")


def write(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for which, rows in files.items():
        (folder / f"{which}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_the_context_of_a_question_stands_before_it(tmp_path: Path) -> None:
    row = {"instruction": "Is it blue?", "input": "The sky is clear.", "answer": "yes", "choices": ["yes", "no"]}
    (found, bare) = load_text_dataset(
        f"questions:{write(tmp_path, train=[row, row | {'input': ''}], test=[row])}"
    ).train.rows
    assert isinstance(found, Exchange) and isinstance(bare, Exchange)
    assert found.prompt == "The sky is clear.\nQuestion: Is it blue?\nAnswer:"
    assert bare.prompt == "Question: Is it blue?\nAnswer:"


@pytest.mark.parametrize("whole", [True, False])  # one training file for all tasks, or one for each
def test_the_tasks_of_a_union_have_validation_files_of_their_own(tmp_path: Path, whole: bool) -> None:
    rows = instruction_rows(8)
    for task in ("one", "two"):
        write(tmp_path / task, test=rows[:2], validation=rows[2:4], **({} if whole else {"train": rows[4:]}))
    if whole:
        write(tmp_path, train=rows[4:])
    data = load_text_dataset(f"json:{tmp_path}")
    assert data.val_rows is not None
    held = data.train.group_of[data.val_rows].tolist()
    assert [data.train.groups[group] for group in held] == ["one", "one", "two", "two"]
    assert data.class_names == (() if whole else ("one", "two"))
    (tmp_path / "two" / "validation.json").unlink()
    with pytest.raises(DataError, match=r"one/validation\.json validates its task, and two of .* has no such file"):
        load_text_dataset(f"json:{tmp_path}")


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ("1 5 2", ("1", "2", "5"), [0, 2, 1]),  # ratings are names
        ("10 9 8 7 6 5 4 3 2 1 0", tuple(map(str, range(11))), list(range(10, -1, -1))),
    ],
)
def test_labels_are_numbers_where_they_count_from_0(
    tmp_path: Path, labels: str, names: tuple[str, ...], numbers: list[int]
) -> None:
    lines = [f"a sentence\u2028of\u0085one line\t{label}" for label in labels.split()]
    for which, end in (("train", "\n"), ("test", "\r\n")):
        (tmp_path / f"{which}.tsv").write_bytes(end.join(["sentence\tlabel", *lines, ""]).encode())
    data = load_text_dataset(f"glue:{tmp_path}", stage="CONFIRM")
    assert data.class_names == names
    assert data.train.labels.tolist() == data.test.labels.tolist() == numbers
