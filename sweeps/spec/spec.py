"""Reads and checks a sweep file, and reports all problems at once.

A sweep file is TOML, or YAML or JSON with the same keys. `SweepSpec.load` reads it, applies `--set a.b=c` overrides,
and either returns a complete specification or raises `SpecError` with all that is wrong.

A file may have other forms. `[small]` says what a laptop changes, and `--scale small` applies it. `[published]` makes a
recipe the experiment that a paper published, and `--scale published` applies it. Such a table has the sweep file's own
keys. Tables in it are merged key by key, and any other value replaces that of the file. `drop` is a key or a list of
keys that are removed before that (`drop = ["methods.vera"]`; a name with dots must be in quotes:
`'methods."lora-0.5"'`). The name and `output` get "-small" or "-published" unless the table gives others, so that two
forms never share a results folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from analysis.sheets.html import notebook_html
from analysis.sheets.sheet import sheet_of
from sweeps.errors import Problem, SpecError, nearest, unknown
from sweeps.spec.messages import problem, repeats_item_errors
from sweeps.spec.reading import check_tree, read_key, read_tree, read_value
from sweeps.spec.sections import Sections

FORMS = ("small", "published")
"""Tables of a sweep file that hold the changes of another form of it."""
SCALES = ("full", *FORMS)


class SweepSpec(Sections):
    """A whole sweep file, read and checked."""

    def _repr_html_(self) -> str:
        """Return a table of what the sweep compares, as HTML for notebooks."""
        effort = ", ".join(f"{count:,} {unit}" for unit, count in self.search.given.items())
        tuned = "fixed learning rates" if self.protocol == "paper" else f"{effort} for each cell"
        rows = [
            ("model", self.model.id),
            ("data", ", ".join(self.data.datasets)),
            ("training sizes", ", ".join(map(str, self.data.train_size))),
            ("methods", ", ".join(self.methods)),
            ("budgets", ", ".join(self.budgets.references())),
            ("search", tuned),
            ("seeds", str(len(self.confirm.seeds))),
            ("results", str(self.folder)),
        ]
        return notebook_html(sheet_of(("", ""), rows, f"Sweep {self.name}"))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), scale: str | None = None) -> SweepSpec:
        """Read and check a sweep file.

        Args:
            path: the file: TOML, or YAML or JSON by its suffix.
            overrides: texts `a.b=c` that change keys, where c is a TOML value or a bare word. A part of a key that
                contains dots must be in quotes: `methods."lora-0.5".lr=1e-3`.
            scale: "small" or "published" applies the file's table of that name before the overrides; None for neither.

        Raises:
            SpecError: it has all problems of the file and the overrides.
        """
        tree = read_tree(Path(path))
        check_tree(tree)  # before it is copied
        return cls.parse(_override(at_scale(tree, scale), overrides))

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> SweepSpec:
        """Make and check a specification from nested mappings.

        Raises:
            SpecError: it has all problems.
        """
        from sweeps.spec.checks import method_problems, name_problems  # loads the registry, and torch

        check_tree(tree)
        problems: list[Problem] = []
        spec: SweepSpec | None = None
        try:
            spec = cls.model_validate(tree)
        except ValidationError as error:
            problems = [
                problem(dict(e), cls) for e in error.errors(include_url=False) if not repeats_item_errors(dict(e))
            ]
        problems += method_problems(tree, spec)
        if tree.get("output") == "":  # a shell variable may be unset; as a path it would be the working folder
            name = "NAME" if spec is None else spec.name
            problems.append(Problem("output", "", "is empty; leave it out, or give a folder", f"results/{name}"))
        if spec is not None:
            problems += name_problems(spec)
        if problems or spec is None:
            raise SpecError(problems)
        return spec


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    problems = []
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            problems.append(Problem("--set", text, "must be KEY=VALUE, such as --set search.trials=6"))
            continue
        *path, last = read_key(key)
        node: Any = tree
        for part in path:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            problems.append(Problem("--set", text, f"{'.'.join(path)} is not a section"))
            continue
        node[last] = read_value(value)
    if problems:
        raise SpecError(problems)
    return tree


def at_scale(tree: Mapping[str, Any], scale: str | None) -> dict[str, Any]:
    """Return the sweep file's content in one of its forms, without the tables `[small]` and `[published]`.

    Args:
        tree: the content of the file.
        scale: "small" or "published"; "full" or None for the file as it is.

    Raises:
        SpecError: the scale is unknown, the file does not have its table, or a `drop` names nothing.
    """
    if scale is not None and scale not in SCALES:
        raise SpecError([unknown("--scale", scale, "scale", SCALES)])
    content = {k: _deep_copy(v) for k, v in tree.items() if k not in FORMS}
    content.pop("$schema", None)  # in a JSON file it names the schema for an editor
    if scale not in FORMS:
        return content
    form = tree.get(scale)
    if not isinstance(form, Mapping):
        raise SpecError([Problem("--scale", scale, f"needs a table [{scale}] in the sweep file, and there is none")])
    changes = dict(form)
    drop = changes.pop("drop", [])
    names = drop if isinstance(drop, list | tuple) else [drop]
    problems = [p for name in names for p in _drop(content, name, f"{scale}.drop")]
    if problems:
        raise SpecError(problems)
    for key in ("name", "output"):
        if isinstance(content.get(key), str):
            content[key] = f"{content[key].rstrip('/')}-{scale}"
    _merge(content, changes)
    return content


def _deep_copy(value: Any) -> Any:
    """Return a deep copy in which YAML aliases are separate objects, so that a change of one does not change others."""
    if isinstance(value, dict):
        return {key: _deep_copy(each) for key, each in value.items()}
    return [_deep_copy(each) for each in value] if isinstance(value, list) else value


def _drop(tree: dict[str, Any], name: object, field: str) -> list[Problem]:
    """Remove a key from the tree. Return the problems if that is not possible."""
    if not isinstance(name, str):
        return [Problem(field, name, "must be a key of this file, or a list of them", '"methods.NAME"')]
    *path, last = read_key(name)
    node: Any = tree
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        known = [".".join([*path, f'"{k}"' if "." in k else k]) for k in node] if isinstance(node, dict) else []
        rule = "names nothing in this file; a name with dots must be in quotes"
        return [Problem(field, name, rule, nearest(name, known))]
    del node[last]
    return []


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Merge changes into the tree, key by key."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = _deep_copy(value)
