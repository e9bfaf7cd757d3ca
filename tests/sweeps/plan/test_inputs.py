"""What is looked at before a sweep starts: images that open, data that is still the same, a folder that can be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sweeps.errors import SpecError
from sweeps.plan import inputs, split_sizes
from sweeps.plan.inputs import check_inputs
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from trainables.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of eight images, and of two for the test."""
    split_sizes.loaded.cache_clear()
    inputs._open_images.cache_clear()
    split_sizes._split_sizes.cache_clear()
    for part, count in (("train", 8), ("test", 2)):
        for shade, name in ((40, "shirt"), (200, "shoe")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.new("L", (28, 28), shade + k).save(folder / f"{k}.png")
    return tmp_path / "images"


def plan(images: Path, output: str, **data: object) -> Plan:
    tree = {
        "name": "t",
        "output": output,
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": [f"folder:{images}"], **data},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}},
    }
    return Plan.from_spec(SweepSpec.parse(tree))


def again() -> None:
    split_sizes.loaded.cache_clear()
    inputs._open_images.cache_clear()
    split_sizes._split_sizes.cache_clear()


def test_a_damaged_image_is_named(images: Path, tmp_path: Path) -> None:
    (images / "train" / "shoe" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"3\.png"):
        check_inputs(plan(images, str(tmp_path / "r")))


def test_bad_images_may_be_skipped(images: Path, tmp_path: Path) -> None:
    (images / "train" / "shoe" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    planned = plan(images, str(tmp_path / "r"), skip_bad=True)
    check_inputs(planned)
    spec = planned.spec
    assert planned.cells[0].trial("CONFIRM", 1e-3, (0, 0, 0), spec.train).skip_bad
    assert spec.identity()["data"] == {"skip_bad": True}
    assert "data" not in plan(images, str(tmp_path / "r")).spec.identity()


def test_other_data_under_the_same_name_is_refused(images: Path, tmp_path: Path) -> None:
    planned = plan(images, str(tmp_path / "r"))
    check_inputs(planned)
    again()
    check_inputs(planned)
    (images / "test" / "shoe" / "1.png").unlink()
    again()
    with pytest.raises(SpecError, match="not the data that the trials"):
        check_inputs(planned)


def test_a_folder_that_cannot_be_made(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match=r"output = .*choose another output"):
        check_inputs(plan(images, str(tmp_path / "file" / "r")))
