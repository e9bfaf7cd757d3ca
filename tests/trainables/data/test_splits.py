"""Subsets are nested, validation is apart from training, and every draw follows its seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from trainables.config import shots
from trainables.data.facts import IMAGE_SETS
from trainables.data.images.dataset import Dataset, ImageSplit
from trainables.data.registry import load_dataset
from trainables.data.splits import fewer_shots, split
from trainables.errors import DataError, SplitError


def fake(labels: Tensor, val_rows: Tensor | None = None) -> Dataset:
    def part(name: str) -> ImageSplit:
        return ImageSplit("fake", name, labels, lambda row: Image.new("RGB", (1, 1)))

    names = tuple(f"class {i}" for i in range(int(labels.max()) + 1))
    return Dataset(
        name="fake",
        class_names=names,
        templates=("a {}",),
        prompt="a {}",
        train=part("train"),
        open_test=lambda: part("test"),
        val_rows=val_rows,
    )


def balanced(classes: int, per_class: int) -> Dataset:
    return fake(torch.arange(classes).repeat(per_class))


def members(rows: Tensor) -> set[int]:
    return set(rows.tolist())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**9), st.integers(1, 9), st.integers(1, 9))
def test_shots_are_nested_balanced_and_apart_from_validation(classes: int, seed: int, a: int, b: int) -> None:
    data = balanced(classes, 13)
    few, more = sorted((a, b))
    small, large = (split(data, f"{k}-shot", seed, "TUNE") for k in (few, more))
    assert members(small.train_idx) <= members(large.train_idx)
    assert members(small.val_idx) <= members(large.val_idx)
    for rows, k in ((small, few), (large, more)):
        assert torch.bincount(data.train.labels[rows.train_idx]).tolist() == [k] * classes
        assert torch.bincount(data.train.labels[rows.val_idx]).tolist() == [min(k, 4)] * classes
        assert not members(rows.train_idx) & members(rows.val_idx)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9), st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_fractions_are_nested_and_share_one_validation_split(seed: int, a: float, b: float) -> None:
    data = balanced(5, 40)
    less, more = sorted((a, b))
    small, large = split(data, less, seed, "TUNE"), split(data, more, seed + 1, "TUNE")
    assert torch.equal(small.val_idx, large.val_idx)
    assert len(small.val_idx) == 20
    assert not members(large.train_idx) & members(large.val_idx)
    assert len(small.train_idx) == round(less * 180)
    assert members(small.train_idx) <= members(split(data, more, seed, "TUNE").train_idx)


def test_seed_decides_the_subset_and_stage_does_not() -> None:
    data = balanced(4, 20)
    first, again = split(data, "3-shot", 7, "TUNE"), split(data, "3-shot", 7, "CONFIRM")
    assert torch.equal(first.train_idx, again.train_idx)
    assert torch.equal(first.val_idx, again.val_idx)
    assert not torch.equal(first.train_idx, split(data, "3-shot", 8, "TUNE").train_idx)
    assert not torch.equal(split(data, 0.5, 7, "TUNE").train_idx, split(data, 0.5, 8, "TUNE").train_idx)


def test_tune_cannot_name_test_rows() -> None:
    data = balanced(3, 20)
    with pytest.raises(SplitError, match="closed in stage TUNE"):
        _ = split(data, 1.0, 0, "TUNE").test_idx
    assert len(split(data, 1.0, 0, "CONFIRM").test_idx) == 60


def test_classes_with_fewer_images_than_shots_give_what_they_have() -> None:
    data = fake(torch.tensor([0] * 30 + [1] * 10 + [2] * 3))
    sizes = {}
    before: set[int] = set()
    for k in (1, 2, 4, 7, 16):
        rows = split(data, f"{k}-shot", 3, "TUNE")
        counts = [torch.bincount(data.train.labels[of], minlength=3).tolist() for of in (rows.train_idx, rows.val_idx)]
        sizes[k] = counts
        assert before <= members(rows.train_idx)
        assert not members(rows.train_idx) & members(rows.val_idx)
        before = members(rows.train_idx)
    assert sizes[2] == [[2, 2, 2], [2, 2, 1]]
    assert sizes[7] == [[7, 6, 2], [4, 4, 1]]
    assert sizes[16] == [[16, 6, 2], [4, 4, 1]]
    assert fewer_shots(data, "7-shot") == {"class 1": 6, "class 2": 2}
    assert fewer_shots(data, "2-shot") == fewer_shots(data, 1.0) == {}
    assert fewer_shots(data, "7-shot", "paper") == {"class 2": 3}
    assert fewer_shots(data, "7-shot", "paper", keep=9) == {"class 1": 6, "class 2": 2}
    with pytest.raises(DataError, match=r"'1-shot' of 'fake': class 'class 1' has 1 examples to train on and 0 to val"):
        split(fake(torch.tensor([0, 0, 0, 1])), "1-shot", 0, "TUNE")


@pytest.mark.parametrize("name", [name for name, info in IMAGE_SETS.items() if info.epochs])
def test_every_size_of_the_paper_can_be_drawn(name: str) -> None:
    """On labels of the real sizes (arXiv 2502.00987, Table 7): 6 sizes, in both protocols."""
    info = IMAGE_SETS[name]
    train, val = info.sizes.train, info.sizes.val
    own = not info.split.endswith("seed 0") or name == "eurosat"  # else 10 % of train are carved out here
    parts = [torch.arange(n) % info.classes for n in (train, val)]
    data = fake(torch.cat(parts), torch.arange(train, train + val) if own else None)
    for size in ("1-shot", "2-shot", "4-shot", "16-shot"):
        for protocol in ("standard", "paper"):
            rows = split(data, size, 0, "CONFIRM", protocol)
            assert len(rows.train_idx) == info.classes * min(shots(size) or 0, 10 if name == "flowers102" else 16)
            assert bool(len(rows.val_idx)) is (protocol == "standard")
    whole = split(data, 1.0, 0, "CONFIRM", "paper")
    assert len(whole.train_idx) == train + (0 if own else val), "the authors' validation images are not trained on"
    assert len(split(data, 1.0, 0, "CONFIRM").train_idx) == train
    assert len(split(data, 0.5, 0, "CONFIRM").train_idx) == round(train / 2)
    assert bool(fewer_shots(data, "16-shot")) is (name == "flowers102")


def test_too_small_a_fraction() -> None:
    with pytest.raises(DataError, match=r"no example at all: 18 training examples; the smallest that works is 0\.0556"):
        split(balanced(2, 10), 0.01, 0, "TUNE")
    with pytest.raises(DataError, match="too few for a validation split"):
        split(balanced(2, 3), 1.0, 0, "TUNE")


def test_validation_split_of_the_authors_is_used() -> None:
    val_rows = torch.arange(20, 40)
    data = fake(torch.arange(2).repeat(20), val_rows)
    whole = split(data, 1.0, 0, "TUNE")
    assert torch.equal(whole.val_idx, val_rows)
    assert torch.equal(whole.train_idx, torch.arange(20))
    few = split(data, "8-shot", 0, "TUNE")
    assert members(few.val_idx) <= members(val_rows)
    assert len(few.val_idx) == 8
    assert not members(few.train_idx) & members(val_rows)
    assert len(split(data, "11-shot", 0, "TUNE").train_idx) == 20


def test_paper_protocol_trains_on_what_is_carved_out_here_and_not_on_the_authors_validation_images() -> None:
    labels = torch.arange(2).repeat(20)
    own = split(fake(labels, torch.arange(20, 40)), 1.0, 0, "CONFIRM", "paper")
    assert own.train_idx.tolist() == list(range(20))
    carved = split(fake(labels), 1.0, 0, "CONFIRM", "paper")
    assert len(carved.train_idx) == 40
    assert len(own.val_idx) == len(carved.val_idx) == 0
    assert len(split(fake(labels), "20-shot", 0, "CONFIRM", "paper").train_idx) == 40


def test_examples_hash_follows_the_list(colours: Path) -> None:
    data = load_dataset(f"parquet:{colours}", stage="CONFIRM")
    rows = torch.arange(32)
    assert data.test.examples_hash(rows) == data.test.examples_hash(rows.clone())
    assert data.test.examples_hash(rows) != data.test.examples_hash(rows.flip(0))
    assert data.test.examples_hash(rows) != data.train.examples_hash(rows)
