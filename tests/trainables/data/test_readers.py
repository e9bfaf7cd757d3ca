"""Why folders and Parquet files are read here and not by `datasets` (docs/decisions/0014-readers-of-image-files.md)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainables.tiny_images import image_table, png
from trainables.data.images.dataset import Dataset
from trainables.data.images.sources import from_folder, from_parquet

ASSETS = os.environ.get("SWEEPS_TEST_ASSETS")


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a folder with `datasets`, into a cache of the test's own."""

    def load(kind: str, folder: Path) -> Any:
        return datasets.load_dataset(kind, data_dir=str(folder), cache_dir=str(tmp_path / "hf"))

    return load


def pictures(count: int) -> list[bytes]:
    return [png(Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8))) for i in range(count)]


def write_table(path: Path, labels: list[int], names: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(image_table(pictures(len(labels)), labels, names), path)


def write_folder(folder: Path, classes: list[str]) -> Path:
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number, picture in enumerate(pictures(2)):
                (folder / split / name / f"{number}.png").write_bytes(picture)
    return folder


def assert_same(own: Dataset, loaded: Any, rows: int) -> None:
    image = next(name for name in ("image", "img") if name in loaded["train"].features)
    label = next(name for name in ("label", "labels") if name in loaded["train"].features)
    assert tuple(loaded["train"].features[label].names) == own.class_names
    for which, split in (("train", own.train), ("test", own.at("CONFIRM").test)):
        assert split.labels.tolist() == loaded[which][label]
        for row in range(min(rows, len(split))):
            expected = np.asarray(loaded[which][row][image].convert("RGB"))
            assert np.array_equal(np.asarray(split.image(row)), expected)


def test_both_read_the_same_of_well_made_files(tmp_path: Path, theirs: Any) -> None:
    for which in ("train", "test"):
        write_table(tmp_path / "tables" / f"{which}.parquet", [0, 1, 0, 1], ["cat", "dog"])
    assert_same(from_parquet("x", tmp_path / "tables"), theirs("parquet", tmp_path / "tables"), 4)
    folder = write_folder(tmp_path / "folders", ["cat", "dog"])
    assert_same(from_folder("x", folder), theirs("imagefolder", folder), 4)


@pytest.mark.skipif(ASSETS is None, reason="needs SWEEPS_TEST_ASSETS")
def test_both_read_the_same_of_real_sets(theirs: Any) -> None:
    for folder in sorted(Path(str(ASSETS), "images").iterdir()):
        assert_same(from_parquet("x", folder), theirs("parquet", folder), 20)


def test_datasets_mislabels_a_test_split_that_numbers_its_classes_another_way(tmp_path: Path, theirs: Any) -> None:
    write_table(tmp_path / "x" / "train.parquet", [0, 1, 0, 1], ["cat", "dog"])
    write_table(tmp_path / "x" / "test.parquet", [0, 1, 0, 1], ["dog", "cat"])
    assert from_parquet("x", tmp_path / "x").at("CONFIRM").test.labels.tolist() == [1, 0, 1, 0]
    assert theirs("parquet", tmp_path / "x")["test"]["label"] == [0, 1, 0, 1]


def test_datasets_mislabels_files_that_number_their_own_classes(tmp_path: Path, theirs: Any) -> None:
    write_table(tmp_path / "x" / "train-0.parquet", [0, 1], ["cat", "dog"])
    write_table(tmp_path / "x" / "train-1.parquet", [0, 1], ["dog", "emu"])
    write_table(tmp_path / "x" / "test.parquet", [0, 1], ["cat", "dog"])
    own = from_parquet("x", tmp_path / "x")
    assert [own.class_names[label] for label in own.train.labels] == ["cat", "dog", "dog", "emu"]
    loaded = theirs("parquet", tmp_path / "x")["train"]
    assert loaded.features["label"].int2str(loaded["label"]) == ["cat", "dog", "cat", "dog"]


def test_datasets_reads_a_copy_beside_a_file_as_more_of_it(tmp_path: Path, theirs: Any) -> None:
    for name in ("train", "train.backup", "test"):
        write_table(tmp_path / "x" / f"{name}.parquet", [0, 1], ["cat", "dog"])
    with pytest.raises(ValueError, match=r"train\.backup\.parquet"):
        from_parquet("x", tmp_path / "x")
    assert len(theirs("parquet", tmp_path / "x")["train"]) == 4


def test_datasets_orders_numbered_classes_as_text(tmp_path: Path, theirs: Any) -> None:
    folder = write_folder(tmp_path / "x", ["1", "2", "10"])
    assert from_folder("x", folder).class_names == ("1", "2", "10")
    assert theirs("imagefolder", folder)["train"].features["label"].names == ["1", "10", "2"]
