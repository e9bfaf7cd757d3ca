"""Sets in TRL's form: four kinds of files, columns and splits by other names, the hub, and rows that are malformed."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeps.spec.paths import absolute, path_of
from tests.trainables.tiny_language import chat_rows, completion_rows
from trainables.data.registry import check_dataset, load_text_dataset
from trainables.data.text.dataset import Chat, Completion
from trainables.data.text.fine_tuning import guess_columns, read_place, write_id
from trainables.data.text.looking import divide
from trainables.data.text.registry import text_kind
from trainables.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows in the form of the file's suffix; CSV has lists as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
                for row in rows
            )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["plain", "messages", "conversational"])
def test_every_file_form_gives_the_same_rows(tmp_path: Path, suffix: str, kind: str) -> None:
    if kind == "plain":
        rows: list[dict[str, Any]] = completion_rows(6)
        expected: list[object] = [Completion(row["prompt"], row["completion"]) for row in rows]
    else:
        rows = chat_rows(6)
        flat = [tuple((m["role"], m["content"]) for m in row["messages"]) for row in rows]
        expected = [Chat(each, None if kind == "messages" else len(each) - 1) for each in flat]
        if kind == "conversational":
            rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    for which, part in (("train", rows[:4]), ("test", rows[4:])):
        write(tmp_path / f"{which}{suffix}", part)
    data = load_text_dataset(f"sft:{tmp_path}", stage="CONFIRM")
    assert (data.kind, text_kind(data.name), data.val_rows) == ("completions", "completions", None)
    assert [*data.train.rows, *data.test.rows] == expected
    assert data.test.place(1) == f"{tmp_path}/test{suffix}, row 1"


def test_columns_and_splits_may_be_called_otherwise(tmp_path: Path) -> None:
    rows = [{"the question": row["prompt"], "answer&": row["completion"], "id": "x"} for row in completion_rows(8)]
    for which, part in (("train_sft", rows[:4]), ("test_sft", rows[4:6]), ("dev", rows[6:])):
        write(tmp_path / f"{which}.jsonl", part)
    name = write_id(
        "sft",
        str(tmp_path),
        {"prompt": "the question", "completion": "answer&"},
        {"train": "train_sft", "test": "test_sft"},
    )
    assert name.endswith("?prompt=the question&completion=answer%26&train=train_sft&test=test_sft")
    data = load_text_dataset(name)
    assert data.train.rows[0] == Completion(rows[0]["the question"], rows[0]["answer&"])
    assert data.val_rows is not None and data.val_rows.tolist() == [4, 5]  # dev.jsonl validates, named or not
    assert path_of(name) == tmp_path
    assert absolute("sft:x?prompt=a/b") == f"sft:{Path.cwd()}/x?prompt=a/b"


def test_a_divided_file_keeps_only_the_columns_that_are_read(tmp_path: Path) -> None:
    rows = [{**row, "created": datetime.datetime(2024, 1, 1)} for row in completion_rows(6)]
    write(tmp_path / "all.parquet", rows)
    divided = divide(f"sft:{tmp_path / 'all.parquet'}", tmp_path / "all.parquet", tmp_path / "divided")
    data = load_text_dataset(divided, stage="CONFIRM")
    assert len(data.train) + len(data.test) == 6
    lines = (tmp_path / "divided" / "test.jsonl").read_text().splitlines()
    assert {tuple(json.loads(line)) for line in lines} == {("prompt", "completion")}


def test_files_named_as_on_the_hub_are_one_split(tmp_path: Path) -> None:
    rows = completion_rows(6)
    for k, which in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        write(tmp_path / "data" / f"{which}.parquet", rows[2 * k : 2 * k + 2])
    data = load_text_dataset(f"sft:{tmp_path}", stage="CONFIRM")
    assert (len(data.train), len(data.test)) == (4, 2)
    assert data.train.place(3).endswith("train-00001-of-00002.parquet, row 1")


def test_the_hub_gives_splits_of_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load(*words: object, **_: object) -> datasets.DatasetDict:
        asked.append(words)
        tables = {which: datasets.Dataset.from_list(chat_rows(3, seed)) for seed, which in enumerate(("a", "b", "val"))}
        return datasets.DatasetDict(tables)

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("trainables.data.downloads.hub_answers", lambda: True)
    data = load_text_dataset("sft-hf:org/chats?train=a&test=b&config=small", stage="CONFIRM")
    assert asked == [("org/chats", "small")]
    assert (len(data.train), len(data.test)) == (6, 3)
    assert data.val_rows is not None and data.val_rows.tolist() == [3, 4, 5]
    with pytest.raises(DataError, match=r"has no split 'train'; it has a, b, val; \?train=NAME names"):
        load_text_dataset("sft-hf:org/chats")


def test_an_id_is_read_as_it_was_written() -> None:
    columns, splits = {"prompt": "a&b", "completion": "c = d"}, {"train": "train/1", "test": "x+y"}
    place = read_place(write_id("sft-hf", "org/chats", columns, splits, "config"))
    assert (place.path, place.columns, place.splits, place.config) == ("org/chats", columns, splits, "config")
    assert read_place(write_id("sft-hf", "org/chats", {}, {}, "a&b=c")).config == "a&b=c"


def test_a_text_that_is_not_utf_8_is_one_error(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 2], dtype=np.int32).tobytes())
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"a\xff")])
    for which in ("train", "test"):
        pq.write_table(pa.table({"prompt": broken, "completion": ["b"]}), tmp_path / f"{which}.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: cannot be read as Parquet"):
        load_text_dataset(f"sft:{tmp_path}")


def test_sharegpts_names_are_read(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    for which in ("train", "test"):
        write(tmp_path / f"{which}.json", [{"conversations": turns, "n": which}])
    data = load_text_dataset(f"sft:{tmp_path}?messages=conversations")
    assert data.train.rows == [Chat((("user", "Hi"), ("assistant", "Hello")))]


USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a", "answer": "b"}, r"no column 'prompt'.*perhaps sft:.*\?prompt=question&completion=answer"),
        ({"prompt": "a", "answer": "b"}, r"no column 'completion'; it has 'prompt', 'answer'"),
        ({"text": "a"}, r"no column 'prompt'; it has 'text'"),
        ({"prompt": " ", "completion": "b"}, "'prompt' is empty"),
        ({"prompt": "a", "completion": None}, "'completion' is empty"),
        ({"prompt": "a", "completion": [ANSWER]}, "'prompt': must be a list of messages, not the text 'a'"),
        ({"prompt": 3, "completion": "b"}, "'prompt': must be a list of messages such as"),
        ({"messages": [USER]}, "no message of the role 'assistant' to learn; its roles are user"),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": ["Hi"]}, "message 0: must be an object with 'role' and 'content'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 1: 'role' and 'content' must be texts"),
        ({"messages": [USER, ANSWER | {"tool_calls": [1]}]}, "message 1: holds 'tool_calls', and role and content"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud83d"}]}, "holds half of a character"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    write(tmp_path / "train.jsonl", [{"prompt": "a", "completion": "b"}, row])
    write(tmp_path / "test.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match=rf"train\.jsonl, row 1.*{words}"):
        load_text_dataset(f"sft:{tmp_path}")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?promt=a", "'promt' behind the '\\?' is no key; .*prompt"),
        ("?prompt=", "'prompt' behind the '\\?' has no value"),
        ("?prompt=a&prompt=b", "stands twice"),
        ("?messages=a&prompt=b", "name one of the two"),
        ("?prompt", "has no value"),
        ("?config=a", "'config' behind the '\\?' is no key"),
        ("?validation=held", "no file held.jsonl"),
        ("?test=tset", "no file of the test split, tset.jsonl .*it holds test.jsonl, train.jsonl.*--split NEW"),
    ],
)
def test_an_id_that_says_nothing_known_is_refused(tmp_path: Path, query: str, words: str) -> None:
    for which in ("train", "test"):
        write(tmp_path / f"{which}.jsonl", completion_rows(3))
    with pytest.raises(DataError, match=words):
        check_dataset(f"sft:{tmp_path}{query}", (1.0,))


def test_of_two_validation_splits_none_is_taken_without_a_word(tmp_path: Path) -> None:
    for which in ("train", "test", "val", "dev"):
        write(tmp_path / f"{which}.jsonl", completion_rows(3))
    with pytest.raises(DataError, match="two splits to validate on, 'val' and 'dev'"):
        load_text_dataset(f"sft:{tmp_path}")
    assert load_text_dataset(f"sft:{tmp_path}?validation=dev").train.rows


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["id", "Question", "Response"], {"prompt": "Question", "completion": "Response"}),
        (["conversations", "prompt", "completion"], {"messages": "conversations"}),
        (["instruction", "input", "output"], {"prompt": "instruction", "completion": "output"}),
        (["text", "label"], None),
    ],
)
def test_columns_are_guessed_by_their_names(names: list[str], columns: dict[str, str] | None) -> None:
    assert guess_columns(names) == columns
