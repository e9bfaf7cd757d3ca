"""Products with a ternary basis B (entries -c, 0, +c) that cost less than dense ones.

On the CPU in float32 they gather and add, if `kernels` has its compiled library. Their cost grows with the number of
entries that are not 0. At the paper's sparsity sqrt(D) (93 % zeros at D = 768) they take a small part of the dense
product's time. On CUDA, `tensor_cores` computes them if `kernels` was asked for Triton. Everywhere else `compact_form`
returns None, and the products are dense. The result is the same up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from randlora.arithmetic import kernels
from randlora.arithmetic.bases import Draw, draw

MAX_DENSITY = 0.4
"""The largest share of entries that are not 0 at which gathering is faster than the dense product."""
GATHER_COST = 3.5
"""Time of a gathered term, relative to a dense one (measured: 2.5 to 4 with AVX-512 at 93 % zeros)."""

_PAD = 4


class _Signed(NamedTuple):
    """For each output, the indices to add and those to subtract: starts (outputs + 1) and padded indices."""

    plus_start: Tensor
    plus: Tensor
    minus_start: Tensor
    minus: Tensor

    @property
    def outputs(self) -> int:
        return self.plus_start.numel() - 1


class Lists(NamedTuple):
    """B (D x q) as lists of indices.

    Attributes:
        rows: for each row, its columns with +c and with -c.
        columns: for each column, its rows with +c and with -c.
        value: c.
        density: the share of entries that are not 0.
    """

    rows: _Signed
    columns: _Signed
    value: float
    density: float

    @property
    def relative_time(self) -> float:
        """Return the time of a product, relative to the dense one."""
        return GATHER_COST * self.density


class Signs(NamedTuple):
    """B (D x q) as int8 signs on its device.

    Attributes:
        rows: the signs (D x q).
        value: c.
        relative_time: the time of a product, relative to the dense one. It is 1, because nobody has measured it
            (`benchmarks/gpu.py` can).
    """

    rows: Tensor
    value: float
    relative_time: float = 1.0

    @property
    def columns(self) -> Tensor:
        return self.rows.t()


Compact = Lists | Signs


def _signed(values: Tensor) -> _Signed:
    """Return the lists of the rows of `values`."""
    lists: list[Tensor] = []
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
        lists += [start.to(torch.int32), index.to(torch.uint16)]
    return _Signed(*lists)


def make_lists(b_DQ: Tensor) -> Lists | None:
    """Return lists for a float32 CPU matrix with entries -c, 0 and +c.

    None if it is another matrix, too dense or too big.
    """
    if b_DQ.device.type != "cpu" or b_DQ.dtype != torch.float32 or max(b_DQ.shape) >= 1 << 16 or b_DQ.numel() == 0:
        return None
    value = _entry_size(b_DQ)
    density = float((b_DQ != 0).double().mean())
    if value is None or density > MAX_DENSITY:
        return None
    return Lists(_signed(b_DQ), _signed(b_DQ.t()), value, density)


def make_signs(b_DQ: Tensor) -> Signs | None:
    """Return signs for a matrix with entries -c, 0 and +c; None if it is another matrix, or empty."""
    value = _entry_size(b_DQ) if b_DQ.numel() else None
    return None if value is None else Signs(b_DQ.sign().to(torch.int8), value)


def _entry_size(b_DQ: Tensor) -> float | None:
    """Return c of a matrix with entries -c, 0 and +c; None if it is another matrix, or all 0."""
    size = b_DQ.abs()
    value = size.max()
    return float(value) if bool(value != 0) and bool(((size == 0) | (size == value)).all()) else None


@functools.cache
def _computes_right(
    make: Callable[[Tensor], Compact | None], device: torch.device, library: ctypes.CDLL | None
) -> bool:
    """Return whether a freshly built kernel computes the dense products' numbers. A wrong build is never used."""
    spec = Draw(70, 50, "ternary", sparsity=6.0)
    b_DQ, m_QM = draw(0, "check", spec).to(device), draw(0, "check M", Draw(50, 45)).to(device)
    compact = make(b_DQ)
    assert compact is not None
    dense = b_DQ.double() @ m_QM.double()  # float64, because float32 products may be computed in TF32
    errors = (
        merge(None, m_QM, compact, True) - dense,
        merge(None, m_QM, compact, False).t() - dense,
        times_b(dense.t().to(b_DQ.dtype), compact).t() - dense.t() @ b_DQ.double(),
    )
    if right := all(float(error.abs().max()) < 1e-3 for error in errors):
        return right
    warnings.warn(f"the kernel for ternary bases computes wrong numbers on {device} and is not used", stacklevel=2)
    return right


_SIGNED = (torch.float32, torch.bfloat16, torch.float16)

_CACHE: weakref.WeakKeyDictionary[nn.Module, tuple[Tensor, dict[tuple[int, int], Compact | None]]] = (
    weakref.WeakKeyDictionary()
)


def compact_form(owner: nn.Module, whole: Tensor, rows: int, columns: int) -> Compact | None:
    """Return `whole[:rows, :columns]` as lists or signs; None if no kernel takes it, so that products are dense.

    The result is cached for as long as `owner` holds the same tensor. Inside `torch.compile`, which cannot trace a
    kernel, the answer is None.

    Args:
        owner: the module that holds the matrix.
        whole: the matrix.
        rows, columns: the part of it that a layer reads.
    """
    if torch.compiler.is_compiling() or whole.device.type == "meta":
        return None
    make: Callable[[Tensor], Compact | None] = make_signs
    library = None
    if whole.dtype not in _SIGNED or not kernels.takes_triton(whole.device):
        make = make_lists
        library = kernels.load_compiled() if whole.device.type == "cpu" and whole.dtype == torch.float32 else None
        if library is None:
            return None
    if not _computes_right(make, whole.device, library):
        return None
    source, forms = _CACHE.get(owner, (None, {}))
    if source is not whole:
        forms = {}
        _CACHE[owner] = (whole, forms)
    key = (rows, columns) if make is make_lists else (whole.shape[0], whole.shape[1])
    if key not in forms:
        forms[key] = make(whole[: key[0], : key[1]])
    compact = forms[key]
    return compact._replace(rows=compact.rows[:rows, :columns]) if isinstance(compact, Signs) else compact


def signed_sums(x: Tensor, chosen: _Signed | Tensor, scale: float, out: Tensor, base: Tensor | None = None) -> Tensor:
    """Compute out[lane, o] = base[lane, o] + scale * (sum of x[lane, plus[o]] - sum of x[lane, minus[o]]), and return
    `out`.

    x (lanes x terms) and out (lanes x outputs) may have any strides, and base has those of out. Lists need float32 on
    the CPU.
    """
    if isinstance(chosen, Tensor):
        from randlora.arithmetic import tensor_cores

        return tensor_cores.signed_sums(x, chosen, scale, out, base)
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
    with ThreadPoolExecutor(workers) as pool:  # ctypes releases the interpreter lock
        list(pool.map(run, edges[:-1], edges[1:]))
    return out


def _output_count(chosen: _Signed | Tensor) -> int:
    """Return the number of outputs."""
    return chosen.shape[0] if isinstance(chosen, Tensor) else chosen.outputs


def merge(base: Tensor | None, m_QM: Tensor, compact: Compact, tall: bool) -> Tensor:
    """Return base + B M (D x m) if tall, else base + (B M)^T (m x D), in base's type. If base is None, leave it out."""
    lanes, outputs = m_QM.shape[1], _output_count(compact.rows)
    out = (m_QM if base is None else base).new_empty((outputs, lanes) if tall else (lanes, outputs))
    if base is not None and base.stride() != out.stride():
        base = torch.empty_like(out).copy_(base)  # contiguous() keeps odd strides of sides of length 1
    view = out.t() if tall else out
    base_view = None if base is None else (base.t() if tall else base)
    signed_sums(m_QM.t(), compact.rows, compact.value, view, base_view)
    return out


def times_b(x_ND: Tensor, compact: Compact) -> Tensor:
    """Return (x B)^T (q x N)."""
    out = x_ND.new_empty(_output_count(compact.columns), x_ND.shape[0])
    signed_sums(x_ND, compact.columns, compact.value, out.t())
    return out
