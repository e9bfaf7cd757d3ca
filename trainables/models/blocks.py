"""Where a model keeps its repeated blocks, such as its transformer layers."""

from __future__ import annotations

from torch import nn


def block_lists(model: nn.Module, at_least: int = 1) -> dict[str, nn.ModuleList | nn.Sequential]:
    """Return the lists of a model's repeated blocks, keyed by module name.

    The members of such a list have one class, and each has submodules. A list inside another one is left out, and so is
    a list of fewer than `at_least` members.
    """
    lists: dict[str, nn.ModuleList | nn.Sequential] = {}
    inside: set[int] = set()
    for name, part in model.named_modules():
        if id(part) in inside or not isinstance(part, nn.ModuleList | nn.Sequential) or len(part) < at_least:
            continue
        one_class = len({type(block) for block in part}) == 1
        if one_class and all(next(block.children(), None) is not None for block in part):
            lists[name] = part
            inside |= {id(module) for module in part.modules()}
    return lists
