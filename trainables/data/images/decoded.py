"""Decoded images on disk: Arrow files, memory-mapped, shared by all trials and workers of a machine.

The cache has one folder for each split of a data set and recipe, named by a hash of both. A file in it has the rows
that some trial needed and nobody had decoded before: `row`, `pixels` (3 * S * S bytes) and the `crc` of both. It is
written under a temporary name and renamed, under a lock of the folder, so that a machine decodes a row once. A file
that is incomplete, or that has a row with a wrong checksum, is removed, and its rows are decoded again.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import torch
from torch import Tensor

from trainables.cache import check_owner, draft, in_turn, make_folder, make_room, mark_used

BATCH_BYTES = 2**26
"""Bytes of pixels that are decoded and written at a time."""

_SCHEMA_VERSION = b"2"  # before this version the checksum was over the pixels alone


def _checksum(row: np.int64, pixels: np.ndarray) -> int:
    return zlib.crc32(pixels.data, zlib.crc32(row.tobytes()))


class DecodedRows:
    """The decoded rows of one split under one recipe, in a folder: n rows of `width` bytes each."""

    def __init__(self, folder: Path, n: int, width: int) -> None:
        self.folder, self.width = folder, width
        self._schema = pa.schema(
            [("row", pa.int64()), ("crc", pa.uint32()), ("pixels", pa.binary(width))],
            metadata={"version": _SCHEMA_VERSION, "key": folder.name},
        )
        self._batches: list[tuple[Path, np.ndarray, np.ndarray]] = []  # file, (rows, width) pixels, (rows,) checksums
        self._open: set[Path] = set()
        self._batch = np.full(n, -1, dtype=np.int64)  # which batch holds a row, and at which place
        self._place = np.zeros(n, dtype=np.int64)
        self._checked = np.zeros(n, dtype=bool)
        self.refresh()

    def has(self, rows: Tensor) -> Tensor:
        """Return which rows can be read, (n,) bool."""
        return torch.from_numpy(self._batch[rows.numpy()] >= 0)

    def refresh(self) -> None:
        """Open the files that were written since the last call."""
        try:
            check_owner(self.folder.parent)
            check_owner(self.folder)
        except OSError:  # it is missing or not readable, or another user may have put any pixels there
            return
        for path in sorted(self.folder.glob("*.arrow")):
            if path in self._open:
                continue
            try:
                self._take(path)
            except (
                pa.ArrowException,
                OSError,
                ValueError,
            ):  # incomplete, or of another version: its rows are decoded again
                with contextlib.suppress(OSError):  # the cache is read-only
                    path.unlink(missing_ok=True)

    def _take(self, path: Path) -> None:
        """Open a file, unless it is incomplete or of another version."""
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(self._schema, check_metadata=True):
            raise ValueError(f"{path}: another schema")
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            rows = batch.column("row").to_numpy()
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(self._batch):
                raise ValueError(f"{path}: a row that the split lacks")
            pixels = np.frombuffer(batch.column("pixels").buffers()[1], dtype=np.uint8).reshape(len(rows), self.width)
            self._batch[rows], self._place[rows] = len(self._batches), np.arange(len(rows))
            self._batches.append((path, pixels, batch.column("crc").to_numpy()))
        self._open.add(path)

    def read(self, rows: Tensor) -> Tensor | None:
        """Return rows that `has` reported, (n, width) uint8; None if one was damaged, and its file was removed."""
        index = rows.numpy()
        out = np.empty((len(index), self.width), dtype=np.uint8)
        batches, places = self._batch[index], self._place[index]
        for number in np.unique(batches):
            chosen = batches == number
            out[chosen] = self._batches[number][1][places[chosen]]
        for at in np.flatnonzero(~self._checked[index]):
            path, _, checksums = self._batches[batches[at]]
            if _checksum(index[at], out[at]) != checksums[places[at]]:
                self._drop(path)
                return None
            self._checked[index[at]] = True
        return torch.from_numpy(out)

    def _drop(self, path: Path) -> None:
        """Remove a damaged file, and forget its rows."""
        with contextlib.suppress(OSError):  # otherwise it would count as open, and would not be opened again
            path.unlink(missing_ok=True)
            self._open.discard(path)
        for number, (file_path, _, _) in enumerate(self._batches):
            if file_path == path:
                self._checked[self._batch == number] = False
                self._batch[self._batch == number] = -1

    def add(self, rows: Tensor, decode: Callable[[Tensor], tuple[Tensor, Tensor]], is_same: Callable[[], bool]) -> bool:
        """Decode those of `rows` that nobody has decoded, and store them.

        Return False if there is no room or no writable disk, or if the decoded rows do not belong to this folder.

        Args:
            rows: (n,) distinct rows.
            decode: returns, for some rows, those that can be decoded, and their bytes (n, width) uint8.
            is_same: returns, after decoding, whether the source is still the one that the folder is named after.
        """
        try:
            make_folder(self.folder)
            with in_turn(self.folder):
                self.refresh()
                missing = rows[~self.has(rows)]
                if len(missing) and not make_room(self.folder.parent, len(missing) * self.width, keep=self.folder):
                    return False
                if len(missing) and not self._write(missing, decode, is_same):
                    return False
                mark_used(self.folder)
        except OSError:  # a read-only or full disk: the caller decodes into memory
            return False
        return True

    def _write(
        self, rows: Tensor, decode: Callable[[Tensor], tuple[Tensor, Tensor]], is_same: Callable[[], bool]
    ) -> bool:
        """Decode and write rows to a file."""
        written = 0
        with draft(self.folder) as file:
            with pa.ipc.new_file(str(file), self._schema) as writer:
                for part in torch.split(rows, max(1, BATCH_BYTES // self.width)):
                    good, pixels = decode(part)
                    if len(good):
                        writer.write_batch(self._record_batch(good, pixels))
                        written += len(good)
            if not is_same():
                return False
            if written:
                file.rename(file.with_suffix(".arrow"))
        self.refresh()
        return True

    def _record_batch(self, rows: Tensor, pixels: Tensor) -> pa.RecordBatch:
        """Return rows and pixels as an Arrow record batch with checksums."""
        flat = pixels.contiguous().numpy()
        checksums = np.array([_checksum(*pair) for pair in zip(rows.numpy(), flat, strict=True)], dtype=np.uint32)
        packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(self.width), len(rows), [None, pa.py_buffer(flat)])
        return pa.record_batch([pa.array(rows.numpy()), pa.array(checksums), packed], schema=self._schema)
