"""What `attach` takes for targets and settings, and what it refuses or warns of."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn

from randlora import (
    AdaLoraConfig,
    AdapterConfig,
    AdapterError,
    CheckpointError,
    ConfigError,
    DoraConfig,
    LoraConfig,
    NolaConfig,
    RandLoraConfig,
    TargetError,
    VeraConfig,
    attach,
    get_method,
    resolve_targets,
)
from randlora.adapted.freedom import freedom
from tests.randlora.support import block


def test_targets_by_name_suffix_and_glob() -> None:
    model = nn.Sequential(block(), block())
    assert resolve_targets(model, ["fc"]) == {"0.fc.weight": (24, 16), "1.fc.weight": (24, 16)}
    assert list(resolve_targets(model, ["1.fc.weight"])) == ["1.fc.weight"]
    assert list(resolve_targets(model, ["0.*proj"])) == ["0.attn.out_proj.weight", "0.proj.weight"]
    assert list(resolve_targets(model, ["proj", "attn.in_proj_weight"])) == [
        "0.attn.in_proj_weight",
        "0.proj.weight",
        "1.attn.in_proj_weight",
        "1.proj.weight",
    ]
    with torch.device("meta"):
        assert resolve_targets(nn.Linear(8, 4), ["weight"]) == {"weight": (4, 8)}


def test_bad_targets() -> None:
    model = block()
    with pytest.raises(TargetError, match=r"'fcc' matches no 2-D weight.*nearest: .*'fc'"):
        resolve_targets(model, ["fc", "fcc"])
    with pytest.raises(TargetError, match=r"matches 'fc.bias' of shape \(24,\)"):
        attach(model, LoraConfig(2), ["fc.bias"])
    with pytest.raises(TargetError, match="no targets"):
        attach(model, LoraConfig(2), [])
    with pytest.raises(TargetError, match="must be a list"):
        attach(model, LoraConfig(2), "fc")
    with pytest.raises(TargetError, match=r"capacities names 'fc'.*nearest: 'fc.weight'"):
        attach(model, LoraConfig(2), ["fc"], capacities={"fc": 3})
    with pytest.raises(ConfigError, match=r"r of fc.weight must be an integer of at least 1 but got 0"):
        attach(model, LoraConfig(2), ["fc"], capacities={"fc.weight": 0})
    assert all(p.requires_grad for p in model.parameters())
    model.square.weight = model.attn.out_proj.weight
    with pytest.raises(TargetError, match=r"'square.weight', .* tied to 'attn.out_proj.weight': name .* and no other"):
        resolve_targets(model, ["square"])
    adapted = attach(model, LoraConfig(2), ["fc"])
    with pytest.raises(TargetError, match="adapters already"):
        attach(model, LoraConfig(2), ["proj"])
    with pytest.raises(CheckpointError, match="missing"):
        adapted.load_state_dict({})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraConfig(0), "r must be an integer of at least 1 but got 0"),
        (lambda: LoraConfig(2, alpha=-1.0), "alpha must be positive"),
        (lambda: LoraConfig(2, alpha=math.inf), "lora: alpha must be a finite number but got inf"),
        (lambda: VeraConfig(4, d_initial=math.nan), "vera: d_initial must be a finite number but got nan"),
        (lambda: AdaLoraConfig(4, initial=math.inf), "adalora: initial must be a finite number but got inf"),
        (lambda: AdaLoraConfig(4, initial=1e300), "initial must be at least 1 .*, and at most 1,000,000, but got 1e"),
        (lambda: LoraConfig(2, alpha="9" * 400 + "r"), "alpha must be a positive number or a rule"),
        (lambda: RandLoraConfig(2, dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: RandLoraConfig(2, distribution="norml"), "nearest: 'normal'"),
        (lambda: NolaConfig(1), "at least 2"),
        (lambda: VeraConfig(4, d_initial=0.0), "d_initial must not be 0"),
        (lambda: DoraConfig.from_options(2, {"alfa": 1.0}), "no option 'alfa'.*nearest: 'alpha'"),
        (
            lambda: DoraConfig.from_options(2, {"alpha": "1"}),
            "alpha must be a positive number or a rule .* but got '1'",
        ),
        (lambda: RandLoraConfig.from_options(2, {"sparse_a": 1}), "sparse_a must be true or false but got 1"),
        (lambda: NolaConfig.from_options(2, {"r": 1.5}), r"r must be an integer but got 1\.5"),
        (lambda: get_method("randlor"), "unknown method 'randlor'.*nearest: 'randlora'"),
    ],
)
def test_bad_configuration(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(AdapterError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "most"),
    [(LoraConfig(17), 16), (RandLoraConfig(40), 16), (DoraConfig(17), 16)],
    ids=["lora", "randlora", "dora"],
)
def test_a_capacity_that_no_target_can_use_is_a_warning(config: AdapterConfig, most: int) -> None:
    with pytest.warns(UserWarning, match=f"the most that any of the 2 targets can use.*nearest: r = {most}$"):
        attach(block(), config, ["fc", "attn.in_proj_weight"])
    attach(block(), dataclasses.replace(config, r=most), ["fc", "attn.in_proj_weight"])
    attach(nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 2)), config, ["0", "1"])  # one target may be small


def test_vera_may_be_wider_than_the_weight() -> None:
    """The VeRA paper's rank is 1024 on weights of 768 x 768: every d acts, so nothing is warned of."""
    assert [freedom("vera", (16, 16), r) for r in (16, 32, 64)] == [31, 47, 79] == [r + 15 for r in (16, 32, 64)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(block(), VeraConfig(49), ["fc", "attn.in_proj_weight"])
