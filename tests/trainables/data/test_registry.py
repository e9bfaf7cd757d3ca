"""The registered data sets: what is known of the paper's 22, and the loaders of those that split or cut here."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests.trainables.tiny_images import colour_tables
from trainables.data.downloads import DataWarning, check_counts, downloading, report_difference
from trainables.data.facts import IMAGE_SETS, Sizes, Torchvision, Voc
from trainables.data.images.class_names import clean
from trainables.data.images.pixels import Pixels, Recipe
from trainables.data.images.torchvision import _classes, per_class_rows, share_rows
from trainables.data.registry import load_dataset
from trainables.data.splits import split
from trainables.errors import DataError

TABLE_7 = {  # classes, train, val, test, epochs of arXiv 2502.00987
    "cars": (196, 7330, 814, 8041, 35), "dtd": (47, 3384, 376, 1880, 76), "eurosat": (10, 21600, 2700, 2700, 12),
    "gtsrb": (43, 23976, 2664, 12630, 11), "mnist": (10, 55000, 5000, 10000, 5),
    "resisc45": (45, 17010, 1890, 6300, 15), "sun397": (397, 17865, 1985, 19850, 14),
    "svhn": (10, 68257, 5000, 26032, 4), "cifar10": (10, 45000, 5000, 10000, 5),
    "cifar100": (100, 45000, 5000, 10000, 6),
    "imagenet": (1000, 1276167, 5000, 50000, 10), "stl10": (10, 4500, 500, 8000, 4),
    "food101": (101, 70750, 5000, 25250, 15), "caltech101": (101, 6941, 694, 1736, 10),
    "caltech256": (257, 22037, 2448, 6122, 8), "fgvc-aircraft": (100, 3334, 3333, 3333, 60),
    "flowers102": (102, 1020, 1020, 6149, 40), "oxford-pets": (37, 3312, 368, 3669, 5),
    "cub200": (200, 5395, 599, 5794, 20), "voc2007": (20, 7844, 7818, 14976, 10),
    "country211": (211, 31650, 10550, 21100, 15), "ucf101": (101, 7639, 1898, 3783, 20),
}  # fmt: skip


def test_the_papers_22_sets() -> None:
    assert {name for name, info in IMAGE_SETS.items() if info.epochs} == TABLE_7.keys()
    for name, (classes, train, val, test, epochs) in TABLE_7.items():
        info = IMAGE_SETS[name]
        # the paper counts Caltech-101's validation images among its training images
        sizes = Sizes(train=train - val if name == "caltech101" else train, val=val, test=test)
        assert (info.classes, info.sizes, info.epochs) == (classes, sizes, epochs)


def test_another_size_warns_or_is_refused() -> None:
    report_difference("x", "images", 3, 3, verified=True)
    with pytest.warns(DataWarning, match=r"'x' has 1,000 images, and 3 were expected; scores are not comparable"):
        report_difference("x", "images", 1000, 3, verified=False)
    with pytest.raises(DataError, match="incomplete or of another version"):
        report_difference("x", "images", 2, 3, verified=True)


def test_the_test_split_is_counted_when_it_is_opened(colours: Path) -> None:
    data = load_dataset(f"parquet:{colours}", stage="CONFIRM")
    counted = check_counts(data, "images", 64, 33, verified=False, unpacked=True)
    with pytest.raises(DataError, match="32 test images, and 33"):
        _ = counted.test
    with pytest.raises(DataError, match="64 training images, and 65"):
        check_counts(data, "images", 65, 32, verified=False, unpacked=True)


def test_another_source(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def hub(*words: str) -> Any:
        asked.append(words)
        return datasets.DatasetDict({k: datasets.Dataset(v) for k, v in colour_tables().items()})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.warns(DataWarning):
        data = load_dataset("svhn@hub")
    assert data.templates == IMAGE_SETS["svhn"].templates
    assert asked == [("ufldl-stanford/svhn", "cropped_digits")]
    with pytest.raises(DataError, match=r"has no source 'hup'; further sources: svhn@hub"):
        load_dataset("svhn@hup")


def test_the_prompts_are_those_that_clip_published() -> None:
    """Numbers, and the last of each longer list, of openai/CLIP's data/prompts.md."""
    counts = {"cars": 8, "dtd": 8, "eurosat": 3, "gtsrb": 3, "resisc45": 18, "cifar10": 18, "cifar100": 18}
    counts |= {"sun397": 2, "stl10": 2, "caltech101": 34, "fgvc-aircraft": 2, "country211": 5, "ucf101": 48}
    lacking = {"svhn": "mnist", "caltech256": "caltech101"}
    own = (name for name in TABLE_7 if name != "imagenet")  # open_clip has those
    found = {name: IMAGE_SETS[name].templates for name in own}
    assert {name: len(set(templates)) for name, templates in found.items()} == {
        name: counts.get(lacking.get(name, name), 1) for name in found
    }
    assert all(found[name] == found[other] for name, other in lacking.items())
    last = {
        "cars": "a photo of my old {}.",
        "dtd": "a photo of the {} object.",
        "gtsrb": 'a close up photo of a "{}" traffic sign.',
        "resisc45": "aerial view of the {}.",
        "cifar100": "a photo of the big {}.",
        "caltech101": "a doodle of the {}.",
        "country211": "a photo showing the country of {}.",
        "ucf101": "a demonstration of the person practicing {}.",
    }
    assert {name: found[name][-1] for name in last} == last
    assert {"the {} in a video game.", "a plastic {}."} <= set(found["caltech101"])
    assert "a low contrast photo of the {}." in found["cifar10"]


def test_the_11_sets_of_coop() -> None:
    coops = {name: info for name, info in IMAGE_SETS.items() if name.startswith("coop-")}
    assert len({*coops, "fgvc-aircraft", "ucf101", "imagenet"} & IMAGE_SETS.keys()) == 11
    assert all(len(info.templates) == 1 for info in coops.values())  # CoOp's hand-written ones
    assert coops["coop-dtd"].templates == ("{} texture.",)


def test_class_names_read_as_words() -> None:
    found = {
        n: clean(n) for n in ("001.Black_footed_Albatross", "/b/bar/indoor", "airplanes-101", "SeaLake", "F-16A/B")
    }
    assert list(found.values()) == ["Black footed Albatross", "bar indoor", "airplanes", "Sea Lake", "F-16A/B"]
    assert (clean("iPod"), clean("DHC-8-100"), clean("AD", {"AD": "Andorra"})) == ("iPod", "DHC-8-100", "Andorra")


def test_class_names_are_the_released_ones() -> None:
    """SHA-256 of the lists in the code that the paper's data sets come from: fredzzhang/atlas, and the GTSRB list of
    openai/CLIP at e184f608 that it takes."""

    def digest(names: Sequence[str]) -> str:
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    def classes(key: str, raw: Sequence[str]) -> tuple[str, ...]:
        info = IMAGE_SETS[key]
        assert isinstance(info.source, Torchvision)
        return _classes(info.source, info.renames, SimpleNamespace(classes=raw))

    assert digest(classes("country211", sorted(IMAGE_SETS["country211"].renames))) == "027b30d283f3a153"
    assert digest(classes("flowers102", torchvision.datasets.Flowers102.classes)) == "5429e1ef6e0e5aa3"
    assert digest(classes("gtsrb", ())) == "953036bc5aedbe6b"
    land = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial")
    land += ("Pasture", "PermanentCrop", "Residential", "River", "SeaLake")
    assert digest(classes("eurosat", land)) == "ee2e41b9973e7206"
    voc = IMAGE_SETS["voc2007"]
    assert isinstance(voc.source, Voc)
    assert digest([clean(name, voc.renames) for name in voc.source.class_names]) == "1f7cfbcbbf2ee17b"
    raw = ("002.american-flag", "251.airplanes-101", "217.tennis-court")
    assert classes("caltech256", raw) == ("american flag", "airplanes", "tennis court")


def test_per_class_and_share_splits() -> None:
    labels = torch.arange(3).repeat(20)
    train, val, test = per_class_rows(labels, "x", each=4)
    assert torch.bincount(labels[val]).tolist() == torch.bincount(labels[test]).tolist() == [4, 4, 4]
    assert torch.equal(torch.cat([train, val, test]).sort().values, torch.arange(60))
    assert torch.equal(test, per_class_rows(labels, "x", each=4)[2])
    with pytest.raises(DataError, match="class 0 has 20 images, and more than 20 are needed"):
        per_class_rows(labels, "x", each=10)
    train, val, test = share_rows(8677)
    assert (len(train), len(val), len(test)) == (6941, 0, 1736)
    assert len(share_rows(30607)[2]) == 6122
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(8677))


def may_be_small(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have a registered set's fake taken, with a warning: it is smaller than the set, and larger than this."""
    least = {"classes": 1, "sizes": Sizes(train=1, val=0, test=0)}
    monkeypatch.setitem(IMAGE_SETS, name, IMAGE_SETS[name].model_copy(update=least))


def test_pooled_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        classes = ("AnnualCrop", "SeaLake")

        def __init__(self, root: str, *, download: bool) -> None:
            self.targets = [i % 2 for i in range(1200)]

        def __len__(self) -> int:
            return 1200

        def __getitem__(self, row: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (4, 4), (row % 256, row // 256, 0)), self.targets[row]

    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "EuroSAT", Fake)
    with pytest.raises(DataError, match=r"2 classes, and 10 were expected: .*incomplete.* remove them from"):
        load_dataset("eurosat")
    may_be_small(monkeypatch, "eurosat")
    with pytest.warns(DataWarning):
        data = load_dataset("eurosat", stage="CONFIRM")
        test = data.test
    assert data.class_names == ("annual crop land", "lake or sea")
    rows = split(data, 1.0, 0, "CONFIRM")
    assert (len(rows.train_idx), len(rows.val_idx), len(test)) == (120, 540, 540)

    def identities(of: Any, index: range | torch.Tensor) -> set[tuple[int, int]]:
        return {of.image(int(i)).getpixel((0, 0))[:2] for i in index}

    seen = identities(test, range(540)), identities(data.train, rows.train_idx), identities(data.train, rows.val_idx)
    assert [len(s) for s in seen] == [540, 120, 540]
    assert len(set.union(*seen)) == 1200
    assert all(
        test.labels[i] == (sum(p * 256**j for j, p in enumerate(test.image(i).getpixel((0, 0))[:2])) % 2)
        for i in range(9)
    )


@pytest.mark.parametrize("name", ["caltech101", "caltech256"])
def test_a_caltech_image_that_changes_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name / f"{name[-3:]}_ObjectCategories"
    classes = ("ant", "bee", "BACKGROUND_Google")[: 3 if name == "caltech101" else 2]
    for number, each in enumerate(classes, 1):
        (folder / each).mkdir(parents=True)
        for i in range(1, 6):
            stem = f"image_{i:04d}" if name == "caltech101" else f"{number:03d}_{i:04d}"
            Image.new("RGB", (8, 8), "red").save(folder / each / f"{stem}.jpg")
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    monkeypatch.setenv("SWEEPS_CACHE", str(tmp_path / "cache"))
    may_be_small(monkeypatch, name)

    def greens() -> set[int]:
        with pytest.warns(DataWarning):
            train = load_dataset(name).train
        pixels = train.image(0).tobytes()  # of which digests of these sets have always been
        assert train.digest(0) == hashlib.blake2b(pixels, digest_size=16).digest()
        return set(Pixels(train, Recipe(8)).rows(torch.arange(8))[:, 1].flatten().tolist())

    assert max(greens()) < 50 and greens() == greens()
    for path in folder.glob("*/*.jpg"):
        Image.new("RGB", (8, 8), (0, 255, 0)).save(path)
    assert min(greens()) > 200


def test_objects_of_voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    objects = [("dog", (1, 1, 2, 3)), ("tvmonitor", (3, 2, 4, 2))]
    body = "".join(f"<object><name>{n}</name><difficult>1</difficult>{box.format(*b)}</object>" for n, b in objects)

    root = tmp_path / "VOCdevkit" / "VOC2007"
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for which, count in (("train", 2), ("val", 1), ("test", 3)):
        names = [f"{which}{i}" for i in range(count)]
        (root / "ImageSets" / "Main" / f"{which}.txt").write_text("\n".join(names))
        for name in names:
            picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
            picture.save(root / "JPEGImages" / f"{name}.jpg", format="PNG")
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", _refused)  # it is there
    may_be_small(monkeypatch, "voc2007")
    with pytest.warns(DataWarning):
        data = load_dataset("voc2007", stage="CONFIRM")
        assert len(data.test) == 6
    assert data.class_names[11] == "dog"
    assert data.class_names[19] == "tv monitor"
    assert data.train.labels.tolist() == [11, 19] * 3
    assert data.val_rows is not None
    assert data.val_rows.tolist() == [4, 5]
    assert data.train.image(0).size == (2, 3)
    assert data.train.image(1).size == (2, 1)
    assert data.train.image(1).getpixel((0, 0)) == (18, 19, 20)  # second line, third pixel

    monkeypatch.setenv("SWEEPS_CACHE", str(tmp_path / "cache"))
    row = torch.tensor([1])
    before = Pixels(data.train, Recipe(4)).rows(row)
    drawn = (root / "Annotations" / "train0.xml").read_text()
    (root / "Annotations" / "train0.xml").write_text(drawn.replace("<ymin>2</ymin>", "<ymin>1</ymin>"))
    with pytest.warns(DataWarning):
        mended = load_dataset("voc2007").train
    found = Pixels(mended, Recipe(4)).rows(row)  # its picture is as old as it was
    assert torch.equal(found, Pixels(replace(mended, content=None), Recipe(4)).rows(row))
    assert not torch.equal(found, before)


def test_cub_by_its_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    root = tmp_path / "CUB_200_2011"
    (root / "images" / "a").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(root / "images" / "a" / f"{i}.png")
    (root / "images.txt").write_text("".join(f"{i + 1} a/{i}.png\n" for i in range(4)))
    (root / "classes.txt").write_text("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")
    (root / "image_class_labels.txt").write_text("1 1\n2 2\n3 1\n4 2\n")
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n4 1\n")
    may_be_small(monkeypatch, "cub200")
    with pytest.warns(DataWarning):
        data = load_dataset("cub200", stage="CONFIRM")
        assert data.test.labels.tolist() == [1]
    assert data.class_names == ("Black footed Albatross", "Laysan Albatross")
    assert data.train.labels.tolist() == [0, 0, 1]
    (root / "images" / "a" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png is not there; remove .*CUB_200_2011"):
        load_dataset("cub200")
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt can't be read"):
        load_dataset("cub200")


@pytest.mark.parametrize(
    ("dataset", "folder", "images", "file"),
    [("ucf101", "ucf101", "UCF-101-midframes", "UCF101"), ("coop-cars", "stanford_cars", "", "StanfordCars")],
)
def test_sets_by_the_lists_of_coop(
    dataset: str, folder: str, images: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"{images} and .*split_zhou_{file}\.json must be there.*SWEEPS_DATA"):
        load_dataset(dataset)
    frames = tmp_path / folder / images
    frames.mkdir(parents=True)
    rows = {"train": [["a.jpg", 0, "Apply_Eye_Makeup"], ["b.jpg", 1, "Yo_Yo"]], "val": [["c.jpg", 1, "Yo_Yo"]]}
    lists = tmp_path / folder / f"split_zhou_{file}.json"
    lists.write_text(json.dumps(rows))
    for name in "abcd":
        Image.new("RGB", (4, 4)).save(frames / f"{name}.jpg")
    with pytest.raises(DataError, match=r"can't be read \(KeyError: 'test'\)"):
        load_dataset(dataset)
    lists.write_text(json.dumps({**rows, "test": [["d.jpg", 0, "Apply_Eye_Makeup"]]}))
    with pytest.warns(DataWarning):
        data = load_dataset(dataset, stage="CONFIRM")
        assert len(data.test) == 1
    assert data.class_names == ("Apply Eye Makeup", "Yo Yo")
    assert data.val_rows is not None
    assert data.val_rows.tolist() == [2]


def test_an_absent_set_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.utils.download_url", _refused)
    with pytest.raises(DataError, match=r"could not be had from https.*put the unpacked folder CUB_200_2011 into"):
        load_dataset("cub200")
    monkeypatch.setattr(datasets, "load_dataset", _refused)
    with pytest.raises(DataError, match="gated: accept its terms on the hub"):
        load_dataset("imagenet")
    with pytest.raises(DataError, match=r"'imagenet@torchvision'.*SWEEPS_DATA"):
        load_dataset("imagenet@torchvision")


@pytest.mark.parametrize(
    ("dataset", "lock", "loader", "error"),
    [
        ("cifar10", "CIFAR10", "CIFAR10", ValueError),
        ("voc2007", "VOC2007", "VOCDetection", ValueError),
        ("cub200", "CUB_200_2011", "utils.download_url", OSError),
    ],
)
def test_one_process_at_a_time_downloads_a_set(
    dataset: str, lock: str, loader: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path))
    seen = []

    def held() -> bool:
        with (tmp_path / f".{lock}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def load(*_: object, **__: object) -> None:
        seen.append(held())
        raise error("half written")

    monkeypatch.setattr(f"torchvision.datasets.{loader}", load)
    with pytest.raises(DataError, match="half written"):
        load_dataset(dataset)
    assert (seen, held()) == ([True], False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SWEEPS_DATA", str(tmp_path / "file"))
    with downloading(lock) as folder:  # no lock where nothing can be written
        assert folder == tmp_path / "file"


def _refused(*_: object, **__: object) -> Any:
    raise OSError("no connection")
