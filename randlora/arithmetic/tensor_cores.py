"""Multiply with a matrix of -1, 0 and 1 on a GPU's tensor cores, by Triton.

Such entries are exact in bf16. So a float32 operand can be split into three bf16 parts (8 + 8 + 8 bits of its 24), and
multiplied at bf16's speed with float32's precision. The signs are read as bytes, a quarter of float32's size.
This module needs the package triton. Only code that has asked `kernels.takes_triton` imports it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = {"OUTPUTS": 128, "TERMS": 32, "LANES": 128}
OPTIONS = {"num_warps": 8, "num_stages": 3}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs the kernels on the CPU. Its products treat bf16 as integers, so they use float32
there."""


@triton.jit
def _dot(signs, part, total, WIDE: tl.constexpr):
    if WIDE:
        part = part.to(tl.float32)
    return tl.dot(signs.to(part.dtype), part, total)


@triton.jit
def signed_product(
    signs, x, base, out, outputs, terms, lanes, scale,
    signs_output, signs_term, x_lane, x_term, base_lane, base_output, out_lane, out_output,
    HAS_BASE: tl.constexpr, WIDE: tl.constexpr, OUTPUTS: tl.constexpr, TERMS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Compute one block of out[lane, o] = base[lane, o] + scale * sum over t of x[lane, t] signs[o, t], summed in
    float32."""
    o = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)[:, None]
    lane = (tl.program_id(1) * LANES + tl.arange(0, LANES)).to(tl.int64)[None, :]
    total = tl.zeros((OUTPUTS, LANES), tl.float32)
    for first in range(0, terms, TERMS):
        t = first + tl.arange(0, TERMS).to(tl.int64)
        row, column = t[None, :], t[:, None]
        s = tl.load(signs + o * signs_output + row * signs_term, mask=(o < outputs) & (row < terms), other=0)
        v = tl.load(x + lane * x_lane + column * x_term, mask=(lane < lanes) & (column < terms), other=0.0)
        if v.dtype == tl.float32:
            high = v.to(tl.bfloat16)
            rest = v - high.to(tl.float32)
            middle = rest.to(tl.bfloat16)
            total = _dot(s, (rest - middle.to(tl.float32)).to(tl.bfloat16), total, WIDE)
            total = _dot(s, middle, total, WIDE)
            total = _dot(s, high, total, WIDE)
        else:
            total = _dot(s, v, total, WIDE)
    total *= scale
    inside = (o < outputs) & (lane < lanes)
    if HAS_BASE:
        total += tl.load(base + lane * base_lane + o * base_output, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + lane * out_lane + o * out_output, total.to(out.dtype.element_ty), mask=inside)


def signed_sums(x: Tensor, signs: Tensor, scale: float, out: Tensor, base: Tensor | None = None) -> Tensor:
    """Compute out[lane, o] = base[lane, o] + scale * sum over t of x[lane, t] signs[o, t], and return `out`.

    x (lanes x terms) and out (lanes x outputs) are float32, bf16 or fp16; signs (outputs x terms) are int8. Any strides
    are accepted.
    """
    (outputs, terms), lanes = signs.shape, x.shape[0]
    inside = out if base is None else base
    grid = (triton.cdiv(outputs, BLOCK["OUTPUTS"]), triton.cdiv(lanes, BLOCK["LANES"]))
    with torch.cuda.device_of(x):
        signed_product[grid](
            *(signs, x, inside, out, outputs, terms, lanes, scale),
            *(*signs.stride(), *x.stride(), *inside.stride(), *out.stride()),
            HAS_BASE=base is not None,
            WIDE=INTERPRETED,
            **BLOCK,
            **OPTIONS,
        )
    return out
