"""Copy a results folder elsewhere while the sweep runs: sealed parts, JSON files and kept adapters.

If the driver's machine is lost, at most the trials of the last five minutes are lost with it: a trial waits up to
`EVERY_S` seconds until it is sealed, and as long until it is copied. A run on another machine fetches the copy and goes
on from it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis.store.diagnostic_rows import ROWS as DIAGNOSTICS
from analysis.store.journal import JOURNAL
from analysis.store.remote import FACTS, Location
from analysis.store.schemas import SCHEMAS
from analysis.store.tables import scan_parts, set_aside
from sweeps.errors import Problem, SpecError
from sweeps.records.locks import IdentityError, refuse_other, stored_identity
from trainables.errors import first_line

EVERY_S = 150.0
"""The most seconds that a finished trial waits to be sealed. Also the seconds between two copies."""
TABLES = (*(row.table for row in DIAGNOSTICS), "predictions", "metrics", "trials", "choices", "cells")
"""The tables in the order of copying. `trials` comes after `metrics`, so a copied trial has all its rows there."""
_META = ("adapter.json", "weights.json")
"""The file of an adapter's folder that is copied last. So a folder that has it is complete."""


def restore(folder: Path, location: Location) -> int:
    """Fetch the parts that a results folder lacks or has damaged. Return the number of fetched files.

    A folder without a journal also gets the JSON files; otherwise it keeps its own. An interrupted fetch is continued.
    The caller holds the folder's lock.

    Raises:
        SpecError: the location does not answer, or the folder has a journal and lacks trials of the location.
    """
    begun = (folder / JOURNAL).exists()
    if begun:
        _refuse_behind(folder, location)
    with _answering(location):
        copied = location.files()
        for name in SCHEMAS:
            for part in scan_parts(folder, name)[1]:  # a damaged part may have its size
                if part.path.relative_to(folder).as_posix() in copied:
                    set_aside(part)
        return location.fetch(folder, facts=not begun)


def stored_spec_at(location: Location) -> dict[str, Any] | None:
    """Return the content of the `spec.json` at a location; None if there is none.

    Raises:
        IdentityError: it cannot be read as a sweep's identity.
        SpecError: the location does not answer.
    """
    with _answering(location):
        text = location.read("spec.json") if "spec.json" in location.files() else None
    if text is None:
        return None
    try:
        stored = json.loads(text)
        dict(stored["identity"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        rule = "has a spec.json that can't be read as a sweep's identity; restore it, or choose another place"
        raise IdentityError([Problem("--upload", location.uri, rule)]) from error
    return dict(stored)


def check_location(location: Location, identity: Mapping[str, Any]) -> None:
    """Check that a location is empty or belongs to this sweep.

    Raises:
        IdentityError: it has results of another sweep, or of another version's rules.
        SpecError: the location does not answer.
    """
    if (stored := stored_spec_at(location)) is not None:
        refuse_other(stored, identity, location.uri)


def check_same(location: Location, folder: Path) -> None:
    """Check that a location belongs to the sweep of a results folder, and has no trials that the folder lacks.

    Raises:
        IdentityError: the location belongs to another sweep.
        SpecError: the location has further trials or does not answer, or the folder has no `spec.json`.
    """
    stored = stored_identity(folder)
    if stored is None:
        rule = "has no spec.json, so what belongs to it can't be told; copy it by hand"
        raise SpecError([Problem("--upload", str(folder), rule)])
    check_location(location, stored)
    _refuse_behind(folder, location)


def _refuse_behind(folder: Path, location: Location) -> None:
    """Raise SpecError if the location has trials that the folder lacks, as another machine has gone on from the copy.

    A run on this folder would repeat those trials, and overwrite newer files of the copy.
    """
    with _answering(location):
        copied = [path for path in map(Path, location.files()) if path.match("tables/trials/part-*.parquet")]
    own = {path.name.removesuffix(".damaged") for path in (folder / "tables" / "trials").glob("part-*")}
    if lacking := sum(path.name not in own for path in copied):
        rule = (
            f"has {lacking} part(s) of finished trials that {folder} lacks: another machine may have gone on; "
            "move that folder away, and `sweeps run` with this --upload fetches the copy and goes on from it"
        )
        raise SpecError([Problem("--upload", location.uri, rule)])


@contextlib.contextmanager
def _answering(location: Location) -> Iterator[None]:
    """Turn an OSError of the block into a SpecError that says that the location does not answer."""
    try:
        yield
    except OSError as error:
        raise SpecError([Problem("--upload", location.uri, f"does not answer ({first_line(error)})")]) from error


class Upload:
    """Copies new files every `EVERY_S` seconds, in a thread, and once more at the end.

    Args:
        folder: the results folder.
        location: the location to copy to.
        note: shows a message to the user if a copy failed. It is tried again, and the sweep goes on.
    """

    def __init__(self, folder: Path, location: Location, *, note: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.location = location
        self._note = note
        self.error: str | None = None
        self._over = threading.Event()
        self._facts: dict[str, bytes] = {}
        self._adapters = self._kept()
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def finish(self, rest: bool = True) -> str | None:
        """End the thread, and copy the rest if `rest` is true. Return why that failed; None if it did not."""
        self._over.set()
        self._thread.join()
        return self.copy_now() if rest else None

    def _work(self) -> None:
        while not self._over.wait(EVERY_S):
            self.copy_now()

    def copy_now(self) -> str | None:
        """Copy all new files now. Return why that failed; None if it did not."""
        try:
            self.sync()
        except OSError as error:
            before, self.error = self.error, f"not uploaded: {error}"
            if self.error != before:
                self._note(self.error)
        else:
            self.error = None
        return self.error

    def sync(self) -> None:
        """Copy all files that the location lacks.

        Raises:
            OSError: a file can't be read, or can't be written to the location.
        """
        if not self.folder.is_dir():  # it was moved away, so its adapters must not be removed from the copy
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        copied = self.location.files()
        for name in FACTS:  # first, because tables without these files belong to no sweep
            path = self.folder / name
            content = path.read_bytes() if path.exists() else None
            if content is not None and self._facts.get(name) != content:
                self.location.put(path, name)
                self._facts[name] = content
        parts = {t: sorted((self.folder / "tables" / t).glob("part-*.parquet")) for t in reversed(TABLES)}
        for table in TABLES:  # parts were listed in the reverse order, because the driver writes parts meanwhile
            for part in parts[table]:
                self._put_if_new(part, copied)
        self._sync_adapters(copied)

    def _put_if_new(self, path: Path, there: Mapping[str, int], changed: bool = False) -> None:
        """Copy a file if it has changed, or if the location lacks it. A copy of another size was cut off."""
        name = path.relative_to(self.folder).as_posix()
        if changed or there.get(name) != path.stat().st_size:
            self.location.put(path, name)

    def _sync_adapters(self, there: Mapping[str, int]) -> None:
        kept = self._kept()
        for trial, written in sorted(kept.items()):
            changed = self._adapters.get(trial, written) != written  # the trial was trained again
            files = [path for path in (self.folder / "adapters" / trial).rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda p: (p.name in _META, p.name)):
                self._put_if_new(path, there, changed)
        for trial in self._adapters.keys() - kept.keys():  # only the best of a cell stays
            self.location.remove(f"adapters/{trial}")
        self._adapters = kept

    def _kept(self) -> dict[str, int]:
        """Return when each adapter in the results folder was last written, in nanoseconds since 1970, by trial id."""
        folders = [path for path in self.folder.glob("adapters/*") if path.is_dir()]
        return {
            path.name: max((file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()), default=0)
            for path in folders
        }
