"""Load image sets that no library loads: object crops of VOC2007, and CUB-200-2011's archive."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainables.data.downloads import FOLDER_VARIABLE, downloading, may_download
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
from trainables.data.images.info import class_words, clean
from trainables.digests import content_as_opened
from trainables.errors import DataError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_CUB_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1"
_CUB_MD5 = "97eceeb196236b17998738112f37df78"


def load_voc(name: str, words: Words) -> Dataset:
    """Load VOC2007: every annotated object, difficult ones too, is cut out by its box. Raises DataError if that
    fails."""
    names = [clean(c, class_words("voc")) for c in VOC_CLASSES]
    train, val = _voc_split(name, "train"), _voc_split(name, "val")
    return assemble(name, names, train, lambda: _voc_split(name, "test"), words, val=val)


def _voc_split(name: str, which: str) -> ImageSplit:
    """Return a split of VOC2007's objects."""
    import torchvision

    try:
        with downloading("VOC2007") as folder:
            lists = folder / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / f"{which}.txt"
            fetch = may_download() and not lists.is_file()  # torchvision would unpack the archive each time
            pictures = torchvision.datasets.VOCDetection(str(folder), "2007", which, download=fetch)
        boxes = [box for row in range(len(pictures)) for box in _objects(pictures, row)]
        for path in pictures.images:
            Path(path).stat()  # annotations are unpacked before the pictures
    except (OSError, RuntimeError, SyntaxError, KeyError, ValueError) as error:
        raise DataError(
            f"data set {name!r}: torchvision could not read or download VOC2007 in {folder} ({error}); set "
            f"{FOLDER_VARIABLE} to the folder that holds VOCdevkit, or remove a damaged VOCdevkit"
        ) from error
    labels = torch.tensor([label for _, label, _ in boxes], dtype=torch.int64)
    checked = check_labels(labels, len(VOC_CLASSES), f"{name} ({which})")

    def read(row: int) -> Image.Image:
        path, _, box = boxes[row]
        return open_image(Path(path)).crop(box)

    files = [Path(p) for p in (*pictures.images, *pictures.annotations)]  # the annotations decide the boxes
    check_files(files)
    split = "test" if which == "test" else "train"
    return ImageSplit(name, split, checked, read, content_as_opened(files), lambda row: str(boxes[row][0]))


def _objects(found: Any, row: int) -> list[tuple[str, int, tuple[int, int, int, int]]]:
    """Return (file, class, box) of one picture's objects. Boxes count pixels from 1 and include their last pixels."""
    from torchvision.datasets.voc import ET_parse

    tree = found.parse_voc_xml(ET_parse(found.annotations[row]).getroot())["annotation"]
    objects = []
    for annotation in tree["object"]:
        box = annotation["bndbox"]
        left, top, right, bottom = (int(float(box[k])) for k in ("xmin", "ymin", "xmax", "ymax"))
        objects.append(
            (str(found.images[row]), VOC_CLASSES.index(annotation["name"]), (left - 1, top - 1, right, bottom))
        )
    return objects


def load_cub(name: str, words: Words) -> Dataset:
    """Load CUB-200-2011 by the lists in its archive. Raises DataError if the archive is damaged or cannot be had."""
    with downloading("CUB_200_2011") as folder:
        root = folder / "CUB_200_2011"
        if not root.is_dir():
            _fetch_cub(name, folder)
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


def _fetch_cub(name: str, folder: Path) -> None:
    """Download and unpack the archive if it is missing."""
    from torchvision.datasets.utils import download_url

    try:
        if not may_download():
            raise OSError(f"it is not in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        download_url(_CUB_URL, str(folder), "CUB_200_2011.tgz", _CUB_MD5)
        with tarfile.open(folder / "CUB_200_2011.tgz") as archive:
            archive.extractall(folder, filter="data")
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise DataError(
            f"data set {name!r}: CUB_200_2011.tgz could not be had from {_CUB_URL} ({error}); put the unpacked folder "
            f"CUB_200_2011 into {folder} (or set {FOLDER_VARIABLE}), or name cub200@hub"
        ) from error
