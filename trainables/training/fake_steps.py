"""Measure what a training step computes and holds, on fake tensors: they have shapes and types, but no values.

torch counts the floating-point operations. `_Memory` counts the bytes that are alive: a saved activation is alive from
its forward operation to its backward one, because autograd holds it. Everything else is alive while it is needed.

A model of many equal blocks is run with few of them, and then again with one more block of each kind. What that block
adds is counted for every block of its kind that was left out. A model whose blocks cannot be left out is run whole.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from trainables.models.blocks import block_lists

M = TypeVar("M", bound=nn.Module)

_MOMENTS = 2
"""Number of AdamW's moments, which are as large as the trained tensors."""
_COUNTER = 4
"""Bytes of AdamW's step counter, one for each trained tensor."""
_FEWEST = 8
"""A list of fewer blocks is run whole."""


@dataclass(frozen=True)
class Costs:
    """Floating-point operations of a step, and the most bytes that are alive at once in it."""

    flops: int
    memory: int

    def plus(self, other: Costs, times: int) -> Costs:
        """Return the sum of these costs and `times` the other costs."""
        return Costs(self.flops + times * other.flops, self.memory + times * other.memory)


class FakeModel:
    """Measures training steps of a model, after replacing its tensors by fake ones on the CPU.

    Args:
        module: the model, on the meta device. It is changed in place.
        types: the data types that parameters get instead of their own, keyed by parameter.
    """

    def __init__(self, module: nn.Module, types: Mapping[nn.Parameter, torch.dtype] | None = None) -> None:
        self.module = module
        self._types = dict(types or {})
        # id of a tensor -> the tensor and its fake; while we hold the tensor, no other one can get its id
        self._fakes: dict[int, tuple[Tensor, Tensor]] = {}
        self._mode, self._memory = FakeTensorMode(), _Memory()

    def step(self, loss: Callable[[], Tensor], *, head: nn.Module | None = None, accumulates: bool = False) -> Costs:
        """Return the costs of a forward and a backward pass, including the memory of weights and AdamW's moments.

        Args:
            loss: makes the loss of a batch, from inputs that it makes itself.
            head: a module that is trained together with the model.
            accumulates: whether gradients of an earlier part of the batch are in memory.
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

    def run(self, forward: Callable[[], object]) -> None:
        """Run a forward pass of the whole model, without measuring it."""
        self._convert()
        with self._mode:
            forward()

    def made(self, make: Callable[[], M]) -> M:
        """Return the module that `make` builds, such as a head, with fake tensors."""
        with self._mode:
            return make()

    def _step(self, loss: Callable[[], Tensor], head: nn.Module | None, accumulates: bool) -> Costs:
        self._convert()
        parts = [self.module] if head is None else [self.module, head]
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        resident_tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        resident = _bytes(resident_tensors) + sum(_MOMENTS * p.nbytes + _COUNTER for p in trained)
        self._memory.begin(resident_tensors)
        with self._mode, self._memory, _counter() as counted:
            if accumulates:
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
            loss().backward()  # type: ignore[no-untyped-call]
        for parameter in trained:
            parameter.grad = None
        return Costs(counted.get_total_flops(), resident + self._memory.most)

    def _convert(self) -> None:
        """Replace the tensors that are still on the meta device. Modules that shared a tensor share its replacement."""
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
        """Return the costs of the whole model. If it has many blocks of a kind, only few of them are run."""
        lists = [_Blocks(part) for part in block_lists(self.module, at_least=_FEWEST).values()]
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
        except Exception:  # noqa: BLE001  # some models ask for a block by its number; any other error comes again below
            for blocks in lists:
                blocks.restore()
            return run()
        finally:
            for blocks in lists:
                blocks.restore()


class _Blocks:
    """A list of blocks, of which equal ones can be left out. The last block stays: some models compute less in it."""

    def __init__(self, part: nn.ModuleList | nn.Sequential) -> None:
        self._part, self._all = part, dict(part.named_children())
        *first, self._last = self._all.values()
        self._kinds: dict[Any, list[nn.Module]] = {}
        for module in first:
            self._kinds.setdefault(_kind(module), []).append(module)
        self._order = first

    @property
    def left_out(self) -> dict[Any, int]:
        """Return the number of blocks of each kind that `keep()` leaves out."""
        return {kind: len(members) - 1 for kind, members in self._kinds.items() if len(members) > 1}

    def keep(self, further: Any = None) -> None:
        """Keep one block of each kind, a second one of the kind `further`, and the last block of all."""
        kept_ids = {id(m) for kind, members in self._kinds.items() for m in members[: 2 if kind == further else 1]}
        chosen = [m for m in self._order if id(m) in kept_ids] + [self._last]
        self._set({str(i): m for i, m in enumerate(chosen)})

    def restore(self) -> None:
        """Put all blocks back."""
        self._set(self._all)

    def _set(self, modules: Mapping[str, nn.Module]) -> None:
        self._part._modules.clear()
        self._part._modules.update(modules)


def _kind(module: nn.Module) -> Any:
    """Return a key that blocks of equal cost share: their class, and the names, shapes and types of their tensors."""
    named = [*module.named_parameters(), *module.named_buffers()]
    tensors = tuple((n, tuple(t.shape), t.dtype, t.requires_grad) for n, t in named)
    return type(module), tensors


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make. A storage counts as long as something refers to it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._held: set[int] = set()
        self._now = self._peak = 0

    @property
    def most(self) -> int:
        """Return the most counted bytes that were alive at once since `begin()`."""
        return self._peak

    def begin(self, held: Iterable[Tensor]) -> None:
        """Forget the peak so far. Storages that are alive stay counted, such as casts that layers keep.

        The storages of `held` are not counted.
        """
        self._held = {tensor.untyped_storage()._cdata for tensor in held}
        self._peak = self._now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return output

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
    """Return the bytes of the tensors. A storage that several tensors share counts once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _products_of_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Return the operations of the two matrix products of scaled dot-product attention."""
    *batch, rows, width = query
    return 2 * math.prod(batch) * rows * key[-2] * (width + value[-1])


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return _products_of_attention(query, key, value)


def _attention_backward(
    _: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *__: Any, **___: Any
) -> int:
    """Return the operations of five products.

    They make the scores again, and the gradients of the values, the probabilities, the queries and the keys.
    """
    *batch, rows, width = query
    scores = 2 * math.prod(batch) * rows * key[-2]
    return scores * (3 * width + 2 * value[-1])


def _product_added(_: Sequence[int], left: Sequence[int], right: Sequence[int], *__: Any, **___: Any) -> int:
    """Return the operations of a product that is added in place: of matrices, of batches of them, or with a vector."""
    return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)


def _product(left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    return _product_added((), left, right)


def _counter() -> FlopCounterMode:
    """Return torch's counter, with what its table lacks: attention on CPUs, and products in place or with vectors."""
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
