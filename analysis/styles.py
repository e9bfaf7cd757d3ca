"""How methods are named and drawn: one name, one colour and one marker each, in every table and figure; sizes in words.

Colours are Okabe and Ito's (colour-blind safe). Markers differ too, so that print without colour is readable.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from analysis.format import plural

if TYPE_CHECKING:
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
    "linear-probe": Style("linear probe", "#3D5A73", "#9FBBD3", None, 89),
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
    "milora": "MiLoRA",
    "olora": "OLoRA",
    "init-ab": "Init[AB]",
    "lora-ga": "LoRA-GA",
    "lora-plus": "LoRA+",
}
"""Titles of the shipped methods that are not in `STYLES`; a variant keeps the name that its sweep file gives it.

They are repeated here because the registry loads torch. A new method comes last, so that the others keep their looks.
"""

SPARE_COLOURS = (
    ("#8C510A", "#D8A25E"),
    ("#542788", "#B79AE0"),
    ("#7F7F00", "#CFCF4A"),
    ("#A50026", "#F0708A"),
    ("#00696F", "#4FC3CB"),
    ("#C7157E", "#FF8AC8"),
)
"""Colours of methods without a style of their own: on a light background, and on a dark one."""
_FIRST, _MORE = ("v", "P", "X", "<", ">"), ("*", "d", "s", "^", "D", "o")
_LOOKS = tuple((*colours, marker) for marker in _FIRST + _MORE for colours in SPARE_COLOURS)
"""Colour, dark colour and marker of methods without a style of their own; the first of them follow from a name."""


def spare_styles(titles: Mapping[str, str | None]) -> dict[str, Style]:
    """Return styles for methods that have none in `STYLES`, and for ours; no two are alike while looks are left.

    A method's name picks its look, so that it is the same in every sweep. If one of ours, or one before it in the
    alphabet, has that look, the method gets the next free one.

    Args:
        titles: of all methods that are shown together; of those that are not ours they are the names.
    """
    styles: dict[str, Style] = {}
    colours, looks = len(SPARE_COLOURS), len(_LOOKS)
    first, free = colours * len(_FIRST), set(range(looks))
    for method in (*_NAMES, *sorted(titles.keys() - STYLES.keys() - _NAMES.keys())):
        digest = zlib.crc32(method.encode())
        first_choice = colours * (digest // 7 % len(_FIRST)) + digest % colours
        further = (first + (first_choice + i) % (looks - first) for i in range(looks - first))
        at = next((k for k in (first_choice, *further, *range(first)) if k in free), first_choice)
        free.discard(at)
        styles[method] = Style(_NAMES.get(method) or titles.get(method) or method, *_LOOKS[at], 50)
    return styles


@dataclass(frozen=True)
class PlaceNames:
    """How the data sets of a store are named in sentences, tables and figures.

    Attributes:
        datasets: the short name of each data set id.
        sizes: the training examples of a data set id at a training size, '480 images', if they are known.
    """

    datasets: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[tuple[str, str], str] = field(default_factory=dict)


_SHOWN: ContextVar[Mapping[str, Style]] = ContextVar("styles", default=MappingProxyType({}))
"""`spare_styles` of the folder that was looked at last, with titles from its tables (`cells.title`)."""
_PLACES: ContextVar[PlaceNames | None] = ContextVar("places", default=None)
"""`PlaceNames` of the folder that was looked at last."""


def use_names(styles: Mapping[str, Style], places: PlaceNames) -> None:
    """Use these names and styles in what this thread shows of a store.

    The store calls this whenever it is looked at, so that two reports in one process do not see each other's names.
    `styles` are those of methods that have none in `STYLES`.
    """
    _SHOWN.set(styles)
    _PLACES.set(places)


def style(method: str) -> Style:
    """Return a method's style."""
    return STYLES.get(method) or _SHOWN.get().get(method) or spare_styles({method: None})[method]


def size_text(train_size: str) -> str:
    """Return a training size in words: '16-shot', '10 % of the data', 'all data'."""
    try:
        share = float(train_size)
    except ValueError:
        return train_size
    return "all data" if share == 1 else f"{100 * share:g} % of the data"


def size_key(train_size: str) -> tuple[int, float]:
    """Return the sort key of a training size: shots first, by number, then fractions of the data, then others."""
    try:
        if train_size.endswith("-shot"):
            return 0, float(train_size.removesuffix("-shot"))
        return 1, float(train_size)
    except ValueError:
        return 2, 0.0


def place_text(dataset: str, train_size: str) -> str:
    """Name a data set and its training size: 'digits, 480 images', or 'digits' if it trains on all data.

    The name is short and the size counts training examples if the store that is shown knows them.
    """
    name, size = dataset_text(dataset), size_text(train_size)
    return name if size == "all data" else f"{name}, {training_text(dataset, train_size)}"


def training_text(dataset: str, train_size: str) -> str:
    """Return the training examples of a data set at a size, such as '480 images', or the size if they are unknown."""
    place_names = _PLACES.get() or PlaceNames()
    return place_names.sizes.get((dataset, train_size), size_text(train_size))


def dataset_text(dataset: str) -> str:
    """Name a data set: short if the store that is shown has no other of that short name, else its id."""
    place_names = _PLACES.get() or PlaceNames()
    return place_names.datasets.get(dataset, dataset)


def short_name(dataset: str) -> str:
    """Return a data set's name: the last part of its id, without the settings after the `?` of an `sft:` id."""
    return dataset.partition("?")[0].rstrip("/").rpartition("/")[2].rpartition(":")[2]


def short_names(datasets: Iterable[str]) -> dict[str, str]:
    """Return the short name of every data set id, or the id itself if two would have the same."""
    short = {dataset: short_name(dataset) for dataset in datasets}
    counts = Counter(short.values())
    return {dataset: name if name and counts[name] == 1 else dataset for dataset, name in short.items()}


def example_counts(trials: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Return '480 images' for every (data set, training size) of which all trials had equally many examples.

    Args:
        trials: rows with `dataset`, `train_size`, `unit` and `train_examples`.
    """
    counts_by_place: dict[tuple[str, str], set[tuple[int, str]]] = {}
    for r in trials:
        if r["train_examples"] is not None:
            unit = (r["unit"] or "examples").removesuffix("s")
            counts_by_place.setdefault((r["dataset"], r["train_size"]), set()).add((r["train_examples"], unit))
    return {place: plural(*next(iter(counts))) for place, counts in counts_by_place.items() if len(counts) == 1}


def budget_text(reference: str) -> str:
    """Name a budget in a sentence: 'LoRA-8' for 'lora-8'; other labels stay as they are."""
    return re.sub(r"^lora-(?=\d+$)", "LoRA-", reference)


def cut(text: str, most: int) -> str:
    """Return a text cut to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def in_order(methods: set[str]) -> list[str]:
    """Return methods in the order of tables and legends."""
    return sorted(methods, key=lambda m: (style(m).order, m))


def budget_order(reference: str) -> tuple[float, str]:
    """Return the sort key of a budget: the number in its name."""
    number = re.search(r"\d+(\.\d+)?(e-?\d+)?", reference)
    return float(number[0]) if number else 0.0, reference


def place_of(row: Mapping[str, Any]) -> Place:
    """Return the place of a row: sweep, model, data set (None for the mean), training size.

    Rows of data-size curves have no training size. Their place has the budget instead.
    """
    return row["sweep"], row["model"], row["dataset"], row["train_size"] if "train_size" in row else row["reference"]


def places(table: pa.Table) -> list[Place]:
    """Return the places of a table in the order of a figure's panels, the means first."""
    keys = {place_of(r) for r in table.to_pylist()}
    return sorted(keys, key=lambda k: (k[0], k[1], k[2] is not None, k[2] or "", size_key(k[3])))
