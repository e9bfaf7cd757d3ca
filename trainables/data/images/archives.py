"""Load image sets that no library loads: object crops of VOC2007, CUB-200-2011's archive, and sets by CoOp's lists."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainables.data.downloads import FOLDER_VARIABLE, data_folder, downloading, may_download
from trainables.data.facts import Cub, Lists, Voc
from trainables.data.images.class_names import clean
from trainables.data.images.dataset import (
    Dataset,
    ImageSplit,
    Words,
    assemble,
    check_files,
    check_labels,
    from_paths,
    open_image,
)
from trainables.digests import content_as_opened
from trainables.errors import DataError


def load_voc(name: str, source: Voc, renames: Mapping[str, str], words: Words) -> Dataset:
    """Load VOC2007: every annotated object, difficult ones too, is cut out by its box. Raises DataError if that
    fails."""
    classes = source.class_names
    names = [clean(c, renames) for c in classes]
    train, val = _voc_split(name, "train", classes), _voc_split(name, "val", classes)
    return assemble(name, names, train, lambda: _voc_split(name, "test", classes), words, val=val)


def _voc_split(name: str, which: str, classes: Sequence[str]) -> ImageSplit:
    """Return a split of VOC2007's objects."""
    import torchvision

    try:
        with downloading("VOC2007") as folder:
            lists = folder / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / f"{which}.txt"
            fetch = may_download() and not lists.is_file()  # torchvision would unpack the archive each time
            pictures = torchvision.datasets.VOCDetection(str(folder), "2007", which, download=fetch)
        boxes = [box for row in range(len(pictures)) for box in _objects(pictures, row, classes)]
        for path in pictures.images:
            Path(path).stat()  # annotations are unpacked before the pictures
    except (OSError, RuntimeError, SyntaxError, KeyError, ValueError) as error:
        raise DataError(
            f"data set {name!r}: torchvision could not read or download VOC2007 in {folder} ({error}); set "
            f"{FOLDER_VARIABLE} to the folder that holds VOCdevkit, or remove a damaged VOCdevkit"
        ) from error
    labels = torch.tensor([label for _, label, _ in boxes], dtype=torch.int64)
    checked = check_labels(labels, len(classes), f"{name} ({which})")

    def read(row: int) -> Image.Image:
        path, _, box = boxes[row]
        return open_image(Path(path)).crop(box)

    files = [Path(p) for p in (*pictures.images, *pictures.annotations)]  # the annotations decide the boxes
    check_files(files)
    split = "test" if which == "test" else "train"
    return ImageSplit(name, split, checked, read, content_as_opened(files), lambda row: str(boxes[row][0]))


def _objects(found: Any, row: int, classes: Sequence[str]) -> list[tuple[str, int, tuple[int, int, int, int]]]:
    """Return (file, class, box) of one picture's objects. Boxes count pixels from 1 and include their last pixels."""
    from torchvision.datasets.voc import ET_parse

    tree = found.parse_voc_xml(ET_parse(found.annotations[row]).getroot())["annotation"]
    objects = []
    for annotation in tree["object"]:
        box = annotation["bndbox"]
        left, top, right, bottom = (int(float(box[k])) for k in ("xmin", "ymin", "xmax", "ymax"))
        objects.append((str(found.images[row]), classes.index(annotation["name"]), (left - 1, top - 1, right, bottom)))
    return objects


def load_cub(name: str, source: Cub, words: Words) -> Dataset:
    """Load CUB-200-2011 by the lists in its archive. Raises DataError if the archive is damaged or cannot be had."""
    with downloading("CUB_200_2011") as folder:
        root = folder / "CUB_200_2011"
        if not root.is_dir():
            _fetch_cub(name, source, folder)
    images, classes = _listed(name, root / "images.txt"), _listed(name, root / "classes.txt")
    labels, training = _listed(name, root / "image_class_labels.txt"), _listed(name, root / "train_test_split.txt")
    numbers = sorted(images, key=int)
    names = [clean(classes[key]) for key in sorted(classes, key=int)]

    def read(which: str) -> ImageSplit:
        rows_of_split = [i for i in numbers if training[i] == ("1" if which == "train" else "0")]
        paths = [root / "images" / images[i] for i in rows_of_split]
        if missing := next((p for p in paths if not p.is_file()), None):
            raise DataError(f"data set {name!r}: {missing} is not there; remove {root} and load it again")
        return from_paths(name, which, paths, [int(labels[i]) - 1 for i in rows_of_split], len(names))

    return assemble(name, names, read("train"), lambda: read("test"), words)


def _listed(name: str, path: Path) -> dict[str, str]:
    """Return the lines of a list, by their number."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return dict(line.split(" ", 1) for line in lines if line.strip())
    except (OSError, ValueError) as error:
        raise DataError(f"data set {name!r}: {path} can't be read ({error}); remove {path.parent}") from error


def _fetch_cub(name: str, source: Cub, folder: Path) -> None:
    """Download and unpack the archive if it is missing."""
    from torchvision.datasets.utils import download_url

    try:
        if not may_download():
            raise OSError(f"it is not in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        download_url(source.url, str(folder), "CUB_200_2011.tgz", source.md5)
        with tarfile.open(folder / "CUB_200_2011.tgz") as archive:
            archive.extractall(folder, filter="data")
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise DataError(
            f"data set {name!r}: CUB_200_2011.tgz could not be had from {source.url} ({error}); put the unpacked "
            f"folder CUB_200_2011 into {folder} (or set {FOLDER_VARIABLE}), or name cub200@hub"
        ) from error


def load_lists(name: str, source: Lists, words: Words) -> Dataset:
    """Load a set by CoOp's lists, whose rows are [file, class number, class name].

    Raises DataError if a folder, list or image is missing or cannot be read.
    """
    root = data_folder() / source.folder
    path, place = root / f"split_zhou_{source.lists}.json", root / source.images
    if not path.is_file() or not place.is_dir():
        raise DataError(
            f"data set {name!r}: {place} and {path} must be there, as CoOp's page of data sets describes; "
            f"{FOLDER_VARIABLE} names the folder above"
        )
    try:
        rows: dict[str, list[tuple[str, int, str]]] = {
            which: [(str(file), int(label), str(word)) for file, label, word in entries_of_split]
            for which, entries_of_split in json.loads(path.read_text(encoding="utf-8")).items()
        }
        names = {label: word for entries in rows.values() for _, label, word in entries}
        parts = {which: rows[which] for which in ("train", "val", "test")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"data set {name!r}: {path} can't be read ({type(error).__name__}: {error})") from error

    def read(which: str) -> ImageSplit:
        paths = [place / file for file, _, _ in parts[which]]
        if missing := next((p for p in paths if not p.is_file()), None):
            raise DataError(f"data set {name!r}: {missing} of {path.name} is not there")
        split = "test" if which == "test" else "train"
        return from_paths(name, split, paths, [label for _, label, _ in parts[which]], len(names))

    words_of = [names[i].replace("_", " ") for i in sorted(names)]
    return assemble(name, words_of, read("train"), lambda: read("test"), words, val=read("val"))
