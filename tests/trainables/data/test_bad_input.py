"""Damaged or missing input: every case is an error that names the file, row or tensor, or is counted when asked for."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainables.tiny_images import COLOURS, colour_tables, image_table, write_photos
from trainables.config import TrialConfig
from trainables.data.images.dataset import Dataset
from trainables.data.registry import load_dataset, load_text_dataset
from trainables.data.splits import fewer_shots, split
from trainables.errors import DataError, TrialError
from trainables.models.families import ModelError
from trainables.models.loading import load_model
from trainables.training.worker import run_trial


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four classes of eight training images and four test images, as files."""
    return write_photos(tmp_path / "images", 8, 4)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("method", ["lora", "linear-probe"])  # a probe sees its images through kept vectors
def test_corrupt_images_stop_a_trial_or_are_counted(
    images: Path, tmp_path: Path, make_trial: Callable[..., TrialConfig], method: str
) -> None:
    settings: dict[str, Any] = {"dataset": f"folder:{images}", "protocol": "paper", "method": method}
    settings |= {} if method == "lora" else {"capacities": (), "options": ()}
    for bad in ("train/red/0.png", "train/blue/7.png", "test/grey/2.png"):
        truncate(images / bad)
    trial = make_trial(**settings)
    with pytest.raises(DataError, match=r"blue/7\.png|red/0\.png"):
        list(run_trial(trial, warm={}, directory=tmp_path / "a"))
    tolerant = make_trial(**settings, skip_bad=True)
    assert tolerant.trial_id != trial.trial_id
    result = list(run_trial(tolerant, warm={}, directory=tmp_path / "b"))[-1]["result"]
    assert result.measured.skipped == 3
    assert result.predicted.n_examples == 15


def test_skipping_counts_validation_in_tune(
    images: Path, tmp_path: Path, make_trial: Callable[..., TrialConfig]
) -> None:
    for name in COLOURS:
        for i in range(2):
            truncate(images / "train" / name / f"{i}.png")
    trial = make_trial(dataset=f"folder:{images}", skip_bad=True, stage="TUNE")
    result = list(run_trial(trial, warm={}, directory=tmp_path / "a"))[-1]["result"]
    assert result.measured.skipped == 8
    for path in (images / "train").rglob("*.png"):
        truncate(path)
    with pytest.raises(TrialError, match="none of 29 images can be read"):
        list(run_trial(trial, warm={}, directory=tmp_path / "b"))


def test_empty_class_folder(images: Path) -> None:
    for path in (images / "train" / "red").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"class folder .*train/red holds no image \(.*\.png.*fill it or remove it"):
        load_dataset(f"folder:{images}")


@pytest.mark.parametrize(("label", "which"), [(-1, "test"), (4, "train"), (99, "test")])
def test_labels_out_of_range(tmp_path: Path, label: int, which: str) -> None:
    """The hub's unlabelled test splits have -1."""
    tables = colour_tables()
    labels = tables[which].column("label").to_pylist()
    labels[5] = label
    index = tables[which].schema.get_field_index("label")
    tables[which] = tables[which].set_column(index, tables[which].schema.field(index), pa.array(labels, pa.int64()))
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=rf"\({which}\), row 5: label {label} is not in 0\.\.3"):
        data = load_dataset(f"parquet:{tmp_path}")
        len(data.at("CONFIRM").test)


ABC = ["ant", "bee", "cat"]
Tables = dict[str, tuple[list[Any], list[str] | None]]


def labelled(folder: Path, tables: Tables) -> Dataset:
    """A data set of tables by file name: their labels, and the names that their numbers have."""
    for stem, (labels, names) in tables.items():
        table = image_table([b""] * len(labels), [0] * len(labels), names)
        pq.write_table(table.set_column(1, "label", pa.array(labels)), folder / f"{stem}.parquet")
    return load_dataset(f"parquet:{folder}", stage="CONFIRM")


@pytest.mark.parametrize(
    ("tables", "classes", "train", "test"),
    [
        ({"train": ([0, 1, 2], ABC), "test": ([0, 1], ABC[1:])}, ABC, [0, 1, 2], [1, 2]),
        ({"train": ([0, 1, 2], ABC), "test": ([1, 0], ["dog", "bee"])}, "class 'dog' is not in train; ", [], []),
        ({"train": ([0, 1, 2], ABC), "test": ([1, 1], ["dog", "bee"])}, ABC, [0, 1, 2], [1, 1]),
        ({"train": ([0, 1, 2], ABC), "test": ([0, 2], ABC[1:])}, r"row 1: label 2 is not in 0\.\.1", [], []),
        ({"train": ([0, 1, 2], ABC), "test": ([2, 1], None)}, ABC, [0, 1, 2], [2, 1]),
        ({"train": ([0, 2], ["ant", "bee", "ant"]), "test": ([1], ABC)}, "two classes .* called 'ant'", [], []),
        ({"train-0": ([0, 1], ABC[:2]), "train-1": ([0, 1], ABC[1:]), "test": ([0], ABC)}, ABC, [0, 1, 1, 2], [0]),
        ({"train-0": ([1, 0], ABC[:2]), "train-1": ([0, 1], ABC), "test": ([0], ABC)}, ABC[:2], [1, 0, 0, 1], [0]),
        ({"train-0": ([0], ABC[:2]), "train-1": ([0, 2], ABC[1:]), "test": ([0], ABC)}, r"1\.parquet.*label 2", [], []),
        ({"train": ([0, 1, 2], ABC), "test-0": ([0], ABC[2:]), "test-1": ([0], ABC)}, ABC, [0, 1, 2], [2, 0]),
        ({"train": (["bee", "ant"], None), "test": ([0, 1], ["bee", "ant"])}, ABC[:2], [1, 0], [1, 0]),
        ({"train": (["b", "a"], None), "test": ([0, 1], None)}, "'0' is not in train, whose labels are words", [], []),
        ({"train": (["1", "0"], None), "test": ([0, 1], None)}, ["0", "1"], [1, 0], [0, 1]),
        ({"train": (["b", " ", "a"], None), "test": (["a"], None)}, r"\(train\): 1 rows have no 'label'", [], []),
        ({"train-0": ([0], ABC), "train-1": (np.int32([2, 1]), ABC), "test": ([1], ABC)}, ABC, [0, 2, 1], [1]),
    ],
)  # fmt: skip
def test_class_numbers_go_by_the_names_of_their_own_file(
    tmp_path: Path, tables: Tables, classes: Any, train: list[int], test: list[int]
) -> None:
    if isinstance(classes, str):
        with pytest.raises(DataError, match=classes):
            _ = labelled(tmp_path, tables).test
    else:
        data = labelled(tmp_path, tables)
        assert list(data.class_names) == classes
        assert (data.train.labels.tolist(), data.test.labels.tolist()) == (train, test)


def test_names_given_beside_the_files_are_no_reason_to_refuse_theirs(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"class_names": ["an ant", "a bee"]}')
    assert labelled(tmp_path, {"train": ([0, 1], None), "test": ([1], ["x", "y"])}).test.labels.tolist() == [1]
    assert labelled(tmp_path, {"test": ([1], ["a bee", "an ant"])}).test.labels.tolist() == [0]


def test_two_validation_splits_are_refused(images: Path, tmp_path: Path) -> None:
    for which in ("val", "valid"):
        shutil.copytree(images / "train", images / which)
    with pytest.raises(DataError, match=r"has the validation splits valid and val; keep only one"):
        load_dataset(f"folder:{images}")
    table = ([0, 1], ABC)
    (tmp_path / "tables").mkdir()
    with pytest.raises(DataError, match=r"has the validation splits validation and val"):
        labelled(tmp_path / "tables", dict.fromkeys(("train", "test", "val", "validation"), table))


def test_fewer_images_than_shots(images: Path) -> None:
    data = load_dataset(f"folder:{images}")
    few = fewer_shots(data, "7-shot")
    assert few["blue"] == 4  # of 8, half are kept for validation
    assert len(split(data, "7-shot", 0, "TUNE").train_idx) == sum(few.get(name, 7) for name in data.class_names)


def copied(model_dir: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    folder = tmp_path / "changed"
    shutil.copytree(model_dir, folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    change(weights)
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"local:{folder}"


def test_nan_weights_name_the_tensor(model_dir: Path, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["visual.transformer.resblocks.1.mlp.c_fc.weight"][3, :2] = torch.tensor([float("nan"), float("inf")])

    with pytest.raises(ModelError, match=r"2 of 4,096 numbers of visual\.transformer\.resblocks\.1\.mlp\.c_fc\.weight"):
        load_model(copied(model_dir, tmp_path, spoil))


def test_large_but_finite_weights_are_no_damage(model_dir: Path, tmp_path: Path) -> None:
    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["visual.proj"].fill_(3e38)  # the sum overflows

    load_model(copied(model_dir, tmp_path, enlarge))


def vit(folder: Path, **changes: Any) -> Path:
    from transformers import ViTConfig, ViTModel

    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **(settings | changes))).save_pretrained(folder)
    return folder


def test_weights_of_another_transformers_model(tmp_path: Path) -> None:
    small, large = vit(tmp_path / "small"), vit(tmp_path / "large", num_hidden_layers=2, hidden_size=64)
    shutil.copy(large / "model.safetensors", small / "model.safetensors")
    with pytest.raises(ModelError, match=r"'local:.*small'"):
        load_model(f"local:{small}")
    fewer = vit(tmp_path / "fewer")
    deeper = vit(tmp_path / "deeper", num_hidden_layers=2)
    shutil.copy(fewer / "model.safetensors", deeper / "model.safetensors")
    with pytest.raises(ModelError, match=r"its files lack \d+ of the model's tensors, .*layer"):
        load_model(f"local:{deeper}")
    shutil.copy(vit(tmp_path / "more", num_hidden_layers=2) / "model.safetensors", fewer / "model.safetensors")
    with pytest.raises(ModelError, match=r"its files hold \d+ tensors that the model does not have"):
        load_model(f"local:{fewer}")


def test_nan_in_a_transformers_checkpoint(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("layernorm.weight"))
    weights[name][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of 32 numbers of layernorm\.weight are NaN"):
        load_model(f"local:{folder}")


def test_a_folder_of_another_shape(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"needs train/CLASS/IMAGE and test/CLASS/IMAGE.*; it holds '\w+', "):
        load_dataset(f"folder:{images / 'train'}")
    monkeypatch.chdir(images.parent)
    with pytest.raises(DataError) as caught:
        load_dataset("folder:imges")
    assert f"no folder imges in {images.parent}, where this was started; " in str(caught.value)
    assert images.name in str(caught.value)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "one and one?", "completion": "two"}\n')
    with pytest.raises(DataError, match="is a file; give the folder that it is in"):
        load_text_dataset(f"json:{tmp_path / 'rows.jsonl'}")
    for which in ("train", "test"):
        shutil.copy(tmp_path / "rows.jsonl", tmp_path / f"{which}.jsonl")
    with pytest.raises(DataError, match=r"row 0: no instruction.*'output'.* this has \['completion', 'prompt'\]"):
        load_text_dataset(f"json:{tmp_path}")
    (tmp_path / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n\n{"instruction": "a"\n')
    with pytest.raises(DataError, match=r"train\.jsonl: cannot be read as JSON \(line 3, column \d+: "):
        load_text_dataset(f"json:{tmp_path}")
    tasks = tmp_path / "tasks"
    for task, files in (("boolq", ("train", "test")), ("piqa", ("test",))):
        (tasks / task).mkdir(parents=True)
        for stem in files:
            (tasks / task / f"{stem}.json").write_text('[{"instruction": "a", "output": "b"}]')
    with pytest.raises(DataError, match=r"piqa of .*tasks has a test\.json and no train\.json; every task"):
        load_text_dataset(f"json:{tasks}")
    (tmp_path / "train.jsonl").rename(tmp_path / "train.json")
    (tmp_path / "train.json").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": "b"}\n')
    with pytest.raises(DataError, match=r"with an object a line it is called train\.jsonl"):
        load_text_dataset(f"json:{tmp_path}")


def test_images_of_a_form_that_is_not_read_are_not_left_out_silently(images: Path) -> None:
    shutil.copy(images / "train" / "red" / "0.png", images / "train" / "red" / "x.jfif")  # a name that Windows gives
    assert len(load_dataset(f"folder:{images}").train) == 33
    (images / "train" / "red" / "y.HEIC").touch()
    with pytest.raises(DataError, match=r"red/y\.HEIC: \.HEIC is not read; make it a PNG or JPEG"):
        load_dataset(f"folder:{images}")


_ASK = """
from trainables.data.registry import load_dataset, load_text_dataset
from trainables.models.loading import load_model
from trainables.models.shapes import meta_model
for ask in (lambda: load_dataset("hf:org/nothing"), lambda: load_dataset("cars"), lambda: meta_model("hf:org/nothing"),
            lambda: load_model("hf:org/nothing"), lambda: load_model("open_clip:ViT-B-32/openai"),
            lambda: load_model("hf:org/nothing-GGUF/nothing.Q8_0.gguf"), lambda: load_text_dataset("boolq"),
            lambda: load_text_dataset("commonsense-15k"), lambda: load_text_dataset("glue-cola")):
    try:
        ask()
    except ValueError as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["offline", "closed port"])
def test_unreachable_hub(how: str, tmp_path: Path) -> None:
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    proxies = {k: v for k, v in os.environ.items() if k.lower() not in ("http_proxy", "https_proxy", "all_proxy")}
    environment = {**proxies, "HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    environment |= {"HF_HUB_OFFLINE": "1"} if how == "offline" else {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 9, done.stdout + done.stderr
    assert all(line.startswith("DataError") and "parquet:FOLDER" in line for line in lines[:2])
    assert all(line.startswith("ModelError") and "local:DIR" in line for line in lines[2:6])
    assert all(line.startswith("DataError") and ("json:" in line or "glue:" in line) for line in lines[6:])
