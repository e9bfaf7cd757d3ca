"""Models in GGUF files: the weights, tokens and targets of transformers' own files; what is missing is named."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest
import torch

from randlora.model.families import family_name
from tests.trainables.models.support import write_gguf
from tests.trainables.tiny_language import save_model
from trainables.models.families import ModelError, parse_id
from trainables.models.loading import load_model
from trainables.models.shapes import default_targets, model_kind, target_shapes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama in `llama/` and the same in `tiny.gguf`."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("gguf")
    save_model(folder / "llama", "llama")
    write_gguf(folder / "llama", folder / "tiny.gguf")
    return folder


def test_a_gguf_file_is_the_model_it_was_made_from(place: Path) -> None:
    usual, packed = load_model(f"local:{place / 'llama'}"), load_model(f"local:{place / 'tiny.gguf'}")
    assert (packed.kind, family_name(packed.module)) == ("causal-lm", "llama")
    text = "Which colour has the sky? blue"
    ids = packed.text_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == usual.text_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert packed.text_tokenizer.eos_token_id == 1
    with torch.no_grad():
        ours, theirs = (m.module(input_ids=torch.tensor([ids])).logits for m in (packed, usual))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_its_shapes_and_targets_need_no_weights(place: Path) -> None:
    usual, packed = (f"local:{place / name}" for name in ("llama", "tiny.gguf"))
    assert model_kind(packed) == "causal-lm"
    assert default_targets(packed) == default_targets(usual)
    assert target_shapes(packed) == target_shapes(usual)


def test_ids_of_gguf_files(place: Path) -> None:
    found = parse_id("hf:org/name-GGUF/name.Q8_0.gguf")
    assert (found.name, found.gguf, found.folder) == ("org/name-GGUF", "name.Q8_0.gguf", None)
    assert parse_id(f"local:{place / 'tiny.gguf'}").folder == place
    with pytest.raises(ModelError, match=r"there is no file .*tiny2\.gguf; nearest: 'tiny\.gguf'"):
        parse_id(f"local:{place / 'tiny2.gguf'}")


def test_a_damaged_file_is_named(place: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "half.gguf"
    damaged.write_bytes((place / "tiny.gguf").read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"half\.gguf.*can't be"):
        load_model(f"local:{damaged}")
    damaged.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"half\.gguf.*can't be"):
        model_kind(f"local:{damaged}")


@pytest.mark.parametrize("field", ["n_tensors", "n_kv", "key", "value", "array", "dimension"])
def test_a_file_that_claims_absurd_sizes(place: Path, tmp_path: Path, field: str) -> None:
    whole = (place / "tiny.gguf").read_bytes()
    key, tokens, tensor = (b"general.architecture", b"tokenizer.ggml.tokens", b"token_embd.weight")
    at = {  # behind a key its type of 4 bytes, and behind that of an array that of its items; all sizes have 8
        "n_tensors": 8,
        "n_kv": 16,
        "key": 24,
        "value": 32 + len(key) + 4,
        "array": whole.index(tokens) + len(tokens) + 8,
        "dimension": whole.index(tensor) + len(tensor) + 4,
    }[field]
    damaged = tmp_path / "absurd.gguf"
    damaged.write_bytes(whole[:at] + struct.pack("<Q", 2**60) + whole[at + 8 :])
    for read in (model_kind, load_model):
        with pytest.raises(ModelError, match=r"absurd\.gguf.*can't be") as caught:
            read(f"local:{damaged}")
        assert not isinstance(caught.value.__cause__, MemoryError)


def test_without_the_package(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gguf" else real(name, *more))
    with pytest.raises(ModelError, match=r"need the package gguf: .*\[gguf\]"):
        model_kind(f"local:{place / 'tiny.gguf'}")
