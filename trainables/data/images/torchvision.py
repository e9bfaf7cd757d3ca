"""torchvision's data sets, downloaded once into one folder. Sets without a split are split here, always in the same
way."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.data.downloads import FOLDER_VARIABLE, data_folder, downloading, may_download
from trainables.data.facts import Torchvision
from trainables.data.images.class_names import clean
from trainables.data.images.dataset import Dataset, ImageSplit, Words, assemble, check_files, check_labels, subset
from trainables.digests import content_digest, new_digest
from trainables.errors import DataError
from trainables.seeds import generator

_MADE = {
    "Caltech101": ("101_ObjectCategories", "image_{index:04d}.jpg"),
    "Caltech256": ("256_ObjectCategories", "{y:03d}_{index:04d}.jpg"),
}
SPLIT_SEED = 0
PER_CLASS = 270
"""EuroSAT: the number of validation images, and of test images, of every class (arXiv 2502.00987's data sets)."""
TEST_SHARE = 0.2
"""Caltech-101 and -256: the share of test images."""


def load(name: str, source: Torchvision, renames: Mapping[str, str], words: Words) -> Dataset:
    """Load one of torchvision's sets. Raises DataError if it cannot be downloaded or read."""
    first, *more = (_open(name, source, arguments) for arguments in source.train)
    classes = _classes(source, renames, first)
    n = len(classes)
    if source.divided is not None:
        pool = _split(name, "train", [first], n)
        train, val, test = per_class_rows(pool.labels, name) if source.divided == "per-class" else share_rows(len(pool))
        rest, validation = subset(pool, "train", train), subset(pool, "train", val) if len(val) else None
        return assemble(name, classes, rest, lambda: subset(pool, "test", test), words, val=validation)
    train_split = _split(name, "train", [first, *more], n)
    validation = None if source.val is None else _split(name, "train", [_open(name, source, source.val)], n)

    def open_test() -> ImageSplit:
        return _split(name, "test", [_open(name, source, source.test)], n)

    return assemble(name, classes, train_split, open_test, words, val=validation)


def per_class_rows(labels: Tensor, where: str, each: int = PER_CLASS) -> tuple[Tensor, Tensor, Tensor]:
    """Return training, validation and test rows, with `each` rows of every class in the last two, drawn with a fixed
    seed."""
    parts: list[list[Tensor]] = [[], [], []]
    for index in range(int(labels.max()) + 1):
        rows = (labels == index).nonzero().flatten()
        if len(rows) <= 2 * each:
            raise DataError(f"{where}: class {index} has {len(rows)} images, and more than {2 * each} are needed")
        order = rows[torch.randperm(len(rows), generator=generator(SPLIT_SEED, "pool", index))]
        for part, some in zip(parts, (order[2 * each :], order[:each], order[each : 2 * each]), strict=True):
            part.append(some)
    train, val, test = (torch.cat(part).sort().values for part in parts)
    return train, val, test


def share_rows(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return training rows, no validation rows, and test rows (the share `TEST_SHARE`), drawn with a fixed seed."""
    order = torch.randperm(n, generator=generator(SPLIT_SEED, "pool"))
    n_train = int((1 - TEST_SHARE) * n)
    return order[:n_train].sort().values, order[:0], order[n_train:].sort().values


def _open(name: str, source: Torchvision, arguments: Mapping[str, Any]) -> Any:
    import torchvision

    fetch = {"download": may_download()} if source.download else {}
    by_hand = contextlib.nullcontext(data_folder() / source.dataset.lower())
    place = downloading(source.dataset) if source.download else by_hand
    with place as root:
        try:
            return getattr(torchvision.datasets, source.dataset)(str(root), **fetch, **arguments)
        except (OSError, RuntimeError, ValueError, ModuleNotFoundError) as error:  # a failed check is a RuntimeError
            raise DataError(
                f"data set {name!r}: torchvision could not read or download it in {root} ({error}); set "
                f"{FOLDER_VARIABLE} to the folder that holds it, or remove what is damaged in it"
            ) from error


def _classes(source: Torchvision, renames: Mapping[str, str], found: Any) -> tuple[str, ...]:
    if source.class_names:
        return source.class_names
    raw = getattr(found, "classes", None) or found.categories
    names = [clean(c[0] if isinstance(c, tuple) else str(c), renames) for c in raw]
    return tuple([name.replace("-", " ") for name in names] if source.hyphens_to_spaces else names)


def _split(name: str, which: str, parts: list[Any], n_classes: int) -> ImageSplit:
    labels = torch.cat([_labels(name, p) for p in parts])
    where: list[tuple[Any, int]] = [(p, i) for p in parts for i in range(len(p))]
    read: Callable[[int], Any] = lambda row: where[row][0][where[row][1]][0]  # noqa: E731
    checked = check_labels(labels, n_classes, f"{name} ({which})")
    paths = [path for part in parts for path in _paths(part)]
    if len(paths) < len(where):
        made = [path for part in parts for path in _made(part)]
        check_files(made)
        content = functools.partial(content_digest, made) if made else _content_in_memory(parts)
        # without `file`, because digests of these sets have always been over their pixels
        return ImageSplit(name, which, checked, read, content)
    check_files(paths)
    return ImageSplit(name, which, checked, read, functools.partial(content_digest, paths), lambda row: str(paths[row]))


def _paths(part: Any) -> list[Path]:
    """Return the image files of a set; [] if torchvision keeps it in memory, or makes the paths as it reads."""
    for attribute in ("_image_files", "_images", "samples", "_samples"):  # torchvision's spellings
        if entries := getattr(part, attribute, None):
            return [Path(each[0] if isinstance(each, tuple) else each) for each in entries]
    return []


def _made(part: Any) -> list[Path]:
    """Return the files, as far as they exist, of a set whose paths torchvision makes as it reads."""
    folder, form = _MADE.get(type(part).__name__, ("", ""))
    if not form:
        return []
    paths = (
        Path(part.root, folder, part.categories[y], form.format(y=y + 1, index=index))
        for y, index in zip(part.y, part.index, strict=True)
    )
    return [path for path in paths if path.is_file()]


def _content_in_memory(parts: list[Any]) -> Callable[[], str] | None:
    """Return a function that gives a digest of sets that torchvision holds in memory; None if it holds them
    elsewhere."""
    import torchvision

    arrays = [data for part in parts if isinstance(data := getattr(part, "data", None), Tensor | np.ndarray)]
    if len(arrays) < len(parts):
        return None

    @functools.cache
    def content() -> str:
        digest = new_digest(torchvision.__version__.encode())  # torchvision makes the images from the arrays
        for part, array in zip(parts, arrays, strict=True):
            digest.update(f"{type(part).__name__} {tuple(array.shape)} {array.dtype}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    return content


def _labels(name: str, data: Any) -> Tensor:
    for attribute in ("targets", "labels", "_labels", "y"):  # torchvision's spellings
        values = getattr(data, attribute, None)
        if values is not None:
            return torch.as_tensor(values).to(torch.int64)
    samples = getattr(data, "_samples", None)
    if samples is not None:
        return torch.tensor([label for _, label in samples], dtype=torch.int64)
    raise DataError(f"data set {name!r}: {type(data).__name__} of this torchvision keeps its labels elsewhere")
