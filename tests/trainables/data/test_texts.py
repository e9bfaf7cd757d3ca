"""Text sets from files: whole words, choices, contexts, labels, lines, unions, GLUE's own files, downloads."""

from __future__ import annotations

import http.client
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.tiny_language import e2e_rows, instruction_rows
from trainables.data.registry import load_text_dataset
from trainables.data.text import registry
from trainables.data.text.dataset import Exchange, Labelled
from trainables.data.text.prompts import extract_answer, meaning, relabelled, split_around
from trainables.errors import DataError


@pytest.mark.parametrize(
    ("text", "labels", "answer"),
    [
        ("it is 15, or 1.5, or -5, or 5,000, or 5.01", "5 6", None),
        ("it is 5.0", "5 6", "5"),
        ("US$5", "$5 $10", "$5"),
        ("option-2", "1 2", "2"),
        ("written in C++17", "C C++", "C++"),
        ("__A__", "A B", "A"),
        ("it is 5.", "5 6", "5"),
        ("Answer: C", "A B C D", "C"),
        ("I do not know: yes", "yes no", "yes"),
        ("use C++, not C", "C C++", "C++"),
        ("Answer:(B)", "(A) (B)", "(B)"),
        ("答案是B。", "A B", "B"),
        ("the correct answer is answer10", "answer1 answer2", "answer1"),  # LLM-Adapters' own rule
        ("I do not know", "answer1 answer2", None),
        ("the correct answer is option3", "option1 option2 option3 option4", "option3"),  # more than LLM-Adapters has
    ],
)
def test_an_answer_is_a_whole_word(text: str, labels: str, answer: str | None) -> None:
    assert extract_answer(text, labels.split()) == answer


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("We have 5 + 4 = 9. The answer is 9.", "5", "9"),
        ("5 + 3 = 8. The answer is 8.", "8.0", "8.0"),  # as LLM-Adapters' arithmetic sets write them
        ("It makes 3.3333", "3.333", "3.333"),  # within a thousandth
        ("He has 1,000", "1000", "1000"),
        ("It is 10-5, so -5", "5", "-5"),
        ("many", "5", None),
        ("No, I would not say Yes", "Yes", "No, I would not say Yes"),
        ("No. The answer is: Yes, it is", "Yes", "Yes"),
        ("The answer is **(B)**.", "B", "B"),
        ("(B)\n\nQuestion: and then?", "(B)", "(B)"),
        ("New York City", "New York", "New York City"),
        ("The answer is no. No, the answer is New York!", "New York", "New York"),
        ("The answer is ", "Yes", None),
        ("false, not true", "true", "false"),  # a family's words are known without choices
    ],
)
def test_an_answer_without_choices_can_be_wrong(tmp_path: Path, text: str, answer: str, found: str | None) -> None:
    """A number is the last one of the text, a word what the text says and not what occurs in it."""
    row = {"instruction": "What is it?\n\nAnswer format: one word", "output": f"It is {answer}", "answer": answer}
    (read, *_) = load_text_dataset(f"json:{write(tmp_path, train=[row], test=[row])}").train.rows
    assert isinstance(read, Exchange)
    assert extract_answer(text, read.labels) == found


def test_choices_replace_the_last_whole_word() -> None:
    found = relabelled("no, five is not six, I know", "no", ("yes", "no"), "")
    assert found == ("yes, five is not six, I know", "no, five is not six, I know")
    assert split_around("the answer is a1.", "a1", "") == ("the answer is ", ".")
    assert split_around("B fits, A does not: B.", "B", "") == ("B fits, A does not: ", ".")
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


STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
OWN = {  # of each task: columns of train.tsv and dev.tsv, two rows of them, their labels, the first columns of test.tsv
    "SST-2": ("sentence|label", ("s|0", "t|1"), [0, 1], "index|sentence"),
    "MRPC": ("Quality|#1 ID|#2 ID|#1 String|#2 String", ("1|7|8|s|t", "0|7|8|u|v"), [1, 0], "index|#1 ID|#1 String"),
    "CoLA": ("", ("gj04|1||s", "gj04|0|*|t"), [1, 0], "index|sentence"),
    "QNLI": ("index|question|sentence|label", ("0|s|t|entailment", "1|u|v|not_entailment"), [0, 1], "index|question"),
    "RTE": ("index|sentence1|sentence2|label", ("0|s|t|not_entailment", "1|u|v|entailment"), [1, 0], "index|sentence1"),
    "STS-B": (f"{STSB}|score", ("0|g|f|1|0|a|b|s|t|5.000", "1|g|f|1|1|a|b|u|v|0.5"), [5.0, 0.5], STSB),
}


@pytest.mark.parametrize("task", OWN)
def test_glues_own_files(tmp_path: Path, task: str) -> None:
    header, rows, labels, unlabelled = OWN[task]
    (tmp_path / task).mkdir()
    for which, lines in (("train", (header, *rows)), ("dev", (header, *rows)), ("test", (unlabelled,))):
        text = "\n".join(filter(None, lines)).replace("|", "\t")
        (tmp_path / task / f"{which}.tsv").write_text(text, encoding="utf-8-sig")  # as MRPC's begin
    data = load_text_dataset(f"glue:{tmp_path / task}", stage="CONFIRM")
    assert data.val_rows is None
    for found in (data.train.rows, data.test.rows):
        assert [row.label for row in found if isinstance(row, Labelled)] == labels
        assert {text for row in found if isinstance(row, Labelled) for text in row.sentences} <= set("stuv")
    (tmp_path / task / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"needs train\.tsv and, with labels, one of .*; it has test\.tsv, train\.tsv"):
        load_text_dataset(f"glue:{tmp_path / task}")


@pytest.mark.parametrize(("folder", "only"), [("SST-2", "positive"), ("mine", "1")])
def test_sentences_of_one_class_are_refused(tmp_path: Path, folder: str, only: str) -> None:
    (tmp_path / folder).mkdir()
    for which in ("train", "test"):
        (tmp_path / folder / f"{which}.tsv").write_text("sentence\tlabel\ngood\t1\nwarm\t1\n")
    with pytest.raises(DataError, match=rf"train\.tsv: every row has label '{only}'; .* needs two classes or more"):
        load_text_dataset(f"glue:{tmp_path / folder}")


def test_a_sentence_keeps_its_question(tmp_path: Path) -> None:
    for which in ("train", "test"):
        (tmp_path / f"{which}.tsv").write_text("question\tsentence\tlabel\nWho?\tBob.\tyes\nWhen?\tBob.\tno\n")
    (row, *_) = load_text_dataset(f"glue:{tmp_path}").train.rows
    assert isinstance(row, Labelled) and row.sentences == ("Who?", "Bob.")


@pytest.mark.parametrize(
    ("folder", "lines", "message"),
    [
        ("mine", "sentence\tlabel\na\t0\nb\t1\nc\t \n", r"train\.tsv, row 2: no label"),
        ("sst2", "text\tlabel\na\t0\nb\t1\n", r"train\.tsv: no column 'sentence'; it has 'text', 'label'"),
        ("mine", "sentence\tlabel\na\t0.5\nb\t1.25\n", r"labels are numbers such as 0\.5; .* call the folder STS-B"),
        ("mine", 'sentence\tlabel\na\t0\n"say ""b"""\t1\n', r"train\.tsv, row 1: .*stands in quotes .*QUOTE_NONE"),
    ],
)
def test_tables_that_are_not_what_they_seem(tmp_path: Path, folder: str, lines: str, message: str) -> None:
    (tmp_path / folder).mkdir()
    for which in ("train", "test"):
        (tmp_path / folder / f"{which}.tsv").write_text(lines)
    with pytest.raises(DataError, match=message):
        load_text_dataset(f"glue:{tmp_path / folder}")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("mr,ref\nname[X], eatType[pub],X is a pub.\n", r"row 0: more columns than the header; .* stands in quotes"),
        ("meaning,text\nname[X], eatType[pub],X is a pub.\n", r"row 0: more columns"),
        ("mr,ref\nname[X]\n", r"row 0: fewer columns"),
    ],
)
def test_a_text_with_commas_stands_in_quotes(tmp_path: Path, rows: str, message: str) -> None:
    for file in ("trainset", "devset", "testset_w_refs"):
        (tmp_path / f"{file}.csv").write_text(rows)
    with pytest.raises(DataError, match=rf"trainset\.csv, {message}"):
        load_text_dataset(f"e2e:{tmp_path}")


def test_a_row_is_named_as_its_file_counts_it(tmp_path: Path) -> None:
    lines = ["mr,ref", *(f"name[{name}],It is {i}." for i, name in enumerate("AABBA")), "name[C],It is C."]
    for file in ("trainset", "devset", "testset_w_refs"):
        (tmp_path / f"{file}.csv").write_text("\n".join(lines))
    data = load_text_dataset(f"e2e:{tmp_path}", stage="CONFIRM")
    assert [data.test.place(row).rpartition(" ")[2] for row in range(len(data.test))] == ["0", "2", "5"]
    (first, *_) = data.test.rows
    assert isinstance(first, Exchange) and first.references == ("It is 0.", "It is 1.", "It is 4.")
    assert data.val_rows is not None and data.val_rows.tolist() == [6, 7, 8]


def test_a_meaning_takes_no_longer_for_blanks() -> None:
    slots = "name[The Mill],\teatType[pub] ,familyFriendly[]"
    assert meaning(slots) == "name : The Mill | Type : pub | family friendly : "
    assert meaning(" " * 20_000 + slots) == meaning(slots)
    assert meaning(" " * 20_000) == meaning("a" * 20_000) == ""


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    rows = "\n".join(map(json.dumps, instruction_rows(4)))
    for which, file in (("train", "trainset"), ("test", "testset_w_refs")):
        (tmp_path / f"{which}.jsonl").write_text(rows, encoding="utf-8-sig")
        lines = ["mr,ref", *(f'"{meaning}","{text}"' for meaning, text in e2e_rows(4))]
        for name in {file, "devset"}:
            (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    for form in ("json", "e2e"):
        found = load_text_dataset(f"{form}:{tmp_path}")
        assert len(found.train) - (0 if found.val_rows is None else len(found.val_rows)) == 4


def test_downloads_of_one_file_have_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"[]"))
    renamed: list[Path] = []
    with monkeypatch.context() as still:
        still.setattr(Path, "replace", lambda self, _: renamed.append(self))
        for _ in range(2):  # the second begins before the first is done
            registry._fetch("dataset/boolq/test.json")
    assert len(set(renamed)) == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert registry._fetch("dataset/boolq/test.json").read_bytes() == b"[]"

    def cut(*_: object, **__: object) -> None:
        raise http.client.IncompleteRead(b"[")

    monkeypatch.setattr(urllib.request, "urlopen", cut)
    with pytest.raises(DataError, match=r"could not be downloaded \(IncompleteRead.*put the file at"):
        registry._fetch("dataset/boolq/train.json")
