"""Results on a file system that pyarrow reaches (s3://, gs://, hdfs://, file://): every file is whole, or not there.

A results folder there holds `tables/NAME/part-*.parquet` and the small JSON files of a local one, not its journal.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs

from analysis.errors import StoreError
from analysis.store.schemas import SCHEMAS
from analysis.store.tables import sync_folder
from trainables.cache import FOLDER_VARIABLE, cache_folder

DECLARED = "declared.json"
"""The journal's `declare` events, a list: they outlive the journal, which no copy has."""
FACTS = ("spec.json", "sweep.json", "data.json", DECLARED)
"""Small files of a results folder that may change; all others are immutable."""
STAGING = ".uploading"
_PART = re.compile(r"tables/\w+/part-[\w-]+\.parquet")


@dataclass(frozen=True)
class Location:
    """A folder on a file system, and how it was asked for."""

    filesystem: pafs.FileSystem
    base: str
    uri: str

    @classmethod
    def of(cls, uri: str) -> Location:
        """From a URI such as s3://bucket/results/fig1; options as pyarrow reads them (`?region=...`).

        Raises:
            StoreError: a scheme or form that pyarrow does not know, or credentials it can't find.
        """
        try:
            filesystem, base = pafs.FileSystem.from_uri(uri)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(f"{uri!r} is no place for results: {error}; nearest: s3://BUCKET/FOLDER") from error
        return cls(filesystem, base.rstrip("/"), uri)

    def files(self) -> dict[str, int]:
        """Size in bytes of every whole file there, by its name relative to the folder.

        Raises:
            OSError: the file system does not answer.
        """
        selector = pafs.FileSelector(self.base, recursive=True, allow_not_found=True)
        found = {}
        for info in self.filesystem.get_file_info(selector):
            name = str(PurePosixPath(info.path).relative_to(self.base))
            if info.type == pafs.FileType.File and not name.startswith(STAGING):
                found[name] = info.size
        return found

    def read(self, name: str) -> bytes:
        """One file. Raises OSError."""
        with self.filesystem.open_input_stream(f"{self.base}/{name}") as stream:
            return bytes(stream.read())

    def put(self, source: Path, name: str) -> None:
        """Copy a local file there: written under another name, its size compared, then moved.

        Raises:
            OSError: it could not be written; nothing stands under its name then, or what stood there before.
        """
        draft, final = f"{self.base}/{STAGING}/{uuid.uuid4().hex}", f"{self.base}/{name}"
        for place in (draft, final):
            self.filesystem.create_dir(str(PurePosixPath(place).parent), recursive=True)
        try:
            with source.open("rb") as file, self.filesystem.open_output_stream(draft) as stream:
                shutil.copyfileobj(file, stream, 1 << 20)
            written = self.filesystem.get_file_info(draft).size
            if written != source.stat().st_size:
                raise OSError(f"{written} of {source.stat().st_size} bytes of {name} arrived at {self.uri}")
            self.filesystem.move(draft, final)
        except (pa.ArrowException, OSError) as error:
            with contextlib.suppress(pa.ArrowException, OSError):
                self.filesystem.delete_file(draft)
            raise OSError(
                getattr(error, "errno", None), f"{name} could not be stored at {self.uri}: {error}"
            ) from error

    def remove(self, folder: str) -> None:
        """Delete a folder there, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(f"{self.base}/{folder}")

    def fetch(self, folder: Path, only: Container[str] | None = None) -> int:
        """Copy tables and facts that a local folder lacks into it; how many files came.

        Args:
            only: names of parts to copy instead, over what the folder has of them.

        Raises:
            StoreError: a name there leads out of the folder; nothing was copied.
            OSError: the file system does not answer, or the disk is full.
        """
        count = 0
        there = sorted(self.files())
        if out := [name for name in there if ".." in PurePosixPath(name).parts]:
            raise StoreError(f"{self.uri}: {out[0]!r} leads out of the folder, as no sweep writes it; remove it there")
        for name in there:
            if (name not in FACTS and _PART.fullmatch(name) is None) or (only is not None and name not in only):
                continue
            table, target = name not in FACTS, folder / name
            if table and only is None and target.exists():
                continue
            data = self.read(name)
            if not target.exists() or target.read_bytes() != data:
                target.parent.mkdir(parents=True, exist_ok=True)
                draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(target)
                sync_folder(target.parent)
                count += 1
        return count


def is_uri(path: str | Path) -> bool:
    """Whether a results folder is named by a URI."""
    return isinstance(path, str) and "://" in path


def local_copy(uri: str) -> Path:
    """A local folder with what a URI's results folder holds now; it fetches what is new there.

    Raises:
        StoreError: no place for results, no results there, or no answer.
    """
    location = Location.of(uri)
    try:
        folder = _copies() / hashlib.sha256(uri.encode()).hexdigest()[:16]
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        there = location.files()
        if not any(name.startswith(tuple(f"tables/{table}/" for table in SCHEMAS)) for name in there):
            raise StoreError(f"{uri} holds no sweep (no tables/)")
        for part in folder.glob("tables/*/part-*.parquet"):
            if str(part.relative_to(folder).as_posix()) not in there:
                part.unlink()
        location.fetch(folder)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{uri} can't be read: {error}") from error
    return folder


def _copies() -> Path:
    """The folder of all local copies, this user's alone; one for this process where the cache is switched off.

    Raises:
        StoreError: another user has put something in its place.
    """
    cache = cache_folder("stores")
    if cache is None:
        place = Path(tempfile.mkdtemp(prefix="sweeps-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        return place
    place = cache / f"stores-{os.getuid()}"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        rule = "is a link or another user's, so what is read there can't be trusted; remove it"
        raise StoreError(f"{place} {rule}, or set {FOLDER_VARIABLE} to a folder of yours")
    return place
