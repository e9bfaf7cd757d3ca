"""Products on tensor cores against those in double precision, beside torch's in the same types.

`python -m tests.randlora.arithmetic.support products` (or layers) prints JSON: by case the largest errors, relative to
the largest number, of the kernel and of torch. A process of its own, since Triton reads at its import whether it is to
interpret.
"""

from __future__ import annotations

import itertools
import json
import os
import sys

import torch
from torch import Tensor

from randlora import RandLoraConfig, attach
from randlora.arithmetic import kernels, ternary
from randlora.arithmetic.bases import Draw, draw
from randlora.arithmetic.contract import Spread, spread_linear, spread_weight
from randlora.methods.random.randlora import RandLora
from tests.randlora.support import TARGETS, batch, block, perturb

TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EPSILON = {"float32": 2**-23, "bf16": 2**-8, "fp16": 2**-11}
SHAPES = ((150, 40), (33, 130))  # (large, inner), neither a multiple of a block
Errors = dict[str, tuple[float, float]]


def errors(exact: Tensor, kernel: Tensor, dense: Tensor) -> tuple[float, float]:
    size = float(exact.abs().max())
    return tuple(float((made.double() - exact).abs().max()) / size for made in (kernel, dense))  # type: ignore[return-value]


def check(found: Errors) -> None:
    """The kernel's errors are about torch's own, or a few roundings of the type that the case's name tells."""
    for case, (kernel, dense) in found.items():
        epsilon = EPSILON[next((k for k in EPSILON if k in case), "bf16" if "autocast" in case else "float32")]
        assert kernel <= max(2 * dense, 8 * epsilon), f"{case}: {kernel:.2g}, torch's own {dense:.2g}"


def products(device: str = "cpu") -> Errors:
    """merge, tall and wide, with a base and without; and x B of a contiguous and a transposed x."""
    found: Errors = {}
    for (kind, dtype), distribution, (large, inner) in itertools.product(TYPES.items(), ("ternary", "binary"), SHAPES):
        basis = draw(0, "B", Draw(large, inner, distribution, sparsity=7.0)).to(device, dtype)
        signs = ternary.make_signs(basis)
        assert signs is not None and torch.equal((signs.rows * signs.value).to(dtype), basis)
        m = draw(1, "M", Draw(inner, 137, "normal")).to(device, dtype)
        x = draw(2, "x", Draw(70, large, "normal")).to(device, dtype)
        name = f"{kind} {distribution} {large}x{inner}"
        for tall, based in itertools.product((True, False), (True, False)):
            base = draw(3, "W", Draw(large, 137, "normal")).to(device) if based else None
            base = base if base is None or tall else base.t()
            product = basis.double() @ m.double() if tall else (basis.double() @ m.double()).t()
            dense = basis @ m if tall else (basis @ m).t()
            added = (product, dense) if base is None else (base.double() + product, base + dense)
            merged = ternary.merge(base, m, signs, tall)
            assert merged.dtype == (dtype if base is None else base.dtype)
            found[f"{name} tall={tall} base={based}"] = errors(added[0], merged, added[1])
        for way, rows in (("rows", x), ("columns", x.t().contiguous().t())):
            exact = (x.double() @ basis.double()).t()
            found[f"{name} x B, {way}"] = errors(exact, ternary.times_b(rows, signs), (x @ basis).t())
    return found


def layers() -> Errors:
    """Outputs, gradients and merged weights of a whole adapted block."""
    found: Errors = {}
    for low in (False, True):
        exact, kernel, dense = (trained(low, way) for way in ("exact", "triton", "off"))
        for number, made in enumerate(zip(exact, kernel, dense, strict=True)):
            found[f"{'autocast' if low else 'float32'} {number}"] = errors(*made)
    return {**found, **gathers()}


def trained(low: bool, way: str) -> list[Tensor]:
    """Output, gradients and merged weights by the kernel ("triton"), without it ("off"), or in double precision."""
    os.environ["RANDLORA_KERNELS"] = "off" if way == "exact" else way
    model = block()
    adapted = attach(model, RandLoraConfig(3, distribution="ternary", sparsity=8.0), TARGETS)
    perturb(adapted)
    for adapter in adapted.adapters.values():
        assert isinstance(adapter, RandLora)
        assert isinstance(adapter.part().compact, ternary.Signs) is (way == "triton")
    x = batch(rows=30)
    if way == "exact":
        model.double()
        x = x.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=low and way != "exact"):
        y = model(x)
    y.square().sum().backward()
    grads = [p.grad for p in adapted.parameters() if p.grad is not None]
    adapted.merge()
    return [t.detach().double() for t in (y, *grads, *model.parameters())]


def gathers() -> Errors:
    """The plan that takes the kernel, whatever the cost model would choose."""
    found: Errors = {}
    for shape, based in itertools.product(((150, 40), (40, 150)), (True, False)):
        r, m, large = 7, min(shape), max(shape)
        n = -(-m // r)
        a, b = draw(0, "A", Draw(r, m, "binary")), draw(0, "B", Draw(large, n * r, "ternary", sparsity=8.0))
        parts = [Spread(a, b, 0.1, shape[0] >= shape[1], made) for made in (ternary.make_signs(b), None)]
        sizes = {"lambda": (r, n), "gamma": (n, m), "x": (70, shape[1])}
        lam, gam, x = (draw(5, k, Draw(*size, "normal")).requires_grad_() for k, size in sizes.items())
        base = draw(6, "W", Draw(*shape, "normal")) if based else None
        results = []
        for part in parts:
            y = spread_linear(x, base, None, (lam, gam), part, plan="merged" if part.compact is None else "gather")
            weight = spread_weight(base, (lam, gam), part)
            first = torch.autograd.grad(y.square().sum(), (x, lam, gam))
            results.append([y, weight, *first, *torch.autograd.grad(weight.square().sum(), (lam, gam))])
        for number, (one, other) in enumerate(zip(*([t.detach() for t in r] for r in results), strict=True)):
            found[f"gather {shape} base={based} {number}"] = (float((one - other).norm() / other.norm()), 0.0)
    return found


if __name__ == "__main__":
    assert kernels.takes_triton(torch.device("cpu")) and not kernels.takes_triton(torch.device("meta"))
    json.dump({"products": products, "layers": layers}[sys.argv[1]](), sys.stdout)
