"""Parts of fused weights: which rows of one stored matrix are q, k and v, or gate and up, and an adapter for each.

A target such as `attn.in_proj_weight[q,v]` picks parts. Every part is a weight of its own (its rows x in) with an
adapter of its own. Known layouts, all of them rows one after the other:

- q, k, v thirds: `in_proj_weight` of `nn.MultiheadAttention` and open_clip's attention, `qkv` (timm, DINOv2), `Wqkv`,
  GPT-2's `c_attn` (k, v halves in its cross attention);
- q, k, v by the numbers of heads in the attention's own `config`: `qkv_proj` (Phi-3), also with grouped queries;
- gate, up halves: `gate_up_proj`.

`query_key_value` of GPT-NeoX, BLOOM and Falcon mixes q, k and v head by head and has no such parts; so do a few modules
with a name from above, which are told by their attributes.
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
"""Attributes of modules that keep q, k and v together by head: timm's MaxViT and TinyViT, CodeGen, GPT-BigCode."""
_OTHERWISE = {
    "MiniMaxLightningAttention": "keeps q, k and v together by head",
    "Phi4MultimodalAudioMLP": "has up before gate",
}
"""Modules of transformers whose fused weight has a name from above and another layout."""
_SELECTOR = re.compile(r"(?P<weight>.+)\[(?P<parts>[\w\s,]+)\]")

Rows = tuple[int, int]
"""First row of a part, and the first beyond it."""


def split_selector(target: str) -> tuple[str, tuple[str, ...]]:
    """ "name[q,v]" -> ("name", ("q", "v")); any other target, a glob with a set of characters too, has no parts.

    Raises `TargetError` for a list in brackets with a name that is no part.
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
    """Part -> rows of the weight `name` (rows x width, as (out x in)), whose module lies in `parent`.

    Raises `TargetError` where it is not known.
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
    ends = list(accumulate(sizes.values()))
    return {part: (end - size, end) for (part, size), end in zip(sizes.items(), ends, strict=True)}


def _by_heads(parent: nn.Module | None) -> tuple[int, int, int] | None:
    """Rows of q, k and v from a transformers config: heads, groups of keys and values, width of a head."""
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
    rows: slice
    adapter: Adapter | None


class PartAdapters(nn.Module):
    """The adapters of one weight's parts, in the place of one adapter; rows without an adapter stay frozen."""

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
        """Take the adapter of `part` away."""
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

    def _joined(self, dim: int, of: Callable[[_Segment], Tensor]) -> Tensor:
        return torch.cat([of(segment) for segment in self._segments()], dim)

    def matrix(self, base: Tensor) -> Tensor:
        """The whole weight (out x in) with the parts' deltas."""
        return self._joined(0, lambda s: base[s.rows] if s.adapter is None else s.adapter.matrix(base[s.rows]))

    def beside(self, x: Tensor, y: Tensor, base: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """As `Adapter.beside`, part by part."""

        def product(segment: _Segment) -> Tensor:
            rows, adapter = segment
            if adapter is None:
                return y[..., rows]
            return adapter.beside(x, y[..., rows], lambda: base()[rows], None if bias is None else bias[rows])

        return self._joined(-1, product)

    def apply_to(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear(x, weight, bias)`, part by part."""

        def product(segment: _Segment) -> Tensor:
            rows = segment.rows
            apply = linear if segment.adapter is None else segment.adapter.apply_to
            return apply(x, base[rows], None if bias is None else bias[rows])

        return self._joined(-1, product)
