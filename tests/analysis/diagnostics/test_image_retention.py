"""What trained CLIPs keep: their zero-shot accuracy on another data set, before and after training."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import randlora
from analysis import StoreError, open_store
from analysis.diagnostics.analyze import analyze, image_retention_sentence, plan
from analysis.diagnostics.bench import Bench
from analysis.diagnostics.units import sweep_facts
from analysis.diagnostics.weights import every_kept, trained_state
from analysis.findings.diagnostics.sheets import diagnostic_sheets
from analysis.store.tables import to_table
from tests.analysis.diagnostics.support import tiny_results
from tests.trainables.tiny_images import write_colours
from tests.trainables.tiny_language import save_model, write_rows
from trainables.data.images.batches import Normalise
from trainables.data.images.pixels import Pixels
from trainables.data.registry import load_dataset
from trainables.models.loading import LoadedModel, load_model
from trainables.runtime import choose_precision
from trainables.tasks.images.clip import class_embeddings, encode_images

OTHER = "embedded:fashion-mnist"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("image-retention")
    colours = write_colours(place / "colours")
    data = {"datasets": [f"parquet:{colours}"], "train_size": "2-shot"}
    tiny_results(place / "tiny", seeds=2, methods={"lora": {}, "full": {}}, data=data)
    return place


@torch.no_grad()
def zero_shot(loaded: LoadedModel) -> float:
    """The accuracy on the other data set, with nothing of the task classes but images and prompts."""
    dataset, look, cpu = load_dataset(OTHER, stage="CONFIRM"), loaded.preprocess, torch.device("cpu")
    assert look is not None and loaded.tokenizer is not None
    _, autocast = choose_precision("fp32", cpu)
    pixels = Pixels(dataset.test, look.recipe)
    rows = pixels.prepare(torch.arange(len(dataset.test)))
    words = (loaded.tokenizer, dataset.class_names, dataset.templates)
    classes = class_embeddings(loaded.module, *words, device=cpu, autocast=autocast)
    images = Normalise(look.mean, look.std, cpu)(pixels.rows(rows))
    found = (encode_images(loaded.module, images, autocast) @ classes.T).argmax(dim=1)
    return float((found == dataset.test.labels[rows]).double().mean())


def test_the_accuracy_is_that_of_the_plain_model_before_and_of_the_trained_one_after(made: Path) -> None:
    store = open_store(made / "tiny")
    table, paths, says = analyze(store, "retention", data=OTHER)
    rows = {r["trial_id"]: r for r in table.to_pylist()}
    assert len(rows) == 4 and len({r["before"] for r in rows.values()}) == 1  # every seed; one base model

    base = zero_shot(load_model("embedded:tiny-clip"))
    changed = {}
    for kept in every_kept(store):
        row, loaded = rows[kept.row["trial_id"]], load_model("embedded:tiny-clip")
        if kept.full:
            loaded.module.load_state_dict(trained_state(loaded.module, kept), strict=False)
        else:
            randlora.load(loaded.module, kept.folder)
        loaded.module.eval()
        assert row["before"] == base and row["after"] == zero_shot(loaded)
        assert row["change"] == row["after"] - row["before"] and row["images"] == len(
            load_dataset(OTHER, stage="CONFIRM").test
        )
        changed.setdefault(kept.row["method"], set()).add(row["change"])
    assert all(values - {0.0} for values in changed.values()), "training changes the accuracy"
    assert {"image-retention.svg", "image-retention.png"} <= set(paths)
    assert f"test images of {OTHER}" in says and "LoRA at lora-2" in says
    (sheet,) = diagnostic_sheets(store)
    assert sheet.name == "diagnostic_image_retention" and len(sheet.rows) == 2


def test_what_can_not_be_measured_names_the_switch(made: Path, tmp_path: Path) -> None:
    store = open_store(made / "tiny")
    with pytest.raises(StoreError, match="--data DATASET"):
        plan(store, "retention")
    with pytest.raises(StoreError, match="retention needs one of two"):
        plan(store, "retention", data=OTHER, texts=tmp_path / "general.txt")
    with pytest.raises(StoreError, match="spectrum takes no data"):
        plan(store, "spectrum", data=OTHER)
    with pytest.raises(StoreError, match=r"--data parquet:.*colours: this sweep trained on it"):
        plan(store, "retention", data=f"parquet:{made / 'colours'}")
    with pytest.raises(StoreError, match=r"--data cifar1000: .*cifar100"):
        plan(store, "retention", data="cifar1000")


def test_images_that_trials_trained_on_are_refused(tmp_path: Path) -> None:
    colours, twin = write_colours(tmp_path / "colours"), write_colours(tmp_path / "twin")
    sections = {"data": {"datasets": [f"parquet:{colours}"], "train_size": "2-shot"}, "methods": {"lora": {}}}
    store = open_store(tiny_results(tmp_path / "tiny", **sections))
    (trial,) = every_kept(store)
    trained = int(Bench(sweep_facts(store), trial.brief, {}).task.rows("train")[0])
    pq.write_table(pq.read_table(colours / "train.parquet").slice(trained, 1), twin / "test.parquet")
    with pytest.raises(
        StoreError, match=f"its test image 0 is training or validation image {trained} of parquet:{colours}"
    ):
        analyze(store, "retention", data=f"parquet:{twin}")
    same = f"parquet:{tmp_path / 'twin' / '..' / 'colours'}"  # the sweep's own data set by another path
    with pytest.raises(StoreError, match=f"its test image 0 is test image 0 of parquet:{colours}"):
        analyze(store, "retention", data=same)


def test_changes_are_said_in_points() -> None:
    place = {"sweep": "s", "model": "m", "dataset": "d", "train_size": "1.0", "data": "other", "images": 2000}
    rows = [
        place
        | {"unit": f"{method}{seed}", "method": method, "reference": "lora-1", "adapter_params": 3, "before": 0.5}
        | {"data_seed": seed, "init_seed": seed, "basis_seed": seed, "change": change}
        for method, changes in {"lora": (-0.1, -0.12), "vera": (-0.08, -0.11)}.items()
        for seed, change in enumerate(changes)
    ]
    says = image_retention_sentence(to_table("image_retention", rows))
    assert "on 2,000 test images of other under the base model: 50.0 %" in says
    assert "LoRA at lora-1 -11.0 [" in says and "minus LoRA's +1.5 [-4.9, +7.9]" in says


def test_a_language_model_has_no_zero_shot_accuracy(tmp_path: Path) -> None:
    save_model(tmp_path / "qwen2", "qwen2")
    write_rows(tmp_path / "rows")
    sections = {"model": {"id": f"local:{tmp_path / 'qwen2'}"}, "methods": {"lora": {}}}
    sections |= {"data": {"datasets": [f"json:{tmp_path / 'rows'}"], "train_size": [1.0]}}
    store = open_store(tiny_results(tmp_path / "tiny", train={"epochs": 1, "global_batch_size": 10}, **sections))
    with pytest.raises(StoreError, match=f"--data {OTHER}: this needs a CLIP"):
        analyze(store, "retention", data=OTHER)
