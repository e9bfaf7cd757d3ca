"""Copy a folder of classes that has no splits into one that has."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from trainables.data.images.dataset import image_files
from trainables.errors import DataError

PART = 5
"""One image in this many is for the test."""


Classes = Iterable[tuple[str, list[Path]]]


def divide(folder: Path, into: Path, follow: Callable[[Classes], Classes] = iter) -> None:
    """Copy `folder/CLASS/IMAGE` to `into/{train,test}/CLASS/IMAGE`. A fifth of each class is for the test, at least one
    image.

    The SHA-256 of their files decides which images these are. So the choice is the same on every machine, and copies of
    one image within a class stay together.

    Args:
        folder: the folder of classes.
        into: the new folder.
        follow: shows the progress: it gets the classes, and gives them back one by one.

    Raises:
        DataError: there is no class, a class has no image or only one, an image is in two classes, or `into` exists.
        OSError: a file cannot be read or written. Then `into` does not exist.
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
    first_of_digest: dict[str, Path] = {}
    draft = into.with_name(f".{into.name}.{os.getpid()}")
    try:
        for name, images in follow(list(classes.items())):
            digests: dict[str, list[Path]] = {}
            for image in images:
                with image.open("rb") as file:
                    digests.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), []).append(image)
            for digest, copies in digests.items():
                if (earlier := first_of_digest.setdefault(digest, copies[0])) is not copies[0]:
                    raise DataError(f"{copies[0]} and {earlier} are one image in two classes; remove one of them")
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
