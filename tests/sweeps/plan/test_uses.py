"""A plan is refused if an adapter would take no part in the model, and says nothing where only values can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sweeps import Plan, SweepSpec
from sweeps.errors import SpecError
from tests.sweeps.spec.support import GOOD, write


@pytest.fixture
def spec(tmp_path: Path) -> SweepSpec:
    return SweepSpec.load(write(tmp_path, GOOD.replace("[data]", 'adapt = "vision"\n[data]')))


def attention_alone(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x + block.attention(block.ln_1(x))  # type: ignore[no-any-return]


def attention_by_value(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return attention_alone(block, x) if bool(x.sum().isfinite()) else x


def test_an_idle_adapter_is_a_problem_of_each_method(spec: SweepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    Plan.from_spec(spec)
    monkeypatch.setattr("open_clip.transformer.ResidualAttentionBlock.forward", attention_alone)
    with pytest.raises(SpecError, match=r"the adapter of visual\..*\.mlp\.c_fc\.weight takes no part") as refused:
        Plan.from_spec(spec)
    assert {p.field for p in refused.value.problems} == {"methods.lora", "methods.randlora"}


def test_the_trial_decides_where_values_do(spec: SweepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_clip.transformer.ResidualAttentionBlock.forward", attention_by_value)
    Plan.from_spec(spec)
