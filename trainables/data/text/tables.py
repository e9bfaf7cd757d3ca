"""Text sets from tables: GLUE (tab-separated files or the hub) and E2E (comma-separated files or the hub)."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from randlora.errors import nearest
from trainables.data.text import prompts
from trainables.data.text.dataset import Exchange, Labelled, Part, TextDataset, text_dataset
from trainables.errors import DataError

Cells = Sequence[Mapping[str, Any]]
"""Rows of a table by column name."""


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE (arXiv 1804.07461).

    Attributes:
        columns: of the one or two sentences, as the hub names them.
        classes: names in the order of their numbers; () for a regression.
        sizes: rows of its training and its validation split.
        metric: the score that GLUE reports for it ("accuracy" for MRPC, as LoRA and RandLoRA report).
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    sizes: tuple[int, int]
    metric: str = "accuracy"


_PAIR = ("sentence1", "sentence2")

GLUE: dict[str, GlueTask] = {
    "sst2": GlueTask(("sentence",), ("negative", "positive"), (67349, 872)),
    "mrpc": GlueTask(_PAIR, ("not equivalent", "equivalent"), (3668, 408)),
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), (8551, 1043), "matthews"),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not entailment"), (104743, 5463)),
    "rte": GlueTask(_PAIR, ("entailment", "not entailment"), (2490, 277)),
    "stsb": GlueTask(_PAIR, (), (5749, 1500), "pearson"),
}

_COLA = ("source", "label", "mark", "sentence")
"""CoLA's own files have these columns and no header."""
_GLUE_TEST = ("test-labeled", "test", "dev", "validation")
_GLUE_VALIDATION = ("val", "validation", "dev")


def from_glue_folder(name: str, folder: Path) -> TextDataset:
    """GLUE-like tab-separated files: `train.tsv`, a labelled test file and perhaps one for validation.

    Test is the first of test-labeled.tsv, test.tsv, dev.tsv, validation.tsv that is there (GLUE's own test labels are
    not public), validation the first other one of val.tsv, validation.tsv, dev.tsv. Columns are those of the GLUE task
    whose sentences the header names; CoLA's headerless files are known by their four columns. The metric is that of
    the task called like the folder or, where no task is, accuracy.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.tsv"))}
    test = next((files[w] for w in _GLUE_TEST if w in files), None)
    if "train" not in files or test is None:
        raise DataError(
            f"data set {name!r}: {folder} needs train.tsv and a {', '.join(f'{w}.tsv' for w in _GLUE_TEST)}; it has "
            f"{', '.join(p.name for p in files.values()) or 'no .tsv file'}"
        )
    held = next((files[w] for w in _GLUE_VALIDATION if w in files and files[w] != test), None)
    known = GLUE.get(folder.name.lower().replace("-", "").replace("_", ""))
    tables = {"train": functools.partial(_read_tsv, files["train"]), "test": functools.partial(_read_tsv, test)}
    places = {"train": str(files["train"]), "test": str(test)}
    if held is not None:
        tables["validation"], places["validation"] = functools.partial(_read_tsv, held), str(held)
    return glue_dataset(name, known, tables, places)


def glue_dataset(
    name: str, task: GlueTask | None, tables: Mapping[str, Callable[[], Cells]], places: Mapping[str, str]
) -> TextDataset:
    """A classification or regression set from lazily read tables (`train`, `test`, perhaps `validation`)."""
    first = tables["train"]()
    columns = task.columns if task is not None else _sentence_columns(first, places["train"])
    values = set() if task is not None else {str(row.get("label")) for row in first}
    numbers = tuple(map(str, range(len(values))))
    numbered = task is not None or values == set(numbers)
    classes = task.classes if task is not None else numbers if numbered else tuple(sorted(values))
    regression = task is not None and not task.classes
    metric = task.metric if task is not None else "accuracy"

    def rows_of(cells: Cells, place: str) -> list[Labelled]:
        rows = []
        for i, cell in enumerate(cells):
            where = f"{place}, row {i}"
            texts = tuple(str(cell.get(column) or "").strip() for column in columns)
            if not all(texts):
                raise DataError(f"{where}: no text in {columns[texts.index('')]!r}")
            rows.append(Labelled(texts, _label(cell.get("label"), classes, regression, numbered, where)))
        if not rows:
            raise DataError(f"{place}: no rows")
        return rows

    def part(which: str) -> Part:
        return name, places[which], rows_of(first if which == "train" else tables[which](), places[which])

    held = [part("validation")] if "validation" in tables else []
    return text_dataset(
        name, "sentences", metric, [part("train")], lambda: [part("test")], held=held, class_names=classes
    )


def _label(value: object, classes: tuple[str, ...], regression: bool, numbered: bool, where: str) -> int | float:
    if regression:
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{where}: label {value!r} is not a number")
        return number
    text = str(value)
    if numbered and text.isdigit() and int(text) < len(classes):
        return int(text)
    if not numbered and text in classes:
        return classes.index(text)
    listed = f"0..{len(classes) - 1} ({', '.join(classes)})" if numbered else ", ".join(classes)
    raise DataError(f"{where}: label {value!r} is not one of {listed}; unlabelled rows cannot be used")


def _sentence_columns(rows: Cells, place: str) -> tuple[str, ...]:
    names = set(rows[0]) if rows else set()
    for task in GLUE.values():
        if {*task.columns, "label"} <= names:
            return task.columns
    raise DataError(
        f"{place}: columns {sorted(names)} are not those of a GLUE task; needed are 'label' and 'sentence', or "
        "'sentence1' and 'sentence2', or 'question' and 'sentence'"
    )


def _read_tsv(path: Path) -> Cells:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # \r\n is read as \n; other ends of lines are text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    header: Sequence[str] = _COLA if rows and len(rows[0]) == len(_COLA) and rows[0][1] in ("0", "1") else ()
    if not header:
        header, rows = ([] if not rows else rows[0]), rows[1:]
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise DataError(f"{path}, row {i}: {len(row)} columns where the header has {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


_E2E_COLUMNS = (("mr", "ref"), ("meaning_representation", "human_reference"))


def from_e2e_folder(name: str, folder: Path) -> TextDataset:
    """The E2E challenge's files: `trainset.csv`, perhaps `devset.csv`, and `testset_w_refs.csv`."""
    files = {"train": folder / "trainset.csv", "test": folder / "testset_w_refs.csv"}
    if (folder / "devset.csv").is_file():
        files["validation"] = folder / "devset.csv"
    for path in files.values():
        if not path.is_file():
            beside = [p.name for p in folder.iterdir()]
            raise DataError(f"data set {name!r}: no {path.name} in {folder}; {nearest(path.name, beside)}")
    tables = {which: functools.partial(_read_csv, path) for which, path in files.items()}
    return e2e_dataset(name, tables, {which: str(path) for which, path in files.items()})


def e2e_dataset(name: str, tables: Mapping[str, Callable[[], Cells]], places: Mapping[str, str]) -> TextDataset:
    """E2E (arXiv 1706.09254) from lazily read tables (`train`, `test`, perhaps `validation`).

    A training row is a meaning representation with one of its texts; a validation or test row has each representation
    once, with all of its texts as references.
    """

    def part(which: str) -> Part:
        return name, places[which], _meanings(tables[which](), places[which], grouped=which != "train")

    held = [part("validation")] if "validation" in tables else []
    return text_dataset(name, "meanings", "bleu", [part("train")], lambda: [part("test")], held=held)


def _meanings(cells: Cells, place: str, *, grouped: bool) -> list[Exchange]:
    names = set(cells[0]) if cells else set()
    columns = next((pair for pair in _E2E_COLUMNS if set(pair) <= names), None)
    if columns is None:
        raise DataError(f"{place}: columns {sorted(names)}; an E2E table has 'mr' and 'ref'")
    pairs = []
    for i, cell in enumerate(cells):
        prompt, text = prompts.meaning(str(cell[columns[0]] or "")), str(cell[columns[1]] or "").strip()
        if not prompt or not text:
            raise DataError(
                f"{place}, row {i}: {'no text' if prompt else f'no slots name[value] in {cell[columns[0]]!r}'}"
            )
        pairs.append((prompt, text))
    if not grouped:
        return [_meaning_row(prompt, (text,)) for prompt, text in pairs]
    texts: dict[str, list[str]] = {}
    for prompt, text in pairs:
        texts.setdefault(prompt, []).append(text)
    return [_meaning_row(prompt, tuple(found)) for prompt, found in texts.items()]


def _meaning_row(prompt: str, references: tuple[str, ...]) -> Exchange:
    return Exchange(prompt, f" {references[0]}", references=references, bos_between=True)


def _read_csv(path: Path) -> Cells:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as comma-separated text ({error})") from error
