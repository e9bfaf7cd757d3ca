"""Digests of files: every byte counts, kept ones are believed only for a file that was not touched."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trainables import digests
from trainables.digests import content_as_opened, content_digest, file_digests


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWEEPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_S", 0.0)  # files of a test are new
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    usual = digests._read

    def counted(path: Path, advance: Callable[[int], object]) -> object:
        found.append(path.name)
        return usual(path, advance)

    monkeypatch.setattr(digests, "_read", counted)
    return found


def written(folder: Path, sizes: list[int]) -> list[Path]:
    paths = [folder / f"{k}.bin" for k in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(os.urandom(size))
    return paths


def test_a_file_is_read_once(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    paths = written(tmp_path, [0, 1, 300_000])
    expected = [hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in paths]
    for _ in range(2):
        assert file_digests([*paths, paths[0]]) == [*expected, expected[0]]
        assert sorted(reads) == ["0.bin", "1.bin", "2.bin"]
    paths[1].write_bytes(b"?")
    assert file_digests(paths)[1] == hashlib.blake2b(b"?", digest_size=16).digest()
    assert reads[3:] == ["1.bin"]


def test_a_change_of_any_byte_under_the_same_size_and_time_is_seen(tmp_path: Path, cache: Path) -> None:
    (path,), chance = written(tmp_path, [3 * 2**20]), random.Random(0)
    seen = {content_digest([path])}
    for k in range(40):
        was, data = path.stat(), bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        if k % 2:
            path.write_bytes(data)
        else:
            (tmp_path / "new").write_bytes(data)
            (tmp_path / "new").replace(path)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        seen.add(content_digest([path]))
    assert len(seen) == 41


def test_a_file_that_changed_just_now_is_read_again(
    tmp_path: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change within the same tick of the file system's clock would not be seen."""
    paths = written(tmp_path, [1])
    monkeypatch.setattr(digests, "SETTLED_S", 3600.0)
    assert file_digests(paths) == file_digests(paths) and len(reads) == 2
    os.utime(paths[0], (0, 0))  # its content is as old as it says, and its inode changed just now
    assert file_digests(paths) == file_digests(paths) and len(reads) == 4


def test_digests_that_were_damaged_in_the_cache_are_not_believed(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    paths, chance = written(tmp_path, [10, 20]), random.Random(0)
    expected = file_digests(paths)
    (kept,) = cache.rglob("digests")
    held = kept.read_bytes()
    for _ in range(40):
        data = bytearray(held)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        kept.write_bytes(data)
        assert file_digests(paths) == expected
    kept.write_bytes(held[:-1])
    assert file_digests(paths) == expected
    assert len(reads) == 2 * 42


@pytest.mark.parametrize("trouble", ["off", "a file", "read-only"])
def test_without_a_cache_files_are_read_each_time(
    tmp_path: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    paths = written(tmp_path, [10])
    if trouble == "off":
        monkeypatch.setenv("SWEEPS_CACHE", "off")
    elif trouble == "a file":
        cache.touch()
    else:
        monkeypatch.setattr(digests, "make_folder", _refused)
    assert file_digests(paths) == file_digests(paths) != [None]
    assert len(reads) == 2


def _refused(folder: Path) -> None:
    raise PermissionError(folder)


def test_a_pipe_and_a_file_that_is_not_there_have_no_digest(tmp_path: Path, cache: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    paths = [*written(tmp_path, [1]), tmp_path / "pipe", tmp_path / "gone", tmp_path]
    assert [digest is None for digest in file_digests(paths)] == [False, True, True, True]


def test_order_counts_and_names_do_not(tmp_path: Path, cache: Path) -> None:
    paths = written(tmp_path, [10, 10])
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-copy", ignore=lambda *_: {"cache"})
    copies = [tmp_path.parent / f"{tmp_path.name}-copy" / path.name for path in paths]
    assert content_digest(paths) == content_digest(copies) != content_digest(paths[::-1])


def test_content_of_what_was_read_before_a_change_is_not_known(tmp_path: Path, cache: Path) -> None:
    paths = written(tmp_path, [10])
    content = content_as_opened(paths)
    assert content() == content_digest(paths)
    paths[0].write_bytes(bytes(10))
    assert content() is None
