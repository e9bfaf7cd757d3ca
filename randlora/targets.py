"""Choose target weights by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from randlora.adapter import Shape
from randlora.errors import TargetError, nearest
from randlora.sites import Site, find_sites, is_adapted


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    """Names that a pattern picks: itself, as a suffix at a dot, or as a glob; `.weight` may be left out."""
    forms = (pattern, pattern + ".weight")
    if any(c in pattern for c in "*?["):
        return [n for n in names if any(fnmatchcase(n, f) for f in forms)]
    exact = [n for n in names if n in forms]
    return exact or [n for n in names if any(n.endswith("." + f) for f in forms)]


def select(model: nn.Module, targets: Sequence[str]) -> dict[str, Site]:
    """The sites that `targets` name, in the model's order; see `resolve_targets`."""
    if isinstance(targets, str):
        raise TargetError(f"targets must be a list of names but got the string {targets!r}; write [{targets!r}]")
    if not targets:
        raise TargetError("no targets given: name at least one 2-D weight, such as 'mlp.c_fc'")
    if is_adapted(model):
        raise TargetError("the model has adapters already; detach() them first")
    sites = find_sites(model)
    names = list(sites)
    chosen: set[str] = set()
    for pattern in targets:
        found = _matches(pattern, names)
        if not found:
            other = _matches(pattern, [n for n, _ in model.named_parameters()])
            if other:
                shape = tuple(model.get_parameter(other[0]).shape)
                raise TargetError(
                    f"target {pattern!r} matches {other[0]!r} of shape {shape}: only floating 2-D weights are adapted"
                )
            endings = {".".join(n.removesuffix(".weight").split(".")[-2:]) for n in names} | set(names)
            raise TargetError(f"target {pattern!r} matches no 2-D weight of the model{nearest(pattern, endings)}")
        chosen.update(found)
    return {name: site for name, site in sites.items() if name in chosen}


def resolve_targets(model: nn.Module, targets: Sequence[str]) -> dict[str, Shape]:
    """Qualified weight name -> (out, in), in the model's order.

    A target is a qualified name, a suffix of one ("attn.in_proj_weight"), or a glob ("visual.*.mlp.c_fc"); a final
    ".weight" may be left out. Works on the meta device. Raises `TargetError` for a target that matches no 2-D weight.
    """
    return {name: site.shape for name, site in select(model, targets).items()}
