"""What a finding is: tables, figures and sentences about one subject, each made from a results folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from analysis.sheets.sheet import Sheet
from analysis.store.store import Store

if TYPE_CHECKING:
    from analysis.drawing.picture import Picture

Section = Literal[
    "answer",
    "results",
    "comparisons",
    "rank",
    "sizes",
    "overlay",
    "fair",
    "tuning",
    "pareto",
    "cost",
    "failures",
    "diagnostics",
    "more",
]
"""A section of the report, such as "cost" for "What it cost". "tuning" is a part of "fair"."""


@dataclass(frozen=True)
class View:
    """What a reader chooses to see.

    Attributes:
        x: the cost of the fits and of the front, one of `fits.measured.AXES`.
        overlay: name of a published curve to show beside the curve of the sweep; None for none.
    """

    x: str = "adapter_params"
    overlay: str | None = None


@dataclass(frozen=True)
class Finding:
    """One subject of the results.

    Attributes:
        section: the section of the report that shows it. None: the report leaves it out, and only `sweeps tables` shows
            it.
        tables: names of its tables.
        sheets: returns its tables. One without a row is left out.
        pictures: draws its figures. Only this function imports the finding's `figure.py`, which imports matplotlib.
        says: returns its sentences, which the report shows with its tables. A figure has its own sentence.
        live: whether the page of a running sweep shows its figures.
    """

    section: Section | None
    tables: tuple[str, ...] = ()
    sheets: Callable[[Store, View], Sequence[Sheet]] = lambda _, __: ()
    pictures: Callable[[Store, View], Sequence[Picture]] = lambda _, __: ()
    says: Callable[[Store], Sequence[str]] = lambda _: ()
    live: bool = False
