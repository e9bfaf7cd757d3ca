"""The registry: counts of known layers, reach, and a method added from outside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from randlora import (
    METHODS,
    Adapter,
    AdapterConfig,
    AdapterError,
    ConfigError,
    Method,
    Request,
    Shape,
    attach,
    get_method,
    register,
)
from randlora.methods.bridge.kinds import KINDS
from randlora.methods.random import ablations
from tests.randlora.support import batch, block

QKV, FC, PROJ = (2304, 768), (3072, 768), (768, 3072)


@pytest.mark.parametrize(
    ("name", "shape", "capacity", "count"),
    [
        ("lora", QKV, 32, 98_304),
        ("lora", FC, 32, 122_880),
        ("dora", QKV, 32, 98_304 + 2304),
        ("randlora", QKV, 6, 99_072),
        ("randlora", PROJ, 6, 99_072),
        ("randlora", (3072, 1024), 8, 132_096),
        ("randlora", (3840, 1280), 10, 165_120),
        ("randlora", (4, 5), 9, 13),
        ("vera", QKV, 256, 2560),
        ("nola", QKV, 2048, 2048),
        # the paper's ablations at equal parameters (section 6.3): against RandLoRA-6's 99,072
        ("randlora-a", QKV, 124, 99_200),
        ("randlora-a", PROJ, 124, 99_200),
        ("randlora-b", QKV, 3, 98_688),
        ("randlora-b", (4, 5), 9, 13),
        ("randlora-svd", QKV, 6, 99_072),
        *((name, QKV, 32, 98_304) for name in ("pissa", "milora", "olora", "init-ab", "lora-ga", "lora-plus")),
        ("lora-xs", QKV, 32, 1024),
        ("lora-xs", (4, 5), 9, 16),
        ("svft", QKV, 1, 768),
        ("svft", QKV, 9, 768 + 2 * (767 + 766 + 765 + 764)),
        ("svft", (4, 5), 100, 16),
        ("adalora", QKV, 32, 98_304 + 32),
        ("autolora", QKV, 32, 98_304),
        ("hydralora", QKV, 8, 8 * (768 + 3 * 2304) + 3 * 768),
        ("hybrid", QKV, 12, 64 * (12 + 768) + 16 * (2304 + 768)),
    ],
)
def test_counts(name: str, shape: Shape, capacity: int, count: int) -> None:
    assert get_method(name).count(shape, capacity) == count


@pytest.mark.parametrize("name", [*METHODS, *(f"peft:{name}" for name in KINDS)])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**400], ids=["inf", "-inf", "nan", "1e400"])
def test_no_option_is_infinite(name: str, value: float) -> None:
    if name.startswith("peft:"):
        pytest.importorskip("peft")
    config = get_method(name).config
    for key, default in config.option_defaults().items():
        if isinstance(default, int | float | None) and not isinstance(default, bool):
            with pytest.raises(ConfigError, match=f"{key} must be "):
                config.from_options(max(config.least, 4), {key: value})


def test_reach() -> None:
    shapes = [QKV, FC, PROJ]
    assert get_method("lora").max_capacity(shapes) == 768
    assert get_method("randlora").max_capacity([*shapes, (100, 100)]) == 768
    assert get_method("vera").max_capacity(shapes) == 3072
    assert get_method("nola").max_capacity(shapes) == 1536
    assert get_method("nola").max_capacity([(10, 20)], r=2) == 41
    assert get_method("nola").max_capacity(shapes, r=8) == 4096
    assert get_method("randlora-b").max_capacity(shapes) == 384
    assert get_method("svft").max_capacity(shapes) == 1535


def test_counts_of_options() -> None:
    assert get_method("randlora-a").count(QKV, 124, r=16) == 124 * (16 + 768)
    assert get_method("hydralora").count(QKV, 8, heads=1) == 8 * 3072 + 768
    assert get_method("hybrid").count(QKV, 12, share=0.75) == 64 * 780 + 49 * 3072


def test_half_the_bases_have_half_the_rank() -> None:
    assert ablations.half_bases(QKV, 3) == 128
    assert ablations.half_bases((5, 4), 3) == 1


def test_every_entry_is_complete() -> None:
    assert METHODS.keys() >= {
        "adalora", "autolora", "dora", "hybrid", "hydralora", "init-ab", "lora", "lora-ga", "lora-plus", "lora-xs",
        "milora", "nola", "olora", "pissa", "randlora", "randlora-a", "randlora-b", "randlora-svd", "svft", "vera",
    }  # fmt: skip
    assert METHODS["hybrid"].experimental and METHODS["randlora-svd"].experimental
    assert not any(METHODS[name].experimental for name in ("lora", "vera", "randlora", "randlora-a", "nola"))
    for name, method in METHODS.items():
        assert method.name == method.config.method == name
        assert method.capacity_field == method.config.capacity_field
        assert method.options.keys().isdisjoint({method.capacity_field})
        assert 1e-4 <= method.published_lr <= 1e-1
        assert method.scale_rule and method.title and method.published_lr_source
        capacity = method.min_capacity
        assert method.config.from_options(capacity, method.options).capacity == capacity


@dataclass(frozen=True)
class RowConfig(AdapterConfig):
    method: ClassVar[str] = "rows"
    r: int


class Rows(Adapter):
    """Trains the first r rows outright."""

    rows: nn.Parameter

    def __init__(self, shape: Shape, r: int) -> None:
        super().__init__(shape)
        self.rows = nn.Parameter(torch.zeros(min(r, shape[0]), shape[1]))

    def delta(self, base: Tensor) -> Tensor:
        return nn.functional.pad(self.rows, (0, 0, 0, self.shape[0] - self.rows.shape[0]))

    def weight(self, base: Tensor) -> Tensor:
        return base + self.delta(base)

    def linear(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, self.weight(base), bias)


def rows_count(shape: Shape, capacity: int, **options: Any) -> int:
    return min(capacity, shape[0]) * shape[1]


def rows_reach(shapes: Sequence[Shape], **options: Any) -> int:
    return max(s[0] for s in shapes)


def build_rows(request: Request) -> dict[str, Adapter]:
    return {n: Rows((w.shape[0], w.shape[1]), request.capacities[n]) for n, w in request.weights.items()}


@pytest.fixture
def toy() -> Iterator[Method]:
    method = register(
        Method(
            title="Rows",
            config=RowConfig,
            count=rows_count,
            max_capacity=rows_reach,
            build=build_rows,
            published_lr=1e-3,
            published_lr_source="none",
            scale_rule="none",
        )
    )
    yield method
    del METHODS["rows"]


def test_a_method_from_outside(toy: Method) -> None:
    model = block()
    adapted = attach(model, RowConfig(3), ["fc", "attn.in_proj_weight"])
    assert adapted.count() == toy.total(list(adapted.shapes.values()), 3) == 96
    model(batch()).sum().backward()
    assert all(p.grad is not None for p in adapted.parameters())
    with pytest.raises(AdapterError, match="registered already"):
        register(toy)
