"""The stated rank of an update against the measured rank of a matrix in general position."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from randlora import METHODS, AdapterConfig, attach, get_method
from tests.randlora.support import CONFIGS, TARGETS, block, config_id, perturb


def measured(config: AdapterConfig) -> dict[str, int]:
    adapted = attach(block(torch.float64), config, TARGETS)
    perturb(adapted, 1.0)
    return {name: int(torch.linalg.matrix_rank(delta.double())) for name, delta in adapted.deltas().items()}


@pytest.mark.filterwarnings("ignore:.*targets can use")
@pytest.mark.parametrize("change", [0, 1, 20], ids=["as-it-is", "one-more", "beyond-the-weight"])
@pytest.mark.parametrize("config", [c for c in CONFIGS if get_method(c.method).update_rank is not None], ids=config_id)
def test_a_stated_rank_is_the_measured_one(config: AdapterConfig, change: int) -> None:
    method = get_method(config.method)
    config = dataclasses.replace(config, **{method.capacity_field: config.capacity + change})
    options = {name: getattr(config, name) for name in method.options}
    shapes = {name: tuple(site.base.shape) for name, site in attach(block(), config, TARGETS).sites.items()}
    stated = {name: method.rank((shape[0], shape[1]), config.capacity, **options) for name, shape in shapes.items()}
    found = measured(config)
    if method.scheduled:  # more is built than is left in the end
        assert all(found[name] >= int(stated[name] or 0) for name in shapes)
    elif options.get("distribution") == "ternary":  # of 16 sparse directions a few are nothing, or twice the same
        assert all(0.8 * int(stated[name] or 0) <= found[name] <= int(stated[name] or 0) for name in shapes)
    else:
        assert found == stated


def test_what_is_no_matrix_has_no_rank() -> None:
    assert [name for name, method in METHODS.items() if method.update_rank is None] == ["hydralora"]
    assert get_method("hydralora").rank((8, 8), 2) is None


def test_options_have_their_defaults() -> None:
    """RandLoRA-a's rank is an option: 32 unless given; RandLoRA's is full at every capacity."""
    assert get_method("randlora-a").rank((96, 64), 5) == 32
    assert get_method("randlora-a").rank((96, 64), 5, r=4) == 4
    assert {get_method("randlora").rank((96, 64), r) for r in (1, 6, 64)} == {64}
    assert get_method("nola").rank((96, 64), 500, r=4) == 4
