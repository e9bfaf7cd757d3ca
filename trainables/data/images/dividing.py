"""A folder of classes that has no splits, copied into one that has."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from trainables.data.images.dataset import image_files
from trainables.errors import DataError

PART = 5
"""One image of so many is for the test."""


Classes = Iterable[tuple[str, list[Path]]]


def divide(folder: Path, into: Path, follow: Callable[[Classes], Classes] = iter) -> None:
    """Copy `folder/CLASS/IMAGE` to `into/{train,test}/CLASS/IMAGE`: of each class a fifth for the test, at least one.

    Which images these are goes by their files' SHA-256, so it is the same on every machine, and copies of one image
    within a class stay together. `follow` shows how far it is: it gets the classes, and gives them back one by one.

    Raises:
        DataError: no class, a class without images or with one alone, an image in two classes; `into` exists already.
        OSError: a file can't be read or written; then `into` is not there.
    """
    classes = {
        each.name: [p for p in image_files(each) if p.is_file()] for each in sorted(folder.iterdir()) if each.is_dir()
    }
    if not any(classes.values()):
        raise DataError(f"{folder} holds no CLASS/IMAGE; the images of each class need a folder of their own")
    if into.exists():
        raise DataError(f"{into} exists already; name a folder that does not")
    if empty := [name for name, images in classes.items() if not images]:
        raise DataError(f"class folder {folder / empty[0]} holds no image; fill it or remove it")
    seen: dict[str, Path] = {}
    draft = into.with_name(f".{into.name}.{os.getpid()}")
    try:
        for name, images in follow(list(classes.items())):
            digests: dict[str, list[Path]] = {}
            for image in images:
                with image.open("rb") as file:
                    digests.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), []).append(image)
            for digest, copies in digests.items():
                if (other := seen.setdefault(digest, copies[0])) is not copies[0]:
                    raise DataError(f"{copies[0]} and {other} are one image in two classes; remove one of them")
            if len(digests) < 2:
                raise DataError(f"{folder / name} has one image, or copies of one; 2 are needed, to train and to test")
            ordered = sorted(digests)
            tested = set(ordered[: max(1, len(ordered) // PART)])
            for digest, copies in digests.items():
                target = draft / ("test" if digest in tested else "train") / name
                target.mkdir(parents=True, exist_ok=True)
                for image in copies:
                    shutil.copyfile(image, target / image.name)
        draft.rename(into)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
