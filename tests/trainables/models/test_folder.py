"""A model's folder that refers to what is outside it is refused before anything of it is opened."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from tests.support import pipe
from tests.trainables.models.support import with_file
from tests.trainables.tiny_language import save_model
from trainables.models.families import ModelError
from trainables.models.loading import load_model
from trainables.models.shapes import kind_of, meta_model, model_kind


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the hub is asked nor a file of weights opened."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("reached a library")

    for name in ("timm.create_model", "open_clip.create_model", "safetensors.safe_open"):
        monkeypatch.setattr(name, refuse)
    # the hub's name of `socket` alone: a thread that watches Ray uses the real one
    monkeypatch.setattr("trainables.hub.socket", SimpleNamespace(create_connection=refuse))
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)


pytestmark = pytest.mark.usefixtures("no_library")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder, "llama")
    return folder


def edited(folder: Path, whole: Path, name: str, **settings: Any) -> str:
    """A copy of a model's folder with other settings; its id."""
    config = json.loads((whole / name).read_text())
    if "model_cfg" in config:
        config["model_cfg"]["vision_cfg"] |= settings
    else:
        config |= settings
    return with_file(folder, whole, name, json.dumps(config).encode())


@pytest.mark.parametrize("ask", [load_model, meta_model, model_kind])
@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "hf_hub:timm/resnet18", "local-dir:/etc", "timm/resnet18"])
def test_an_image_tower_that_lies_elsewhere(tmp_path: Path, model_dir: Path, ask: Any, name: str) -> None:
    model = edited(tmp_path, model_dir, "open_clip_config.json", timm_model_name=name)
    with pytest.raises(ModelError, match=r"timm_model_name = '.*' in open_clip_config.json names a model outside"):
        ask(model)


@pytest.mark.parametrize("ask", [load_model, meta_model, model_kind])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "hf-hub:x/y"}, "architecture = 'hf-hub:x/y'"),
        ({"backbone": "x/y"}, "backbone = 'x/y'"),
        ({"layers": [{"backbone": "hf_hub:x/y"}]}, "backbone = 'hf_hub:x/y'"),
        ({"transformers_weights": "sub/model.safetensors"}, "is not in the folder; copy the file there"),
    ],
)
def test_a_config_that_names_what_lies_elsewhere(
    tmp_path: Path, llama: Path, ask: Any, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        ask(edited(tmp_path, llama, "config.json", **settings))


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "..", "sub/model.safetensors", "..\\a"])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "other.safetensors.index.json"])
def test_an_index_that_names_files_elsewhere(tmp_path: Path, llama: Path, shard: str, index: str) -> None:
    held = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": shard}}
    model = with_file(tmp_path, llama, index, json.dumps(held).encode())
    (tmp_path / "model.safetensors").unlink()
    for ask in (load_model, meta_model):
        with pytest.raises(ModelError, match="all must be files in the folder"):
            ask(model)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "tokenizer.json"])
def test_a_pipe_in_the_place_of_a_file(tmp_path: Path, model_dir: Path, name: str) -> None:
    model = with_file(tmp_path, model_dir, name, b"")
    (tmp_path / name).unlink()
    with pipe(tmp_path / name), pytest.raises(ModelError, match=f"{name} is a pipe or a device"):
        load_model(model)


@pytest.mark.parametrize("family", ["ResNetConfig", "RegNetConfig", "BitConfig", "ViTConfig"])
def test_networks_of_convolutions_read_images(family: str) -> None:
    """Their configs have no `image_size`."""
    assert kind_of(getattr(transformers, family)(), "m") == "hf-vision"
