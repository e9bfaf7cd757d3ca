from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeps.records.journal import Journal, write_atomically


def test_events_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "results" / "journal.jsonl"
    with Journal(path) as journal:
        assert journal.events == ()
        for k in range(3):
            journal.write({"ev": "report", "epoch": k}, sync=k == 2)
    with Journal(path) as journal:
        assert [e["epoch"] for e in journal.events] == [0, 1, 2]
        assert journal.torn is None


@pytest.mark.parametrize("cut", [1, 5, 17])
def test_a_torn_tail_is_cut_before_anything_is_appended(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write({"ev": "ask", "trial_id": "a"})
        journal.write({"ev": "ask", "trial_id": "b"})
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert [e["trial_id"] for e in journal.events] == ["a"]
        assert journal.torn is not None
        journal.write({"ev": "ask", "trial_id": "c"})
    assert [json.loads(line)["trial_id"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal, pytest.raises(ValueError, match="JSON compliant"):
        journal.write({"ev": "report", "loss": float("nan")})


FULL_DISK = """
import signal, sys
from pathlib import Path
from sweeps.records.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal(Path(sys.argv[1])) as journal:
    journal.write({"ev": "ask", "trial_id": "a"})
    try:
        journal.write({"ev": "ask", "trial_id": "b" * 4096})
    except OSError as error:
        print(type(error).__name__, error.errno)
    journal.write({"ev": "ask", "trial_id": "c"})
"""


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
    )
    assert done.stdout.split()[0] == "OSError"
    assert [json.loads(line)["trial_id"] for line in path.read_text().splitlines()] == ["a", "c"]
    assert signal.SIGXFSZ  # the signal that the limit sends


class Interrupted:
    """A file whose next write is interrupted after some bytes."""

    def __init__(self, file: Any, after: int) -> None:
        self.file, self.after = file, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        self.file.write(data[: self.after])
        raise KeyboardInterrupt


def test_an_interruption_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(KeyboardInterrupt):
            journal.write({"ev": "finish", "trial_id": "a"})  # whole, while the disk was waited for
        whole, made = journal._file, Interrupted(journal._file, after=7)
        journal.write({"ev": "used", "trial_id": "b"})
        monkeypatch.setattr(journal, "_file", made)
        with pytest.raises(KeyboardInterrupt):
            journal.write({"ev": "used", "trial_id": "c"})
        monkeypatch.setattr(journal, "_file", whole)
        journal.write({"ev": "used", "trial_id": "d"})
    assert [json.loads(line)["trial_id"] for line in path.read_text().splitlines()] == ["a", "b", "d"]


def test_write_atomically_replaces(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["spec.json"]
