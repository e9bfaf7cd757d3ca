"""Columns, orders and names that the tables of several findings share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.format import Row, plural
from analysis.sheets.sheet import Column, number
from analysis.styles import size_key, style
from analysis.verdict.inference import OVER_DATASETS
from analysis.verdict.verdicts import LATER, verdict_text

LONG = 45
"""The page closes a table of more rows until asked for."""


SEEDS = number("seeds", "n")
PAIRS = Column(
    "seeds",
    lambda r: f"{r['n']} data sets" if over_other_datasets(r) else f"{r['n'] / (r.get('datasets') or 1):.3g}",
    "number",
)
"""Seeds per data set, or their mean if data sets have different numbers; the data sets if they are the sample."""
BUDGETS = Column("budget", lambda r: r["reference"] or _several(r), label=True, beneath=True)
VERDICT = Column("verdict", lambda r: f"{verdict_text(r['verdict'])}{LATER if r.get('added') else ''}", "verdict")


def _several(r: Row) -> str:
    """Return what stands in place of the budget in a row over several budgets."""
    mean_text = f"mean of {plural(r['n_budgets'], 'budget')}"
    return f"{mean_text}, for other data sets" if over_other_datasets(r) else mean_text


def over_other_datasets(r: Row) -> bool:
    return bool(r["test"] == OVER_DATASETS)


DIFFERENCE = ("difference", "difference_low", "difference_high")
"""Columns of the paired difference to the baseline at the same budget."""


def cell_order(r: Row) -> tuple[Any, ...]:
    place = (r["sweep"], r["dataset"], size_key(r["train_size"]))
    return (*place, style(r["method"]).order, r["method"], r["budget"] or 0)


def cell_name(row: Mapping[str, Any]) -> str:
    return f"{style(row['method']).name}{' at ' + row['reference'] if row['reference'] else ''}"


def verdict_as(r: Row, names: Mapping[str, str]) -> str:
    verdict = verdict_text(r["verdict"])
    return names.get(verdict, verdict)
