"""Prompts with completions, or conversations, in the form that TRL's SFT trainer reads, from files or the hub.

| columns | what a model learns |
|---|---|
| `prompt` and `completion`, texts | the completion, and the EOS behind it |
| `prompt` and `completion`, lists of messages | the messages of the completion |
| `messages` | every message of the assistant |

A message is `{"role": "user", "content": "..."}`; ShareGPT's `{"from": "human", "value": "..."}` is read as well.

The id names the place. Behind a `?` it gives the names of columns and splits that are called otherwise there:
`sft:my-texts?prompt=question&completion=answer`, `sft-hf:ORG/NAME?train=train_sft&test=test_sft`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import pyarrow as pa
import pyarrow.parquet as pq

from randlora.errors import nearest
from trainables.data.downloads import hub_splits
from trainables.data.text.dataset import Chat, Completion, Part, TextDataset, text_dataset
from trainables.data.text.instructions import VALIDATION, objects, only_file
from trainables.data.text.tables import read_csv
from trainables.errors import DataError, brief

FORM, HUB_FORM = "sft", "sft-hf"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_COLUMNS = ("prompt", "completion", "messages")
_SPLITS = ("train", "validation", "test")
_KEYS = (*_COLUMNS, *_SPLITS)
_HUB_KEYS = (*_KEYS, "config")
_SYNONYMS = {
    "messages": ("messages", "conversations", "conversation", "chat", "dialogue", "dialog"),
    "prompt": ("prompt", "question", "instruction", "query", "problem", "input", "source"),
    "completion": ("completion", "answer", "response", "output", "solution", "target"),
}
"""TRL's name of a column -> names that other sets give it, the likeliest first."""
_SHAREGPT = {"human": "user", "gpt": "assistant"}

Cells = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where a set is, and what its columns and splits are called there.

    Attributes:
        path: a folder, or a repository of the hub.
        columns: TRL's name of a column ("messages", or "prompt" and "completion") -> its name there.
        splits: our name of a split ("train", "validation", "test") -> its name there, if the id gives one.
        config: the configuration of a hub repository; None for its only or default one.
    """

    path: str
    columns: Mapping[str, str]
    splits: Mapping[str, str]
    config: str | None = None


def read_place(name: str) -> Place:
    """Parse an id. Raises DataError for an unknown key, and for columns of both kinds."""
    form, _, rest = name.partition(":")
    path, mark, query = rest.partition("?")
    keys = _HUB_KEYS if form == HUB_FORM else _KEYS
    values: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in keys or key in values or not value:
            wrong = "has no value" if not value else "stands twice" if key in values else "is no key"
            raise DataError(f"data set {name!r}: {key!r} behind the '?' {wrong}; {nearest(key, keys)}")
        values[key] = value
    if mark and not values:
        raise DataError(f"data set {name!r}: nothing of the form key=value behind the '?'; keys: {', '.join(keys)}")
    columns = {key: values[key] for key in _COLUMNS if key in values}
    if "messages" in columns and len(columns) > 1:
        raise DataError(f"data set {name!r}: a row has messages, or a prompt and a completion; name one of the two")
    return Place(path, columns, {key: values[key] for key in _SPLITS if key in values}, values.get("config"))


def write_id(
    form: str,
    path: str,
    columns: Mapping[str, str],
    splits: Mapping[str, str] | None = None,
    config: str | None = None,
) -> str:
    """Return the id of a set. Columns and splits that have TRL's names are left out."""
    named = {key: value for key, value in {**columns, **(splits or {})}.items() if key != value}
    if config is not None:
        named["config"] = config
    query = "&".join(f"{key}={quote(value, safe=' ')}" for key, value in named.items())
    return f"{form}:{path}" + (f"?{query}" if query else "")


def guess_columns(names: Sequence[str]) -> dict[str, str] | None:
    """Guess from the names of columns which hold messages, or prompt and completion; None if no names are known."""
    columns = {
        column: next((name for synonym in synonyms for name in names if name.lower() == synonym), None)
        for column, synonyms in _SYNONYMS.items()
    }
    messages, prompt, completion = columns["messages"], columns["prompt"], columns["completion"]
    if messages is not None:
        return {"messages": messages}
    if prompt is None or completion is None:
        return None
    return {"prompt": prompt, "completion": completion}


def from_files(name: str, folder: Path) -> TextDataset:
    """Load the set of `FOLDER/{train,test}` with one of the suffixes, and perhaps a validation file.

    Parquet files may be several, named as on the hub (`data/train-00000-of-00002.parquet`).

    Raises DataError for missing or malformed files, naming file and row.
    """
    place = read_place(name)
    files = {which: find_files(folder, place.splits.get(which, which)) for which in ("train", "test")}
    for which, paths in files.items():
        if not paths:
            asked = place.splits.get(which, which)
            present = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            raise DataError(
                f"data set {name!r}: {folder} has no file of the {which} split, {asked}.jsonl (or .json, .csv, "
                f".parquet); it holds {present}. `sweeps data FILE --split NEW` makes both of one file, and "
                f"?{which}=NAME names one that is called otherwise"
            )
    named = place.splits.get("validation")
    validation_files = find_files(folder, named) if named else _validation(folder, set(place.splits.values()))
    if named and not validation_files:
        raise DataError(f"data set {name!r}: {folder} has no file {named}.jsonl (or .json, .csv, .parquet)")

    def parts(paths: Sequence[Path]) -> list[Part]:
        return [(name, str(path), rows(read_cells(path), place.columns, str(path), name)) for path in paths]

    return _dataset(name, parts(files["train"]), lambda: parts(files["test"]), parts(validation_files))


def from_hub(name: str) -> TextDataset:
    """Load the set of a repository of the hub. Raises DataError if it can't be had, or lacks a split or a column."""
    place = read_place(name)
    hub_tables = hub_splits(
        name,
        place.path,
        *([place.config] if place.config else []),
        instead=f"check the id and the connection, or download its files and use {FORM}:FOLDER",
    )
    hub_names = {which: place.splits.get(which, which) for which in ("train", "test")}
    for which, asked in hub_names.items():
        if asked not in hub_tables:
            raise DataError(
                f"data set {name!r}: the hub's {place.path!r} has no split {asked!r}; it has {', '.join(hub_tables)}; "
                f"?{which}=NAME names the one to use"
            )
    named = place.splits.get("validation")
    if named is not None and named not in hub_tables:
        raise DataError(f"data set {name!r}: no split {named!r}; {nearest(named, hub_tables)}")
    validation = named or next(
        (each for each in VALIDATION if each in hub_tables and each not in hub_names.values()), None
    )

    def parts(split: str) -> list[Part]:
        return [
            (name, f"{place.path} ({split})", rows(hub_tables[split], place.columns, f"{place.path} ({split})", name))
        ]

    return _dataset(
        name, parts(hub_names["train"]), lambda: parts(hub_names["test"]), parts(validation) if validation else []
    )


def _dataset(name: str, train: list[Part], test: Callable[[], list[Part]], held: list[Part]) -> TextDataset:
    return text_dataset(name, "completions", "likelihood", train, test, held=held)


def find_files(folder: Path, which: str) -> list[Path]:
    """Return the files of a split: one with any of the suffixes, or Parquet files named as on the hub.

    Raises DataError if files of several suffixes exist.
    """
    if (single := only_file(folder, [f"{which}{suffix}" for suffix in SUFFIXES])) is not None:
        return [single]
    parted = (sorted(place.glob(f"{which}-*.parquet")) for place in (folder, folder / "data"))
    return next(filter(None, parted), [])


def _validation(folder: Path, taken: set[str]) -> list[Path]:
    """Return the files of the split that the authors validate on; empty if there is none. Raises DataError for two."""
    splits = {name: files for name in VALIDATION if name not in taken and (files := find_files(folder, name))}
    if len(splits) > 1:
        first, second, *_ = splits
        raise DataError(
            f"{folder} has two splits to validate on, {first!r} and {second!r}; keep only one, or name it: "
            f"?validation={first}"
        )
    return next(iter(splits.values()), [])


def read_cells(path: Path) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a file. Raises DataError for a file that can't be read, or a row that is no object."""
    if path.suffix == ".parquet":
        try:
            with pq.ParquetFile(path) as file:
                table: list[Mapping[str, Any]] = file.read().to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({error}); fetch it again, or mend it") from error
        return table
    if path.suffix == ".csv":
        return read_csv(path)
    cells: list[Mapping[str, Any]] = []
    for row, cell in enumerate(objects(path)):
        if not isinstance(cell, dict):
            raise DataError(f"{path}, row {row}: must be an object with a value for each column, not {brief(cell)}")
        cells.append(cell)
    return cells


def rows(cells: Cells, columns: Mapping[str, str], place: str, name: str) -> list[Completion | Chat]:
    """Return the rows of a table, parsed. Raises DataError for a missing column and for a malformed row."""
    made = []
    for number, cell in enumerate(cells):
        where = f"{place}, row {number}"
        made.append(_row(cell, _columns_of(cell, columns, where, name), where))
    if not made:
        raise DataError(f"{place}: no rows")
    return made


def _columns_of(cell: Mapping[str, Any], given: Mapping[str, str], where: str, name: str) -> Mapping[str, str]:
    if not given and "messages" in cell and "completion" not in cell:
        return {"messages": "messages"}
    expected = given if "messages" in given else {"prompt": "prompt", "completion": "completion"} | dict(given)
    if lacking := [column for column in expected.values() if column not in cell]:
        form, _, rest = name.partition(":")
        guessed = guess_columns(list(cell))
        hint = "" if guessed is None else f"; perhaps {write_id(form, rest.partition('?')[0], guessed)}"
        raise DataError(
            f"{where}: no column {lacking[0]!r}; it has {', '.join(map(repr, cell)) or 'none'}. A row has 'prompt' and "
            f"'completion', or 'messages'; other names stand in the id, ?prompt=NAME&completion=NAME{hint}"
        )
    return expected


def _row(cell: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Completion | Chat:
    if "messages" in columns:
        column = columns["messages"]
        messages = _messages(cell[column], f"{where}, {column!r}")
        if not any(role == "assistant" for role, _ in messages):
            roles = ", ".join(dict.fromkeys(role for role, _ in messages))
            raise DataError(f"{where}: no message of the role 'assistant' to learn; its roles are {roles}")
        return Chat(messages)
    prompt, completion = (cell[columns[key]] for key in ("prompt", "completion"))
    for key, value in (("prompt", prompt), ("completion", completion)):
        if value is None or (isinstance(value, str) and not value.strip()) or value == []:
            raise DataError(f"{where}: {columns[key]!r} is empty; fill it, or remove the row")
    as_json = _is_json_messages(prompt) and _is_json_messages(completion)
    if isinstance(prompt, str) and isinstance(completion, str) and not as_json:
        return Completion(prompt, completion)
    asked, answered = (_messages(cell[columns[key]], f"{where}, {columns[key]!r}") for key in ("prompt", "completion"))
    return Chat(asked + answered, len(asked))


def _is_json_messages(value: object) -> bool:
    """Return whether a value is a list of messages written as JSON, as in a CSV file."""
    if not isinstance(value, str) or not value.startswith("["):
        return False
    try:
        messages = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return messages != [] and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in messages)


def _messages(value: object, where: str) -> tuple[tuple[str, str], ...]:
    """Return the (role, content) of each message. A CSV file has them as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{where}: must be a list of messages, not the text {brief(value)}") from error
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: must be a list of messages such as {{'role': 'user', 'content': 'Hi'}}")
    return tuple(_message(each, f"{where}, message {at}") for at, each in enumerate(value))


def _message(value: object, where: str) -> tuple[str, str]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: must be an object with 'role' and 'content', not {brief(value)}")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    role, content = value.get(role_key), value.get(content_key)
    if further := [key for key, held in value.items() if key not in (role_key, content_key) and held not in (None, [])]:
        raise DataError(
            f"{where}: holds {further[0]!r}, and role and content alone are read (no tools, no weights); remove it"
        )
    if not isinstance(role, str) or not isinstance(content, str) or not role:
        raise DataError(f"{where}: {role_key!r} and {content_key!r} must be texts, not {brief(role)}, {brief(content)}")
    return (_SHAREGPT.get(role, role) if role_key == "from" else role), content


def loader(name: str, folder: Path | None) -> Callable[[], TextDataset]:
    """Return the function that loads the set of an id: from `folder`, or from the hub if it is None.

    Raises DataError for an id that `read_place` refuses.
    """
    read_place(name)
    return functools.partial(from_hub, name) if folder is None else functools.partial(from_files, name, folder)
