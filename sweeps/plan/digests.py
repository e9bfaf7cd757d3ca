"""Computes digests of data sets and models, and finds examples that are in both splits of a data set."""

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
from analysis.sheets.terminal import safe_console
from sweeps.errors import Problem, SpecError
from trainables.cache import cache_folder, check_owner, draft, make_folder, mark_used
from trainables.data.downloads import DataWarning
from trainables.data.images.dataset import Dataset, ImageSplit
from trainables.data.text.dataset import TextDataset, TextSplit
from trainables.digests import DIGEST_SIZE, Display, file_digests
from trainables.models.families import ModelId, parse_id
from trainables.models.loading import fetched

MANY = 20_000
"""From this number of images in a table or in memory on, their digests are cached on this machine."""
KIND = "blake2b:"
"""The beginning of a digest over the bytes of examples. Digests of older versions, over labels only, have none."""
WHOLE = f"{KIND}whole:"
"""The beginning of a digest over every byte of a model's files. Older folders have `sliced_digest` instead."""
COMMIT = "commit:"
"""The beginning of the digest of a hub model, which is its commit."""
_MOST_SHARED = 0.5
_UNREADABLE = b"can't be read"
_SHORT, _LONG = 2**26, 2**30
_SLICES, _SLICE = 64, 2**16


def fingerprint(dataset: Dataset | TextDataset) -> str:
    """Return a digest of a data set: class names, and labels, images or texts of both splits, in order.

    For images, a digest of the prompts follows after a space (older versions lack it). Warns of examples that are in
    both splits.

    Raises:
        SpecError: most of the test split is in train too.
    """
    train, test = (_digests(part) for part in (dataset.train, dataset.test))
    _refuse_shared(dataset, train, test)
    hasher = hashlib.blake2b(label_digest(dataset).encode(), digest_size=32)
    for digest in (*train, *test):
        hasher.update(digest)
    if isinstance(dataset, TextDataset):  # the rows contain the prompts
        return KIND + hasher.hexdigest()
    words = json.dumps([dataset.templates, dataset.prompt]).encode()
    return f"{KIND}{hasher.hexdigest()} {hashlib.blake2b(words, digest_size=DIGEST_SIZE).hexdigest()}"


def model_digest(model_id: str) -> str | None:
    """Return a digest of a local model's files (names, sizes and every byte), or the commit of a hub model.

    The files are weights, JSON files and vocabularies. None for other models, and for a model that can't be read.
    """
    parsed = parse_id(model_id)
    if parsed.scheme == "hf":
        return _commit(parsed)
    if parsed.scheme != "local" or parsed.folder is None:
        return None
    files = _model_files(parsed)
    hasher = hashlib.blake2b(digest_size=32)
    for path, digest in zip(files, file_digests(files, _display(f"the weights in {parsed.folder.name}")), strict=True):
        hasher.update(f"{path.name} {path.stat().st_size}\n".encode())
        hasher.update(digest or _UNREADABLE)
    return WHOLE + hasher.hexdigest()


def sliced_digest(model_id: str) -> str:
    """Return the digest of a local model that folders of older versions have. It reads 64 slices of a large file.

    A slice has 64 KiB, and a change between slices does not change the digest. Such a folder is compared by it once,
    and then gets `model_digest`.
    """
    hasher = hashlib.blake2b(digest_size=32)
    for path in _model_files(parse_id(model_id)):
        size = path.stat().st_size
        hasher.update(f"{path.name} {size}\n".encode())
        slices = _SLICES if size > _SLICES * _SLICE else 1
        with path.open("rb") as file:
            for k in range(slices):
                file.seek(k * (size - _SLICE) // (_SLICES - 1))
                hasher.update(file.read(_SLICE if slices > 1 else size))
    return KIND + hasher.hexdigest()


def _model_files(parsed: ModelId) -> list[Path]:
    assert parsed.folder is not None
    patterns = (parsed.gguf or "*.safetensors", "*.json", "vocab.txt", "merges.txt", "*.model", "*.jinja")
    return [path for pattern in patterns for path in sorted(parsed.folder.glob(pattern))]


def _commit(parsed: ModelId) -> str | None:
    try:
        file = fetched(parsed)  # .../snapshots/COMMIT/NAME
    except (OSError, ValueError):  # it can't be read: the trials will say so
        return None
    return None if file is None else f"{COMMIT}{file.parent.name}"


def label_digest(dataset: Dataset | TextDataset) -> str:
    """Return the digest of a data set that older versions wrote: without the images."""
    parts = [json.dumps(dataset.class_names)]
    parts += [part.examples_hash(torch.arange(len(part))) for part in (dataset.train, dataset.test)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Shared:
    """Test examples that are in train too, byte for byte.

    Attributes:
        count: their number.
        words: a text with their number, and one of them with its twin.
        refused: whether there are so many that a run refuses the data.
    """

    count: int
    words: str
    refused: bool


def shared_examples(dataset: Dataset | TextDataset) -> Shared | None:
    """Return the test examples that are in train too; None if there are none."""
    return _shared(dataset, *(_digests(part) for part in (dataset.train, dataset.test)))


def _shared(dataset: Dataset | TextDataset, train: list[bytes], test: list[bytes]) -> Shared | None:
    train_rows = {digest: row for row, digest in enumerate(train)}
    rows = [row for row, digest in enumerate(test) if digest in train_rows]
    if not rows:
        return None
    first, twin = (_example_name(*at) for at in ((dataset.test, rows[0]), (dataset.train, train_rows[test[rows[0]]])))
    words = f"{len(rows):,} of {len(test):,} test examples are in train too, byte for byte: {first} is {twin}"
    return Shared(len(rows), words, len(rows) > _MOST_SHARED * len(test))


def _refuse_shared(dataset: Dataset | TextDataset, train: list[bytes], test: list[bytes]) -> None:
    shared = _shared(dataset, train, test)
    if shared is None:
        return
    rule = f"{shared.words}; take them out of one split"
    if shared.refused:
        raise SpecError([Problem("data.datasets", dataset.name, rule)])
    warning = f"data set {dataset.name!r}: {rule}, or say so beside its scores"
    warnings.warn(visible(warning), DataWarning, stacklevel=2)


def _example_name(part: ImageSplit | TextSplit, row: int) -> str:
    """Return the name of an example's file, or of its row."""
    if isinstance(part, TextSplit):
        return part.place(row)
    return f"{part.name} row {row}" if part.file is None else part.file(row)


def _digests(part: ImageSplit | TextSplit) -> list[bytes]:
    """Return the digest of every row. Digests in the machine's cache are not computed again."""
    if isinstance(part, ImageSplit) and part.file is not None:
        paths = [Path(part.file(row)) for row in range(len(part))]
        of_files = file_digests(paths, _display(f"{part.source}, {part.name}"))
        return [part.digest(row) if digest is None else digest for row, digest in enumerate(of_files)]
    cached = None if isinstance(part, TextSplit) or len(part) < MANY else _cache_file(part)
    if cached is not None and cached.is_file() and cached.stat().st_size == DIGEST_SIZE * len(part):
        mark_used(cached.parent)
        joined = cached.read_bytes()
        return [joined[at : at + DIGEST_SIZE] for at in range(0, len(joined), DIGEST_SIZE)]
    console = safe_console(stderr=True)
    silent = len(part) < MANY or not console.is_terminal
    text = f"reading {part.source}, {part.name}"
    rows = track(range(len(part)), text, len(part), console=console, transient=True, disable=silent)
    digests = [part.digest(row) for row in rows]
    if cached is not None:
        with contextlib.suppress(OSError):  # a cache that is full or can't be written
            make_folder(cached.parent)
            with draft(cached.parent) as file:
                file.write_bytes(b"".join(digests))
                file.replace(cached)
    return digests


def _cache_file(part: ImageSplit) -> Path | None:
    """Return the cache file for the digests of a split; None if there is no cache, or its content is not known."""
    folder = cache_folder()
    if folder is None or part.content is None or (content := part.content()) is None:
        return None
    digests_folder = folder / f"digests-{hashlib.sha256(f'{content}/{len(part)}'.encode()).hexdigest()[:32]}"
    try:
        for each in (folder, digests_folder):
            if each.exists():
                check_owner(each)
    except OSError:  # another user may have written it, or it can't be read
        return None
    return digests_folder / "digests"


def _display(what: str) -> Display:
    """Return a display for the reading of files: a bar on a terminal, else a line if the files are large."""

    @contextlib.contextmanager
    def display(size: int) -> Iterator[Callable[[int], object]]:
        console = safe_console(stderr=True)
        if not console.is_terminal and size >= _LONG:
            line = f"reading {what} whole, {size / 2**30:.1f} GiB; not again until its files change"
            console.print(line, soft_wrap=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        silent = not console.is_terminal or size < _SHORT
        with Progress(*columns, console=console, transient=True, disable=silent) as progress:
            task = progress.add_task(f"reading {what}", total=size)
            yield lambda piece: progress.advance(task, piece)

    return display
