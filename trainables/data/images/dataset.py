"""What an image set is: images that are decoded on demand, labels, and words. And how one is put together."""

from __future__ import annotations

import functools
import hashlib
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainables.data.splits import SplitSet
from trainables.data.templates import DEFAULT_PROMPT, DEFAULT_TEMPLATES
from trainables.digests import content_digest, new_digest
from trainables.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""The image formats that Pillow may read, whatever a file's name. Others start programs (EPS) or are rarely tested."""

MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""Number of pixels from which Pillow warns, and refuses images of twice as many. This is more than an image needs."""

# What Pillow raises on bytes that are no image, by format. Its warning is raised where warnings are errors.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning
)  # fmt: skip

_V = TypeVar("_V")


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """Return an image of one of `FORMATS`, not yet decoded.

    Raises what Pillow raises, which includes DecompressionBombError for an image of more than `MOST_PIXELS` pixels.
    """
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise Image.DecompressionBombError(f"{size} may be a decompression bomb; at most {MOST_PIXELS:,} are read")
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB with 8 bits per channel. Grey images of 16 bits are scaled.

    Raises:
        ValueError: numbers of 32 bits, whose range no file states. For bytes that are not an image, whatever Pillow
            raises.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode!r}, greys of 32 bits of an unknown range; save it with 8 or 16 bits")
    return image.convert("RGB")


_JPEG, _PNM = {".jpg", ".jpeg", ".jfif", ".jpe"}, {".ppm", ".pgm", ".pnm"}
IMAGE_SUFFIXES = {".png", *_JPEG, ".bmp", ".gif", ".webp", ".tif", ".tiff", *_PNM}
_OTHER_IMAGES = {".heic", ".heif", ".avif", ".jp2", ".svg"}
"""Suffixes of images that are not read. Ignoring such files without a message would train on a part of the set."""


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """N encoded images with labels.

    Attributes:
        source: where they come from, for messages.
        name: "train" or "test".
        labels: (N,) int64, in [0, number of classes).
        read: opens the image of one row; may raise what Pillow raises.
        content: returns a digest of all bytes from which images are decoded, as they are now. If it is None or returns
            None, the content is not known, and nothing is cached.
        file: returns the file of one row; None if rows have no files of their own.
        raw: returns the encoded image of one row that has no file; None if there are none.
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
        """Return the RGB image of one row. Raises DataError that names the row if its bytes are not an image."""
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
        """Return 16 bytes of BLAKE2b over a row's encoded image, or over its pixels. A row that cannot be read has a
        digest of its own."""
        try:
            if self.file is not None:
                with Path(self.file(row)).open("rb") as file:
                    return hashlib.file_digest(file, new_digest).digest()
            return new_digest(self.image(row).tobytes() if self.raw is None else self.raw(row)).digest()
        except (OSError, ValueError):
            return new_digest(f"{self.name} row {row} can't be read".encode()).digest()

    def examples_hash(self, rows: Tensor) -> str:
        """Return the SHA-256 of the list of example ids (split, row, label). Equal lists have equal hashes on every
        machine."""
        digest = hashlib.sha256(f"{self.name}\n".encode())
        pairs = torch.stack([rows.to(torch.int64), self.labels[rows]], dim=1)
        digest.update(pairs.contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(SplitSet[ImageSplit]):
    """A labelled image set with its words.

    Attributes:
        templates: prompts with one "{}", for the frozen class embeddings (the mean over the prompts is taken).
        prompt: the single prompt that is used if the text tower trains too.
    """

    templates: tuple[str, ...]
    prompt: str


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder, by their suffixes. Raises DataError for an image of a format that is not read."""
    files = sorted(folder.glob("*"))
    if (unread := next((p for p in files if p.suffix.lower() in _OTHER_IMAGES), None)) is not None:
        raise DataError(f"{unread}: {unread.suffix} is not read; make it a PNG or JPEG, or take it out")
    return [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]


@dataclass(frozen=True)
class Words:
    """Prompts and class names that come with a data set; None for the default."""

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
    """Return a data set made of its parts. The authors' validation split joins `train`. The test split is opened once
    at most."""
    names = _named(name, class_names, words.class_names) if words.class_names is not None else tuple(class_names)
    if len(names) < 2:
        raise DataError(f"{name}: {len(names)} class(es) found ({', '.join(names)}); classification needs two or more")
    if broken := [name_of_class for name_of_class in names if not is_utf8(name_of_class)]:
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
    """Return the given names of the classes, in the order of the classes' own names.

    If the given names are the same set as the own ones, they are matched by name, else one by one.

    Raises:
        DataError: the number of names differs, or a class's own name is in the place of another's.
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
    """Return a split whose images are files."""
    checked = check_labels(torch.tensor(labels, dtype=torch.int64), n_classes, f"{source} ({which})")
    check_files(paths)
    content = functools.partial(content_digest, paths)
    return ImageSplit(source, which, checked, lambda row: open_image(paths[row]), content, lambda row: str(paths[row]))


def joined(first: ImageSplit, second: ImageSplit) -> ImageSplit:
    """Return both splits, one after the other, under the first one's name."""
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
    """Return a function that gives the content of a split made of two, or None if the content of one is not known."""

    def content() -> str | None:
        contents = [None if content_of is None else content_of() for content_of in (one, two)]
        return None if None in contents else "+".join(map(str, contents))

    return content


def subset(pool: ImageSplit, which: str, rows: Tensor) -> ImageSplit:
    """Return some rows of a split as a separate split."""
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
    """Raise DataError for a link to nothing, or a path that is not a file (reading a device or a pipe might not
    end)."""
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            remedy = "replace or remove it, or the folder of a fetched set"
            raise DataError(f"{path}: can't be read ({error.strerror}); {remedy}") from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is no file, nor a link to one; replace or remove it")


def check_labels(labels: Tensor, n_classes: int, where: str) -> Tensor:
    """Return `labels` if all lie in [0, n_classes). Raises DataError that names the first row that does not."""
    bad = ((labels < 0) | (labels >= n_classes)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        unlabelled = "unlabelled rows cannot be used, remove them or name a labelled split"
        rule = unlabelled if labels[row] < 0 else "the first class is 0"
        raise DataError(f"{where}, row {row}: label {int(labels[row])} is not in 0..{n_classes - 1}; {rule}")
    if len(labels) == 0:
        raise DataError(f"{where}: no rows")
    return labels
