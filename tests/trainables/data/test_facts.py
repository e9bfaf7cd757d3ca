"""What is known of the registered data sets: every entry of the two TOML files, and mistakes in such a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torchvision

from sweeps.cli.data import describe
from trainables.data.facts import (
    FOLDER,
    IMAGE_SETS,
    TEXT_SETS,
    ImageSet,
    LlmAdaptersUnion,
    Torchvision,
    facts_of,
    read_sets,
)
from trainables.data.registry import check_dataset, classes_of, known_datasets, load_dataset, load_text_dataset
from trainables.data.splits import VAL_FRACTION, VAL_MOST
from trainables.data.text.registry import text_kind
from trainables.errors import DataError


@pytest.mark.parametrize("name", [*IMAGE_SETS, *TEXT_SETS])
def test_every_set(name: str) -> None:
    info, described = facts_of(name), describe(name)
    assert re.fullmatch("[a-z0-9-]+", name) and name in known_datasets()
    assert all(described[key] for key in ("about", "source", "licence"))
    check_dataset(name, ["16-shot", 1.0])
    if not isinstance(info, ImageSet):
        assert info is not None and described["kind"] == "text"
        assert text_kind(name) == info.source.kind
        with pytest.raises(DataError, match="is a text set"):
            load_dataset(name)
        if isinstance(info.source, LlmAdaptersUnion):
            assert info.test == sum(TEXT_SETS[task].test or 0 for task in info.source.tasks)
        return
    assert described["get"] and described["templates"] == list(info.templates)
    assert (described["classes"], text_kind(name)) == (classes_of(name), None) == (info.classes, None)
    with pytest.raises(DataError, match="is no text set"):
        load_text_dataset(name)
    with pytest.raises(DataError, match="has no source 'nowhere'"):
        check_dataset(f"{name}@nowhere")
    if "validation: 10 %" in info.split:
        assert info.sizes.val == min(int(VAL_FRACTION * info.sizes.pool), VAL_MOST)
    for other, source in ((None, info.source), *info.others.items()):
        if other is not None:
            check_dataset(f"{name}@{other}")
        if isinstance(source, Torchvision):
            assert hasattr(torchvision.datasets, source.dataset)
            assert (source.val is not None) is (info.split == "validation: the authors' own")
            assert len(source.class_names) in (0, info.classes)


BEANS = """[beans]
about = "leaves"
classes = 3
sizes = { train = 1034, val = 133, test = 128 }
templates = ["a leaf with {}."]
source.loader = "hub"
source.repository = "AI-Lab-Makerere/beans"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classes", "clases", r"field 'classes': Field required"),
        ("classes = 3", "classes = '3'", r"field 'classes': .*valid integer, not '3'"),
        ("{ train = 1034, ", "{ ", r"field 'sizes\.train': Field required"),
        ("leaf with {}", "leaf", r"field 'templates': .*prompt template 'a leaf\.' must hold '\{\}' exactly once"),
        ('"hub"', '"hubb"', r"field 'source': .*'hubb'.*'torchvision', 'hub'"),
        ("source.repository", "source.repo", r"field 'source\.hub\.repository': Field required"),
        ("classes", "license = 'MIT'\nclasses", r"field 'license': .*not 'MIT'; nearest: 'licence'"),
        ("[beans]", "[beans", r"cannot be read as TOML \(.*line 1"),
    ],
)
def test_a_mistake_names_file_set_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "images.toml"
    file.write_text(BEANS)
    assert read_sets(file, ImageSet)["beans"].sizes.pool == 1167
    file.write_text(BEANS.replace(old, new, 1))
    where = re.escape(str(file)) + (": " if new == "[beans" else ", data set 'beans', ")
    with pytest.raises(DataError, match=where + message):
        read_sets(file, ImageSet)


def test_the_files_have_every_set() -> None:
    assert list(read_sets(FOLDER / "images.toml", ImageSet)) == list(IMAGE_SETS)
    assert {name + "-questions" for name in ("boolq", "commonsense-15k")} <= TEXT_SETS.keys()
