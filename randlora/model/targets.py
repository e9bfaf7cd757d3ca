"""Choose target weights by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from randlora.adapter import Shape
from randlora.errors import TargetError, nearest
from randlora.model.parts import layout, split_selector
from randlora.model.sites import Site, find_sites, is_adapted, shared_names


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a pattern matches: itself, as an end after a dot, or as a glob. `.weight` may be
    left out."""
    forms = (pattern, pattern + ".weight")
    if any(c in pattern for c in "*?["):
        return [n for n in names if any(fnmatchcase(n, f) for f in forms)]
    exact = [n for n in names if n in forms]
    return exact or [n for n in names if any(n.endswith("." + f) for f in forms)]


def select(model: nn.Module, targets: Sequence[str]) -> dict[str, Site]:
    """Return the sites that `targets` name, in the model's order (see `resolve_targets`)."""
    if isinstance(targets, str):
        raise TargetError(f"targets must be a list of names but got the string {targets!r}; write [{targets!r}]")
    if not targets:
        raise TargetError("no targets given: name at least one 2-D weight, such as 'mlp.c_fc'")
    if is_adapted(model):
        raise TargetError("the model has adapters already; detach() them first")
    sites = find_sites(model)
    names = list(sites)
    chosen: dict[str, set[str]] = {}
    """Weight -> parts; none for the whole weight."""
    for target in targets:
        pattern, parts = split_selector(target)
        matched = _matches(pattern, names)
        if not matched:
            raise _no_match(target, pattern, model, names)
        for name in matched:
            if name in chosen and bool(chosen[name]) != bool(parts):
                raise TargetError(f"target {target!r}: {name} is named whole and in parts; name it one way")
            chosen.setdefault(name, set()).update(parts)
    picked: dict[str, Site] = {}
    for name, site in sites.items():
        for part_site in _divided(site, chosen[name]) if name in chosen else ():
            picked[part_site.name] = part_site
    return picked


def _no_match(target: str, pattern: str, model: nn.Module, names: Sequence[str]) -> TargetError:
    """Return the error for a target that matches nothing. It says why, and names the nearest names."""
    others = _matches(pattern, [n for n, _ in model.named_parameters()])
    if others:
        shape = tuple(model.get_parameter(others[0]).shape)
        return TargetError(
            f"target {target!r} matches {others[0]!r} of shape {shape}: only floating 2-D weights are adapted"
        )
    tied = _matches(pattern, [n for n, _ in model.named_parameters(remove_duplicate=False)])
    if tied:
        first = shared_names(model, model.get_parameter(tied[0]))[0]
        return TargetError(
            f"target {target!r} matches {tied[0]!r}, which is tied to {first!r}: name that one to adapt what its "
            "module reads, and no other, or untie them"
        )
    endings = {".".join(n.removesuffix(".weight").split(".")[-2:]) for n in names} | set(names)
    return TargetError(f"target {target!r} matches no 2-D weight of the model; {nearest(pattern, endings)}")


def _divided(site: Site, parts: set[str]) -> list[Site]:
    """Return the site itself, or one site per part in the order of the rows."""
    if not parts:
        return [site]
    rows_of = layout(site.name, site.parent, *site.shape)
    if unknown := sorted(parts - rows_of.keys()):
        raise TargetError(f"{site.name} has no part {unknown[0]!r}: it has {', '.join(rows_of)}")
    return [
        replace(site, name=f"{site.name}[{part}]", part=part, rows=rows)
        for part, rows in rows_of.items()
        if part in parts
    ]


def resolve_targets(model: nn.Module, targets: Sequence[str]) -> dict[str, Shape]:
    """Return the weights that would be adapted: qualified name -> (out, in), in the model's order.

    Works on the meta device.

    Args:
        model: the model.
        targets: each is a qualified name, an end of one ("attn.in_proj_weight"), or a glob ("visual.*.mlp.c_fc"). A
            final ".weight" may be left out. A list in brackets picks parts of a fused weight:
            "attn.in_proj_weight[q,v]" (`model.parts` has the layouts). Each part is then a weight with a name such as
            "....attn.in_proj_weight[q]".

    Raises:
        TargetError: a target matches no 2-D weight.
    """
    return {name: site.shape for name, site in select(model, targets).items()}


def stored_names(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the parameters that hold the targets, in the model's order, each once. For a part it is the whole
    weight."""
    return list(dict.fromkeys(site.stored_name for site in select(model, targets).values()))
