"""Counts the examples that a cell trains, validates and tests on. A process loads each data set once."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

from sweeps.spec.cell import Cell
from sweeps.spec.paths import absolute
from trainables.config import EvaluateSettings, Protocol
from trainables.data.images.dataset import Dataset
from trainables.data.registry import load_dataset, load_text_dataset
from trainables.data.splits import fewer_shots, split
from trainables.data.text.dataset import TextDataset
from trainables.data.text.registry import text_loader
from trainables.tasks.text.rows import limited


def split_sizes(cell: Cell) -> tuple[int, int, int]:
    """Return the numbers of examples that a cell trains, validates and tests on."""
    return _split_sizes(cell.dataset, cell.train_size, cell.protocol, cell.keep, cell.evaluate)


def sized(cell: Cell) -> Cell:
    """Return the cell with its numbers of validation and test examples and of classes, and missing test classes."""
    _, val, test = split_sizes(cell)
    lacks, classes = absent_from_test(cell.dataset), class_count(cell.dataset) or None
    return replace(cell, val_examples=val, test_examples=test, test_lacks=lacks, classes=classes)


def absent_from_test(name: str) -> tuple[str, ...]:
    """Return the names of the classes that have no test example."""
    data = loaded(name)
    present = set(data.test.labels.tolist())
    return tuple(each for index, each in enumerate(data.class_names) if index not in present)


def class_count(name: str) -> int:
    """Return the number of classes of a data set."""
    return len(loaded(name).class_names)


def fewer_words(cells: Iterable[Cell]) -> list[str]:
    """Return a line for each data set and number of shots in which some classes have fewer examples than that."""
    lines = {}
    for cell in cells:
        if few := fewer_shots(loaded(cell.dataset), cell.train_size, _protocol(cell.protocol), cell.keep):
            name, least = min(few.items(), key=lambda item: item[1])
            lines[cell.dataset, cell.train_size] = (
                f"{cell.train_size} of {cell.dataset}: {len(few)} of {class_count(cell.dataset)} classes train on "
                f"fewer examples (the least: {least} of {name!r}), because they have no more"
            )
    return list(lines.values())


def loaded(name: str) -> Dataset | TextDataset:
    """Load a data set, once in a process. Images stay encoded.

    A data set with a path is loaded by its absolute path, like in a worker: in results folders of earlier versions, the
    path decides which rows are evaluated.
    """
    return _loaded(absolute(name))


@functools.cache
def _loaded(name: str) -> Dataset | TextDataset:
    if text_loader(name) is not None:
        return load_text_dataset(name, stage="CONFIRM")
    return load_dataset(name, stage="CONFIRM")


@functools.cache
def _split_sizes(
    name: str, train_size: str | float, protocol: str, keep: int, evaluate: EvaluateSettings
) -> tuple[int, int, int]:
    data = loaded(name)
    rows = split(data, train_size, 0, "CONFIRM", _protocol(protocol), keep)
    val, test = rows.val_idx, rows.test_idx
    if isinstance(data, TextDataset):
        val, test = limited(data.train, val, evaluate, "val"), limited(data.test, test, evaluate, "test")
    return len(rows.train_idx), len(val), len(test)


def forget() -> None:
    """Forget the loaded data sets, so that they are read again."""
    _loaded.cache_clear()
    _split_sizes.cache_clear()


def _protocol(name: str) -> Protocol:
    return "paper" if name == "paper" else "standard"
