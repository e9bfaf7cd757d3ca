"""Products with a ternary basis B (entries -c, 0, +c) by gathering and adding, without multiplications.

Costs grow with the number of entries that are not 0: at the paper's sparsity sqrt(D) (93 % zeros at D = 768) a product
takes a small part of the dense one's time. Used on the CPU in float32, where `kernels` has its compiled part;
everywhere else `lists` returns None and the products are dense, with the same result up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from randlora.arithmetic import kernels
from randlora.arithmetic.bases import Draw, draw

MAX_DENSITY = 0.4
"""Above this share of entries that are not 0 the dense product is as fast."""

_PAD = 4


class _Signed(NamedTuple):
    """For every output the indices to add, and those to subtract: starts (outputs + 1) and indices, padded."""

    plus_start: Tensor
    plus: Tensor
    minus_start: Tensor
    minus: Tensor

    @property
    def outputs(self) -> int:
        return self.plus_start.numel() - 1


class Lists(NamedTuple):
    """B (D x q) as lists: by row (over columns) and by column (over rows); `value` is c, `density` the share not 0."""

    rows: _Signed
    columns: _Signed
    value: float
    density: float


def _signed(values: Tensor) -> _Signed:
    """Lists of the rows of `values`."""
    found: list[Tensor] = []
    count, terms = values.shape
    for mask in (values > 0, values < 0):
        sizes = mask.sum(1)
        padded = (sizes + _PAD - 1) // _PAD * _PAD
        start = torch.zeros(count + 1, dtype=torch.int64)
        start[1:] = padded.cumsum(0)
        index = torch.full((max(1, int(start[-1])),), terms, dtype=torch.int64)
        row, column = mask.nonzero(as_tuple=True)
        within = torch.arange(row.numel()) - (sizes.cumsum(0) - sizes)[row]
        index[start[row] + within] = column
        found += [start.to(torch.int32), index.to(torch.uint16)]
    return _Signed(*found)


def make_lists(b_DQ: Tensor) -> Lists | None:
    """Lists of a float32 CPU matrix whose entries are -c, 0 and +c; None for any other, or one too dense or too big."""
    if b_DQ.device.type != "cpu" or b_DQ.dtype != torch.float32 or max(b_DQ.shape) >= 1 << 16 or b_DQ.numel() == 0:
        return None
    size = b_DQ.abs()
    value = float(size.max())
    nonzero = size != 0
    density = float(nonzero.double().mean())
    if value == 0.0 or density > MAX_DENSITY or bool((size[nonzero] != value).any()):
        return None
    return Lists(_signed(b_DQ), _signed(b_DQ.t()), value, density)


@functools.cache
def _right(library: ctypes.CDLL) -> bool:
    """Whether a freshly loaded library gives the dense products' numbers; a wrong build is never used."""
    spec = Draw(70, 50, "ternary", sparsity=6.0)
    b_DQ, m_QM = draw(0, "check", spec), draw(0, "check M", Draw(50, 45))
    found = make_lists(b_DQ)
    assert found is not None
    dense = b_DQ @ m_QM
    made = (
        merge(None, m_QM, found, True) - dense,
        merge(None, m_QM, found, False).t() - dense,
        times_b(m_QM.t().contiguous() @ b_DQ.t(), found).t() - dense.t() @ b_DQ,
    )
    return all(float(error.abs().max()) < 1e-3 for error in made)


_CACHE: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, dict[tuple[int, int], Lists | None]]] = (
    weakref.WeakKeyDictionary()
)


def lists(owner: nn.Module, whole: Tensor, rows: int, columns: int) -> Lists | None:
    """`make_lists(whole[:rows, :columns])`, kept for as long as `owner` holds the same tensor.

    None inside `torch.compile`, which cannot look into the compiled part: there the products are dense.
    """
    if torch.compiler.is_compiling():
        return None
    library = kernels.load_compiled() if whole.device.type == "cpu" and whole.dtype == torch.float32 else None
    if library is None or not _right(library):
        return None
    source, known = _CACHE.get(owner, (None, {}))
    if source is not whole:
        known = {}
        _CACHE[owner] = (whole, known)
    key = (rows, columns)
    if key not in known:
        known[key] = make_lists(whole[:rows, :columns])
    return known[key]


def signed_sums(x: Tensor, chosen: _Signed, scale: float, out: Tensor, base: Tensor | None = None) -> Tensor:
    """out[lane, o] = base[lane, o] + scale * (sum of x[lane, plus[o]] - sum of x[lane, minus[o]]).

    x (lanes x terms) and out (lanes x outputs) are float32 on the CPU, of any strides; base has out's.
    """
    library = kernels.load_compiled()
    assert library is not None
    if x.stride(0) != 1 and x.stride(1) != 1:
        x = x.contiguous()
    assert base is None or base.stride() == out.stride()
    lanes, terms = x.shape
    width: int = library.randlora_lanes()
    blocks = -(-lanes // width)

    def run(first: int, last: int) -> None:
        failed: int = library.randlora_ternary(
            *(x.data_ptr(), x.stride(0), x.stride(1), lanes, terms),
            *(t.data_ptr() for t in chosen),
            *(chosen.outputs, scale, None if base is None else base.data_ptr()),
            *(out.data_ptr(), out.stride(0), out.stride(1), first, last),
        )
        if failed:
            raise MemoryError("the ternary kernel found no memory for its panel")

    workers = min(torch.get_num_threads(), blocks)
    if workers <= 1:
        run(0, blocks)
        return out
    edges = [blocks * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:  # ctypes lets other threads run
        list(pool.map(run, edges[:-1], edges[1:]))
    return out


def merge(base: Tensor | None, m_QM: Tensor, found: Lists, tall: bool) -> Tensor:
    """base + B M (D x m) if tall, else base + (B M)^T (m x D)."""
    lanes, outputs = m_QM.shape[1], found.rows.outputs
    out = m_QM.new_empty((outputs, lanes) if tall else (lanes, outputs))
    if base is not None and base.stride() != out.stride():
        base = torch.empty_like(out).copy_(base)  # contiguous() keeps odd strides of sides of length 1
    view = out.t() if tall else out
    inside = None if base is None else (base.t() if tall else base)
    signed_sums(m_QM.t(), found.rows, found.value, view, inside)
    return out


def times_b(x_ND: Tensor, found: Lists) -> Tensor:
    """(x B)^T (q x N)."""
    out = x_ND.new_empty(found.columns.outputs, x_ND.shape[0])
    signed_sums(x_ND, found.columns, found.value, out.t())
    return out
