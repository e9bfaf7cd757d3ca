"""Instruction sets from JSON files in the form of LLM-Adapters: a list of {instruction, input, output, answer}.

A folder is one task, `{train,test}.json` (and perhaps `validation.json`), or a union of tasks: `train.json` with
`TASK/test.json` beside it, or `TASK/{train,test}.json`. Every task may have a `TASK/validation.json`. `.jsonl` files
with one object per line are read too. A row may list its choices in `choices`, the answer being one of them. Then
`output` may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trainables.data.text import prompts
from trainables.data.text.dataset import Exchange, Part, TextDataset, text_dataset
from trainables.errors import DataError, first_repeated

Form = Literal["instructions", "questions"]
_SUFFIXES = (".json", ".jsonl")
_KEYS: Mapping[str, type] = {"instruction": str, "input": str, "output": str, "answer": str, "choices": list}
VALIDATION = ("validation", "valid", "val", "dev")
"""Names of a split that its authors validate on."""


def from_json(name: str, folder: Path, form: Form) -> TextDataset:
    """Return the data set of a folder.

    Args:
        name: the id, for messages.
        folder: the folder.
        form: "instructions" keeps the rows as they are, with a label as the answer. "questions" asks the bare question
            of each row, and the response is the text of the right choice.

    Raises:
        DataError: files are missing or malformed; the message names file and row.
    """
    folder_name = folder.name
    train = find_file(folder, "train")
    test = find_file(folder, "test")
    shared_validation = find_validation(folder)
    tasks = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
    tests = {task: file for task, inside in tasks.items() if (file := find_file(inside, "test"))}
    trains = {task: file for task, inside in tasks.items() if (file := find_file(inside, "train"))}
    if (train is None and not trains) or (test is None and not tests):
        present = [p.name for p in folder.iterdir()]
        raise DataError(
            f"data set {name!r}: {folder} needs train.json and test.json, or train.json and TASK/test.json, or "
            f"TASK/train.json and TASK/test.json; it holds {', '.join(sorted(present)) or 'nothing'}"
        )
    if train is None and (untrained := sorted(tests.keys() - trains.keys())):
        raise DataError(
            f"data set {name!r}: {', '.join(untrained)} of {folder} has a test.json and no train.json; every task that "
            "is tested needs both, unless one train.json in the folder itself serves all tasks"
        )
    train_files, test_files = {folder_name: train} if train else trains, {folder_name: test} if test else tests
    own = ({} if test else tests) if train else trains
    validation_by_task = {task: file for task in own if (file := find_validation(tasks[task]))}
    if shared_validation is None and validation_by_task and (lacking := sorted(own.keys() - validation_by_task.keys())):
        raise DataError(
            f"data set {name!r}: {next(iter(validation_by_task.values()))} validates its task, and "
            f"{', '.join(lacking)} of {folder} has no such file; give every task one, or none"
        )
    validation = validation_by_task if shared_validation is None else {next(iter(train_files)): shared_validation}
    return assemble(name, form, train=train_files, test=test_files, validation=validation)


def assemble(
    name: str, form: Form, *, train: Mapping[str, Path], test: Mapping[str, Path], validation: Mapping[str, Path]
) -> TextDataset:
    """Return the data set of given files by task. The test files are read when the test split is opened."""

    def parts(files: Mapping[str, Path]) -> list[Part]:
        return [(task, str(path), read(path, form)) for task, path in files.items()]

    return text_dataset(name, form, "accuracy", parts(train), lambda: parts(test), held=parts(validation))


def find_validation(folder: Path) -> Path | None:
    """Return the file of a folder that its authors validate on, under any of its names; None if there is none.

    Raises DataError if there are several.
    """
    return only_file(folder, [f"{which}{suffix}" for which in VALIDATION for suffix in _SUFFIXES])


def find_file(folder: Path, which: str) -> Path | None:
    """Return `which.json` or `which.jsonl` of a folder; None if there is neither. Raises DataError if both exist."""
    return only_file(folder, [f"{which}{suffix}" for suffix in _SUFFIXES])


def only_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the file of a folder that has one of these names; None if there is none. Raises DataError for several."""
    paths = [path for name in names if (path := folder / name).is_file()]
    if len(paths) > 1:
        raise DataError(f"{folder} has {' and '.join(p.name for p in paths)}, and only one of them is read; keep one")
    return paths[0] if paths else None


def read(path: Path, form: Form) -> list[Exchange]:
    """Return the rows of a file. Raises DataError that names file and row."""
    make: Callable[[Mapping[str, Any], str], Exchange] = _instruction if form == "instructions" else _question
    rows = [make(_checked(row, f"{path}, row {i}"), f"{path}, row {i}") for i, row in enumerate(objects(path))]
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


def objects(path: Path) -> Sequence[object]:
    """Return the values of a JSON list, or of a .jsonl file's lines. Raises DataError for a file that is neither."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return [_object(line, f"line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        values = json.loads(text, object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        lines = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        mend = f"with an object a line it is called {path.stem}.jsonl" if lines else "fetch it again, or mend it"
        raise DataError(f"{path}: cannot be read as JSON ({error}); {mend}") from error
    if not isinstance(values, list):
        raise DataError(f"{path}: must hold a JSON list of rows, not {type(values).__name__}")
    return values


def _object(text: str, where: str) -> object:
    """Return the object in one line of a .jsonl file. An error names the line of the file, not of the text."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}, column {error.colno}: {error.msg}") from error
    except _TwiceError as error:
        raise ValueError(f"{where}: {error}") from error


class _TwiceError(ValueError):
    """A JSON object has a key twice."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object. Raises _TwiceError if it has a key twice, because one of the values would be lost."""
    merged = dict(pairs)
    if len(merged) < len(pairs):
        raise _TwiceError(f"an object has the key {first_repeated(key for key, _ in pairs)!r} twice")
    return merged


def _checked(row: object, where: str) -> Mapping[str, Any]:
    """Return a row after checking its keys and values. Raises DataError."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object with instruction and output, not {type(row).__name__}")
    for key in row:
        if key not in _KEYS and key.strip().lower() in _KEYS:
            raise DataError(f"{where}: the key {key!r} is not read; it is called {key.strip().lower()!r}")
    for key, kind in _KEYS.items():
        value = row.get(key)
        if value is not None and not isinstance(value, kind):
            raise DataError(f"{where}: {key!r} must be {'text' if kind is str else 'a list of texts'}, not {value!r}")
    if not (row.get("instruction") or "").strip():
        raise DataError(f"{where}: no instruction, or an empty one{_keys_found(row, 'instruction')}")
    choices = row.get("choices")
    if choices is not None:
        if len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
            raise DataError(f"{where}: 'choices' must hold two or more texts, not {choices!r}")
        if row.get("answer") not in choices:
            raise DataError(f"{where}: answer {row.get('answer')!r} is not among the choices {choices}")
        if len(set(choices)) < len(choices):
            raise DataError(f"{where}: the choices {choices} have one twice; each must differ from the others")
    elif not (row.get("output") or "").strip():
        raise DataError(
            f"{where}: no output, or an empty one: there is nothing to train on{_keys_found(row, 'output')}"
        )
    return row


def _keys_found(row: Mapping[str, Any], key: str) -> str:
    """Return the end of a message on a key that a row lacks: which keys it has. "" if it has the key."""
    if key in row:
        return ""
    return f"; a row has 'instruction' and 'output', and may have 'input', 'answer', 'choices'; this has {sorted(row)}"


def _instruction(row: Mapping[str, Any], where: str) -> Exchange:
    """Return a row in the form "instructions"."""
    prompt = prompts.alpaca(row["instruction"], row.get("input") or "")
    answer, output = row.get("answer"), row.get("output") or row.get("answer") or ""
    if (choice_labels := row.get("choices")) is not None:
        choices = prompts.relabelled(output, str(answer), choice_labels, where)
        return Exchange(prompt, output, choices, tuple(choice_labels), answer)
    labels = _labels(row, where)
    # a set without choices can still be evaluated by generation; log-likelihood evaluation reports what is missing
    choices = prompts.relabelled(output, answer, labels, where) if len(labels) > 1 and answer is not None else ()
    one = (answer,) if answer else ()  # the row has only an answer; "Answer format: number" names no choices either
    return Exchange(prompt, output, choices, labels if len(labels) > 1 else one, answer)


def _labels(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the labels that an instruction names. Raises DataError if a label is empty, or named twice."""
    labels = prompts.labels_of(row["instruction"])
    if len(set(labels) - {""}) < len(labels):
        named = "/".join(labels)
        raise DataError(f"{where}: 'Answer format: {named}' has an empty label, or one twice; each must differ")
    return labels


def _question(row: Mapping[str, Any], where: str) -> Exchange:
    """Return a row in the form "questions"."""
    if (choice_texts := row.get("choices")) is not None:
        text = row["instruction"]
        options = tuple(choice_texts)
        right = choice_texts.index(row["answer"])
    else:
        text, options = prompts.stem_and_options(row["instruction"], where)
        labels = _labels(row, where)
        if row.get("answer") not in labels:
            raise DataError(f"{where}: answer {row.get('answer')!r} is not among {', '.join(labels) or 'no labels'}")
        right = labels.index(row["answer"])
    choices = tuple(f" {option}" for option in options)
    return Exchange(prompts.question(text, row.get("input") or ""), choices[right], choices, options, options[right])
