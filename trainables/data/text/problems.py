"""Problems with worked solutions that end in a number: train on MetaMathQA, evaluate on GSM8K's questions.

They are the data of Hugging Face PEFT's method comparison, read as its scripts read them: with the same prompt, the
same rule for training texts that are too long, and the same rules for the answer in a text. A folder has `train.json`
and `test.json`, and perhaps `validation.json` (or `.jsonl`), of {query, response} or GSM8K's {question, answer}.

MetaMathQA is made from the training questions of GSM8K and MATH, so validation on GSM8K's training questions is
optimistic. Tests use questions that neither has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from trainables.data.text.dataset import Exchange, Part, TextDataset, text_dataset
from trainables.data.text.instructions import find_file, find_validation, objects
from trainables.errors import DataError

PROMPT = "Question: {} Think step by step.\nAnswer:"
LONGEST = 1300
"""Characters of the longest training text that is used: query and response with a space between them."""
_LEADS = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")
_COLUMNS = (("query", "response"), ("question", "answer"))

Cells = Iterable[Mapping[str, Any]]


def final_answer(text: str) -> str | None:
    """Return the answer with which a text ends; None if it names none. Numbers and fractions of equal value are
    equal."""
    stripped = text.strip().rstrip(".!?")
    lead = next((lead for lead in _LEADS if lead in stripped), None)
    if lead is None:
        return None
    ending = stripped.rpartition(lead)[2].strip().partition("\n")[0].strip(" .!?$%")
    value = _number(ending)
    return ending if value is None else str(value)


def _number(text: str) -> float | None:
    """Return the number that a text is, in one spelling for equal values; None if it is not a number."""
    above, slash, below = text.partition("/")
    try:
        return float(Decimal(above.strip()) / Decimal(below.strip()) if slash else Decimal(above.strip()))
    except (ArithmeticError, ValueError):
        return None


def problem_set(
    name: str, train: tuple[str, Cells], test: Callable[[], tuple[str, Cells]], held: tuple[str, Cells] | None = None
) -> TextDataset:
    """Return the data set of tables, each with its name for messages. The test table is read when that split is
    opened."""

    def part(place: str, cells: Cells, *, judged: bool) -> Part:
        return name, place, [_row(cell, f"{place}, row {i}", judged=judged) for i, cell in enumerate(cells)]

    dataset = text_dataset(
        name,
        "problems",
        "accuracy",
        [part(*train, judged=False)],
        lambda: [part(*test(), judged=True)],
        held=() if held is None else [part(*held, judged=True)],
    )
    if not len(dataset.train):
        raise DataError(f"data set {name!r}: no training text has at most {LONGEST:,} characters")
    return dataset


def _row(cell: Mapping[str, Any], place: str, *, judged: bool) -> Exchange | None:
    """Return a row; None for a training text that is too long. Raises DataError for a cell that is not text, or has no
    answer."""
    columns = next((pair for pair in _COLUMNS if set(pair) <= cell.keys()), None)
    if columns is None:
        raise DataError(f"{place}: columns {sorted(cell)}; a problem has 'query' and 'response', or GSM8K's names")
    query, response = (cell[column] for column in columns)
    if not (isinstance(query, str) and query.strip() and isinstance(response, str) and response.strip()):
        raise DataError(f"{place}: {columns[0]!r} and {columns[1]!r} must be texts, not {query!r} and {response!r}")
    if not judged and len(query) + 1 + len(response) > LONGEST:
        return None
    answer = final_answer(response)
    if judged and answer is None:
        raise DataError(f"{place}: no answer after one of {', '.join(map(repr, _LEADS))}")
    return Exchange(PROMPT.format(query), response, answer=answer)


def from_problems_folder(name: str, folder: Path) -> TextDataset:
    """Return the data set of a folder. Raises DataError for missing or malformed files, and names file and row."""
    files = {which: find_file(folder, which) for which in ("train", "test")} | {"validation": find_validation(folder)}
    for which in ("train", "test"):
        if files[which] is None:
            present = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            raise DataError(f"data set {name!r}: {folder} needs {which}.json or {which}.jsonl; it holds {present}")

    def table(which: str) -> tuple[str, Cells]:
        path = files[which]
        assert path is not None
        rows = objects(path)
        if wrong := [row for row in rows if not isinstance(row, dict)]:
            raise DataError(f"{path}: must hold objects, not {wrong[0]!r}")
        return str(path), [row for row in rows if isinstance(row, dict)]

    validation = table("validation") if files["validation"] else None
    return problem_set(name, table("train"), lambda: table("test"), validation)
