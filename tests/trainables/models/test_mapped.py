"""Files of tensors that processes map, and models built without weights: same bits, or not at all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.models.sharing.mapped import ALIGNMENT, DamagedError, can_be_mapped, mapped_bytes, own_copy, read, write
from trainables.models.sharing.skeleton import fill, fits, is_empty_form, named_tensors

TENSORS = {
    "weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "mask": torch.tensor([True, False, True]),
    "step": torch.tensor(4),
    "none": torch.empty(0, 3),
    "half": torch.arange(7).bfloat16(),
    "large": torch.randn(300, 700, generator=torch.Generator().manual_seed(1)),
    "scale": nn.Parameter(torch.tensor(1.5)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "w.safetensors", TENSORS, {"by": "me"})
    return tmp_path / "w.safetensors"


def test_what_is_mapped_is_what_was_written(path: Path) -> None:
    found, notes = read(path)
    standard = load_file(path)  # any reader of the format opens it
    assert notes == {"by": "me"}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found[name], tensor)
        assert torch.equal(standard[name], tensor)
        assert found[name].data_ptr() % ALIGNMENT == 0
        assert found[name].untyped_storage().nbytes() == tensor.nbytes
    assert mapped_bytes(found.values()) == sum(t.nbytes for t in TENSORS.values())
    assert mapped_bytes(TENSORS.values()) == 0


def test_writing_stays_in_the_process(path: Path) -> None:
    one, _ = read(path)
    other, _ = read(path)
    before = path.read_bytes()
    one["large"].add_(1)
    assert torch.equal(other["large"], TENSORS["large"])
    assert path.read_bytes() == before
    deep = copy.deepcopy(other["large"])
    assert mapped_bytes([deep]) == 0
    assert deep.untyped_storage().nbytes() == deep.nbytes
    path.unlink()  # who has it mapped keeps it
    assert torch.equal(other["large"], TENSORS["large"])


@pytest.mark.parametrize("damage", ["short", "flipped", "foreign", "empty", "header", "longer"])
def test_a_damaged_file_is_refused(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    flipped, header = bytearray(content), bytearray(content)
    flipped[-100] ^= 1
    header[8 + 40] ^= 0x15
    bad = {"short": content[:-8], "flipped": flipped, "foreign": b"no weights" * 9, "empty": b"", "header": header}
    path.unlink()
    path.write_bytes(bad.get(damage, content + b"x"))
    with pytest.raises(DamagedError):
        read(path)


def test_a_copy_lies_as_its_original() -> None:
    room = torch.randn(1000)
    for start in (0, 1, 10):
        tensor = room[start : start + 12].view(3, 4)
        found = own_copy(tensor)
        assert torch.equal(found, tensor)
        assert found.data_ptr() % ALIGNMENT == tensor.data_ptr() % ALIGNMENT
        assert found.data_ptr() != tensor.data_ptr()


class Subclass(Tensor):
    """As weights that are split over workers are."""


class Packed(nn.Parameter):
    """As bitsandbytes' weights of 4 and 8 bits are."""


def test_what_is_no_plain_tensor_is_left_alone() -> None:
    plain = torch.randn(4, 6)
    odd = {
        "subclass": plain.as_subclass(Subclass),
        "its parameter": nn.Parameter(plain.as_subclass(Subclass)),
        "meta": torch.empty(3, device="meta"),
        "transposed": plain.t(),
        "a part": plain[1:],
        "sparse": plain.to_sparse(),
        "packed in bytes": Packed(plain.to(torch.uint8), requires_grad=False),
        "complex": plain.to(torch.complex64),
    }
    assert can_be_mapped(plain)
    assert [name for name, tensor in odd.items() if can_be_mapped(tensor)] == []


class Model(nn.Module):
    """Tied weights, a buffer, and whatever else is asked for."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(3), persistent=False)
        for name, value in more.items():
            setattr(self, name, value)


def empty(**more: Any) -> nn.Module:
    with torch.device("meta"):
        return Model(**more)


def test_an_empty_model_is_filled_and_stays_tied() -> None:
    whole, filled = Model(), empty()
    assert is_empty_form(filled, whole)
    assert fits(filled, named_tensors(whole))
    fill(filled, {name: t.detach() for name, t in named_tensors(whole).items()})
    assert filled.head.weight is filled.embed.weight
    assert isinstance(filled.head.weight, nn.Parameter)
    assert filled.head.weight.requires_grad
    assert filled.head.weight.data_ptr() == whole.embed.weight.data_ptr()
    assert filled.mask is not None and torch.equal(filled.mask, whole.mask)
    assert not any(t.is_meta for t in named_tensors(filled).values())
    objects = {name: id(t) for name, t in named_tensors(whole).items()}
    fill(whole, {name: t.detach().clone() for name, t in named_tensors(whole).items()})
    assert {name: id(t) for name, t in named_tensors(whole).items()} == objects


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"scale": 2.0}, {"scale": 3.0}),
        ({"table": torch.ones(2)}, {"table": torch.ones(2)}),
        ({"tables": [torch.ones(2)]}, {"tables": [torch.ones(2)]}),
        ({"generator": torch.Generator()}, {"generator": torch.Generator()}),
        ({"extra": nn.ReLU()}, {"extra": nn.GELU()}),
        ({"extra": nn.Dropout(0.1)}, {"extra": nn.Dropout(0.2)}),
        ({}, {"extra": 1}),
        ({"act": lambda x: x + 1}, {"act": lambda x: x + 2}),
    ],
)
def test_a_model_that_is_not_the_same_without_weights_is_told(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert not is_empty_form(empty(**mine), Model(**theirs))


def test_ties_flags_and_shapes_count() -> None:
    whole = Model()
    whole.embed.weight.requires_grad_(False)
    assert not is_empty_form(empty(), whole)
    whole = Model()
    whole.head.weight = nn.Parameter(whole.embed.weight.detach())
    assert not is_empty_form(empty(), whole)
    whole = Model()
    whole.mask = torch.ones(4)
    assert not is_empty_form(empty(), whole)
    assert is_empty_form(empty(sizes=(1, [2], {"a": torch.float32})), Model(sizes=(1, [2], {"a": torch.float32})))
