"""Text sets from tables: GLUE (tab-separated files or the hub) and E2E (comma-separated files or the hub)."""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from randlora.errors import nearest
from trainables.data.facts import TEXT_SETS, Sentences
from trainables.data.text import prompts
from trainables.data.text.dataset import Exchange, Labelled, Part, TextDataset, text_dataset
from trainables.errors import DIGITS, DataError, first_repeated

_DECIMAL = re.compile(r"[+-]?\d*\.\d+")
Cells = Sequence[Mapping[str, Any]]
"""The rows of a table, by column name."""


GLUE: dict[str, Sentences] = {
    name.removeprefix("glue-"): one.source
    for name, one in TEXT_SETS.items()
    if name.startswith("glue-") and isinstance(one.source, Sentences)
}
"""The tasks of GLUE (arXiv 1804.07461)."""

_COLA = ("source", "label", "mark", "sentence")
"""The columns of CoLA's own files, which have no header."""
_QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')
"""A cell with quotes as spreadsheets and pandas write it. GLUE's own files are written without quoting."""
_GLUE_TEST = ("test-labeled", "test", "dev", "validation")
_GLUE_VALIDATION = ("val", "validation", "dev")


def from_glue_folder(name: str, folder: Path) -> TextDataset:
    """Return the data set of GLUE-like tab-separated files: `train.tsv`, a labelled test file, perhaps a validation
    file.

    The test file is the first existing one of test-labeled.tsv, test.tsv, dev.tsv, validation.tsv. A test.tsv without
    labels is skipped (GLUE's own are not public). The validation file is the first other one of val.tsv,
    validation.tsv, dev.tsv.

    Columns, labels and metric are those of the task with the folder's name. If there is no such task, columns are those
    of the GLUE task whose sentences the header names, and the metric is accuracy. CoLA's files, which have no header,
    are recognised by their four columns.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.tsv"))}
    task = GLUE.get(folder.name.lower().replace("-", "").replace("_", ""))
    usable = (files[w] for w in _GLUE_TEST if w in files)
    test = next((path for path in usable if path.stem != "test" or "label" in _table(path, task)[0]), None)
    if "train" not in files or test is None:
        raise DataError(
            f"data set {name!r}: {folder} needs train.tsv and, with labels, one of "
            f"{', '.join(f'{w}.tsv' for w in _GLUE_TEST)}; it has "
            f"{', '.join(p.name for p in files.values()) or 'no .tsv file'}"
        )
    validation = next((files[w] for w in _GLUE_VALIDATION if w in files and files[w] != test), None)
    parts = {"train": files["train"], "test": test} | ({} if validation is None else {"validation": validation})
    tables = {which: functools.partial(_read_tsv, path, task) for which, path in parts.items()}
    return glue_dataset(name, task, tables, {which: str(path) for which, path in parts.items()})


def glue_dataset(
    name: str, task: Sentences | None, tables: Mapping[str, Callable[[], Cells]], places: Mapping[str, str]
) -> TextDataset:
    """Return a classification or regression set from tables (`train`, `test`, perhaps `validation`) that are read when
    needed."""
    first = tables["train"]()
    columns = task.columns if task is not None else _sentence_columns(first, places["train"])
    values = set() if task is not None else {str(row.get("label")) for row in first}
    if any(_DECIMAL.fullmatch(value) for value in values):
        raise DataError(
            f"{places['train']}: labels are numbers such as {min(v for v in values if _DECIMAL.fullmatch(v))}; for a "
            "regression call the folder STS-B"
        )
    numbers = tuple(map(str, range(len(values))))
    numbered = task is not None or values == set(numbers)
    classes = task.class_names if task is not None else numbers if numbered else tuple(sorted(values))
    regression = task is not None and not task.class_names
    metric = task.metric if task is not None else "accuracy"

    def rows_of(cells: Cells, place: str) -> list[Labelled]:
        rows = []
        if cells and (lacking := [column for column in (*columns, "label") if column not in cells[0]]):
            raise DataError(f"{place}: no column {lacking[0]!r}; it has {', '.join(map(repr, cells[0]))}")
        for i, cell in enumerate(cells):
            where = f"{place}, row {i}"
            texts = tuple(str(cell.get(column) or "").strip() for column in columns)
            if not all(texts):
                raise DataError(f"{where}: no text in {columns[texts.index('')]!r}")
            if not str("" if cell["label"] is None else cell["label"]).strip():
                raise DataError(f"{where}: no label; unlabelled rows cannot be used, remove them")
            rows.append(Labelled(texts, _label(cell.get("label"), classes, regression, numbered, where)))
        if not rows:
            raise DataError(f"{place}: no rows")
        return rows

    def part(which: str) -> Part:
        return name, places[which], rows_of(tables[which](), places[which])

    rows = rows_of(first, places["train"])
    if classes and len({row.label for row in rows}) < 2:
        only = classes[int(rows[0].label)]
        raise DataError(f"{places['train']}: every row has label {only!r}; classification needs two classes or more")
    train = [(name, places["train"], rows)]
    validation = [part("validation")] if "validation" in tables else []
    return text_dataset(name, "sentences", metric, train, lambda: [part("test")], held=validation, class_names=classes)


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
    if numbered and text.isdecimal() and len(text) < DIGITS and int(text) < len(classes):
        return int(text)
    word = text.replace("_", " ") if numbered else text  # GLUE's own files say not_entailment
    if word in classes:
        return classes.index(word)
    listed = f"0..{len(classes) - 1} ({', '.join(classes)})" if numbered else ", ".join(classes)
    raise DataError(f"{where}: label {value!r} is not one of {listed}; unlabelled rows cannot be used")


def _sentence_columns(rows: Cells, place: str) -> tuple[str, ...]:
    names = set(rows[0]) if rows else set()
    for task in sorted(GLUE.values(), key=lambda task: -len(task.columns)):  # a question's sentence is one alone too
        if {*task.columns, "label"} <= names:
            return task.columns
    raise DataError(
        f"{place}: columns {sorted(names)} are not those of a GLUE task; needed are 'label' and 'sentence', or "
        "'sentence1' and 'sentence2', or 'question' and 'sentence'"
    )


def _read_tsv(path: Path, task: Sentences | None) -> Cells:
    header, rows = _table(path, task)
    _check_header(path, header)
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise DataError(f"{path}, row {i}: {len(row)} columns where the header has {len(header)}")
        if task is None and (quoted := next(filter(_QUOTED.fullmatch, row), None)) is not None:
            rule = "quotes are text here; write the file without (pandas: quoting=csv.QUOTE_NONE)"
            raise DataError(f"{path}, row {i}: {quoted[:60]!r} stands in quotes and doubles those in it; {rule}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _check_header(path: Path, header: Sequence[str]) -> None:
    """Raise DataError if two columns have one name, because one of them would be lost."""
    if (twice := first_repeated(header)) is not None:
        raise DataError(f"{path}: two columns are called {twice!r}; rename or remove one")


def _table(path: Path, task: Sentences | None) -> tuple[Sequence[str], list[list[str]]]:
    """Return the columns, by the hub's names, and the rows of a file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # \r\n is read as \n; other ends of lines are text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    if rows and len(rows[0]) == len(_COLA) and rows[0][1] in ("0", "1"):
        return _COLA, rows
    header = rows[0] if rows else []
    renamed = task.renamed if task is not None and "label" not in header else {}
    return [renamed.get(column, column) for column in header], rows[1:]


_E2E_COLUMNS = (("mr", "ref"), ("meaning_representation", "human_reference"))


def from_e2e_folder(name: str, folder: Path) -> TextDataset:
    """Return the data set of the E2E challenge's files: `trainset.csv`, `devset.csv` and `testset_w_refs.csv`.

    All three are needed. Several training rows share a meaning, so a part of them would validate on what others train.
    """
    names = {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"}
    files = {which: folder / file for which, file in names.items()}
    for path in files.values():
        if not path.is_file():
            beside = [p.name for p in folder.iterdir()]
            raise DataError(
                f"data set {name!r}: no {path.name} in {folder}, which needs {', '.join(names.values())}; "
                f"{nearest(path.name, beside)}"
            )
    tables = {which: functools.partial(read_csv, path) for which, path in files.items()}
    return e2e_dataset(name, tables, {which: str(path) for which, path in files.items()})


def e2e_dataset(name: str, tables: Mapping[str, Callable[[], Cells]], places: Mapping[str, str]) -> TextDataset:
    """Return E2E (arXiv 1706.09254) from tables (`train`, `validation`, `test`) that are read when needed.

    A training row is a meaning representation with one of its texts. A validation or test row has each representation
    once, with all of its texts as references.
    """

    def part(which: str) -> Part:
        return name, places[which], _meanings(tables[which](), places[which], grouped=which != "train")

    return text_dataset(name, "meanings", "bleu", [part("train")], lambda: [part("test")], held=[part("validation")])


def _meanings(cells: Cells, place: str, *, grouped: bool) -> list[Exchange | None]:
    """Return a row for every cell. If `grouped`, None for those whose meaning came before."""
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
    return [_meaning_row(prompt, tuple(texts.pop(prompt))) if prompt in texts else None for prompt, _ in pairs]


def _meaning_row(prompt: str, references: tuple[str, ...]) -> Exchange:
    return Exchange(prompt, f" {references[0]}", references=references, bos_between=True)


def read_csv(path: Path) -> Cells:
    """Return the rows of a CSV file. Raises DataError for a row that has more or fewer columns than the header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as comma-separated text ({error})") from error
    _check_header(path, reader.fieldnames or ())
    for i, row in enumerate(rows):
        if None in row or None in row.values():
            how = "more" if None in row else "fewer"
            raise DataError(f"{path}, row {i}: {how} columns than the header; a text with a comma stands in quotes")
    return rows
