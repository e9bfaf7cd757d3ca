"""Accumulate gradients through one W0 + delta: it is made once per optimiser step, and differentiated once.

    with accumulating(model, micro_batches=4):     # or adapted.accumulating(4)
        for part in parts:
            loss(model(part)).backward()           # no gradient in the adapters yet
    optimiser.step()                               # the gradients are there

Inside the block, a layer multiplies by one W0 + delta if that costs less (`arithmetic.plans`). It makes this weight at
its first forward. The gradients of the weight are summed. At the end of the block they become the trainables'
gradients. The result is that of plain accumulation, up to rounding. The price is memory for two more copies of the
adapted weights. RandLoRA's part of a step with k micro-batches of N rows falls to k N D d + 2 D q d multiply-adds.

W0 + delta is made again if a trainable or the base weight has changed, as torch's version counters tell. A change while
gradients wait is an error. The ordinary way is taken by layers that drop their input, by base weights in bf16 or fp16,
by layers under autocast to these types, and inside `torch.compile`. DDP and FSDP2 are not supported, because their
hooks expect that every backward reaches the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora.adapter import Adapter
from randlora.arithmetic.contract import LOW, compute_dtype
from randlora.errors import AdapterError
from randlora.model.sharded import is_sharded


class HeldWeight:
    """One adapter's W0 + delta, kept for the length of an optimiser step."""

    def __init__(self, adapter: Adapter, micro_batches: int) -> None:
        self._adapter = adapter
        self._micro_batches = micro_batches
        self._versions: tuple[int, ...] = ()
        self._base: Tensor | None = None
        self._leaf: Tensor | None = None
        self._pays: bool | None = None

    def matrix(self, base: Tensor) -> Tensor | None:
        """Return W0 + delta (out x in), whose gradient is held back; None if the layer must go the ordinary way."""
        if torch.compiler.is_compiling() or base.requires_grad or base.dtype in LOW or compute_dtype(base) in LOW:
            return None
        versions = self._versions_with(base)
        if self._leaf is None or versions != self._versions:
            self._check_nothing_waits()
            # Without a graph, so that gradient checkpointing has nothing to save again. Outside inference_mode, because
            # a later forward could not train through a weight that an evaluation made under it.
            with torch.inference_mode(False), torch.no_grad():
                weight = self._adapter.weight(base)
                self._leaf = weight.requires_grad_(any(p.requires_grad for p in self._adapter.parameters()))
            self._base, self._versions = base, versions
        return self._leaf

    def _versions_with(self, base: Tensor) -> tuple[int, ...]:
        return (base._version, *(p._version for p in self._adapter.parameters()))

    def _check_nothing_waits(self) -> None:
        if self._leaf is not None and self._leaf.grad is not None:
            raise AdapterError(
                "a trainable or a base weight changed while accumulated gradients wait: end the accumulating() "
                "block before optimiser.step()"
            )

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return F.linear(x, W0 + delta, bias); None if the layer must go the ordinary way, or if that is cheaper."""
        if self._adapter.dropping or compute_dtype(x) in LOW:
            return None
        if self._pays is None:
            self._pays = self._adapter.pays_to_accumulate(x.numel() // x.shape[-1], self._micro_batches)
        weight = self.matrix(base) if self._pays else None
        return None if weight is None else linear(x, weight, bias)

    def project(self) -> None:
        """Turn the gradient summed so far into gradients of the trainables."""
        if self._base is None or self._leaf is None or self._leaf.grad is None:
            return
        if self._versions_with(self._base) != self._versions:
            self._check_nothing_waits()
        self._adapter.project(self._base, self._leaf.grad)
        self._leaf.grad = None


@contextmanager
def accumulating(model: nn.Module, micro_batches: int) -> Iterator[None]:
    """Sum the gradients of several backward passes at W0 + delta. At the end they are in the adapters' `.grad`.

    Args:
        model: a model with adapters of this package, of any method.
        micro_batches: the number of backward passes that follow. A layer uses it to decide whether keeping W0 + delta
            is cheaper. With 1, nothing is kept.

    Raises:
        AdapterError: blocks are nested, parameters are sharded by FSDP2, or a parameter changed while gradients wait.
            After an error of any kind the gradients that waited are dropped.
    """
    if micro_batches < 1:
        raise AdapterError(f"micro_batches must be at least 1 but got {micro_batches!r}")
    if micro_batches == 1:
        yield
        return
    # an adapter that only calls others (a pack) has no parameters
    adapters = [m for m in model.modules() if isinstance(m, Adapter) and any(True for _ in m.parameters())]
    for adapter in adapters:
        if adapter.held is not None:
            raise AdapterError("accumulating() inside accumulating(): one block per optimiser step")
        if any(map(is_sharded, adapter.parameters())):
            raise AdapterError("accumulating() does not work on parameters sharded by FSDP2; accumulate without it")
    for adapter in adapters:
        adapter.held = HeldWeight(adapter, micro_batches)
    try:
        yield
        for adapter in adapters:
            if adapter.held is not None:
                adapter.held.project()
    finally:
        for adapter in adapters:
            adapter.held = None
