"""A model's modules without its weights: whether they are those of the loaded model, and putting weights into them.

Building a model on the meta device skips what its constructor and its loader do with numbers. Whoever has loaded the
model as usual therefore compares everything else of the two, and only a model whose empty form is the same in all is
built that way by others.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_DEPTH = 12


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    return dict([*module.named_parameters(), *module.named_buffers()])


def fits(module: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are all of a model's tensors, of its shapes and types."""
    mine = named_tensors(module)
    return mine.keys() == tensors.keys() and all(
        (t.shape, t.dtype) == (tensors[name].shape, tensors[name].dtype) for name, t in mine.items()
    )


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a model these tensors' memory in place of its own, without copying; what is tied stays tied.

    A tensor on the meta device is replaced by a new one, since it can't change its device; any other stays the same
    object.
    """
    new: dict[int, Tensor] = {}
    for name, old in named_tensors(module).items():
        if name not in tensors:
            continue
        if old.is_meta:
            made = nn.Parameter(tensors[name], old.requires_grad) if isinstance(old, nn.Parameter) else tensors[name]
            vars(made).update(vars(old))
            new[id(old)] = made
        else:
            old.data = tensors[name]
    if new:
        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for key, value in table.items():
                    if value is not None and id(value) in new:
                        table[key] = new[id(value)]  # type: ignore[assignment]  # a parameter for a parameter


def is_empty_form(empty: nn.Module, module: nn.Module) -> bool:
    """Whether `empty` is `module` in all but the numbers in its parameters and buffers."""
    if not fits(empty, named_tensors(module)):
        return False
    mine, theirs = (dict(m.named_modules(remove_duplicate=False)) for m in (empty, module))
    if _ties(mine.items()) != _ties(theirs.items()) or _tensor_ties(empty) != _tensor_ties(module):
        return False
    places = {id(part): id(theirs[name]) for name, part in mine.items()}
    try:
        return all(_same_part(part, theirs[name], places) for name, part in mine.items())
    except (ValueError, TypeError, RuntimeError, AttributeError):  # what can't be compared, such as arrays
        return False


def _ties(named: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Of every name, the first one of the same object."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in named}


def _tensor_ties(module: nn.Module) -> dict[str, str]:
    return _ties([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])


def _same_part(one: nn.Module, other: nn.Module, places: Mapping[int, int]) -> bool:
    ours, theirs = dict(vars(one)), dict(vars(other))
    for table in ("_parameters", "_buffers"):
        pairs = zip(ours.pop(table).items(), theirs.pop(table).items(), strict=True)
        if not all(name == place and _same_tensor(a, b) for (name, a), (place, b) in pairs):
            return False
    if list(ours.pop("_modules")) != list(theirs.pop("_modules")) or type(one) is not type(other):
        return False
    return _same(ours, theirs, places, _DEPTH)


def _same_tensor(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return (type(one), one.requires_grad, vars(one)) == (type(other), other.requires_grad, vars(other))


def _same(one: Any, other: Any, places: Mapping[int, int], depth: int) -> bool:
    """Whether two attributes are the same; False too where it can't be told, as of tensors outside the tables."""
    if one is other:
        return not _holds_numbers(one)
    if type(one) is not type(other) or _holds_numbers(one) or depth == 0:
        return False
    if isinstance(one, nn.Module):
        return places.get(id(one)) == id(other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_same(one[k], other[k], places, depth - 1) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b, places, depth - 1) for a, b in zip(one, other, strict=True))
    if isinstance(one, types.MethodType):
        return one.__func__ is other.__func__ and _same(one.__self__, other.__self__, places, depth - 1)
    if isinstance(one, types.FunctionType):
        return one.__code__ is other.__code__ and _same(_captured(one), _captured(other), places, depth - 1)
    if isinstance(one, functools.partial):
        return _same([one.func, one.args, one.keywords], [other.func, other.args, other.keywords], places, depth - 1)
    if "__eq__" in {name for kind in type(one).__mro__[:-1] for name in vars(kind)}:
        return bool(one == other)
    ours, theirs = _state(one), _state(other)
    return bool(ours) and _same(ours, theirs, places, depth - 1)


def _state(value: object) -> dict[str, Any]:
    """The attributes of an object, in `__dict__` or in slots; none of one that is not Python's."""
    given = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
    slots = [name for names in given for name in ((names,) if isinstance(names, str) else names)]
    return dict(getattr(value, "__dict__", {})) | {name: getattr(value, name) for name in slots if hasattr(value, name)}


def _captured(function: types.FunctionType) -> list[Any]:
    return [
        function.__defaults__,
        function.__kwdefaults__,
        *(cell.cell_contents for cell in function.__closure__ or ()),
    ]


def _holds_numbers(value: object) -> bool:
    return isinstance(value, Tensor | torch.Generator)
