"""What an image set is: images decoded on demand, labels, and words; and how one is put together."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from trainables.data.splits import SplitSet
from trainables.errors import DataError

DEFAULT_TEMPLATES = ("a photo of a {}.", "an image of a {}.", "a picture of a {}.")
DEFAULT_PROMPT = "An image of {}"
"""The single prompt of the contrastive loss (arXiv 2502.00987's released code)."""

# What Pillow raises on bytes that are no image, by format
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """N encoded images with labels.

    Attributes:
        source: where they come from, for messages.
        name: "train" or "test".
        labels: (N,) int64, in [0, number of classes).
        read: opens the image of one row; may raise what Pillow raises.
        stamp: changes whenever the files behind it do; "" where that can't be known, and nothing is cached.
        file: names the file of one row, for messages; None where rows have no files of their own.
    """

    source: str
    name: str
    labels: Tensor
    read: Callable[[int], Image.Image]
    stamp: str = ""
    file: Callable[[int], str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> Image.Image:
        """The RGB image of one row. Raises DataError naming the row when its bytes are no image."""
        try:
            with self.read(row) as image:
                return image.convert("RGB")
        except _UNREADABLE as error:
            file = "" if self.file is None else f" ({self.file(row)})"
            raise DataError(
                f"{self.source}, {self.name} row {row}{file}: not a readable image ({error}); replace or remove it, "
                "or set data.skip_bad = true to leave such images out and count them"
            ) from error

    def examples_hash(self, rows: Tensor) -> str:
        """SHA-256 over the list of example ids (split, row, label): equal lists, equal hashes, on every machine."""
        digest = hashlib.sha256(f"{self.name}\n".encode())
        pairs = torch.stack([rows.to(torch.int64), self.labels[rows]], dim=1)
        digest.update(pairs.contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(SplitSet[ImageSplit]):
    """A labelled image set with its words.

    Attributes:
        templates: prompts with one "{}", for the frozen class embeddings (their mean is taken).
        prompt: the single prompt used where the text tower trains too.
    """

    templates: tuple[str, ...]
    prompt: str


@dataclass(frozen=True)
class Words:
    """Prompts and class names that a data set brings along; None where it leaves the default."""

    templates: tuple[str, ...] | None = None
    prompt: str | None = None
    class_names: tuple[str, ...] | None = None


def assemble(
    name: str,
    class_names: Sequence[str],
    train: ImageSplit,
    open_test: Callable[[], ImageSplit],
    words: Words,
    *,
    val: ImageSplit | None = None,
) -> Dataset:
    """A Dataset from its parts, the test split opened at most once; the authors' validation split joins `train`."""
    names = words.class_names or tuple(class_names)
    if len(names) < 2:
        raise DataError(f"{name}: {len(names)} class(es) found ({', '.join(names)}); classification needs two or more")
    if words.class_names is not None and len(words.class_names) != len(class_names):
        raise DataError(f"{name}: dataset.json names {len(names)} classes, the labels have {len(class_names)}")
    return Dataset(
        name=name,
        class_names=names,
        templates=words.templates or DEFAULT_TEMPLATES,
        prompt=words.prompt or (words.templates[0] if words.templates else DEFAULT_PROMPT),
        train=train if val is None else joined(train, val),
        open_test=functools.cache(open_test),
        val_rows=None if val is None else torch.arange(len(train), len(train) + len(val)),
    )


def from_paths(source: str, which: str, paths: Sequence[Path], labels: Sequence[int], n_classes: int) -> ImageSplit:
    """A split whose images are files."""
    checked = check_labels(torch.tensor(labels, dtype=torch.int64), n_classes, f"{source} ({which})")
    return ImageSplit(
        source, which, checked, lambda row: Image.open(paths[row]), file_stamp(paths), lambda row: str(paths[row])
    )


def joined(first: ImageSplit, second: ImageSplit) -> ImageSplit:
    """Both, one after the other, under the first one's name."""
    n = len(first)
    labels = torch.cat([first.labels, second.labels])
    one, two = first.file, second.file
    return ImageSplit(
        first.source,
        first.name,
        labels,
        lambda row: first.read(row) if row < n else second.read(row - n),
        f"{first.stamp}+{second.stamp}" if first.stamp and second.stamp else "",
        None if one is None or two is None else lambda row: one(row) if row < n else two(row - n),
    )


def subset(pool: ImageSplit, which: str, rows: Tensor) -> ImageSplit:
    """Some rows of a split as a split of their own."""
    index = rows.tolist()
    digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    file = pool.file
    return ImageSplit(
        pool.source,
        which,
        pool.labels[rows],
        lambda row: pool.read(index[row]),
        f"{pool.stamp}/{digest}" if pool.stamp else "",
        None if file is None else lambda row: file(index[row]),
    )


def file_stamp(paths: Sequence[Path]) -> str:
    """A digest of files' places, sizes and times of change: what the cache of decoded images is bound to."""
    digest = hashlib.sha256()
    for path in paths:
        found = path.stat()
        digest.update(f"{path.resolve()}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def check_labels(labels: Tensor, n_classes: int, where: str) -> Tensor:
    """`labels` when all lie in [0, n_classes). Raises DataError naming the first row that does not."""
    bad = ((labels < 0) | (labels >= n_classes)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{where}, row {row}: label {int(labels[row])} is not in 0..{n_classes - 1}; "
            "unlabelled rows cannot be used, remove them or name a labelled split"
        )
    if len(labels) == 0:
        raise DataError(f"{where}: no rows")
    return labels


def check_templates(templates: tuple[str, ...], where: str) -> tuple[str, ...]:
    """`templates` when there is one at least and each holds "{}" once. Raises DataError otherwise."""
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(f"{where}: prompt template {template!r} must hold '{{}}' exactly once, for the class name")
    if not templates:
        raise DataError(f"{where}: no prompt template; give at least one such as 'a photo of a {{}}.'")
    return templates
