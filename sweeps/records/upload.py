"""Copy a results folder elsewhere while the sweep runs: sealed parts, JSON files and kept adapters.

If the driver's machine is lost, so is what was not copied yet: at most the trials of the last five minutes. A trial
waits `EVERY_S` seconds until it is sealed and as long until it is copied. A run on another machine fetches the copy and
goes on from it.
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
from sweeps.errors import Problem, SpecError
from sweeps.records.locks import IdentityError, refuse_other, stored_identity
from trainables.errors import first_line

EVERY_S = 150.0
"""Seconds that a finished trial waits for its part at most, and seconds between two copies."""
TABLES = (*(row.table for row in DIAGNOSTICS), "predictions", "metrics", "trials", "choices", "cells")
"""Diagnostics, and the sweep's own in the order of sealing: a trial whose row is there has all its rows there."""
_META = ("adapter.json", "weights.json")
"""The file of a kept folder that goes last: with it the folder is whole."""


def restore(folder: Path, location: Location) -> int:
    """Fetch parts that a results folder lacks or has damaged. Return the number of files fetched.

    A folder without a journal gets the JSON files too; a folder that has begun keeps its own. A fetch that was cut off
    is continued. The caller holds the folder's lock.

    Raises:
        SpecError: no answer, or the folder has begun and lacks trials that are there.
    """
    begun = (folder / JOURNAL).exists()
    if begun:
        _refuse_behind(folder, location)
    with _answering(location):
        return location.fetch(folder, facts=not begun)


def stored_there(location: Location) -> dict[str, Any] | None:
    """Return the content of the `spec.json` at a location; None if there is none.

    Raises:
        IdentityError: it cannot be read as a sweep's identity.
        SpecError: no answer.
    """
    with _answering(location):
        found = location.read("spec.json") if "spec.json" in location.files() else None
    if found is None:
        return None
    try:
        stored = json.loads(found)
        dict(stored["identity"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        rule = "has a spec.json that can't be read as a sweep's identity; restore it, or choose another place"
        raise IdentityError([Problem("--upload", location.uri, rule)]) from error
    return dict(stored)


def check_there(location: Location, identity: Mapping[str, Any]) -> None:
    """Refuse to mix with another sweep's results.

    Raises:
        IdentityError: what is there was made by a sweep that differs, or by other rules than today's.
        SpecError: no answer.
    """
    if (stored := stored_there(location)) is not None:
        refuse_other(stored, identity, location.uri)


def check_same(location: Location, folder: Path) -> None:
    """Refuse a place with another sweep than a results folder, or more trials. Raises IdentityError or SpecError."""
    stored = stored_identity(folder)
    if stored is None:
        rule = "has no spec.json, so what belongs to it can't be told; copy it by hand"
        raise SpecError([Problem("--upload", str(folder), rule)])
    check_there(location, stored)
    _refuse_behind(folder, location)


def _refuse_behind(folder: Path, location: Location) -> None:
    """Another machine has gone on from the copy: this folder would repeat its trials and put older facts there."""
    with _answering(location):
        there = [path for path in map(Path, location.files()) if path.match("tables/trials/part-*.parquet")]
    here = {path.name.removesuffix(".damaged") for path in (folder / "tables" / "trials").glob("part-*")}
    if lacking := sum(path.name not in here for path in there):
        rule = (
            f"holds {lacking} part(s) of finished trials that {folder} lacks, as where another machine went on; "
            "move that folder away, and `sweeps run` with this --upload fetches what is there and goes on from it"
        )
        raise SpecError([Problem("--upload", location.uri, rule)])


@contextlib.contextmanager
def _answering(location: Location) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpecError([Problem("--upload", location.uri, f"does not answer ({first_line(error)})")]) from error


class Upload:
    """Copies what is new every `EVERY_S` seconds, in a thread, and once more at the end.

    Args:
        folder: the results folder.
        location: where to.
        note: told about a copy that failed; it is tried again, and the sweep goes on.
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
        """Begin."""
        self._thread.start()

    def finish(self, rest: bool = True) -> str | None:
        """Copy the rest, if wanted; why that was not possible, or None."""
        self._over.set()
        self._thread.join()
        return self.once() if rest else None

    def _work(self) -> None:
        while not self._over.wait(EVERY_S):
            self.once()

    def once(self) -> str | None:
        """Copy what is new now; why that was not possible, or None."""
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
        """Copy everything that is sealed here and not there.

        Raises:
            OSError: a file can't be read here, or not written there.
        """
        if not self.folder.is_dir():  # moved away: what it kept is not to be removed there
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        there = self.location.files()
        for name in FACTS:  # first, for tables without them belong to no sweep
            path = self.folder / name
            content = path.read_bytes() if path.exists() else None
            if content is not None and self._facts.get(name) != content:
                self.location.put(path, name)
                self._facts[name] = content
        parts = {t: sorted((self.folder / "tables" / t).glob("part-*.parquet")) for t in reversed(TABLES)}
        for table in TABLES:  # listed the other way round, for the driver seals meanwhile
            for part in parts[table]:
                self._put_if_new(part, there)
        self._sync_adapters(there)

    def _put_if_new(self, path: Path, there: Mapping[str, int]) -> None:
        """Copy a file that never changes, unless it is there already; a copy of another size was cut off."""
        name = path.relative_to(self.folder).as_posix()
        if there.get(name) != path.stat().st_size:
            self.location.put(path, name)

    def _sync_adapters(self, there: Mapping[str, int]) -> None:
        kept = self._kept()
        for trial in sorted(kept):
            files = [path for path in (self.folder / "adapters" / trial).rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda p: (p.name in _META, p.name)):
                self._put_if_new(path, there)
        for trial in self._adapters - kept:  # only the best of a cell stays
            self.location.remove(f"adapters/{trial}")
        self._adapters = kept

    def _kept(self) -> set[str]:
        return {path.name for path in self.folder.glob("adapters/*") if path.is_dir()}
