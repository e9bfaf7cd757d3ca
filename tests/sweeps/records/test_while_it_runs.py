"""A folder that is filled, refused, moved or robbed of its journal while a sweep runs: it stops, and loses nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.store.journal import read_journal
from analysis.store.tables import write_part
from sweeps.engine import loop
from sweeps.engine.loop import Stop
from sweeps.records.journal import Journal
from sweeps.records.upload import Upload
from tests.fakes import FakeCell
from tests.sweeps.inline import go_inline
from tests.sweeps.records.support import FRAGILE, assert_retried, small, subtree
from tests.sweeps.support import assert_same_tables, events


def test_a_part_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_part(tmp_path, "cells", [FakeCell("lora").row()])
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ESTALE, errno.EROFS])
def test_a_folder_that_refuses_stops_the_sweep_and_fails_no_trial(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder = tmp_path / "r"

    def refuse(done: int) -> None:
        if done == 4:
            monkeypatch.setattr(Journal, "write", refused)

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code), str(folder))

    with monkeypatch.context(), pytest.raises(OSError, match=os.strerror(code)):
        go_inline(small(folder), refuse)
    monkeypatch.undo()
    summary = go_inline(small(folder))
    assert (summary.skipped, summary.complete) == (4, True)
    assert_same_tables(folder, whole)


@pytest.mark.parametrize("remade", [False, True], ids=["gone", "Ray makes its own part anew"])
def test_a_folder_that_is_moved_while_it_runs_is_not_begun_anew(tmp_path: Path, whole: Path, remade: bool) -> None:
    folder, away = tmp_path / "r", tmp_path / "away"

    def move(done: int) -> None:
        if done == 6:
            folder.rename(away)
            if remade:
                (folder / "work" / "ray").mkdir(parents=True)
                (folder / "lock").touch()

    with pytest.raises(
        OSError, match="the results folder, or its journal, was moved or removed while the sweep ran; put"
    ):
        go_inline(small(folder), move)
    assert not folder.exists()
    away.rename(folder)
    (folder / "lock").unlink()  # its holder, which lives on here, could not
    assert go_inline(small(folder)).skipped >= 6
    assert_same_tables(folder, whole)


@pytest.mark.parametrize("moved", [False, True], ids=["read-only", "moved"])
def test_failed_trials_are_tried_again_after_it(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    folder, away = tmp_path / "r", tmp_path / "away"

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    def harm(done: int) -> None:
        if done == 6:
            folder.rename(away) if moved else patch.setattr(Journal, "write", refused)

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"moved|Read-only"):
        go_inline(small(folder, FRAGILE), harm)
    if moved:
        away.rename(folder)
        (folder / "lock").unlink()
    assert any(e["row"]["status"] == "failed" for e in events(folder, "finish"))
    assert assert_retried(small(folder, FRAGILE), whole).skipped


def test_a_journal_that_is_removed_is_written_again_and_the_sweep_stops(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "r"

    def remove(done: int) -> None:
        if done == 6:
            (folder / "journal.jsonl").unlink()

    with pytest.raises(OSError, match=r"the journal was removed .* is written again \(journal.jsonl\)"):
        go_inline(small(folder), remove)
    shutil.rmtree(folder / "tables")  # the journal alone has them
    assert go_inline(small(folder)).skipped == 7  # the trial that ran meanwhile was written down too
    assert_same_tables(folder, whole)


def test_a_journal_that_another_took_the_place_of_is_saved_beside_it(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "r"

    def exchange(done: int) -> None:
        if done == 6:
            (folder / "journal.jsonl").unlink()
            shutil.copy(whole / "journal.jsonl", folder)

    with pytest.raises(OSError, match=rf"written again \(journal-{os.getpid()}-saved.jsonl\)"):
        go_inline(small(folder), exchange)
    assert len([e for e in read_journal(next(folder.glob("*-saved.jsonl"))).events if e["ev"] == "finish"]) == 7
    assert go_inline(small(folder)).skipped == 12


def test_the_heartbeat_saves_a_removed_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write({"ev": "ask", "trial_id": "a"})
        meter: Any = SimpleNamespace(tick=lambda: None, reached=lambda: None)
        monkeypatch.setattr(loop, "EVERY_S", 0.0)
        stop = Stop(threading.Event(), meter, journal.check)
        assert not stop.check()
        path.unlink()
        with pytest.raises(OSError, match="written again"):
            stop.check()
        with pytest.raises(OSError, match="written again"):
            journal.write({"ev": "ask", "trial_id": "b"})
    assert [e["trial_id"] for e in read_journal(path).events] == ["a"]


def test_the_copy_elsewhere_outlives_a_folder_that_is_moved(tmp_path: Path, whole: Path) -> None:
    folder, there = Path(shutil.copytree(whole, tmp_path / "r")), subtree(tmp_path / "bucket")
    (folder / "adapters" / "x").mkdir(parents=True)
    (folder / "adapters" / "x" / "adapter.json").write_text("{}")
    upload = Upload(folder, there, note=lambda _: None)
    upload.sync()
    folder.rename(tmp_path / "away")
    assert "No such file" in str(upload.copy_now())
    assert "adapters/x/adapter.json" in there.files()


def test_a_driver_that_wakes_after_another_has_taken_over_writes_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still on another machine, and until its next heartbeat its lock says nothing."""
    folder = tmp_path / "r"
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # as over NFS

    def sleep(done: int) -> None:
        if done == 4:
            (folder / "lock").unlink()
            assert go_inline(small(folder)).skipped == 4

    with pytest.raises(OSError, match="another process has written to the journal, so this run stops"):
        go_inline(small(folder), sleep)
    finishes = [e["trial_id"] for e in events(folder, "finish")]
    assert len(finishes) == len(set(finishes)) == 12
    assert go_inline(small(folder)).finished == 0
    assert_same_tables(folder, whole)
