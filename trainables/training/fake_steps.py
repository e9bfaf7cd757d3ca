"""Training steps on fake tensors, which have shapes, types and storages and no values: what they compute and hold.

torch counts the floating-point operations. `_Memory` counts the bytes that are alive: a saved activation is alive from
its forward operation to its backward one, because autograd holds it, and so is everything else while it is needed.

A model of many equal blocks is run with few of them, and once again with one more of a kind. What the further block
adds is added for every block that was left out. A model whose blocks cannot be left out is run whole.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_MOMENTS = 2
_COUNTER = 4
"""Bytes of AdamW's count of steps, of each tensor."""
_FEWEST = 8
"""A list of fewer blocks is run whole."""


@dataclass(frozen=True)
class Costs:
    """Floating-point operations of a step, and the most bytes that are alive at once in it."""

    flops: int
    memory: int

    def plus(self, other: Costs, times: int) -> Costs:
        """These costs and `times` those."""
        return Costs(self.flops + times * other.flops, self.memory + times * other.memory)


class FakeModel:
    """A copy of a model whose tensors are fake ones on the CPU.

    Args:
        module: on the meta device. Its tensors are replaced.
        types: by parameter, the type it has instead of its own.
    """

    def __init__(self, module: nn.Module, types: Mapping[nn.Parameter, torch.dtype] | None = None) -> None:
        self.module = module
        self._types = dict(types or {})
        self._fakes: dict[int, tuple[Tensor, Tensor]] = {}
        self._mode, self._memory = FakeTensorMode(), _Memory()

    def step(self, loss: Callable[[], Tensor], *, head: nn.Module | None = None, accumulates: bool = False) -> Costs:
        """Return the costs of a forward and a backward pass, with all that training keeps beside them.

        Args:
            loss: makes the loss of a batch, from inputs that it makes itself.
            head: trained beside the model.
            accumulates: whether gradients of an earlier part of the batch are held.
        """
        return self._of_all_blocks(lambda: self._step(loss, head, accumulates))

    def forward_flops(self, loss: Callable[[], Tensor]) -> int:
        """Return the floating-point operations of a forward pass."""

        def run() -> Costs:
            self._convert()
            with self._mode, torch.no_grad(), _counter() as counted:
                loss()
            return Costs(counted.get_total_flops(), 0)

        return self._of_all_blocks(run).flops

    def made(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Return a module made of fake tensors, such as a head."""
        with self._mode:
            return make()

    def _step(self, loss: Callable[[], Tensor], head: nn.Module | None, accumulates: bool) -> Costs:
        self._convert()
        parts = [self.module] if head is None else [self.module, head]
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        held = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        resident = _bytes(held) + sum(_MOMENTS * p.nbytes + _COUNTER for p in trained)
        self._memory.begin(held)
        with self._mode, self._memory, _counter() as counted:
            if accumulates:
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
            loss().backward()  # type: ignore[no-untyped-call]
        for parameter in trained:
            parameter.grad = None
        return Costs(counted.get_total_flops(), resident + self._memory.most)

    def _convert(self) -> None:
        """Replace what is still on the meta device. Tensors that several modules share stay one."""
        with self._mode:
            for module in self.module.modules():
                for tensors in (module._parameters, module._buffers):
                    for name, tensor in tensors.items():
                        if tensor is not None and tensor.device.type == "meta":
                            tensors[name] = self._fake(tensor)  # type: ignore[assignment]

    def _fake(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._fakes:
            dtype = tensor.dtype
            if isinstance(tensor, nn.Parameter):
                dtype = self._types.get(tensor, dtype)
            fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            self._fakes[id(tensor)] = tensor, fake
        return self._fakes[id(tensor)][1]

    def _of_all_blocks(self, run: Callable[[], Costs]) -> Costs:
        """The costs of the whole model, from runs with few of its blocks where there are many of a kind."""
        lists = [_Blocks(part) for part in _lists_of_blocks(self.module)]
        if not lists:
            return run()
        try:
            for blocks in lists:
                blocks.keep()
            least = run()
            total = least
            for blocks in lists:
                for kind, left_out in blocks.left_out.items():
                    blocks.keep(further=kind)
                    total = total.plus(run().plus(least, -1), left_out)
                blocks.keep()
            return total
        except Exception:  # noqa: BLE001  # a model that asks for its blocks by number; what else is wrong is raised below
            for blocks in lists:
                blocks.restore()
            return run()
        finally:
            for blocks in lists:
                blocks.restore()


class _Blocks:
    """A list of a model's blocks, of which equal ones can be left out. Its last one stays: some models shorten it."""

    def __init__(self, part: nn.ModuleList | nn.Sequential) -> None:
        self._part, self._all = part, dict(part.named_children())
        *first, self._last = self._all.values()
        self._kinds: dict[Any, list[nn.Module]] = {}
        for module in first:
            self._kinds.setdefault(_kind(module), []).append(module)
        self._order = first

    @property
    def left_out(self) -> dict[Any, int]:
        """How many blocks of each kind `keep()` leaves out."""
        return {kind: len(members) - 1 for kind, members in self._kinds.items() if len(members) > 1}

    def keep(self, further: Any = None) -> None:
        """Leave one block of each kind, and one more of the kind `further`."""
        kept = {id(m) for kind, members in self._kinds.items() for m in members[: 2 if kind == further else 1]}
        chosen = [m for m in self._order if id(m) in kept] + [self._last]
        self._set({str(i): m for i, m in enumerate(chosen)})

    def restore(self) -> None:
        """Put all blocks back."""
        self._set(self._all)

    def _set(self, modules: Mapping[str, nn.Module]) -> None:
        self._part._modules.clear()
        self._part._modules.update(modules)


def _kind(module: nn.Module) -> Any:
    """What two blocks have in common that cost the same: the class, and the shapes of everything in it."""
    named = [*module.named_parameters(), *module.named_buffers()]
    tensors = tuple((n, tuple(t.shape), t.dtype, t.requires_grad) for n, t in named)
    return type(module), tensors


def _lists_of_blocks(module: nn.Module) -> list[nn.ModuleList | nn.Sequential]:
    """The outermost lists of several modules of one class that have parts of their own."""
    found: list[nn.ModuleList | nn.Sequential] = []
    inside: set[int] = set()
    for part in module.modules():
        if id(part) in inside or not isinstance(part, nn.ModuleList | nn.Sequential) or len(part) < _FEWEST:
            continue
        if len({type(m) for m in part}) == 1 and all(next(m.children(), None) is not None for m in part):
            found.append(part)
            inside |= {id(m) for m in part.modules()}
    return found


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make, for as long as anything holds them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._held: set[int] = set()
        self._now = self._peak = 0

    @property
    def most(self) -> int:
        """The most bytes that were alive since `begin()`, of those made since."""
        return self._peak

    def begin(self, held: Iterable[Tensor]) -> None:
        """Start counting anew. What is alive now is a part of it, such as a cast that layers keep; `held` is not."""
        self._held = {tensor.untyped_storage()._cdata for tensor in held}
        self._peak = self._now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self._count(each)
        return found

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._held:
            return
        size = storage.nbytes()

        def forget(_: Any) -> None:
            self._now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, forget)
        self._now += size
        self._peak = max(self._peak, self._now)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' memory, each once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _products_of_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Operations of the two products of scaled dot-product attention."""
    *batch, rows, width = query
    return 2 * math.prod(batch) * rows * key[-2] * (width + value[-1])


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return _products_of_attention(query, key, value)


def _attention_backward(
    _: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *__: Any, **___: Any
) -> int:
    """The scores are made again; then gradients of the values, the probabilities, the queries and the keys."""
    *batch, rows, width = query
    scores = 2 * math.prod(batch) * rows * key[-2]
    return scores * (3 * width + 2 * value[-1])


def _product_added(_: Sequence[int], left: Sequence[int], right: Sequence[int], *__: Any, **___: Any) -> int:
    """Of a matrix product that is added in place; of several at once, and of a vector too."""
    return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)


def _product(left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    return _product_added((), left, right)


def _counter() -> FlopCounterMode:
    """torch's counter, with what its own table lacks: the attention of CPUs, products in place, and of vectors."""
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            **dict.fromkeys((aten.addmm_, aten.baddbmm_, aten.addmv, aten.addmv_), _product_added),
            **dict.fromkeys((aten.mv, aten.dot), _product),
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )
