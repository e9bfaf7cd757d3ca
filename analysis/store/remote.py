"""Copy results to and from file systems that pyarrow reaches: s3://, gs://, hf://, hdfs://, file://.

A results folder there has `tables/NAME/part-*.parquet` and the small JSON files of a local folder, but no journal.
Parts never change. If a part and its copy differ in size, copying was cut off, and the part is copied again.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs

from analysis.errors import StoreError
from analysis.store.schemas import SCHEMAS
from trainables.cache import cache_folder, make_folder
from trainables.errors import first_line

DECLARED = "declared.json"
"""File with the list of the journal's `declare` events. A copy has this file, because it has no journal."""
FACTS = ("spec.json", "sweep.json", "data.json", DECLARED)
"""The small files of a results folder that may change. All other files are immutable."""
_PART = re.compile(r"tables/\w+/part-[\w-]+\.parquet")


@dataclass(frozen=True)
class Location:
    """A folder on a file system.

    Attributes:
        filesystem: pyarrow's access to the file system.
        base: the folder's path there.
        uri: the URI that the user gave.
    """

    filesystem: pafs.FileSystem
    base: str
    uri: str

    @classmethod
    def of(cls, uri: str) -> Location:
        """Make a location from a URI such as s3://bucket/results/fig1, with pyarrow's options (`?region=...`).

        Raises:
            StoreError: pyarrow does not know the scheme or the form, or finds no credentials.
        """
        try:
            filesystem, base = pafs.FileSystem.from_uri(uri)
        except (pa.ArrowException, OSError, ValueError) as error:
            nearest = uri.replace(" ", "%20") if " " in uri else "s3://BUCKET/FOLDER"
            raise StoreError(f"{uri!r} is no place for results: {error}; nearest: {nearest}") from error
        return cls(filesystem, base.rstrip("/"), uri)

    def files(self) -> dict[str, int]:
        """Return the size in bytes of every file there, keyed by its name relative to the folder.

        Raises:
            OSError: the file system does not answer.
        """
        selector = pafs.FileSelector(self.base, recursive=True, allow_not_found=True)
        with _raising_os_errors():
            infos = self.filesystem.get_file_info(selector)
        files = [info for info in infos if info.type == pafs.FileType.File]
        return {str(PurePosixPath(info.path).relative_to(self.base)): info.size for info in files}

    def read(self, name: str) -> bytes:
        """Return the bytes of one file. Raises OSError."""
        with _raising_os_errors(), self.filesystem.open_input_stream(f"{self.base}/{name}") as stream:
            return bytes(stream.read())

    def put(self, source: Path, name: str) -> None:
        """Copy a local file to `name`. A copy that was cut off is replaced.

        Raises:
            OSError: the file did not arrive whole. The next upload sees that from its size and replaces it.
        """
        target = f"{self.base}/{name}"
        local = pafs.LocalFileSystem()
        try:
            with _raising_os_errors():
                self.filesystem.create_dir(str(PurePosixPath(target).parent), recursive=True)
                pafs.copy_files(str(source), target, local, self.filesystem)
                arrived = self.filesystem.get_file_info(target).size
        except OSError as error:
            raise OSError(error.errno, f"{name} could not be stored at {self.uri}: {error}") from error
        size = source.stat().st_size
        if arrived != size:
            raise OSError(f"{name} could not be stored at {self.uri}: {arrived} of {size} bytes arrived")

    def remove(self, folder: str) -> None:
        """Delete a folder there, if it exists."""
        with contextlib.suppress(FileNotFoundError), _raising_os_errors():
            self.filesystem.delete_dir(f"{self.base}/{folder}")

    def fetch(self, folder: Path, *, facts: bool = True) -> int:
        """Copy the parts that a local folder lacks, or has with another size, into it. Return their number.

        Args:
            folder: the local folder.
            facts: whether to replace those of its `FACTS` that differ, too.

        Raises:
            StoreError: a name there leads out of the folder. Nothing was copied.
            OSError: the file system does not answer, or the disk is full.
        """
        size_by_name = self.files()
        if outside := [name for name in size_by_name if ".." in PurePosixPath(name).parts]:
            raise StoreError(
                f"{self.uri}: the file {outside[0]!r} leads out of the folder; no sweep writes one; remove it there"
            )
        names_to_copy = [
            name for name, size in size_by_name.items() if _PART.fullmatch(name) and _size(folder / name) != size
        ]
        if facts:
            names_to_copy += [name for name in FACTS if name in size_by_name and not self._has_same(folder, name)]
        for name in names_to_copy:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            with _raising_os_errors():
                pafs.copy_files(f"{self.base}/{name}", str(draft), self.filesystem, pafs.LocalFileSystem())
            draft.replace(target)
        return len(names_to_copy)

    def _has_same(self, folder: Path, name: str) -> bool:
        path = folder / name
        return path.exists() and path.read_bytes() == self.read(name)


@contextlib.contextmanager
def _raising_os_errors() -> Iterator[None]:
    """Turn every error of a file system into OSError. Those of fsspec, such as `hf://`, raise errors of HTTP."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # of any kind: it is named and raised again
        raise OSError(f"{type(error).__name__}: {first_line(error)}") from error


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def is_uri(path: str | Path) -> bool:
    """Return whether the name of a results folder is a URI."""
    return isinstance(path, str) and "://" in path


def local_copy(uri: str) -> Path:
    """Fetch what is new in the results folder of a URI, and return the local copy of that folder.

    Raises:
        StoreError: the URI is no place for results, has no results, or does not answer.
    """
    location = Location.of(uri)
    try:
        folder = _copies() / hashlib.sha256(uri.encode()).hexdigest()[:16]
        (folder / "tables").mkdir(parents=True, exist_ok=True)
        size_by_name = location.files()
        if not any(name.startswith(tuple(f"tables/{table}/" for table in SCHEMAS)) for name in size_by_name):
            raise StoreError(
                f"{uri} holds no sweep (no tables/); give the folder to which `sweeps run --upload` copied one"
            )
        for part in folder.glob("tables/*/part-*.parquet"):
            if str(part.relative_to(folder).as_posix()) not in size_by_name:
                part.unlink()
        location.fetch(folder)
    except OSError as error:
        raise StoreError(f"{uri} can't be read: {error}") from error
    return folder


def _copies() -> Path:
    """Return this user's folder of local copies. If the cache is off, it is a temporary folder of this process.

    Raises:
        OSError: another user has created something at its path.
    """
    cache = cache_folder("stores")
    if cache is None:
        place = Path(tempfile.mkdtemp(prefix="sweeps-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        return place
    place = cache / f"stores-{os.getuid()}"
    make_folder(place)
    return place
