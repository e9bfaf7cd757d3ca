"""The cache of decoded images: same bits, decoded once per machine, remade when damaged, bounded."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shutil
import stat
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import pil_to_tensor

from tests.trainables.tiny_images import COLOURS, SIDE, noisy
from trainables.cache import limit_bytes, make_folder, make_room
from trainables.data.images.batches import apply_plan
from trainables.data.images.dataset import Dataset, ImageSplit
from trainables.data.images.pixels import Pixels, Recipe, key
from trainables.data.registry import load_dataset
from trainables.errors import DataError

RECIPE = Recipe(SIDE)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SWEEPS_CACHE", str(folder))
    return folder


def counted(split: ImageSplit, reads: list[int]) -> ImageSplit:
    def read(row: int) -> Image.Image:
        reads.append(row)
        return split.read(row)

    return dataclasses.replace(split, read=read)


def packs(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.arrow"))


def test_cached_bits_are_the_decoded_bits(colours: Path, cache: Path) -> None:
    split = load_dataset(f"parquet:{colours}").train
    rows = torch.tensor([5, 0, 63, 5, 17])
    expected = Pixels(dataclasses.replace(split, content=None), RECIPE).rows(rows)
    assert not cache.exists()
    for _ in range(2):
        pixels = Pixels(split, RECIPE)
        assert torch.equal(pixels.rows(rows), expected)
        assert pixels.kept_bytes == 0
    assert len(packs(cache)) == 1


def test_crops_of_the_original_are_cut_from_whole_images(cache: Path) -> None:
    """Near what torchvision cuts from the original; the centre's square does not have the edges at all."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 18, 3), dtype=np.uint8)).resize((360, 240))
    split = ImageSplit("s", "train", torch.zeros(2, dtype=torch.int64), lambda _: smooth, lambda: "content")
    recipe = Recipe(96)
    expected = functional.resized_crop(pil_to_tensor(smooth), 10, 0, 220, 240, [96, 96], antialias=True).float()
    for content in (split.content, None):  # on disk, in memory
        pixels = Pixels(dataclasses.replace(split, content=content), recipe.wider)
        assert pixels.rows(torch.tensor([1])).shape == (1, 3, 120, 120)
        assert pixels.aspects(torch.tensor([1, 0, 1])).tolist() == [1.5] * 3
        plan = torch.tensor([[[240 / 360, 0, 240 / 360 - 1], [0, 220 / 240, (20 + 220) / 240 - 1]]])
        found = apply_plan(pixels.rows(torch.tensor([0])), plan, recipe.size)[0]
        assert found.shape == (3, 96, 96) and float((found - expected).abs().mean()) < 3
    assert bool(packs(cache))


def test_a_row_is_decoded_once_for_all_who_need_it(colours: Path, cache: Path) -> None:
    split = load_dataset(f"parquet:{colours}").train
    reads: list[int] = []
    first, second = Pixels(counted(split, reads), RECIPE), Pixels(counted(split, reads), RECIPE)
    first.prepare(torch.arange(8))
    second.prepare(torch.arange(4, 16))  # it was made before the first one wrote
    assert sorted(reads) == list(range(16))
    first.rows(torch.arange(16))
    assert len(reads) == 16
    assert len(packs(cache)) == 2


def test_another_recipe_and_changed_files_are_kept_apart(tmp_path: Path, cache: Path) -> None:
    rng = np.random.default_rng(0)
    for which in ("train", "test"):
        for name in ("red", "blue"):
            (tmp_path / which / name).mkdir(parents=True)
            for i in range(2):
                noisy(rng, COLOURS[name]).save(tmp_path / which / name / f"{i}.png")

    def load() -> ImageSplit:
        return load_dataset(f"folder:{tmp_path}").train

    before = Pixels(load(), RECIPE).rows(torch.arange(4))
    assert key(load(), RECIPE) != key(load(), Recipe(SIDE, "bilinear"))
    Image.new("RGB", (SIDE, SIDE), (1, 2, 3)).save(tmp_path / "train" / "red" / "0.png")
    after = Pixels(load(), RECIPE).rows(torch.arange(4))
    assert not torch.equal(before, after)


def _bitmaps(folder: Path, colour: tuple[int, int, int]) -> None:
    """Write images of one size in bytes, whatever their colour."""
    for which in ("train", "test"):
        for name in ("a", "b"):
            (folder / which / name).mkdir(parents=True, exist_ok=True)
            for i in range(2):
                Image.new("RGB", (SIDE, SIDE), colour).save(folder / which / name / f"{i}.bmp")


@pytest.mark.parametrize("how", ["written over", "renamed"])
def test_images_replaced_under_the_same_size_and_time_are_decoded_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """As `tar`, `rsync -t` and zip replace them."""
    monkeypatch.setattr("trainables.digests.SETTLED_S", 0.0)
    images, others = tmp_path / "images", tmp_path / "others"
    _bitmaps(images, (250, 0, 0))
    load = lambda: load_dataset(f"folder:{images}").train  # noqa: E731
    assert Pixels(load(), RECIPE).rows(torch.arange(4))[:, 0].unique().tolist() == [250]
    _bitmaps(others, (10, 0, 0))
    for path in images.rglob("*.bmp"):
        was, other = path.stat(), others / path.relative_to(images)
        if how == "renamed":
            other.replace(path)
        else:
            path.write_bytes(other.read_bytes())
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    assert Pixels(load(), RECIPE).rows(torch.arange(4))[:, 0].unique().tolist() == [10]


def test_what_was_decoded_serves_a_copy_of_the_images(tmp_path: Path, cache: Path) -> None:
    _bitmaps(tmp_path / "images", (250, 0, 0))
    Pixels(load_dataset(f"folder:{tmp_path / 'images'}").train, RECIPE).rows(torch.arange(4))
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    reads: list[int] = []
    Pixels(counted(load_dataset(f"folder:{tmp_path / 'copy'}").train, reads), RECIPE).rows(torch.arange(4))
    assert not reads and len(packs(cache)) == 1


def test_images_that_change_while_they_are_read_are_refused(tmp_path: Path, cache: Path) -> None:
    _bitmaps(tmp_path, (250, 0, 0))
    pixels = Pixels(load_dataset(f"folder:{tmp_path}").train, RECIPE)
    pixels.rows(torch.arange(2))
    _bitmaps(tmp_path, (10, 0, 0))
    with pytest.raises(DataError, match="changed while they were read"):
        pixels.rows(torch.arange(4))
    assert Pixels(load_dataset(f"folder:{tmp_path}").train, RECIPE).rows(torch.arange(4))[:, 0].unique() == 10
    assert len(packs(cache)) == 2  # none of the mixture


def test_a_table_that_was_replaced_after_it_was_read_is_not_kept(colours: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(colours, tmp_path / "mine")
    train, test = (sorted((tmp_path / "mine").rglob(f"{which}*.parquet"))[0] for which in ("train", "test"))
    split = load_dataset(f"parquet:{tmp_path / 'mine'}").train
    expected = Pixels(dataclasses.replace(split, content=None), RECIPE).rows(torch.arange(4))
    shutil.copy(test, train)
    assert torch.equal(Pixels(split, RECIPE).rows(torch.arange(4)), expected) and not packs(cache)


@pytest.mark.parametrize("damage", ["short", "flipped", "foreign"])
def test_a_damaged_pack_is_made_again(colours: Path, cache: Path, damage: str) -> None:
    split = load_dataset(f"parquet:{colours}").train
    rows = torch.arange(64)
    expected = Pixels(split, RECIPE).rows(rows)
    (path,) = packs(cache)
    content = bytearray(path.read_bytes())
    if damage == "flipped":  # in the last image, well before the file's footer
        at = content.rindex(expected[63].numpy().tobytes()) + 100
        content[at] ^= 0xFF
    path.unlink()  # the file that is mapped stays as it is
    path.write_bytes({"short": content[:-100], "flipped": content, "foreign": b"not Arrow at all"}[damage])
    reads: list[int] = []
    assert torch.equal(Pixels(counted(split, reads), RECIPE).rows(rows), expected)
    assert sorted(reads) == list(range(64))
    reads.clear()
    assert torch.equal(Pixels(counted(split, reads), RECIPE).rows(rows), expected)
    assert not reads


def test_processes_share_one_copy(colours: Path, cache: Path) -> None:
    code = (
        "import torch; from trainables.data.registry import load_dataset\n"
        "from trainables.data.images.pixels import Pixels, Recipe\n"
        f"split = load_dataset('parquet:{colours}').train\n"
        f"print(int(Pixels(split, Recipe({SIDE})).rows(torch.arange(64)).sum()))"
    )
    environment = {**os.environ, "SWEEPS_CACHE": str(cache)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    answers = {run.communicate(timeout=120)[0].strip() for run in runs}
    split = load_dataset(f"parquet:{colours}").train
    assert answers == {str(int(Pixels(split, RECIPE).rows(torch.arange(64)).sum()))}
    assert len(packs(cache)) == 1
    assert not list(cache.glob("*/*.part"))


def test_no_room_and_no_disk_fall_back_to_memory(colours: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load_dataset(f"parquet:{colours}").train
    rows = torch.tensor([3, 1])
    expected = Pixels(dataclasses.replace(split, content=None), RECIPE).rows(rows)
    with monkeypatch.context() as m:
        m.setenv("SWEEPS_CACHE_GB", "0")
        pixels = Pixels(split, RECIPE)
        assert torch.equal(pixels.rows(rows), expected)
        assert pixels.kept_bytes == pixels.nbytes
        assert torch.equal(Pixels(split, RECIPE, keep_bytes=0).rows(rows), expected)
    cache.parent.joinpath("file").write_text("in the way")
    monkeypatch.setenv("SWEEPS_CACHE", str(cache.parent / "file"))
    assert torch.equal(Pixels(split, RECIPE).rows(rows), expected)
    monkeypatch.setenv("SWEEPS_CACHE", "off")
    assert torch.equal(Pixels(split, RECIPE).rows(rows), expected)
    assert not packs(cache)


def test_longest_unused_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, new = time.time(), "0" * 32
    for age, name in enumerate((new, f"digests-{1:032x}", f"base-{2:032x}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.arrow").write_bytes(b"x" * 1000)
        (tmp_path / name / "used").touch()
        os.utime(tmp_path / name / "used", (now - age, now - age))
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("SWEEPS_CACHE_GB", str(2500 / 2**30))
    assert make_room(tmp_path, 1000, tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == [new, "mine"]
    assert not make_room(tmp_path, 3000, tmp_path / "mine")
    assert (tmp_path / new).exists()  # nothing is removed for what can't fit anyway


@pytest.mark.parametrize("name", ["thesis", "a" * 32])
def test_what_else_lies_in_the_cache_is_not_counted_or_removed(
    name: str, colours: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / name).mkdir(parents=True)
    (cache / name / ("used" if name == "thesis" else "notes")).write_bytes(b"x" * 2**20)
    (cache / "alone.bin").write_bytes(b"x" * 2**20)
    monkeypatch.setenv("SWEEPS_CACHE_GB", str(2**20 / 2**30))
    split = load_dataset(f"parquet:{colours}").train
    Pixels(split, RECIPE).rows(torch.arange(64))
    assert len(packs(cache)) == 1
    monkeypatch.setenv("SWEEPS_CACHE_GB", "0")
    make_folder(cache / "mine")
    make_room(cache, 0, cache / "mine")
    assert sorted(p.name for p in cache.iterdir()) == sorted(["alone.bin", name, "mine"])


@pytest.mark.parametrize("given", ["much", "nan", "-1"])
def test_a_limit_that_is_no_size_is_the_usual_one(given: str, caplog: pytest.LogCaptureFixture) -> None:
    limit_bytes.cache_clear()
    assert [limit_bytes(given) for _ in range(2)] == [50 * 2**30] * 2 and limit_bytes("inf") == math.inf
    assert [r.getMessage().split(";")[0] for r in caplog.records] == [
        f"SWEEPS_CACHE_GB = '{given}' is no size in gigabytes"
    ]


@pytest.mark.parametrize("mask", [0, 0o022])
def test_the_cache_is_its_owners_alone(cache: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        make_folder(cache / "images")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (cache, cache / "images")] == [0o700] * 2


@pytest.mark.parametrize("other", ["cache", "folder in it", "link in it"])
def test_a_cache_of_another_user_is_not_written(
    colours: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    split, rows = load_dataset(f"parquet:{colours}").train, torch.tensor([3, 1])
    monkeypatch.setenv("SWEEPS_CACHE", "off")
    folder = cache / str(key(split, RECIPE))
    monkeypatch.setenv("SWEEPS_CACHE", str(cache))
    theirs = cache if other == "cache" else folder
    if other == "link in it":
        cache.mkdir()
        (cache.parent / "elsewhere").mkdir()
        folder.symlink_to(cache.parent / "elsewhere", target_is_directory=True)
    else:
        theirs.mkdir(parents=True)
    if os.getuid() == 0:  # whose caches all take
        os.chown(theirs, 12345, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        theirs = cache
    rule = rf"the cache {theirs} is another user's \(uid \d+\); set SWEEPS_CACHE to a folder of yours, or to 'off'"
    before = sorted(theirs.rglob("*"))
    with pytest.raises(OSError, match=rule):
        make_folder(folder)
    expected = Pixels(dataclasses.replace(split, content=None), RECIPE).rows(rows)
    assert torch.equal(Pixels(split, RECIPE).rows(rows), expected)
    assert sorted(theirs.rglob("*")) == before


@pytest.mark.parametrize("other", ["cache", "folder in it"])
def test_a_cache_of_another_user_is_not_read(
    colours: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    split, rows = load_dataset(f"parquet:{colours}").train, torch.tensor([3, 1])
    expected = Pixels(split, RECIPE).rows(rows)
    stat, place = Path.stat, cache if other == "cache" else packs(cache)[0].parent

    def theirs(path: Path, **how: Any) -> os.stat_result:
        about = stat(path, **how)
        return os.stat_result((*about[:4], os.getuid() + 1, *about[5:])) if path == place else about

    monkeypatch.setattr(Path, "stat", theirs)
    reads: list[int] = []
    assert torch.equal(Pixels(counted(split, reads), RECIPE).rows(rows), expected)
    assert sorted(reads) == [1, 3]


@pytest.mark.parametrize("trouble", ["not searched", "short", "flipped"])
def test_a_cache_that_is_read_only_or_less_is_done_without(
    colours: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    split, rows = load_dataset(f"parquet:{colours}").train, torch.tensor([3, 1])
    expected = Pixels(split, RECIPE).rows(rows)
    (path,) = packs(cache)
    content = bytearray(path.read_bytes())
    path.unlink()  # the file that is mapped stays as it is
    if trouble == "flipped":
        content[content.rindex(expected[0].numpy().tobytes()) + 100] ^= 0xFF
    path.write_bytes(content[:-100] if trouble == "short" else content)

    def refuse(path: Path, **_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    name = "stat" if trouble == "not searched" else "unlink"
    usual = getattr(Path, name)
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, lambda of, **how: (refuse if cache in of.parents else usual)(of, **how))
        patch.setattr("trainables.data.images.decoded.in_turn", refuse)
        reads: list[int] = []
        pixels = Pixels(counted(split, reads), RECIPE)
        assert torch.equal(pixels.rows(rows), expected) and sorted(reads) == [1, 3]
        assert pixels.kept_bytes == pixels.nbytes
    assert packs(cache) == [path]


@pytest.mark.parametrize("row", [-1, 64, 2**40, 1])
def test_a_pack_with_a_wrong_row_number_is_made_again(colours: Path, cache: Path, row: int) -> None:
    split, rows = load_dataset(f"parquet:{colours}").train, torch.tensor([0, 3])
    expected = Pixels(split, RECIPE).rows(rows)
    (path,) = packs(cache)
    with pa.ipc.open_file(path.read_bytes()) as file:
        (batch,) = (file.get_batch(i) for i in range(file.num_record_batches))
    path.unlink()  # the file that is mapped stays as it is
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([0, row]), *batch.columns[1:]], schema=batch.schema))
    wanted = torch.tensor([0, row if row == 1 else 3])
    reads: list[int] = []
    found = Pixels(counted(split, reads), RECIPE).rows(wanted)
    assert torch.equal(found, Pixels(dataclasses.replace(split, content=None), RECIPE).rows(wanted))
    assert sorted(reads) == wanted.tolist() and torch.equal(found[0], expected[0])


def test_a_pack_of_before_row_numbers_were_checked_is_made_again(colours: Path, cache: Path) -> None:
    split, rows = load_dataset(f"parquet:{colours}").train, torch.tensor([0, 3])
    expected = Pixels(split, RECIPE).rows(rows)
    (path,) = packs(cache)
    content = path.read_bytes()
    path.unlink()
    with pa.ipc.open_file(content) as file:
        (batch,) = (file.get_batch(i) for i in range(file.num_record_batches))
    old = batch.schema.with_metadata({**batch.schema.metadata, b"version": b"1"})
    crc = pa.array([zlib.crc32(row.numpy().tobytes()) for row in expected], pa.uint32())
    with pa.ipc.new_file(str(path), old) as writer:
        writer.write_batch(pa.record_batch([batch["row"], crc, batch["pixels"]], schema=old))
    assert torch.equal(Pixels(split, RECIPE).rows(rows), expected)
    (again,) = packs(cache)
    assert again != path


def test_skipping_bad_images(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for which in ("train", "test"):
        for name in ("red", "blue"):
            (tmp_path / which / name).mkdir(parents=True)
            for i in range(3):
                noisy(rng, COLOURS[name]).save(tmp_path / which / name / f"{i}.png")
    bad = tmp_path / "train" / "red" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    data: Dataset = load_dataset(f"folder:{tmp_path}")
    rows = torch.tensor([5, 4, 3, 0])  # blue 0..2, then red 0..2
    for content in (data.train.content, None):
        pixels = Pixels(dataclasses.replace(data.train, content=content), RECIPE)
        assert pixels.prepare(rows, skip_bad=True).tolist() == [5, 3, 0]
        assert len(pixels.rows(torch.tensor([5, 3, 0]))) == 3
        with pytest.raises(DataError, match=r"train row 4 \(.*red/1\.png\): not a readable image.*data\.skip_bad"):
            pixels.prepare(rows)
    monkeypatch.setenv("SWEEPS_CACHE_GB", "0")  # no room, and too many to keep
    assert Pixels(data.train, RECIPE, keep_bytes=0).prepare(rows, skip_bad=True).tolist() == [5, 3, 0]
