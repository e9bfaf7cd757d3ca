"""Columns that many sheets share, such as method, budget and data set, and rows grouped for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.format import Row, quantity, score_text
from analysis.sheets.sheet import Column, text
from analysis.styles import dataset_text, place_text, size_key, size_text, style


def where(row: Mapping[str, Any]) -> str:
    """Name a row's data set and training size; the mean over data sets if it names none."""
    return place_text(_dataset(row), row["train_size"])


def _dataset(row: Mapping[str, Any]) -> str:
    count = row.get("n_datasets")
    several = f"mean of {count} data sets" if count and count > 1 else "all data sets"
    return str(row["dataset"] or several)


PLACE = Column("data", where, label=True, beneath=True)
DATASET = Column("data", lambda r: dataset_text(_dataset(r)), label=True, beneath=True)
METHOD = Column("method", lambda r: style(r["method"]).name if r["method"] else "", "method", label=True)
BUDGET = Column("budget", lambda r: str(r["reference"] or ""), label=True, beneath=True)
PARAMETERS = Column("parameters", lambda r: quantity(r["adapter_params"]), "number", beneath=True)


def origins(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns of the sweep and the model that differ between rows."""
    names = [name for name in ("sweep", "model") if len({r.get(name) for r in rows}) > 1]
    return [replace(text(name, name), label=True, beneath=True) for name in names]


def columns_of(rows: Sequence[Mapping[str, Any]], *columns: Column) -> list[Column]:
    """Return the columns, and before them those of sweep, model, data set and size that differ between rows."""
    sizes = {r["train_size"] for r in rows}
    place = [PLACE] if len(sizes) > 1 else [DATASET] if len({r["dataset"] for r in rows}) > 1 else []
    return [*origins(rows), *place, *columns]


def pivoted(rows: Iterable[Row], names: Sequence[str], key: str) -> list[Row]:
    """Group rows by `names`. Each group's `by` maps the value of `key` to its row."""
    lines: dict[tuple[Any, ...], Row] = {}
    for r in rows:
        lines.setdefault(tuple(r[k] for k in names), {**r, "by": {}})["by"][r[key]] = r
    return list(lines.values())


def by_size(rows: Iterable[Row], names: Sequence[str]) -> tuple[list[Row], list[Column]]:
    """Group rows by `names`; also return a column of scores for each training size."""
    lines = pivoted(rows, names, "train_size")

    sizes = sorted({size for line in lines for size in line["by"]}, key=size_key)

    def column(size: str) -> Column:
        head = size_text(size) if len(sizes) > 1 else "test score"
        return Column(f"{head}, % [95 %]", lambda r: score_text(r["by"][size]) if size in r["by"] else "", "number")

    return lines, [column(size) for size in sizes]
