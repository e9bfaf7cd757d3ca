"""Data sets by name.

| form | what |
|---|---|
| `embedded:NAME` | shipped with the package |
| a plain name, `cifar100` | registered (`facts`): downloaded on first use, or it says how to get it |
| `NAME@SOURCE`, `cifar100@hub` | a registered set from another of its sources |
| `parquet:FOLDER`, `arrow:FOLDER` | the hub's file form on disk |
| `folder:FOLDER` | `{train,test}/CLASS/IMAGE` |
| `hf:ORG/NAME` | any image classification set of the hub with splits train and test |

Text sets have names and forms of their own: `data.text.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from randlora.errors import nearest
from trainables.config import Protocol, Stage, TrainSize, shots
from trainables.data.facts import IMAGE_SETS, TEXT_SETS, ImageSet, facts_of
from trainables.data.images.dataset import Dataset
from trainables.data.images.registered import open_set, source_of
from trainables.data.images.sources import from_arrow, from_folder, from_hub, from_parquet
from trainables.data.splits import split
from trainables.data.text.dataset import TextDataset
from trainables.data.text.registry import TEXT_FORMS, text_loader
from trainables.errors import DataError, folder_of

EMBEDDED = Path(__file__).parents[1] / "embedded"

_FROM_PATH: dict[str, Callable[[str, Path], Dataset]] = {
    "parquet": from_parquet,
    "arrow": from_arrow,
    "folder": from_folder,
}
FORMS = "NAME, NAME@SOURCE, embedded:NAME, parquet:FOLDER, arrow:FOLDER, folder:FOLDER, hf:ORG/NAME, "
FORMS += ", ".join([*(f"{form}:FOLDER" for form in TEXT_FORMS), "sft-hf:ORG/NAME"])


FEW_SHOT_EPOCHS = 10
"""Epochs at every number of shots (arXiv 2502.00987, section C.1)."""


def paper_epochs(name: str, train_size: TrainSize) -> int | None:
    """Return the number of epochs for which arXiv 2502.00987 trains a data set at a size; None for a set that it does
    not use."""
    info = facts_of(name)
    if info is None or info.epochs is None:
        return None
    few = isinstance(info, ImageSet) and shots(train_size) is not None
    return FEW_SHOT_EPOCHS if few else info.epochs


def classes_of(name: str) -> int | None:
    """Return the number of classes of a registered set, without reading its data; None if the registry lacks it."""
    info = facts_of(name)
    return info.classes if isinstance(info, ImageSet) else None


def embedded_datasets() -> tuple[str, ...]:
    """Return the ids of the sets that come with the package."""
    return tuple(f"embedded:{p.parent.name}" for p in sorted(EMBEDDED.glob("*/train.parquet")))


def known_datasets() -> tuple[str, ...]:
    """Return every id that can be given without a path: the embedded sets and the registered ones."""
    return (*embedded_datasets(), *IMAGE_SETS, *TEXT_SETS)


def check_dataset(
    name: str, train_sizes: Iterable[TrainSize] = (), protocol: Protocol = "standard", keep: int = 0
) -> None:
    """Raise DataError for an unknown name, and for train sizes that a set on this disk cannot give.

    Nothing is downloaded. The sizes of registered and hub sets are checked when a trial loads them.

    Args:
        name: the id.
        train_sizes: the sizes to check.
        protocol: the protocol of the trials.
        keep: as in `split`.

    Raises:
        DataError: the message has the nearest names, or the largest size that works.
    """
    load = text_loader(name) or _loader(name)
    sizes = list(train_sizes)
    if sizes and on_disk(name):
        data = load()
        for size in sizes:
            split(data, size, data_seed=0, stage="TUNE", protocol=protocol, keep=keep)


def on_disk(name: str) -> bool:
    """Return whether an id names files of this machine, which are read without a download."""
    form, colon, _ = name.partition(":")
    return bool(colon) and form in ("embedded", *_FROM_PATH, *TEXT_FORMS)


def load_dataset(name: str, *, stage: Stage = "TUNE") -> Dataset:
    """Load an image set. Nothing is decoded yet.

    Args:
        name: the id.
        stage: in stage TUNE the test split is closed; `.at("CONFIRM")` opens it.

    Raises:
        DataError: the name is unknown, or files, columns or splits are missing or damaged.
    """
    return _loader(name)().at(stage)


def load_text_dataset(name: str, *, stage: Stage = "TUNE") -> TextDataset:
    """Load a text set, as `load_dataset` loads an image set. Raises DataError that names file and row."""
    load = text_loader(name)
    if load is None:
        ids = [*TEXT_SETS, *(f"{form}:FOLDER" for form in TEXT_FORMS)]
        raise DataError(f"data set {name!r} is no text set, and the model reads text; {nearest(name, ids)}")
    return load().at(stage)


def _loader(name: str) -> Callable[[], Dataset]:
    """Return the function that loads the image set of an id."""
    if text_loader(name) is not None:
        raise DataError(f"data set {name!r} is a text set, and images are needed; {nearest(name, IMAGE_SETS)}")
    if isinstance(info := facts_of(name), ImageSet):
        source = source_of(name, info)
        return lambda: open_set(name, info, source)
    form, _, rest = name.partition(":")
    if form == "embedded" and name in embedded_datasets():
        return lambda: from_parquet(name, EMBEDDED / rest)
    if form in _FROM_PATH and rest:
        folder = folder_of(name, rest)
        return lambda: _FROM_PATH[form](name, folder)
    if form == "hf" and rest:
        return lambda: from_hub(name, rest)
    raise DataError(f"unknown data set {name!r}; {nearest(name, known_datasets())}; forms: {FORMS}")
