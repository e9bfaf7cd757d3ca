"""Find the id that reads some text files, or a text set of the hub, and divide one file into splits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainables.data.downloads import hub_splits
from trainables.data.text.dataset import Chat, Completion
from trainables.data.text.fine_tuning import (
    FORM,
    HUB_FORM,
    SUFFIXES,
    find_files,
    guess_columns,
    read_cells,
    read_place,
    rows,
    write_id,
)
from trainables.errors import DataError, MissingDataError

PART = 5
"""`divide` puts one in this many prompts into the test split."""
_LOOKED = 100
"""The number of rows whose columns are read to guess an id."""
_CHOICES = ({"instruction", "answer"}, {"instruction", "choices"})
"""Columns of LLM-Adapters' form, whose rows have right answers (`instructions`)."""


def id_of_files(place: Path) -> str:
    """Return the id that reads the text files of a folder.

    Raises DataError: a single file, which has no test split; a split or columns that are not there.
    """
    if place.is_file():
        columns = _columns(read_cells(place), str(place))
        raise DataError(
            f"{place} is one file, and a sweep needs a test split that no training reads; `sweeps data "
            f"'{write_id(FORM, str(place), columns)}' --split NEW` makes a folder with both"
        )
    if not place.is_dir():
        raise MissingDataError(f"no file or folder {place} in {Path.cwd()}")
    files = [p for p in place.iterdir() if p.suffix in SUFFIXES]
    if len(files) == 1:
        return id_of_files(files[0])
    stems = [p.stem for p in files]
    if any(place.glob("data/train-*.parquet")):
        stems += ["train", "test"]
    stems = sorted({stem.partition("-0")[0] for stem in stems})
    splits = _splits(stems, str(place), "file")
    cells = read_cells(find_files(place, splits["train"])[0])
    if _is_choice(cells) and splits == {"train": "train", "test": "test"}:
        return f"json:{place}"
    return write_id(FORM, str(place), _columns(cells, str(place)), splits)


def id_of_hub(name: str) -> str:
    """Complete the id of a text set of the hub, which may lack the names of columns and splits.

    Raises DataError: a set that can't be had, or without a split or columns that are known.
    """
    place = read_place(name)
    config = [place.config] if place.config else []
    hub_tables = hub_splits(name, place.path, *config, instead="check the id and the connection")
    splits = _splits(list(hub_tables), place.path, "split") | dict(place.splits)
    table = hub_tables[splits["train"]]
    columns = dict(place.columns) or _columns([table[row] for row in range(min(_LOOKED, len(table)))], place.path)
    return write_id(HUB_FORM, place.path, columns, splits, place.config)


def _splits(names: Sequence[str], place: str, what: str) -> dict[str, str]:
    """Return the names of the train and the test split among `names`: these words, or words such as "train_sft"."""
    splits = {}
    for which in ("train", "test"):
        fitting = [name for name in names if name == which] or [n for n in names if n.startswith(f"{which}_")]
        if len(fitting) != 1:
            count = "no" if not fitting else f"{len(fitting)}"
            raise DataError(
                f"{place} has {count} {what}s called {which} or {which}_NAME; it has {', '.join(names) or 'none'}. A "
                f"sweep needs train and test; name one with ?{which}=NAME behind the id"
            )
        splits[which] = fitting[0]
    return splits


def _is_choice(cells: Sequence[Mapping[str, Any]]) -> bool:
    return bool(cells) and all(any(required <= cell.keys() for required in _CHOICES) for cell in cells[:_LOOKED])


def _columns(cells: Sequence[Mapping[str, Any]], place: str) -> dict[str, str]:
    names = list(dict.fromkeys(name for cell in cells[:_LOOKED] for name in cell))
    columns = guess_columns(names)
    if columns is None:
        raise DataError(
            f"{place}: none of its columns ({', '.join(names) or 'none'}) is known to hold prompts and completions, or "
            f"messages; name them in the id: {FORM}:DIR?prompt=NAME&completion=NAME, or {FORM}:DIR?messages=NAME"
        )
    further = [name for name in ("input", "context", "system") if name in names and name not in columns.values()]
    unread = [name for name in further if "prompt" in columns and any(cell.get(name) for cell in cells)]
    if unread:
        raise DataError(
            f"{place}: rows have text in {unread[0]!r} beside {columns['prompt']!r}; write both into one column, or "
            f"leave {unread[0]!r} out on purpose: {write_id(FORM, 'DIR', columns)}"
        )
    return columns


def divide(name: str, file: Path, into: Path) -> str:
    """Write `into/train.jsonl` and `into/test.jsonl` from one file, and return their id.

    A fifth of the prompts is for the test. Their SHA-256 decides which, so they are the same on every machine. Rows of
    one prompt stay together. Only the columns that the id names are written.

    Raises:
        DataError: a malformed file, or one with a single prompt; `into` exists already.
        OSError: a file can't be written; then `into` is not there.
    """
    if into.exists():
        raise DataError(f"{into} exists already; name a folder that does not")
    cells = read_cells(file)
    columns = dict(read_place(name).columns) or _columns(cells, str(file))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell, row in zip(cells, rows(cells, columns, str(file), name), strict=True):
        groups.setdefault(hashlib.sha256(_asked(row).encode()).hexdigest(), []).append(cell)
    if len(groups) < 2:
        raise DataError(f"{file} has one prompt; 2 are needed, to train and to test")
    ordered = sorted(groups)
    tested = max(1, len(ordered) // PART)
    draft = into.with_name(f".{into.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        for which, keys in (("test", ordered[:tested]), ("train", ordered[tested:])):
            lines = [
                json.dumps({column: cell[column] for column in columns.values()}, ensure_ascii=False)
                for key in keys
                for cell in groups[key]
            ]
            (draft / f"{which}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        draft.rename(into)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return write_id(FORM, str(into), columns)


def _asked(row: Completion | Chat) -> str:
    """Return what stands before the first text that is learned."""
    if isinstance(row, Completion):
        return row.prompt
    first = row.learned_from
    if first is None:
        first = next(at for at, (role, _) in enumerate(row.messages) if role == "assistant")
    return repr(row.messages[:first])
