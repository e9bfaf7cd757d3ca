"""A checkpoint that a bad disk or a power cut has changed is none: the trial starts over."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainables.training import checkpoints
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


@pytest.mark.parametrize("epoch", [5, 6, 7])
def test_two_workers_of_one_trial_keep_out_of_each_others_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    def meanwhile(tensors: dict[str, torch.Tensor], path: str) -> None:
        monkeypatch.undo()
        save_file(tensors, path)
        save_checkpoint(tmp_path, "t", epoch, [], {"a": torch.ones(2)})

    save_checkpoint(tmp_path, "t", 4, [], {"a": torch.ones(2)})
    monkeypatch.setattr(checkpoints, "save_file", meanwhile)
    save_checkpoint(tmp_path, "t", 6, [], {"a": torch.ones(2)})
    found = load_checkpoint(tmp_path, "t")
    assert found is not None and found.epoch == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX, "epoch-00006.safetensors"]
    monkeypatch.setattr(Path, "glob", lambda folder, of: [folder / of.replace("*", "gone")])
    save_checkpoint(tmp_path, "t", 7, [], {"a": torch.ones(2)})  # the other removed them first


def test_drafts_are_removed_once_nobody_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, young = tmp_path / "epoch-00001.tmp", tmp_path / "epoch-00002.safetensors.7-0.tmp"
    for draft, age in ((old, 2 * 3600), (young, 60)):
        draft.touch()
        os.utime(draft, (time.time() - age,) * 2)
    save_checkpoint(tmp_path, "t", 3, [], {"a": torch.ones(2)})
    assert set(tmp_path.glob("*.tmp")) == {young}

    def full(tensors: dict[str, torch.Tensor], path: str) -> None:
        Path(path).touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, "t", 4, [], {"a": torch.ones(2)})
    assert set(tmp_path.glob("*.tmp")) == {young}


def test_a_file_that_another_worker_replaced_meanwhile_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, "t", 1, [], {"a": torch.zeros(2)})
    read, before = Path.read_text, [(tmp_path / INDEX).read_text()]
    save_checkpoint(tmp_path, "t", 2, [], {"a": torch.ones(2)})
    monkeypatch.setattr(Path, "read_text", lambda path, *how: before.pop() if before else read(path, *how))
    found = load_checkpoint(tmp_path, "t")
    assert found is not None and found.epoch == 2
    (tmp_path / "epoch-00002.safetensors").unlink()
    assert load_checkpoint(tmp_path, "t") is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_null_in_a_checkpoint(tmp_path: Path, number: float) -> None:
    history = [{"epoch": 1, "val_score": number, "val_further": {"loss": number, "cut": 0.5}, "skipped": None}]
    save_checkpoint(tmp_path, "t", 1, history, {"a": torch.zeros(2)})
    found = load_checkpoint(tmp_path, "t")
    assert found is not None
    further = {"loss": None, "cut": 0.5}
    assert found.history == [{"epoch": 1, "val_score": None, "val_further": further, "skipped": None}]
    assert history[0]["val_further"]["loss"] is number  # type: ignore[index]


def test_a_checkpoint_of_another_trial_is_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "t", 1, [], {"a": torch.zeros(2)})
    assert load_checkpoint(tmp_path, "u") is None
