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

import trainables.models.sharing.shared
from tests.trainables.models.support import counted_loads, files, in_bf16, own_cache, same_bits, size
from tests.trainables.support import run
from tests.trainables.tiny_language import save_model
from trainables.config import TrialConfig
from trainables.models.families import ModelError
from trainables.models.loading import LoadedModel, load_model
from trainables.models.sharing.mapped import write
from trainables.models.sharing.shared import MAPPED_ALREADY, shared_bytes, shared_model

MakeTrial = Callable[..., TrialConfig]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    return counted_loads(monkeypatch)


@pytest.mark.parametrize("damage", ["short", "flipped", "foreign", "half-written", "not to be removed"])
def test_a_damaged_file_is_made_again(
    cache: Path, loads: list[bool], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    plain = shared_model("embedded:tiny-clip").module
    (path,) = files(cache)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 0xFF
    path.unlink()
    if damage == "half-written":  # by a process that was killed
        (path.parent / "tmp1.part").write_bytes(content[:1000])
    else:
        path.write_bytes({"flipped": content, "foreign": b"no weights at all"}.get(damage, content[:-64]))
    if damage == "not to be removed":
        unlink = Path.unlink
        monkeypatch.setattr(Path, "unlink", lambda of, **how: (denied if of == path else unlink)(of, **how))
    for expected in ([True, False], [False]):
        loads.clear()
        found = shared_model("embedded:tiny-clip").module
        assert loads == expected
        assert same_bits(found, plain)
        assert shared_bytes(found) == size(found)
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
        monkeypatch.setattr("trainables.models.sharing.shared.write", full_disk)
    elif trouble == "read-only":
        monkeypatch.setattr("trainables.models.sharing.shared.in_turn", full_disk)
    elif trouble == "not searched":
        stat = Path.stat
        monkeypatch.setattr(Path, "stat", lambda of, **how: (denied if of.name == MAPPED_ALREADY else stat)(of, **how))
    else:
        monkeypatch.setenv("SWEEPS_CACHE", "off")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            module = shared_model(trial.model).module
            assert same_bits(module, load_model(trial.model).module)
            assert shared_bytes(module) == 0
        warm: dict[str, Any] = {}
        assert run(trial, tmp_path / "t", warm)[-1]["done"]
    said = [record for record in caplog.records if record.name == "trainables"]
    assert len(said) == (0 if trouble == "off" else 1)
    assert not [path for path in cache.glob("*/*") if path.suffix in (".part", ".safetensors")]


@pytest.mark.parametrize("where", ["the cache", "the folder in it"])
@pytest.mark.parametrize("owner", ["another", "root"])
def test_weights_in_a_cache_of_another_user_are_not_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner: str, where: str
) -> None:
    shared_model("embedded:tiny-clip")
    (kept,) = files(cache)
    place = cache if where == "the cache" else kept.parent
    plain = load_model("embedded:tiny-clip").module
    doubled = {name: 2 * tensor for name, tensor in load_file(kept).items() if not name.startswith("gap.")}
    kept.unlink()
    write(kept, doubled, {"model": "embedded:tiny-clip", "empty": "no"})
    stat = Path.stat

    def theirs(path: Path, **how: Any) -> os.stat_result:
        about = stat(path, **how)
        return os.stat_result((*about[:4], os.getuid() + 1 if owner == "another" else 0, *about[5:]))

    monkeypatch.setattr(Path, "stat", lambda path, **how: (theirs if path == place else stat)(path, **how))
    with caplog.at_level(logging.WARNING):
        found = shared_model("embedded:tiny-clip").module
    if owner == "root":
        assert not same_bits(found, plain) and not caplog.records
        return
    assert same_bits(found, plain) and shared_bytes(found) == 0
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


def test_a_model_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, cache: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(model_dir, tmp_path / "clip")

    def slow(model_id: str, **how: Any) -> LoadedModel:
        loaded = load_model(model_id, **how)
        (folder / "open_clip_config.json").touch()
        return loaded

    monkeypatch.setattr("trainables.models.sharing.shared.load_model", slow)
    assert shared_bytes(shared_model(f"local:{folder}").module) == 0
    assert not files(cache)


def test_longest_unused_goes_first(
    tmp_path: Path, cache: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (f"local:{shutil.copytree(model_dir, tmp_path / name)}" for name in ("one", "two"))
    shared_model(one)
    (kept,) = files(cache)
    os.utime(kept.parent / "used", (1, 1))
    monkeypatch.setenv("SWEEPS_CACHE_GB", str(1.5 * kept.stat().st_size / 2**30))
    shared_model(two)
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


def test_a_model_of_the_hub_is_known_by_its_revision(
    tmp_path: Path, cache: Path, loads: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub" / "models--org--tiny"
    (hub / "refs").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = []
    for number, revision in enumerate(("a" * 40, "b" * 40)):
        folder = in_bf16(save_model(hub / "snapshots" / revision, "llama"))
        if number:
            (file,) = folder.glob("*.safetensors")
            save_file({k: 2 * v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
        (hub / "refs" / "main").write_text(revision)
        for expected in ([True, False], [False]):
            loads.clear()
            found.append(shared_model("hf:org/tiny").module)
            assert loads == expected
            assert same_bits(found[-1], load_model("hf:org/tiny").module)
    assert same_bits(found[0], found[1])
    assert not same_bits(found[1], found[2])
    assert len(files(cache)) == 2


def test_a_model_of_open_clip_is_known_by_the_file_that_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, fetched = trainables.models.sharing.shared._name, tmp_path / "weights.bin"
    fetched.write_bytes(b"1")
    monkeypatch.setattr("open_clip.download_pretrained", lambda _: str(fetched))
    tagged = of("open_clip:ViT-B-32/openai")
    fetched.write_bytes(b"12")
    assert tagged is not None
    assert of("open_clip:ViT-B-32/openai") not in (None, tagged)
    assert of("open_clip:ViT-B-32/laion2b_s34b_b79k") != of("open_clip:ViT-B-32/openai")
    monkeypatch.setattr("open_clip.download_pretrained", full_disk)
    assert of("open_clip:ViT-B-32/openai") is None  # loading says why
    assert of("open_clip:ViT-B-32") is None
