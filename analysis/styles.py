"""How methods are named and drawn: one name, one colour and one marker each, in every table and figure; sizes in words.

Colours are Okabe and Ito's (colour-blind safe); markers tell methods apart in print without colour.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

Place = tuple[str, str, str | None, str]
"""Sweep, model, data set (None for the mean over data sets), training size."""


@dataclass(frozen=True)
class Style:
    """A method's appearance.

    Attributes:
        name: in words.
        colour: on a light background; `dark`: on a dark one.
        marker: matplotlib marker; None for methods without a budget, drawn as lines.
        order: position in tables and legends.
    """

    name: str
    colour: str
    dark: str
    marker: str | None
    order: int


STYLES: dict[str, Style] = {
    "randlora": Style("RandLoRA", "#D55E00", "#FF8A3D", "o", 0),
    "lora": Style("LoRA", "#0072B2", "#58B4F0", "s", 1),
    "dora": Style("DoRA", "#56B4E9", "#9AD4F7", "p", 2),
    "vera": Style("VeRA", "#009E73", "#35CFA4", "^", 3),
    "nola": Style("NoLA", "#B0568C", "#E79BC6", "D", 4),
    "full-targets": Style("full, target weights", "#8A6D00", "#E3C64A", None, 90),
    "full": Style("full fine-tuning", "#222222", "#E8E8E8", None, 91),
    "zero-shot": Style("zero-shot", "#767676", "#9B9B9B", None, 92),
}

_NAMES = {
    "randlora-a": "RandLoRA-a",
    "randlora-b": "RandLoRA-b",
    "randlora-svd": "RandLoRA-SVD",
    "pissa": "PiSSA",
    "lora-xs": "LoRA-XS",
    "svft": "SVFT",
    "adalora": "AdaLoRA",
    "autolora": "AutoLoRA",
    "hydralora": "HydraLoRA",
    "hybrid": "LoRA + RandLoRA",
    "linear-probe": "linear probe",
}
"""Of the methods without a style of their own; a variant keeps the name that its sweep file gives it."""

_TITLES: ContextVar[Mapping[str, str]] = ContextVar("titles", default=MappingProxyType({}))
"""Of methods that are not ours, as the tables of the folder name them (`cells.title`) that was looked at last."""

_SPARE = (("#8C510A", "#D8A25E"), ("#542788", "#B79AE0"), ("#7F7F00", "#CFCF4A"), ("#A50026", "#F0708A"))
_MARKERS = ("v", "P", "X", "h", "<", ">")


def entitle(titles: Mapping[str, str]) -> None:
    """Name methods that have no name here, and those alone, in what this thread shows of the store that calls it.

    A store does so whenever it is looked at, so that two reports in one process don't see each other's titles.
    """
    _TITLES.set(titles)


def style(method: str) -> Style:
    """A method's style; an unlisted method gets one from its name, so it looks the same in every sweep."""
    if method in STYLES:
        return STYLES[method]
    digest = zlib.crc32(method.encode())
    colour, dark = _SPARE[digest % len(_SPARE)]
    return Style(
        _NAMES.get(method) or _TITLES.get().get(method, method), colour, dark, _MARKERS[digest // 7 % len(_MARKERS)], 50
    )


def size_text(train_size: str) -> str:
    """A training size in words: '16-shot', '10 % of the data', 'all data'."""
    try:
        share = float(train_size)
    except ValueError:
        return train_size
    return "all data" if share == 1 else f"{100 * share:g} % of the data"


def size_key(train_size: str) -> tuple[int, float]:
    """Sort key of training sizes: shots first, by number, then fractions of the data, then anything else."""
    try:
        if train_size.endswith("-shot"):
            return 0, float(train_size.removesuffix("-shot"))
        return 1, float(train_size)
    except ValueError:
        return 2, 0.0


def place_text(dataset: str, train_size: str) -> str:
    """A data set with its training size, where that is not all of it."""
    size = size_text(train_size)
    return dataset if size == "all data" else f"{dataset}, {size}"


def in_order(methods: set[str]) -> list[str]:
    """Methods in the order of tables and legends."""
    return sorted(methods, key=lambda m: (style(m).order, m))


def budget_order(reference: str) -> tuple[int, str]:
    """Sort key of budgets: by the number in their name."""
    return int("".join(c for c in reference if c.isdigit()) or 0), reference


def place_of(row: Mapping[str, Any]) -> Place:
    """Where a row belongs: sweep, model, data set (None for the mean), training size.

    Rows of data-size curves have no training size; their budget stands in its place.
    """
    return row["sweep"], row["model"], row["dataset"], row["train_size"] if "train_size" in row else row["reference"]


def places(table: pa.Table) -> list[Place]:
    """The places of a table, which are the panels of a figure: the means first."""
    keys = {place_of(r) for r in table.to_pylist()}
    return sorted(keys, key=lambda k: (k[0], k[1], k[2] is not None, k[2] or "", size_key(k[3])))
