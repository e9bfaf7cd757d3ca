"""Data sets by name: sources, bad input, and images as open_clip would prepare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from open_clip.transform import image_transform
from PIL import Image

from tests.trainables.tiny_images import COLOURS, SIDE, colour_tables, image_table, noisy, png
from trainables.data.downloads import DataWarning
from trainables.data.facts import IMAGE_SETS, Sizes
from trainables.data.images.dataset import Dataset, ImageSplit, open_image
from trainables.data.images.pixels import Pixels, Recipe
from trainables.data.registry import (
    check_dataset,
    embedded_datasets,
    load_dataset,
)
from trainables.errors import DataError, SplitError
from trainables.predicting.answers import pixels


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"unknown data set 'cifar1000'; nearest: 'cifar100'.*forms: NAME, NAME@SOURCE, embedded"
    ):
        load_dataset("cifar1000")
    name = embedded_datasets()[0]
    with pytest.raises(DataError, match=f"nearest: '{name}'"):
        check_dataset(name[:-1])


def test_sizes_are_checked_without_decoding(colours: Path) -> None:
    name = f"parquet:{colours}"
    check_dataset(name, ["1-shot", "12-shot", "16-shot", 0.5, 1.0])
    with pytest.raises(DataError, match="no example at all"):
        check_dataset(name, ["1-shot", 0.001])
    check_dataset(name, ["16-shot"], "paper")
    check_dataset("cifar100", ["10000-shot"])  # not on this disk: nothing is downloaded to plan


def test_missing_folder_lists_its_neighbours(colours: Path) -> None:
    with pytest.raises(DataError, match=rf"no folder .*nearest: '{colours.name}'"):
        check_dataset(f"parquet:{colours}x")


def test_parquet(colours: Path) -> None:
    data = load_dataset(f"parquet:{colours}")
    assert data.class_names == tuple(COLOURS)
    assert len(data.train) == 64
    assert torch.bincount(data.train.labels).tolist() == [16] * 4
    assert data.train.image(0).size == (SIDE, SIDE)
    assert all(t.count("{}") == 1 for t in data.templates)


def test_test_split_is_closed_in_tune(colours: Path) -> None:
    data = load_dataset(f"parquet:{colours}")
    with pytest.raises(SplitError, match="closed in stage TUNE"):
        _ = data.test
    assert len(data.at("CONFIRM").test) == 32
    with pytest.raises(SplitError):
        _ = data.at("CONFIRM").at("TUNE").test


def test_tune_does_not_touch_the_test_file(tmp_path: Path) -> None:
    tables = colour_tables()
    pq.write_table(tables["train"], tmp_path / "train.parquet")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 cut short")
    data = load_dataset(f"parquet:{tmp_path}")
    with pytest.raises(DataError, match=r"test\.parquet .*damaged"):
        _ = data.at("CONFIRM").test


NUMBERED = ("train_{}", "train{}", "train.{}", "train-{}-of-2", "data/train_{}", "data/train-{}", "train/{}")


@pytest.mark.parametrize("names", ["train", "train_extra", "data/train", *NUMBERED])
def test_files_that_are_named_as_on_the_hub(tmp_path: Path, names: str) -> None:
    tables = colour_tables(2, 1)
    several = {names.format(number) for number in range(2)}
    for name in several:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(tables["train"], tmp_path / f"{name}.parquet")
    for name in ("test", "training", "trainval"):
        pq.write_table(tables["test"], tmp_path / f"{name}.parquet")
    pq.write_table(tables["test"].slice(0, 3), tmp_path / "validation_0.parquet")  # not of `val` too
    data = load_dataset(f"parquet:{tmp_path}")
    assert len(data.train) == 8 * len(several) + 3
    assert data.val_rows is not None and len(data.val_rows) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train", "train-00001-of-00002"),
        ("train", "train_extra"),
        ("train_0", "train_extra"),
        ("train_0", "train0"),
        ("train-0", "data/train-0"),
        ("train", "train/0"),
    ],
)
def test_files_of_two_kinds_for_one_split_are_refused(tmp_path: Path, one: str, other: str) -> None:
    tables = colour_tables(1, 1)
    for name in (one, other, "test"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(tables["train"], tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"has .*\.parquet and .*\.parquet for split 'train'") as caught:
        load_dataset(f"parquet:{tmp_path}")
    assert all(f" {name}.parquet " in str(caught.value) for name in (one, other))


def same(a: Dataset, b: Dataset) -> None:
    assert a.class_names == b.class_names
    for x, y in ((a.train, b.train), (a.at("CONFIRM").test, b.at("CONFIRM").test)):
        assert torch.equal(x.labels, y.labels)
        everything = torch.arange(len(x))
        assert torch.equal(Pixels(x, Recipe(SIDE)).rows(everything), Pixels(y, Recipe(SIDE)).rows(everything))


def test_arrow_files_streams_and_hub_give_the_same(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = colour_tables()
    expected = load_dataset(f"parquet:{colours}")
    (tmp_path / "test").mkdir()
    with pa.ipc.new_file(str(tmp_path / "train.arrow"), tables["train"].schema) as writer:
        writer.write_table(tables["train"])
    with pa.ipc.new_stream(str(tmp_path / "test" / "data-0.arrow"), tables["test"].schema) as stream:
        stream.write_table(tables["test"])
    same(load_dataset(f"arrow:{tmp_path}"), expected)

    hub = datasets.DatasetDict({k: datasets.Dataset(v) for k, v in tables.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"org/set": hub}[name])
    same(load_dataset("hf:org/set"), expected)
    with pytest.raises(DataError, match=r"the hub gave no 'org/other' \(KeyError"):
        load_dataset("hf:org/other")


@pytest.mark.parametrize("made", ["map", "filter"])
def test_a_saved_set_is_what_was_saved(tmp_path: Path, made: str) -> None:
    datasets.DatasetDict({k: datasets.Dataset(v) for k, v in colour_tables().items()}).save_to_disk(tmp_path)
    saved = datasets.load_from_disk(tmp_path)["train"]
    getattr(saved, made)(lambda _: {} if made == "map" else True, input_columns="label")
    assert list((tmp_path / "train").glob("cache-*.arrow"))  # what `datasets` keeps of it
    assert len(load_dataset(f"arrow:{tmp_path}").train) == 64
    (tmp_path / "train" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json: names no files \(KeyError"):
        load_dataset(f"arrow:{tmp_path}")


def test_files_that_a_table_names_are_read_where_it_was_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` makes such tables of a repository of image files."""
    tables = {}
    for which, table in colour_tables(1, 1).items():
        cells = table["image"].to_pylist()
        for row, cell in enumerate(cells):
            file = tmp_path / f"{which}{row}.png"
            file.write_bytes(cell["bytes"])
            cell |= {"bytes": None, "path": str(file)}
        tables[which] = table.set_column(0, "image", pa.array(cells, table.schema.types[0]))
        pq.write_table(tables[which], tmp_path / f"{which}.parquet")
    hub = datasets.DatasetDict({k: datasets.Dataset(v) for k, v in tables.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda _: hub)
    assert load_dataset("hf:org/files").train.image(3).size == (SIDE, SIDE)
    with pytest.raises(DataError, match="the row holds no bytes"):  # a path of another machine, or made to harm
        load_dataset(f"parquet:{tmp_path}").train.image(3)


def test_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for which, n in (("train", 3), ("test", 2)):
        for name in ("red_thing", "blue_thing"):
            (tmp_path / which / name).mkdir(parents=True)
            for i in range(n):
                noisy(rng, COLOURS["red"]).save(tmp_path / which / name / f"{i}.png")
    (tmp_path / "train" / "red_thing" / "notes.txt").write_text("no image")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.class_names == ("blue thing", "red thing")
    assert (len(data.train), len(data.at("CONFIRM").test)) == (6, 4)
    (tmp_path / "test" / "read_thing").mkdir()
    again = load_dataset(f"folder:{tmp_path}", stage="CONFIRM")
    with pytest.raises(DataError, match="'read_thing' of test is not in train; nearest: 'red_thing'"):
        _ = again.test


@pytest.mark.parametrize(
    ("own", "given", "found"),
    [
        (["cat", "bird", "dog"], ["Cat", "dog", "bird"], ["bird", "Cat", "dog"]),  # the same names
        (["oak_tree", "ash"], ["oak tree", "ash"], ["ash", "oak tree"]),
        (["b", "a"], ["second", "a"], "have 'a' in the place of class 'b'.* in its order: a, b"),
        (["b", "a"], ["first", "second"], ["first", "second"]),
        (["10", "2", "1"], None, ["1", "2", "10"]),
    ],
)
@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_names_given_go_to_their_classes(tmp_path: Path, form: str, own: Any, given: Any, found: Any) -> None:
    for which in ("train", "test"):
        for name in own:
            (tmp_path / which / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / which / name / "0.png")
        table = image_table([b""] * len(own), list(range(len(own))), None)
        pq.write_table(table.set_column(1, "label", pa.array(own)), tmp_path / f"{which}.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps({"class_names": given}), encoding="utf-8")
    if isinstance(found, str):
        with pytest.raises(DataError, match=found):
            load_dataset(f"{form}:{tmp_path}")
    else:
        assert list(load_dataset(f"{form}:{tmp_path}").class_names) == found


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        classes = ("ice_cream", "pizza")

        def __init__(self, root: str, *, split: str, download: bool) -> None:
            assert root == str(tmp_path)
            if split == "test":
                raise RuntimeError("no connection")
            self._labels = [0, 1, 1]

        def __len__(self) -> int:
            return 3

        def __getitem__(self, row: int) -> tuple[Image.Image, int]:
            return Image.new("L", (9, 9), row), self._labels[row]

    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "Food101", Fake)
    least = {"classes": 1, "sizes": Sizes(train=1, val=0, test=0)}
    monkeypatch.setitem(IMAGE_SETS, "food101", IMAGE_SETS["food101"].model_copy(update=least))
    with pytest.warns(DataWarning, match="2 classes, and 1 "), pytest.warns(DataWarning, match="3 training images"):
        data = load_dataset("food101", stage="CONFIRM")
    assert data.class_names == ("ice cream", "pizza")
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.train.image(2).getpixel((0, 0)) == (2, 2, 2)
    with pytest.raises(DataError, match=r"could not read or download .*SWEEPS_DATA"):
        _ = data.test


def test_corrupt_image_names_the_row(tmp_path: Path) -> None:
    good = png(noisy(np.random.default_rng(0), (9, 9, 9)))
    table = image_table([good, good[:40], b"", good], [0, 1, 0, 1], ["a", "b"])
    for which in ("train", "test"):
        pq.write_table(table, tmp_path / f"{which}.parquet")
    pixels = Pixels(load_dataset(f"parquet:{tmp_path}").train, Recipe(SIDE))
    assert len(pixels.rows(torch.tensor([0, 3, 0]))) == 3
    for row in (1, 2):
        with pytest.raises(DataError, match=rf"train row {row}: not a readable image"):
            pixels.rows(torch.tensor([0, row]))


@pytest.mark.parametrize(
    ("labels", "names", "words", "message"),
    [
        ([0, 1], None, {}, "numbers without names"),
        ([0, -1], ["a", "b"], {}, r"row 1: label -1 is not in 0\.\.1"),
        ([0, 2], ["a", "b"], {}, r"row 1: label 2 is not in 0\.\.1; the first class is 0"),
        ([0, 0], ["a"], {}, "needs two or more"),
        ([0, 1], ["a", "b"], {"class_names": ["x"]}, "1 class"),
        ([0, 1], ["a", "b"], {"templates": ["no place"]}, "exactly once"),
        ([0, 1], ["a", "b"], {"templates": ["a {} {x}"]}, r"'a {} {x}' must hold '{}' exactly once.*no other braces"),
        ([0, 1], ["a", "b"], {"templates": ["a {{}}"]}, "exactly once"),
        ([0, 1], ["a", "b"], {"templates": ["a {} }"]}, "exactly once"),
        ([0, 1], ["a", "b"], {"prompt": "a {0}"}, "exactly once"),
        ([0, 1], ["a", "b"], {"templates": "a {}"}, "list of strings"),
        ([0, None], ["a", "b"], {}, "1 rows have no 'label'"),
    ],
)
def test_bad_tables(tmp_path: Path, labels: Any, names: Any, words: dict[str, Any], message: str) -> None:
    table = image_table([b"", b""], labels, names)
    for which in ("train", "test"):
        pq.write_table(table, tmp_path / f"{which}.parquet")
    (tmp_path / "dataset.json").write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_dataset(f"parquet:{tmp_path}")


def test_missing_split_and_columns(tmp_path: Path) -> None:
    table = image_table([b"", b""], [0, 1], ["a", "b"])
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"no parquet files for split 'test' \(found: train\)"):
        load_dataset(f"parquet:{tmp_path}")
    pq.write_table(table, tmp_path / "test.parquet")
    pq.write_table(table.rename_columns(["picture_file", "label"]), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no image column among"):
        load_dataset(f"parquet:{tmp_path}")


def test_words_of_a_folder(tmp_path: Path) -> None:
    table = image_table([b"", b""], [0, 1], None)
    for which in ("train", "test"):
        pq.write_table(table, tmp_path / f"{which}.parquet")
    words = {"class_names": ["x", "y"], "templates": ["the {}"], "prompt": "one {}", "licence": "MIT"}
    (tmp_path / "dataset.json").write_text(json.dumps(words), encoding="utf-8")
    data = load_dataset(f"parquet:{tmp_path}")
    assert (data.class_names, data.templates, data.prompt) == (("x", "y"), ("the {}",), "one {}")


@pytest.mark.parametrize("labels", [[[0, 1], [1, 0]], [0.5, 1.0]])
def test_labels_are_one_integer_or_text(tmp_path: Path, labels: Any) -> None:
    table = image_table([b""] * 2, [0, 1], None)
    for which in ("train", "test"):
        pq.write_table(table.set_column(1, "label", pa.array(labels)), tmp_path / f"{which}.parquet")
    (tmp_path / "dataset.json").write_text('{"class_names": ["a", "b"]}', encoding="utf-8")
    with pytest.raises(DataError, match=r"labels are (list|double).*; each must be one integer, or text"):
        load_dataset(f"parquet:{tmp_path}")


@pytest.mark.parametrize("category", [False, True])  # as pandas writes it
def test_string_labels(tmp_path: Path, category: bool) -> None:
    table = image_table([b""] * 3, [0, 1, 0], None)
    words = pa.array(["pear", "fig", "pear"])
    named = table.set_column(1, "label", words.dictionary_encode() if category else words)
    for which in ("train", "test"):
        pq.write_table(named, tmp_path / f"{which}.parquet")
    data = load_dataset(f"parquet:{tmp_path}", stage="CONFIRM")
    assert data.class_names == ("fig", "pear")
    assert data.test.labels.tolist() == [1, 0, 1]
    pq.write_table(named.set_column(1, "label", pa.array(["pear", "x", "fig"])), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="class 'x' is not in train"):
        _ = load_dataset(f"parquet:{tmp_path}", stage="CONFIRM").test


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_greys_of_16_bits_are_scaled_and_those_of_32_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"grey.{suffix}"
    split = ImageSplit("s", "train", torch.zeros(1, dtype=torch.int64), lambda _: open_image(file))
    Image.fromarray(np.array([[0, 257], [25700, 65535]], dtype=np.uint16)).save(file)
    assert np.asarray(split.image(0))[..., 1].tolist() == [[0, 1], [100, 255]]
    assert pixels(str(file), Recipe(2))[1].tolist() == [[0, 1], [100, 255]]
    for kind in (np.float32, np.int32):
        Image.fromarray(np.array([[0, 1]], dtype=kind)).save(file, format="TIFF")
        for read in (lambda: split.image(0), lambda: pixels(str(file), Recipe(2))):
            with pytest.raises(DataError, match=r"its mode is '[FI]', greys of 32 bits"):
                read()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(16, 16), (40, 30), (31, 47), (9, 12)])
def test_recipe_is_open_clips_transform(mode: Any, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = np.asarray(Recipe(16, resize_mode=mode).apply(image))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    theirs = image_transform(16, is_train=False, mean=mean, std=std, resize_mode=mode)(image)
    back = (theirs * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)) * 255
    assert np.abs(ours.transpose(2, 0, 1) - back.numpy()).max() < 0.01


def test_pixels_decode_each_row_once_and_agree_when_not_kept(colours: Path) -> None:
    split = load_dataset(f"parquet:{colours}").train
    reads: list[int] = []

    def read(row: int) -> Image.Image:
        reads.append(row)
        return split.read(row)

    counted = type(split)(split.source, split.name, split.labels, read)
    kept, not_kept = Pixels(counted, Recipe(SIDE)), Pixels(split, Recipe(SIDE), keep_bytes=0)
    rows = torch.tensor([3, 1, 3, 60])
    assert torch.equal(kept.rows(rows), not_kept.rows(rows))
    assert torch.equal(kept.rows(rows), not_kept.rows(rows))
    assert sorted(reads) == [1, 3, 60]
    assert (kept.kept_bytes, not_kept.kept_bytes) == (64 * 3 * SIDE**2, 0)
