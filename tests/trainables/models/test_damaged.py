"""Files of models that are damaged, or claim sizes that none has: one error, before memory is taken for them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.trainables.models.support import with_file
from tests.trainables.tiny_language import save_model
from trainables.models.families import ModelError
from trainables.models.loading import load_model
from trainables.models.shapes import meta_model


def claims(header: dict[str, Any], size: int | None = None) -> bytes:
    """A file of safetensors that is only its header, which says that it has `size` bytes."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


ABSURD = {
    "header": claims({}, 2**62),
    "offsets": claims({"a": {"dtype": "F32", "shape": [2**58], "data_offsets": [0, 2**60]}}),
    "shape": claims({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder, "llama")
    return folder


@pytest.mark.parametrize("content", ABSURD.values(), ids=ABSURD)
def test_weights_that_claim_absurd_sizes(tmp_path: Path, model_dir: Path, llama: Path, content: bytes) -> None:
    for whole in (model_dir, llama):  # open_clip's and transformers'
        (weights,) = whole.glob("*.safetensors")
        (tmp_path / whole.name).mkdir()
        model = with_file(tmp_path / whole.name, whole, weights.name, content)
        with pytest.raises(ModelError, match="can't be loaded"):
            load_model(model)


JSON = ("[" * 100_000, "[]", "3", '{"a": ' + "1" * 10_000 + "}")
INDEX = ('{"weight_map": [], "metadata": {}}', '{"weight_map": {"a": 1}, "metadata": {}}')


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("model.safetensors.index.json", text) for text in (*JSON, *INDEX)),
        *((f"{name}.json", text) for name in ("tokenizer", "tokenizer_config") for text in JSON),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 1152921504606846976}}}'),
    ],
)
def test_damaged_files_beside_weights(tmp_path: Path, llama: Path, name: str, text: str) -> None:
    model = with_file(tmp_path, llama, name, text.encode())
    if "index" in name:
        (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"can't be loaded|its tokenizer can't be read"):
        load_model(model)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=16, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_patches_of_no_size(tmp_path: Path, model_dir: Path, vit: Path, kind: str) -> None:
    folder, name = (vit, "config.json") if kind == "vit" else (model_dir, "open_clip_config.json")
    config = json.loads((folder / name).read_text())
    (config if kind == "vit" else config["model_cfg"]["vision_cfg"])["patch_size"] = 0
    model = with_file(tmp_path, folder, name, json.dumps(config).encode())
    for read in (load_model, meta_model):
        with pytest.raises(ModelError, match=r"can't be loaded|can be built from its config|can't build its config"):
            read(model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "preprocessor_config.json can't be read") for text in ("", *JSON)),
        ('{"image_mean": 3}', "preprocessor_config.json can't be read"),
        ('{"size": {"longest_edge": 32}}', "preprocessor_config.json can't be read"),
        ('{"size": {"height": 1152921504606846976, "width": 1152921504606846976}}', "sides of 1 to 8,192 pixels"),
        ('{"size": -1}', "sides of 1 to 8,192 pixels"),
    ],
)
def test_damaged_settings_of_images_are_not_taken_for_none(tmp_path: Path, vit: Path, text: str, said: str) -> None:
    model = with_file(tmp_path, vit, "preprocessor_config.json", text.encode())
    with pytest.raises(ModelError, match=said):
        load_model(model)


def quantised(folder: Path, whole: Path, method: str) -> str:
    config = json.loads((whole / "config.json").read_text())
    settings = {"quant_method": method} | ({"load_in_4bit": True} if method == "bitsandbytes" else {"bits": 4})
    return with_file(folder, whole, "config.json", json.dumps(config | {"quantization_config": settings}).encode())


@pytest.mark.parametrize(("method", "package"), [("awq", "gptqmodel"), ("bitsandbytes", "bitsandbytes")])
def test_weights_that_need_a_package_name_it(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, method: str, package: str
) -> None:
    from transformers.quantizers import quantizer_awq, quantizer_bnb_4bit

    monkeypatch.setattr(quantizer_awq, "is_gptqmodel_available", lambda: False)
    monkeypatch.setattr(quantizer_bnb_4bit, "is_bitsandbytes_available", lambda: False)
    model = quantised(tmp_path, llama, method)
    for ask in (meta_model, load_model):
        with pytest.raises(ModelError, match=f"its weights are quantised.*pip install .*{package}"):
            ask(model)


def test_weights_that_need_another_machine_are_planned(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.quantizers.quantizer_gptq import GptqHfQuantizer

    def no_gpu(*_: object, **__: object) -> None:
        raise RuntimeError("GPU is required")

    monkeypatch.setattr(GptqHfQuantizer, "__init__", no_gpu)
    assert len(list(meta_model(quantised(tmp_path, llama, "gptq")).parameters())) > 0


def test_a_package_that_is_missed_late_is_named(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("it requires kernels")

    model = with_file(tmp_path, llama, "config.json", (llama / "config.json").read_bytes())
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", missing)
    with pytest.raises(ModelError, match="it requires kernels"):
        load_model(model)
