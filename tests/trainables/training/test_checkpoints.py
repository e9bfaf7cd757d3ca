"""A checkpoint that a bad disk or a power cut has changed is none: the trial starts over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainables.training.checkpoints import INDEX, load_checkpoint, save_checkpoint

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing left": lambda data: b"",
    "cut short": lambda data: data[:-7],
    "zeros at its end": lambda data: data[:-400] + bytes(400),
    "zeros alone": lambda data: bytes(len(data)),
    "a flipped bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "of a longer file": lambda data: data + b"x",
    "another's": lambda data: b'{"sha256": "0", "index": "{}"}',
    "a list": lambda data: b"[[]]",
    "numbers": lambda data: b'{"sha256": 0, "index": 0}',
    "no text": lambda data: b"\xff",
    "too many levels": lambda data: b"[" * 100_000,
}


@pytest.mark.parametrize("which", [INDEX, "epoch-00003.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_none(tmp_path: Path, which: str, damage: Callable[[bytes], bytes]) -> None:
    history = [{"epoch": 3, "val_score": 0.5}]
    save_checkpoint(tmp_path, "t", 3, history, {"a": torch.arange(200.0)})
    found = load_checkpoint(tmp_path, "t")
    assert found is not None and (found.epoch, found.history) == (3, history)
    assert torch.equal(found.tensors["a"], torch.arange(200.0))
    (tmp_path / which).write_bytes(damage((tmp_path / which).read_bytes()))
    assert load_checkpoint(tmp_path, "t") is None


def test_a_checkpoint_of_before_checksums_is_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "t", 1, [], {"a": torch.ones(2)})
    index = json.loads(json.loads((tmp_path / INDEX).read_text())["index"])
    del index["crc32"]
    text = json.dumps(index)
    (tmp_path / INDEX).write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "index": text}))
    assert load_checkpoint(tmp_path, "t") is not None
    (tmp_path / index["file"]).write_bytes(b"short")
    assert load_checkpoint(tmp_path, "t") is None


def test_a_checkpoint_of_another_trial_is_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "t", 1, [], {"a": torch.zeros(2)})
    assert load_checkpoint(tmp_path, "u") is None
