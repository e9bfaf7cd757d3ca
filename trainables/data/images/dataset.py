"""What an image set is: images decoded on demand, labels, and words; and how one is put together."""

from __future__ import annotations

import functools
import hashlib
import stat
import string
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainables.data.splits import SplitSet
from trainables.digests import content_digest, new_digest
from trainables.errors import DataError

DEFAULT_TEMPLATES = ("a photo of a {}.", "an image of a {}.", "a picture of a {}.")
DEFAULT_PROMPT = "An image of {}"
"""The single prompt of the contrastive loss (arXiv 2502.00987's released code)."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What Pillow may take bytes for, whatever a file is called: others start programs (EPS) or are rarely tested."""

_BOMB = Image.DecompressionBombWarning
warnings.filterwarnings("error", category=_BOMB)  # half of what Pillow refuses is more than an image needs

# What Pillow raises on bytes that are no image, by format
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, _BOMB)

_V = TypeVar("_V")


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """An image of `FORMATS`, not yet decoded. Raises what Pillow raises."""
    return Image.open(file, formats=FORMATS)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB, 8 bits a channel; greys of 16 bits are scaled.

    Raises ValueError for numbers of 32 bits, whose range no file says; what Pillow raises for bytes that are no image.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode!r}, greys of 32 bits of an unknown range; save it with 8 or 16 bits")
    return image.convert("RGB")


_JPEG, _PNM = {".jpg", ".jpeg", ".jfif", ".jpe"}, {".ppm", ".pgm", ".pnm"}
IMAGE_SUFFIXES = {".png", *_JPEG, ".bmp", ".gif", ".webp", ".tif", ".tiff", *_PNM}
_OTHER_IMAGES = {".heic", ".heif", ".avif", ".jp2", ".svg"}
"""Ends of names of images that are not read; to leave them out without a word would be to train on a part."""


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """N encoded images with labels.

    Attributes:
        source: where they come from, for messages.
        name: "train" or "test".
        labels: (N,) int64, in [0, number of classes).
        read: opens the image of one row; may raise what Pillow raises.
        content: returns a digest of all bytes that images are decoded from, as they are now. None, here or returned:
            it can't be known, and nothing is cached.
        file: the file of one row; None where rows have no files of their own.
        raw: the encoded image of one row that has no file; None where there is none.
    """

    source: str
    name: str
    labels: Tensor
    read: Callable[[int], Image.Image]
    content: Callable[[], str | None] | None = None
    file: Callable[[int], str] | None = None
    raw: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> Image.Image:
        """The RGB image of one row. Raises DataError naming the row when its bytes are no image."""
        try:
            with self.read(row) as image:
                return as_rgb(image)
        except UNREADABLE as error:
            file = "" if self.file is None else f" ({self.file(row)})"
            raise DataError(
                f"{self.source}, {self.name} row {row}{file}: not a readable image ({error}); replace or remove it, "
                "or set data.skip_bad = true to leave such images out and count them"
            ) from error

    def digest(self, row: int) -> bytes:
        """16 bytes of BLAKE2b over a row's encoded image, or over its pixels; its own for one that can't be read."""
        try:
            if self.file is not None:
                with Path(self.file(row)).open("rb") as file:
                    return hashlib.file_digest(file, new_digest).digest()
            return new_digest(self.image(row).tobytes() if self.raw is None else self.raw(row)).digest()
        except (OSError, ValueError):
            return new_digest(f"{self.name} row {row} can't be read".encode()).digest()

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


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, by their names' ends. Raises DataError for one of a form that is not read."""
    found = sorted(folder.glob("*"))
    if (other := next((p for p in found if p.suffix.lower() in _OTHER_IMAGES), None)) is not None:
        raise DataError(f"{other}: {other.suffix} is not read; make it a PNG or JPEG, or take it out")
    return [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES]


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
    names = _named(name, class_names, words.class_names) if words.class_names is not None else tuple(class_names)
    if len(names) < 2:
        raise DataError(f"{name}: {len(names)} class(es) found ({', '.join(names)}); classification needs two or more")
    if broken := [each for each in names if not is_utf8(each)]:
        raise DataError(f"{name}: the name of class {broken[0]!a} holds half of a character; write it whole")
    return Dataset(
        name=name,
        class_names=names,
        templates=words.templates or DEFAULT_TEMPLATES,
        prompt=words.prompt or (words.templates[0] if words.templates else DEFAULT_PROMPT),
        train=train if val is None else joined(train, val),
        open_test=functools.cache(open_test),
        val_rows=None if val is None else torch.arange(len(train), len(train) + len(val)),
    )


def is_utf8(name: str) -> bool:
    """Return whether a name can be written as UTF-8.

    Surrogates cannot. Python reads bytes that are not UTF-8, and halves of characters in JSON, as surrogates.
    """
    return not any(0xD800 <= ord(character) < 0xE000 for character in name)


def _named(source: str, own: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Names given for classes, in the order of their own: found by name where all are the same, else one by one.

    Raises DataError: another number of names, or a class's own name in the place of another's.
    """
    if len(given) != len(own):
        raise DataError(f"{source}: dataset.json names {len(given)} classes, the labels have {len(own)}")
    spelt = {_plain(each): each for each in given}
    if len(spelt) == len(own) and spelt.keys() == {_plain(each) for each in own}:
        return tuple(spelt[_plain(each)] for each in own)
    place = {_plain(each): at for at, each in enumerate(own)}
    for at, each in enumerate(given):
        its = place.get(_plain(each), at)
        if _plain(given[its]) != _plain(each) != _plain(own[at]):
            raise DataError(
                f"{source}: dataset.json's class_names have {each!r} in the place of class {own[at]!r}; names that are "
                f"not the data's own must stand in its order: {', '.join(own)}"
            )
    return tuple(given)


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def from_paths(source: str, which: str, paths: Sequence[Path], labels: Sequence[int], n_classes: int) -> ImageSplit:
    """A split whose images are files."""
    checked = check_labels(torch.tensor(labels, dtype=torch.int64), n_classes, f"{source} ({which})")
    check_files(paths)
    content = functools.partial(content_digest, paths)
    return ImageSplit(source, which, checked, lambda row: open_image(paths[row]), content, lambda row: str(paths[row]))


def joined(first: ImageSplit, second: ImageSplit) -> ImageSplit:
    """Both, one after the other, under the first one's name."""
    n = len(first)

    def either(one: Callable[[int], _V] | None, two: Callable[[int], _V] | None) -> Callable[[int], _V] | None:
        return None if one is None or two is None else lambda row: one(row) if row < n else two(row - n)

    return ImageSplit(
        first.source,
        first.name,
        torch.cat([first.labels, second.labels]),
        lambda row: first.read(row) if row < n else second.read(row - n),
        combined(first.content, second.content),
        either(first.file, second.file),
        either(first.raw, second.raw),
    )


def combined(one: Callable[[], str | None] | None, two: Callable[[], str | None] | None) -> Callable[[], str | None]:
    """Return what gives the content of a split that is made of both; None if one of the two can't be known."""

    def content() -> str | None:
        known = [None if each is None else each() for each in (one, two)]
        return None if None in known else "+".join(map(str, known))

    return content


def subset(pool: ImageSplit, which: str, rows: Tensor) -> ImageSplit:
    """Some rows of a split as a split of their own."""
    index = rows.tolist()
    digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    file, raw = pool.file, pool.raw
    return ImageSplit(
        pool.source,
        which,
        pool.labels[rows],
        lambda row: pool.read(index[row]),
        combined(pool.content, lambda: digest),
        None if file is None else lambda row: file(index[row]),
        None if raw is None else lambda row: raw(index[row]),
    )


def check_files(paths: Sequence[Path]) -> None:
    """Raise DataError for a link to nothing, or what is no file (reading a device or a pipe would never end)."""
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            remedy = "replace or remove it, or the folder of a fetched set"
            raise DataError(f"{path}: can't be read ({error.strerror}); {remedy}") from error
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path}: is no file, nor a link to one; replace or remove it")


def check_labels(labels: Tensor, n_classes: int, where: str) -> Tensor:
    """`labels` when all lie in [0, n_classes). Raises DataError naming the first row that does not."""
    bad = ((labels < 0) | (labels >= n_classes)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        unlabelled = "unlabelled rows cannot be used, remove them or name a labelled split"
        rule = unlabelled if labels[row] < 0 else "the first class is 0"
        raise DataError(f"{where}, row {row}: label {int(labels[row])} is not in 0..{n_classes - 1}; {rule}")
    if len(labels) == 0:
        raise DataError(f"{where}: no rows")
    return labels


def check_templates(templates: tuple[str, ...], where: str) -> tuple[str, ...]:
    """`templates` when there is one at least and each holds "{}" once. Raises DataError otherwise."""
    for template in templates:
        try:
            fields = [field for _, *field in string.Formatter().parse(template) if field[0] is not None]
        except ValueError:  # a brace alone
            fields = []
        if fields != [["", "", None]]:
            rule = "must hold '{}' exactly once, for the class name, and no other braces; {{ and }} stand for braces"
            raise DataError(f"{where}: prompt template {template!r} {rule}")
    if not templates:
        raise DataError(f"{where}: no prompt template; give at least one such as 'a photo of a {{}}.'")
    return templates
