"""Output that nobody reads any more is dropped, and ends nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from sweeps.watch.displays import JsonProgress, make_progress
from sweeps.watch.streams import Lasting, lasting
from tests.fakes import fake_plan
from tests.support import ROOT
from tests.sweeps.search.support import simulate


@pytest.fixture
def broken() -> Iterator[io.TextIOWrapper]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(os.fdopen(writer, "wb"), line_buffering=True) as stream:
        yield stream


def test_a_closed_pipe_drops_what_is_written(broken: io.TextIOWrapper) -> None:
    stream = lasting(broken)
    assert lasting(stream) is stream
    assert stream.write("one\n") == 4
    stream.flush()
    assert Path(f"/proc/self/fd/{broken.fileno()}").readlink() == Path(os.devnull)
    broken.close()
    stream.write("two\n")
    stream.flush()
    with pytest.raises(UnicodeEncodeError):
        Lasting(io.TextIOWrapper(io.BytesIO(), encoding="ascii")).write("é")


@pytest.mark.parametrize("kind", [True, "json"])
def test_a_display_goes_on_without_its_reader(
    kind: Literal[True, "json"], broken: io.TextIOWrapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", broken)
    display = make_progress(kind)
    state = simulate(fake_plan(tmp_path), {}, limit=3)
    display.start(state)
    display.note("a note")
    display.stop(state)
    assert isinstance(display, JsonProgress) == (kind == "json")


VERSION = "import sys; from sweeps.cli.program import main; sys.argv[1:] = ['--version']; main()"


def test_a_listing_into_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", VERSION], stdout=closed, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_lost_to_a_full_disk_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", VERSION], stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        2,
        "error: standard output could not be written: [Errno 28] No space left on device\n",
    )


def test_a_closed_standard_output_is_nowhere() -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, VERSION]
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_an_encoding_lacks_is_escaped() -> None:
    code = "from sweeps.watch.streams import keep_streams; keep_streams(); print('\u22121.5 ≈ x')"
    how = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=how, check=False)
    assert (done.returncode, done.stdout) == (0, b"\\u22121.5 \\u2248 x\n")
