"""Shared base models when something is wrong: damaged files, no room, models that change, and what names them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainables.models.support import files, own_cache, same_bits, size
from tests.trainables.support import run
from trainables.config import TrialConfig
from trainables.models.families import ModelError
from trainables.models.loading import load_model
from trainables.models.shared import shared_bytes, shared_model

MakeTrial = Callable[..., TrialConfig]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_cache(tmp_path / "cache", monkeypatch)


@pytest.mark.parametrize("damage", ["short", "flipped", "foreign", "another's", "empty", "half-written"])
def test_a_damaged_file_is_made_again(cache: Path, damage: str) -> None:
    plain = shared_model("embedded:tiny-clip").module
    (path,) = files(cache)
    content = bytearray(path.read_bytes())
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    path.unlink()
    if damage == "half-written":  # by a process that was killed
        (path.parent / "tmp1.part").write_bytes(content[:1000])
    elif damage == "another's":
        torch.save({name: 2 * t.detach() for name, t in plain.named_parameters()}, path)
    else:
        short = {"short": content[:-64], "flipped": flipped, "foreign": b"no weights at all", "empty": b""}
        path.write_bytes(short[damage])
    for _ in range(2):
        found = shared_model("embedded:tiny-clip").module
        assert same_bits(found, plain)
        assert shared_bytes(found) == size(found)
    assert path.stat().st_size == len(content)
    assert not list(cache.glob("*/*.part"))


def denied(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("trouble", ["no room", "a file in the way", "full", "read-only", "not searched", "off"])
def test_without_a_cache_each_worker_has_its_own(
    make_trial: MakeTrial,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    trial = make_trial(train={"epochs": 1})
    if trouble == "no room":
        monkeypatch.setenv("SWEEPS_CACHE_GB", "0")
    elif trouble == "a file in the way":
        cache.write_text("in the way")
    elif trouble == "full":
        monkeypatch.setattr("trainables.models.shared.torch.save", full_disk)
    elif trouble == "read-only":
        monkeypatch.setattr("trainables.models.shared.in_turn", full_disk)
    elif trouble == "not searched":
        stat = Path.stat
        monkeypatch.setattr(Path, "stat", lambda of, **how: (denied if of == cache else stat)(of, **how))
    else:
        monkeypatch.setenv("SWEEPS_CACHE", "off")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            module = shared_model(trial.model).module
            assert same_bits(module, load_model(trial.model).module)
            assert shared_bytes(module) == 0
        warm: dict[str, Any] = {}
        assert run(trial, tmp_path / "t", warm)[-1]["done"]
    monkeypatch.undo()
    said = [record for record in caplog.records if record.name == "trainables"]
    assert len(said) == (0 if trouble == "off" else 1)
    assert not [path for path in cache.glob("*/*") if path.suffix in (".part", ".pt")]


@pytest.mark.parametrize("where", ["the cache", "the folder in it"])
@pytest.mark.parametrize("owner", ["another", "root"])
def test_weights_in_a_cache_of_another_user_are_not_mapped(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner: str, where: str
) -> None:
    """Their owner may change them after they were compared."""
    shared_model("embedded:tiny-clip")
    (kept,) = files(cache)
    place = cache if where == "the cache" else kept.parent
    stat = Path.stat

    def theirs(path: Path, **how: Any) -> os.stat_result:
        about = stat(path, **how)
        return os.stat_result((*about[:4], os.getuid() + 1 if owner == "another" else 0, *about[5:]))

    monkeypatch.setattr(Path, "stat", lambda path, **how: (theirs if path == place else stat)(path, **how))
    with caplog.at_level(logging.WARNING):
        found = shared_model("embedded:tiny-clip").module
    assert same_bits(found, load_model("embedded:tiny-clip").module)
    if owner == "root":
        assert shared_bytes(found) == size(found) and not caplog.records
        return
    assert shared_bytes(found) == 0
    assert [f"{place} is another user's" in record.getMessage() for record in caplog.records] == [True]


def test_a_model_that_changes_is_another_one(tmp_path: Path, cache: Path, model_dir: Path) -> None:
    folder = shutil.copytree(model_dir, tmp_path / "clip")
    file = folder / "open_clip_model.safetensors"
    model = f"local:{folder}"
    first = shared_model(model).module
    before = file.stat()
    changed = load_file(file)
    changed["visual.proj"] = changed["visual.proj"] * 2
    save_file(changed, file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as old and as large as it was
    assert file.stat().st_size == before.st_size
    second: Any = shared_model(model).module
    assert torch.equal(second.visual.proj, changed["visual.proj"])
    assert same_bits(second, load_model(model).module)
    assert not same_bits(first, second)
    assert len(files(cache)) == 2  # the old one goes when room is needed; a worker may have it mapped


def test_models_of_the_same_weights_share_a_file(tmp_path: Path, cache: Path, model_dir: Path) -> None:
    for name in ("one", "two"):
        shared_model(f"local:{shutil.copytree(model_dir, tmp_path / name)}")
    assert len(files(cache)) == 1


def test_longest_unused_goes_first(
    tmp_path: Path, cache: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(model_dir, tmp_path / "clip")
    shared_model(f"local:{folder}")
    (kept,) = files(cache)
    os.utime(kept.parent / "used", (1, 1))
    monkeypatch.setenv("SWEEPS_CACHE_GB", str(1.5 * kept.stat().st_size / 2**30))
    changed = load_file(folder / "open_clip_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in changed.items()}, folder / "open_clip_model.safetensors")
    shared_model(f"local:{folder}")
    (left,) = files(cache)
    assert left.parent != kept.parent


def test_errors_are_those_of_loading(tmp_path: Path, cache: Path, model_dir: Path) -> None:
    with pytest.raises(ModelError, match="is not a directory"):
        shared_model(f"local:{tmp_path / 'none'}")
    folder = shutil.copytree(model_dir, tmp_path / "clip")
    (folder / "open_clip_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="can't be loaded"):
        shared_model(f"local:{folder}")
    assert not files(cache)
