"""Subsets are nested, validation is apart from training, and every draw follows its seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from trainables.data.images.dataset import Dataset, ImageSplit
from trainables.data.registry import load_dataset
from trainables.data.splits import split
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


def test_too_many_shots_names_the_class_and_the_largest_size() -> None:
    data = fake(torch.tensor([0] * 30 + [1] * 10))
    with pytest.raises(DataError, match=r"'7-shot' of 'fake': class 'class 1' has 10 .*largest that works is '6-shot'"):
        split(data, "7-shot", 0, "TUNE")
    assert len(split(data, "6-shot", 0, "TUNE").train_idx) == 12
    with pytest.raises(DataError, match="no k works: the rarest class has 1"):
        split(fake(torch.tensor([0, 0, 0, 1])), "1-shot", 0, "TUNE")


def test_too_small_a_fraction() -> None:
    with pytest.raises(DataError, match=r"no image at all: 18 training images; the smallest that works is 0\.0556"):
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
    with pytest.raises(DataError, match="largest that works is '10-shot'"):
        split(data, "11-shot", 0, "TUNE")


def test_paper_protocol_trains_on_validation_images_too() -> None:
    data = fake(torch.arange(2).repeat(20), torch.arange(20, 40))
    rows = split(data, 1.0, 0, "CONFIRM", "paper")
    assert len(rows.train_idx) == 40
    assert len(rows.val_idx) == 0
    assert len(split(data, "20-shot", 0, "CONFIRM", "paper").train_idx) == 40


def test_examples_hash_follows_the_list(colours: Path) -> None:
    data = load_dataset(f"parquet:{colours}", stage="CONFIRM")
    rows = torch.arange(32)
    assert data.test.examples_hash(rows) == data.test.examples_hash(rows.clone())
    assert data.test.examples_hash(rows) != data.test.examples_hash(rows.flip(0))
    assert data.test.examples_hash(rows) != data.train.examples_hash(rows)
