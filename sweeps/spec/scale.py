"""One sweep file at two scales: `[small]` says what a laptop changes, and `--scale small` applies it.

`[small]` has the sweep file's own keys: its tables are merged in key by key, any other value replaces. `drop` lists
what goes before that (`drop = ["methods.vera", "budgets.params"]`). The name gets "-small" unless
`[small]` gives another, so that the two never share a results folder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sweeps.errors import Problem, SpecError, nearest, unknown

SCALES = ("full", "small")
SMALL = "small"


def at_scale(tree: Mapping[str, Any], scale: str | None) -> dict[str, Any]:
    """The sweep file's content at a scale, without its `[small]` table.

    Raises:
        SpecError: an unknown scale, a file without `[small]`, or a `drop` that names nothing.
    """
    if scale is not None and scale not in SCALES:
        raise SpecError([unknown("--scale", scale, "scale", SCALES)])
    whole = {k: copy.deepcopy(v) for k, v in tree.items() if k != SMALL}
    if scale != SMALL:
        return whole
    small = tree.get(SMALL)
    if not isinstance(small, Mapping):
        raise SpecError([Problem("--scale", scale, "needs a table [small] in the sweep file, and there is none")])
    changes = dict(small)
    problems = [problem for name in changes.pop("drop", []) for problem in _dropped(whole, str(name))]
    if problems:
        raise SpecError(problems)
    if "name" in whole:
        whole["name"] = f"{whole['name']}-{SMALL}"
    _merge(whole, changes)
    return whole


def _dropped(tree: dict[str, Any], name: str) -> list[Problem]:
    *path, last = name.split(".")
    node: Any = tree
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        known = [".".join([*path, k]) for k in node] if isinstance(node, dict) else []
        return [Problem("small.drop", name, "names nothing in this file", nearest(name, known))]
    del node[last]
    return []


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = copy.deepcopy(value)
