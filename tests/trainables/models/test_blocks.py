"""Lists of repeated blocks: the outermost ones, of enough members."""

from __future__ import annotations

from torch import nn

from trainables.models.blocks import block_lists


def layer() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def test_a_list_inside_another_counts_only_if_the_outer_one_does_not() -> None:
    model = nn.Module()
    model.stages = nn.ModuleList(nn.Sequential(*(layer() for _ in range(3))) for _ in range(2))
    model.stem = nn.Sequential(layer(), nn.ReLU())  # two classes
    assert list(block_lists(model)) == ["stages"]
    assert list(block_lists(model, at_least=3)) == ["stages.0", "stages.1"]
    assert block_lists(model, at_least=4) == {}
