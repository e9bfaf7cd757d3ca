"""torchvision's data sets, downloaded once into one folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainables.data.dataset import Dataset, ImageSplit, check_labels
from trainables.data.sources import Words, assemble
from trainables.errors import DataError

FOLDER_VARIABLE = "SWEEPS_DATA"
"""Environment variable naming the download folder; default ~/.cache/randlora-sweeps/data."""

_DIGITS = tuple(str(d) for d in range(10))


@dataclass(frozen=True)
class _Entry:
    cls: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    val: Mapping[str, Any] | None = None  # a validation split of the authors'
    classes: tuple[str, ...] | None = None  # where torchvision has no names
    more: tuple[Mapping[str, Any], ...] = field(default=())  # further training splits, for DTD


_FLAG = ({"train": True}, {"train": False})
_SPLIT = ({"split": "train"}, {"split": "test"})

ENTRIES: dict[str, _Entry] = {
    "cifar10": _Entry("CIFAR10", *_FLAG),
    "cifar100": _Entry("CIFAR100", *_FLAG),
    "mnist": _Entry("MNIST", *_FLAG, classes=_DIGITS),
    "fashion-mnist": _Entry("FashionMNIST", *_FLAG),
    "svhn": _Entry("SVHN", *_SPLIT, classes=_DIGITS),
    "stl10": _Entry("STL10", *_SPLIT),
    "dtd": _Entry("DTD", *_SPLIT, more=({"split": "val"},)),
    "food101": _Entry("Food101", *_SPLIT),
    "fgvc-aircraft": _Entry("FGVCAircraft", *_SPLIT, val={"split": "val"}),
    "flowers102": _Entry("Flowers102", *_SPLIT, val={"split": "val"}),
    "oxford-pets": _Entry("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
}


def data_folder() -> Path:
    """Where downloads go."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "randlora-sweeps" / "data"


def load(name: str, key: str, words: Words) -> Dataset:
    """One of ENTRIES as a Dataset. Raises DataError when it can't be downloaded or read."""
    entry = ENTRIES[key]
    first = _open(name, entry, entry.train)
    parts = [first, *(_open(name, entry, more) for more in entry.more)]
    val_rows = None
    if entry.val is not None:
        held = _open(name, entry, entry.val)
        start = sum(len(p) for p in parts)
        val_rows = torch.arange(start, start + len(held))
        parts.append(held)
    classes = entry.classes or tuple(str(c).replace("_", " ") for c in first.classes)
    return assemble(
        name,
        classes,
        _split(name, "train", parts, len(classes)),
        lambda: _split(name, "test", [_open(name, entry, entry.test)], len(classes)),
        words,
        val_rows=val_rows,
    )


def _open(name: str, entry: _Entry, arguments: Mapping[str, Any]) -> Any:
    import torchvision

    folder = data_folder()
    try:
        return getattr(torchvision.datasets, entry.cls)(str(folder), download=True, **arguments)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a failed check is a RuntimeError
        raise DataError(
            f"data set {name!r}: torchvision could not read or download it in {folder} ({error}); set "
            f"{FOLDER_VARIABLE} to the folder that holds it"
        ) from error


def _split(name: str, which: str, parts: list[Any], n_classes: int) -> ImageSplit:
    labels = torch.cat([_labels(name, p) for p in parts])
    where: list[tuple[Any, int]] = [(p, i) for p in parts for i in range(len(p))]
    read: Callable[[int], Any] = lambda row: where[row][0][where[row][1]][0]  # noqa: E731
    return ImageSplit(name, which, check_labels(labels, n_classes, f"{name} ({which})"), read)


def _labels(name: str, data: Any) -> torch.Tensor:
    for attribute in ("targets", "labels", "_labels"):  # torchvision's three spellings
        values = getattr(data, attribute, None)
        if values is not None:
            return torch.as_tensor(values).to(torch.int64)
    raise DataError(f"data set {name!r}: {type(data).__name__} of this torchvision keeps its labels elsewhere")
