"""What a data set's examples are, byte for byte, and which stand in both of its splits; a local model's files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, track

from analysis.format import visible
from analysis.tables.terminal import safe_console
from sweeps.errors import Problem, SpecError
from trainables.cache import cache_folder, check_owner, draft, make_folder, mark_used
from trainables.data.downloads import DataWarning
from trainables.data.images.dataset import Dataset, ImageSplit
from trainables.data.text.dataset import TextDataset, TextSplit
from trainables.digests import DIGEST_SIZE, Display, file_digests
from trainables.models.families import ModelId, parse_id
from trainables.models.loading import fetched

MANY = 20_000
"""Images in a table, or in memory, whose digests are kept in the machine's cache, by what the table holds."""
KIND = "blake2b:"
"""Begins a digest of the examples' bytes; `fingerprint`'s first form, over labels alone, begins with nothing."""
WHOLE = f"{KIND}whole:"
"""Begins a digest of a model's files over every byte; older folders know models by `sliced_digest`."""
COMMIT = "commit:"
"""Begins what a hub model is known by."""
_MOST_SHARED = 0.5
_UNREADABLE = b"can't be read"
_SHORT, _LONG = 2**26, 2**30
_SLICES, _SLICE = 64, 2**16


def fingerprint(dataset: Dataset | TextDataset) -> str:
    """A digest of a data set's class names and of the labels, images or texts of both splits, in order.

    Behind a space, one of an image set's prompts, where older versions end.

    Warns of examples that stand in both splits. Raises SpecError where they are most of the test split.
    """
    train, test = (_digests(part) for part in (dataset.train, dataset.test))
    _refuse_shared(dataset, train, test)
    whole = hashlib.blake2b(label_digest(dataset).encode(), digest_size=32)
    for digest in (*train, *test):
        whole.update(digest)
    if isinstance(dataset, TextDataset):  # whose rows have their prompts
        return KIND + whole.hexdigest()
    words = json.dumps([dataset.templates, dataset.prompt]).encode()
    return f"{KIND}{whole.hexdigest()} {hashlib.blake2b(words, digest_size=DIGEST_SIZE).hexdigest()}"


def model_digest(model_id: str) -> str | None:
    """A digest of a local model's weights, JSON files and words (names, sizes, every byte), or a hub model's commit.

    None for other models, and for one that can't be had.
    """
    parsed = parse_id(model_id)
    if parsed.scheme == "hf":
        return _commit(parsed)
    if parsed.scheme != "local" or parsed.folder is None:
        return None
    files = _model_files(parsed)
    whole = hashlib.blake2b(digest_size=32)
    for path, digest in zip(files, file_digests(files, _display(f"the weights in {parsed.folder.name}")), strict=True):
        whole.update(f"{path.name} {path.stat().st_size}\n".encode())
        whole.update(digest or _UNREADABLE)
    return WHOLE + whole.hexdigest()


def sliced_digest(model_id: str) -> str:
    """What folders of older versions know a local model by: of a large file it reads 64 slices of 64 KiB.

    A change between the slices leaves it as it was. Such a folder is compared by it once, and then has `model_digest`.
    """
    whole = hashlib.blake2b(digest_size=32)
    for path in _model_files(parse_id(model_id)):
        size = path.stat().st_size
        whole.update(f"{path.name} {size}\n".encode())
        slices = _SLICES if size > _SLICES * _SLICE else 1
        with path.open("rb") as file:
            for k in range(slices):
                file.seek(k * (size - _SLICE) // (_SLICES - 1))
                whole.update(file.read(_SLICE if slices > 1 else size))
    return KIND + whole.hexdigest()


def _model_files(parsed: ModelId) -> list[Path]:
    assert parsed.folder is not None
    patterns = (parsed.gguf or "*.safetensors", "*.json", "vocab.txt", "merges.txt", "*.model")
    return [path for pattern in patterns for path in sorted(parsed.folder.glob(pattern))]


def _commit(parsed: ModelId) -> str | None:
    try:
        found = fetched(parsed)  # .../snapshots/COMMIT/NAME
    except (OSError, ValueError):  # not to be had: the trials will say it
        return None
    return None if found is None else f"{COMMIT}{found.parent.name}"


def label_digest(dataset: Dataset | TextDataset) -> str:
    """The same without images: what older versions wrote down."""
    parts = [json.dumps(dataset.class_names)]
    parts += [part.examples_hash(torch.arange(len(part))) for part in (dataset.train, dataset.test)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Shared:
    """Test examples that stand in train too, byte for byte.

    Attributes:
        count: of them.
        words: how many, and one of them with its twin.
        refused: whether they are so many that a run refuses the data.
    """

    count: int
    words: str
    refused: bool


def shared_examples(dataset: Dataset | TextDataset) -> Shared | None:
    """Return the test examples that stand in train too; None if there are none."""
    return _shared(dataset, *(_digests(part) for part in (dataset.train, dataset.test)))


def _shared(dataset: Dataset | TextDataset, train: list[bytes], test: list[bytes]) -> Shared | None:
    known = {digest: row for row, digest in enumerate(train)}
    rows = [row for row, digest in enumerate(test) if digest in known]
    if not rows:
        return None
    first, twin = (_place(*at) for at in ((dataset.test, rows[0]), (dataset.train, known[test[rows[0]]])))
    words = f"{len(rows):,} of {len(test):,} test examples stand in train too, byte for byte: {first} is {twin}"
    return Shared(len(rows), words, len(rows) > _MOST_SHARED * len(test))


def _refuse_shared(dataset: Dataset | TextDataset, train: list[bytes], test: list[bytes]) -> None:
    shared = _shared(dataset, train, test)
    if shared is None:
        return
    rule = f"{shared.words}; take them out of one split"
    if shared.refused:
        raise SpecError([Problem("data.datasets", dataset.name, rule)])
    said = f"data set {dataset.name!r}: {rule}, or say so beside its scores"
    warnings.warn(visible(said), DataWarning, stacklevel=2)


def _place(part: ImageSplit | TextSplit, row: int) -> str:
    """An example's file, or its row."""
    if isinstance(part, TextSplit):
        return part.place(row)
    return f"{part.name} row {row}" if part.file is None else part.file(row)


def _digests(part: ImageSplit | TextSplit) -> list[bytes]:
    """`digest` of every row; what the machine's cache has of it is not read again."""
    if isinstance(part, ImageSplit) and part.file is not None:
        paths = [Path(part.file(row)) for row in range(len(part))]
        found = file_digests(paths, _display(f"{part.source}, {part.name}"))
        return [part.digest(row) if digest is None else digest for row, digest in enumerate(found)]
    kept = None if isinstance(part, TextSplit) or len(part) < MANY else _kept(part)
    if kept is not None and kept.is_file() and kept.stat().st_size == DIGEST_SIZE * len(part):
        mark_used(kept.parent)
        joined = kept.read_bytes()
        return [joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)]
    console = safe_console(stderr=True)
    silent = len(part) < MANY or not console.is_terminal
    text = f"reading {part.source}, {part.name}"
    rows = track(range(len(part)), text, len(part), console=console, transient=True, disable=silent)
    made = [part.digest(row) for row in rows]
    if kept is not None:
        with contextlib.suppress(OSError):  # a cache that is full or can't be written
            make_folder(kept.parent)
            with draft(kept.parent) as file:
                file.write_bytes(b"".join(made))
                file.replace(kept)
    return made


def _kept(part: ImageSplit) -> Path | None:
    """Where the digests of a split are kept, by what its files hold; None if that is unknown."""
    folder = cache_folder()
    if folder is None or part.content is None or (content := part.content()) is None:
        return None
    kept = folder / f"digests-{hashlib.sha256(f'{content}/{len(part)}'.encode()).hexdigest()[:32]}"
    try:
        for each in (folder, kept):
            if each.exists():
                check_owner(each)
    except OSError:  # another user may have put any there, or it can't be searched
        return None
    return kept / "digests"


def _display(what: str) -> Display:
    """Return what shows how far the reading of files is: a bar on a terminal, elsewhere a line if it takes long."""

    @contextlib.contextmanager
    def display(size: int) -> Iterator[Callable[[int], object]]:
        console = safe_console(stderr=True)
        if not console.is_terminal and size >= _LONG:
            said = f"reading {what} whole, {size / 2**30:.1f} GiB; not again until its files change"
            console.print(said, soft_wrap=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        silent = not console.is_terminal or size < _SHORT
        with Progress(*columns, console=console, transient=True, disable=silent) as progress:
            task = progress.add_task(f"reading {what}", total=size)
            yield lambda piece: progress.advance(task, piece)

    return display
