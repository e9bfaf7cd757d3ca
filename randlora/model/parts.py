"""Parts of fused weights: which rows of a stored matrix are q, k and v, or gate and up. Each part has its own adapter.

A target such as `attn.in_proj_weight[q,v]` picks parts. Every part (its rows x in) is treated as a weight with its own
adapter. The known layouts have the parts in one row range after the other:

- q, k, v thirds: `in_proj_weight` of `nn.MultiheadAttention` and open_clip's attention, `qkv` (timm, DINOv2), `Wqkv`,
  GPT-2's `c_attn` (k, v halves in its cross attention);
- q, k, v by the numbers of heads in the attention's own `config`: `qkv_proj` (Phi-3), also with grouped queries;
- gate, up halves: `gate_up_proj`.

`query_key_value` of GPT-NeoX, BLOOM and Falcon mixes q, k and v head by head, so it has no such parts. A few modules
mix them under a name from the list above. They are recognised by their attributes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import accumulate
from operator import not_
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from randlora.adapter import Adapter
from randlora.errors import TargetError

PARTS = ("q", "k", "v", "gate", "up")
_FUSED = ("in_proj_weight", "qkv", "Wqkv", "c_attn", "qkv_proj")
_BY_HEAD: dict[str, Callable[[object], bool]] = {
    "head_first": bool,
    "val_dim": bool,
    "mp_num": bool,
    "multi_query": not_,
}
"""Attributes of modules that store q, k and v together by head: timm's MaxViT and TinyViT, CodeGen, GPT-BigCode."""
_OTHERWISE = {
    "MiniMaxLightningAttention": "keeps q, k and v together by head",
    "Phi4MultimodalAudioMLP": "has up before gate",
}
"""Modules of transformers whose fused weight has a name from the list above but another layout."""
_SELECTOR = re.compile(r"(?P<weight>.+)\[(?P<parts>[\w\s,]+)\]")

Rows = tuple[int, int]
"""(first row of a part, first row after it)."""


def split_selector(target: str) -> tuple[str, tuple[str, ...]]:
    """Return a target's name and its parts: "name[q,v]" -> ("name", ("q", "v")).

    Any other target has no parts, also a pattern with a set of characters in brackets.

    Raises:
        TargetError: the list in brackets has a name that is not a part.
    """
    match = _SELECTOR.fullmatch(target)
    if match is None:
        return target, ()
    parts = tuple(p.strip() for p in match["parts"].split(","))
    if all(p in PARTS for p in parts):
        return match["weight"], tuple(dict.fromkeys(parts))
    if len(parts) == 1:
        return target, ()
    wrong = next(p for p in parts if p not in PARTS)
    raise TargetError(f"target {target!r}: {wrong!r} is no part of a fused weight; parts are {', '.join(PARTS)}")


def layout(name: str, parent: nn.Module | None, rows: int, width: int) -> dict[str, Rows]:
    """Return part -> rows of a fused weight.

    Args:
        name: the weight's name.
        parent: the module that contains the weight's module.
        rows, width: the weight's sides (out x in).

    Raises:
        TargetError: the layout is not known.
    """
    last = name.removesuffix(".weight").rpartition(".")[2]
    if (why := _OTHERWISE.get(kind := type(parent).__name__, "")) and last in (*_FUSED, "gate_up_proj"):
        raise TargetError(f"{name} cannot be taken in parts: {kind} {why}; name the whole weight")
    if last == "gate_up_proj" and rows % 2 == 0:
        return _lay(gate=rows // 2, up=rows // 2)
    mixed = next((a for a, tells in _BY_HEAD.items() if hasattr(parent, a) and tells(getattr(parent, a))), None)
    if last in _FUSED and mixed is not None:
        why = f"its module has {mixed} = {getattr(parent, mixed)!r} and keeps q, k and v together by head"
    elif last in _FUSED:
        if (sizes := _by_heads(parent)) is not None and sum(sizes) == rows:
            return _lay(q=sizes[0], k=sizes[1], v=sizes[2])
        if rows == 2 * width and last == "c_attn":
            return _lay(k=width, v=width)
        if rows == 3 * width:
            return _lay(q=width, k=width, v=width)
        why = f"its {rows} rows are neither three times its {width} columns nor what its module's config says"
    else:
        why = f"only {', '.join((*_FUSED, 'gate_up_proj'))} are known to be fused, part after part"
    raise TargetError(f"{name} cannot be taken in parts: {why}; name the whole weight")


def _lay(**sizes: int) -> dict[str, Rows]:
    """Return part -> rows, for parts of these sizes one after the other."""
    ends = list(accumulate(sizes.values()))
    return {part: (end - size, end) for (part, size), end in zip(sizes.items(), ends, strict=True)}


def _by_heads(parent: nn.Module | None) -> tuple[int, int, int] | None:
    """Return the number of rows of q, k and v by a transformers config: heads, groups of keys and values, width of a
    head."""
    config = getattr(parent, "config", None)

    def number(key: str) -> int | None:
        value = getattr(config, key, None)
        return value if isinstance(value, int) else None

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    if heads is None or hidden is None:
        return None
    groups, head = number("num_key_value_heads") or heads, number("head_dim") or hidden // heads
    return heads * head, groups * head, groups * head


class _Segment(NamedTuple):
    """The adapter of some rows."""

    rows: slice
    adapter: Adapter | None


class PartAdapters(nn.Module):
    """The adapters of a weight's parts, in the place of one adapter. Rows without an adapter stay frozen."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.parts = nn.ModuleDict()
        self._spans: dict[str, Rows] = {}

    def add(self, part: str, rows: Rows, adapter: Adapter) -> None:
        """Put an adapter on the rows of `part`."""
        self.parts[part] = adapter
        self._spans[part] = rows

    def drop(self, part: str) -> None:
        """Remove the adapter of `part`."""
        del self.parts[part], self._spans[part]

    def __len__(self) -> int:
        return len(self.parts)

    def _segments(self) -> Iterator[_Segment]:
        at = 0
        for part, (first, last) in sorted(self._spans.items(), key=lambda item: item[1]):
            if at < first:
                yield _Segment(slice(at, first), None)
            yield _Segment(slice(first, last), cast(Adapter, self.parts[part]))
            at = last
        if at < self.rows:
            yield _Segment(slice(at, self.rows), None)

    def _joined(self, dim: int, piece: Callable[[_Segment], Tensor]) -> Tensor:
        return torch.cat([piece(segment) for segment in self._segments()], dim)

    def matrix(self, base: Tensor) -> Tensor:
        """Return the whole weight (out x in) with the parts' deltas."""
        return self._joined(0, lambda s: base[s.rows] if s.adapter is None else s.adapter.matrix(base[s.rows]))

    def read(self, base: Tensor) -> Tensor:
        """Return `matrix(base)` for code that reads the weight of a called layer (see `Adapter.read`)."""
        return self._joined(0, lambda s: base[s.rows] if s.adapter is None else s.adapter.read(base[s.rows]))

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """Return the layer's output for a quantised weight, part by part (see `Adapter.beside`)."""

        def product(segment: _Segment) -> Tensor:
            rows, adapter = segment
            if adapter is None:
                return y[..., rows]
            return adapter.beside(x, y[..., rows], lambda: base()[rows], None if bias is None else bias[rows])

        return self._joined(-1, product)

    def apply_to(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """Return `F.linear(x, weight, bias)`, computed part by part."""

        def product(segment: _Segment) -> Tensor:
            rows = segment.rows
            apply = linear if segment.adapter is None else segment.adapter.apply_to
            return apply(x, base[rows], None if bias is None else bias[rows])

        return self._joined(-1, product)
