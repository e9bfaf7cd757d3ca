"""Data sets by name.

| form | what |
|---|---|
| `embedded:NAME` | shipped with the package |
| a plain name, `cifar100` | registered: torchvision or the hub, downloaded on first use |
| `parquet:FOLDER`, `arrow:FOLDER` | the hub's file form on disk |
| `folder:FOLDER` | `{train,test}/CLASS/IMAGE` |
| `hf:ORG/NAME` | any image classification set of the hub with splits train and test |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainables.config import Protocol, Stage, TrainSize
from trainables.data import vision
from trainables.data.dataset import Dataset, check_templates
from trainables.data.sources import Words, from_arrow, from_folder, from_hub, from_parquet
from trainables.data.splits import split
from trainables.errors import DataError, nearest

EMBEDDED = Path(__file__).parents[1] / "embedded"

_FROM_PATH: dict[str, Callable[[str, Path], Dataset]] = {
    "parquet": from_parquet,
    "arrow": from_arrow,
    "folder": from_folder,
}
FORMS = "NAME, embedded:NAME, parquet:FOLDER, arrow:FOLDER, folder:FOLDER, hf:ORG/NAME"


@dataclass(frozen=True)
class DatasetInfo:
    """A registered data set.

    Attributes:
        load: makes the Dataset, given its name and its words.
        templates: prompts with one "{}"; () for the defaults.
        epochs: full-data epochs of arXiv 2502.00987, Table 7; None for a set it does not use.
        about: one line for people.
    """

    load: Callable[[str, Words], Dataset]
    templates: tuple[str, ...] = ()
    epochs: int | None = None
    about: str = ""
    prompt: str | None = field(default=None)

    def __post_init__(self) -> None:
        if self.templates:
            check_templates(self.templates, self.about or "registered data set")


def _hub(repository: str) -> Callable[[str, Words], Dataset]:
    return lambda name, words: from_hub(name, repository, words)


def _torchvision(key: str) -> Callable[[str, Words], Dataset]:
    return lambda name, words: vision.load(name, key, words)


_PHOTO = ("a photo of a {}.", "a blurry photo of a {}.", "a photo of the {}.", "a close-up photo of a {}.")
_TEXTURE = ("a photo of a {} texture.", "a photo of a {} pattern.", "a photo of a {} thing.")
_AERIAL = ("a satellite photo of {}.", "an aerial photograph of {}.", "a top-down view of {}.")
_DIGIT = ('a photo of the number: "{}".', "a handwritten digit {}.")

DATASETS: dict[str, DatasetInfo] = {
    "cifar10": DatasetInfo(_torchvision("cifar10"), _PHOTO, 5, "CIFAR-10, 32 px photographs"),
    "cifar100": DatasetInfo(_torchvision("cifar100"), _PHOTO, 6, "CIFAR-100, 32 px photographs"),
    "mnist": DatasetInfo(_torchvision("mnist"), _DIGIT, 5, "MNIST, handwritten digits"),
    "fashion-mnist": DatasetInfo(_torchvision("fashion-mnist"), ("a photo of a {}.",), None, "Fashion-MNIST, 28 px"),
    "svhn": DatasetInfo(_torchvision("svhn"), ('a street sign of the number: "{}".',), 4, "house numbers"),
    "stl10": DatasetInfo(_torchvision("stl10"), _PHOTO, 4, "STL-10, 96 px photographs"),
    "dtd": DatasetInfo(_torchvision("dtd"), _TEXTURE, 76, "describable textures, split 1, train + val"),
    "food101": DatasetInfo(_torchvision("food101"), ("a photo of {}, a type of food.",), 15, "Food-101"),
    "fgvc-aircraft": DatasetInfo(
        _torchvision("fgvc-aircraft"), ("a photo of a {}, a type of aircraft.",), 60, "FGVC Aircraft, variants"
    ),
    "flowers102": DatasetInfo(
        _torchvision("flowers102"), ("a photo of a {}, a type of flower.",), 40, "Oxford Flowers 102"
    ),
    "oxford-pets": DatasetInfo(
        _torchvision("oxford-pets"), ("a photo of a {}, a type of pet.",), 5, "Oxford-IIIT Pet, trainval"
    ),
    "eurosat": DatasetInfo(_hub("tanganke/eurosat"), _AERIAL, 12, "EuroSAT, satellite land use"),
    "resisc45": DatasetInfo(_hub("tanganke/resisc45"), _AERIAL, 15, "RESISC45, aerial scenes"),
    "sun397": DatasetInfo(_hub("tanganke/sun397"), ("a photo of a {}.",), 14, "SUN397, scenes"),
    "cars": DatasetInfo(_hub("tanganke/stanford_cars"), ("a photo of a {}.", "a photo of my {}."), 35, "Stanford Cars"),
}


def register(name: str, info: DatasetInfo, *, registry: dict[str, DatasetInfo] | None = None) -> None:
    """Add a data set. Raises DataError when the name is taken or holds a colon."""
    registry = DATASETS if registry is None else registry
    if name in registry or ":" in name:
        raise DataError(f"data set name {name!r} is taken or holds ':'; choose another")
    registry[name] = info


def embedded_datasets() -> tuple[str, ...]:
    """Ids of the sets that come with the package."""
    return tuple(f"embedded:{p.parent.name}" for p in sorted(EMBEDDED.glob("*/train.parquet")))


def known_datasets() -> tuple[str, ...]:
    """Every id that can be named without a path: the embedded sets and the registered ones."""
    return (*embedded_datasets(), *DATASETS)


def check_dataset(name: str, train_sizes: Iterable[TrainSize] = (), protocol: Protocol = "standard") -> None:
    """Refuse a name that means nothing, and train sizes that a set on this disk cannot give.

    Nothing is downloaded: the sizes of registered and hub sets are checked when a trial loads them.

    Raises:
        DataError: with the nearest names, or the largest size that works.
    """
    load = _loader(name)
    sizes = list(train_sizes)
    if sizes and name.partition(":")[0] in ("embedded", *_FROM_PATH):
        data = load()
        for size in sizes:
            split(data, size, data_seed=0, stage="TUNE", protocol=protocol)


def load_dataset(name: str, *, stage: Stage = "TUNE") -> Dataset:
    """Load a data set: words, labels and encoded images; nothing is decoded yet.

    Its test split is closed until `.at("CONFIRM")` (or stage="CONFIRM" here).

    Raises:
        DataError: unknown name, missing or damaged files, columns or splits that are not there.
    """
    return _loader(name)().at(stage)


def _loader(name: str) -> Callable[[], Dataset]:
    if name in DATASETS:
        info = DATASETS[name]
        words = Words(info.templates or None, info.prompt)
        return lambda: info.load(name, words)
    form, _, rest = name.partition(":")
    if form == "embedded" and name in embedded_datasets():
        return lambda: from_parquet(name, EMBEDDED / rest)
    if form in _FROM_PATH and rest:
        folder = Path(rest).expanduser()
        if not folder.is_dir():
            beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
            raise DataError(f"data set {name!r}: no folder {folder}; {nearest(folder.name, beside)}")
        return lambda: _FROM_PATH[form](name, folder)
    if form == "hf" and rest:
        return lambda: from_hub(name, rest)
    choices: Mapping[str, object] = dict.fromkeys(known_datasets())
    raise DataError(f"unknown data set {name!r}; {nearest(name, choices)}; forms: {FORMS}")
