"""CoOp's splits of its 11 image sets, which most work on prompt learning uses (Zhou et al. 2022, arXiv 2109.01134).

The lists are CoOp's own files, `split_zhou_*.json`. The folders are laid out as its page of data sets says
(github.com/KaiyangZhou/CoOp, DATASETS.md). Sizes are those of the paper's appendix, and were not checked against the
files. FGVC Aircraft and UCF101 are the sets `fgvc-aircraft` and `ucf101`, which have the same splits. ImageNet is
`imagenet`, whose validation split CoOp lacks. A template is CoOp's hand-written prompt.
"""

from __future__ import annotations

import functools
import json

from trainables.data.downloads import FOLDER_VARIABLE, data_folder
from trainables.data.images.dataset import DEFAULT_PROMPT, Dataset, ImageSplit, Words, assemble, from_paths
from trainables.data.images.info import DatasetInfo, Sizes
from trainables.errors import DataError


def load_lists(name: str, words: Words, *, folder: str, images: str, lists: str) -> Dataset:
    """Load a set by CoOp's lists, whose rows are [file, class number, class name].

    Args:
        name: the set's name.
        words: its prompts and class names.
        folder: its folder in the folder of data sets.
        images: the folder in it that file names start from; "" for itself.
        lists: the list in it is split_zhou_`lists`.json.

    Raises:
        DataError: a folder, list or image is missing or cannot be read.
    """
    root = data_folder() / folder
    path, place = root / f"split_zhou_{lists}.json", root / images
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


def _set(
    folder: str, images: str, lists: str, about: str, classes: int, sizes: tuple[int, int, int], template: str
) -> DatasetInfo:
    """Return the registry's entry of a set."""
    return DatasetInfo(
        functools.partial(load_lists, folder=folder, images=images, lists=lists),
        (template,),
        about=f"{about}, CoOp's split",
        prompt=DEFAULT_PROMPT,
        classes=classes,
        sizes=Sizes(*sizes),
        rule="CoOp's lists",
        source="a folder you make",
        get=f"put {images or 'its folders'} and split_zhou_{lists}.json into {folder}/ of the data folder",
    )


COOP_SETS: dict[str, DatasetInfo] = {
    "coop-caltech101": _set(
        "caltech-101", "101_ObjectCategories", "Caltech101", "Caltech-101 without background and easy faces", 100,
        (4128, 1649, 2465), "a photo of a {}.",
    ),
    "coop-pets": _set(
        "oxford_pets", "images", "OxfordPets", "Oxford-IIIT Pet", 37, (2944, 736, 3669),
        "a photo of a {}, a type of pet.",
    ),
    "coop-cars": _set(
        "stanford_cars", "", "StanfordCars", "Stanford Cars", 196, (6509, 1635, 8041), "a photo of a {}.",
    ),
    "coop-flowers102": _set(
        "oxford_flowers", "jpg", "OxfordFlowers", "Oxford Flowers 102", 102, (4093, 1633, 2463),
        "a photo of a {}, a type of flower.",
    ),
    "coop-food101": _set(
        "food-101", "images", "Food101", "Food-101", 101, (50500, 20200, 30300), "a photo of {}, a type of food.",
    ),
    "coop-sun397": _set("sun397", "SUN397", "SUN397", "SUN397", 397, (15880, 3970, 19850), "a photo of a {}."),
    "coop-dtd": _set(
        "dtd", "images", "DescribableTextures", "describable textures", 47, (2820, 1128, 1692), "{} texture.",
    ),
    "coop-eurosat": _set(
        "eurosat", "2750", "EuroSAT", "EuroSAT, satellite land use", 10, (13500, 5400, 8100),
        "a centered satellite photo of {}.",
    ),
}  # fmt: skip
