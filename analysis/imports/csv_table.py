"""Import CSV tables of published numbers (`sweeps import csv`). Each row is one number of one cell."""

from __future__ import annotations

import contextlib
import csv
import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.errors import StoreError
from analysis.imports.importing import Imported, imported, write_imported

COLUMNS: dict[str, str] = {
    "method": "lora, randlora, full, ..., or any other name",
    "score": "test score, a fraction in [0, 1]; or the column percent instead",
    "percent": "test score in percent, in [0, 100]",
    "model": "base model; default 'unknown'",
    "dataset": "data set; default: the file's name",
    "train_size": "fraction or K-shot; default 1.0",
    "reference": "what defines the budget, lora-8; rows of one reference are compared and drawn at one place",
    "parameters": "trained parameters, a whole number",
    "lr": "learning rate",
    "source": "where the number stands: table, page; default: the file's name",
}
"""The columns that a file may have. It must have `method`, and `score` or `percent`."""


def import_csv(folder: Path, paths: Sequence[Path]) -> Path:
    """Write the rows of CSV files with a header (`COLUMNS`) into a new folder.

    Args:
        folder: the folder to make.
        paths: the files. Each becomes a separate sweep in the folder, named after the file.

    Raises:
        StoreError: a file is wrong (the message has a line for each problem), or the folder exists.
    """
    if not paths:
        raise StoreError(f"no CSV file to import; give files with a header of {', '.join(COLUMNS)}")
    problems: list[str] = []
    rows: list[Imported] = []
    for stem, count in Counter(path.stem for path in paths).items():
        if count > 1:
            problems.append(f"{count} files are called {stem!r}, and a sweep is named after its file: rename them")
    for path in paths:
        lines: dict[tuple[object, ...], int] = {}
        for line, raw in _lines(path, problems):
            cell, trial = _rows(path, line, raw, problems)
            key = tuple(cell[k] for k in ("model", "dataset", "train_size", "method", "reference"))
            if key in lines:
                problems.append(
                    f"{path}, line {line}: the same cell as line {lines[key]}; an imported cell has one number, and "
                    "rows of several sizes need a reference each"
                )
            lines.setdefault(key, line)
            rows.append((cell, trial))
    if problems:
        raise StoreError("\n".join(problems))
    files = ", ".join(path.name for path in paths)
    note = "As the table gives them: nothing is known here of tuning, seeds or how parameters were counted."
    return write_imported(folder, rows, {"source": files, "note": note, "names": [p.stem for p in paths]})


def _lines(path: Path, problems: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Return (line of the file, values by column) for every row that is not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: can't be read ({error})")
        return []
    reader = csv.DictReader(text.splitlines())
    names = [name.strip() for name in reader.fieldnames or ()]
    unknown = [name for name in names if name not in COLUMNS]
    for name in unknown:
        near = difflib.get_close_matches(name.lower(), list(COLUMNS), n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        problems.append(f"{path}: unknown column {name!r}; known: {', '.join(COLUMNS)}{hint}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    problems += [f"{path}: several columns are called {name!r}; keep one of them" for name in twice]
    scores = [name for name in ("score", "percent") if name in names]
    if "method" not in names or len(scores) != 1:
        problems.append(
            f"{path}: needs a column method, and one of score and percent; it has {', '.join(names) or 'none'}"
        )
    if unknown or twice or "method" not in names or len(scores) != 1:
        return []
    reader.fieldnames = names
    rows = []
    for raw in reader:
        if None in raw or None in raw.values():
            problems.append(f"{path}, line {reader.line_num}: not {len(names)} values as the header has")
        elif any(raw.values()):
            rows.append((reader.line_num, {k: v.strip() for k, v in raw.items()}))
    if not rows and not problems:
        problems.append(f"{path}: no rows")
    return rows


def _rows(path: Path, line: int, raw: Mapping[str, str], problems: list[str]) -> Imported:
    def number(name: str, low: float, high: float, rule: str) -> float | None:
        text = raw.get(name, "")
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            problems.append(f"{path}, line {line}: {name} = {text!r}: {rule}")
            return None
        return value

    score = number("score", 0, 1, "must be a fraction in [0, 1]; for percent call the column percent")
    percent = number("percent", 0, 100, "must lie in [0, 100]")
    count = number("parameters", 0, 1e15, "must be a whole number")
    if count is not None and not count.is_integer():
        problems.append(f"{path}, line {line}: parameters = {raw['parameters']!r}: must be a whole number")
    if not raw["method"]:
        problems.append(f"{path}, line {line}: no method")
    if not raw.get("score", "") and not raw.get("percent", ""):
        problems.append(f"{path}, line {line}: no score")
    size = raw.get("train_size") or "1.0"
    with contextlib.suppress(ValueError):
        size = str(float(size))  # as sweeps write it
    cell = {
        "sweep": path.stem,
        "cell_id": f"{path.stem}-{line}",
        "model": raw.get("model") or "unknown",
        "adapt": "all",
        "dataset": raw.get("dataset") or path.stem,
        "train_size": size,
        "method": raw["method"],
        "reference": raw.get("reference") or None,
        "capacity": None,
    }
    trial = {
        "lr": number("lr", 0, 1e6, "must be a number"),
        "test_score": score if percent is None else percent / 100,
        "versions": {"source": raw.get("source") or path.name},
    }
    return imported(cell, None if count is None else int(count), trial)
