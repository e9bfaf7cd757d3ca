"""Reads a file as a tree of values (TOML, YAML or JSON by its suffix), and refuses what no sweep file can have."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from sweeps.errors import Problem, SpecError, nearest, reason


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 and 1.0e3 as numbers, as TOML, JSON and YAML 1.2 do. PyYAML reads them as text.

    A key that is twice in one table is an error, as in TOML.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Raise an error for a repeated key. Keys of `<<` are not resolved yet, and may be repeated."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(None, None, _twice(key.value), key.start_mark)
                seen.add((key.tag, key.value))
        return node


def _twice(key: str) -> str:
    return f"key {key!r} is twice in one table; leave one out, or merge them"


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dictionary. Raise ValueError for a repeated key, of which Python would drop one."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(_twice(key))
        table[key] = value
    return table


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_yaml = partial(yaml.load, Loader=_Loader)
_json = partial(json.loads, object_pairs_hook=_table)

READERS: dict[str, Callable[[str], Any]] = {".yaml": _yaml, ".yml": _yaml, ".json": _json}
"""The functions that parse a file, by its suffix. A file with another suffix is TOML."""
DEPTH, VALUES = 20, 100_000
"""The most levels and the most values of a sweep file. A value that a YAML alias repeats counts each time."""
_INTEGERS = range(-(2**63), 2**63)


def read_tree(path: Path) -> dict[str, Any]:
    """Return a sweep file's content.

    Raises:
        SpecError: there is no such file, it is a folder, it can't be read, or it is not a table.
    """
    if path.is_dir():
        own = path / "sweep.json"
        near = str(own) if own.is_file() else None
        raise SpecError([Problem("file", str(path), "is a folder, and not a sweep file", near)])
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        near = nearest(path.name, [p.name for p in folder.iterdir() if p.suffix in (".toml", *READERS)])
        raise SpecError([Problem("file", str(path), "no such sweep file", near)])
    read: Callable[[str], Any] = READERS.get(path.suffix, tomllib.loads)
    try:
        tree = read(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise SpecError([Problem("file", str(path), f"has more than {DEPTH} levels")]) from None
    except (ValueError, yaml.YAMLError) as error:  # TOML's, JSON's and UTF-8's errors are ValueErrors
        raise SpecError([Problem("file", str(path), f"can't be read: {error}")]) from error
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # PyYAML raises these for `!!bool maybe` or `!!int ''`
        rule = f"can't be read: a value is not what its tag says ({reason(error)})"
        raise SpecError([Problem("file", str(path), rule)]) from error
    if not isinstance(tree, dict):
        raise SpecError([Problem("file", str(path), "must be a table of sections")])
    return tree


def read_key(text: str) -> list[str]:
    """Return the parts of a dotted key as in TOML: 'methods."lora-0.5".lr' has three. Other texts are cut at dots."""
    path: list[str] = []
    try:
        node: Any = tomllib.loads(f"{text} = 0")
        while isinstance(node, dict):
            ((part, node),) = node.items()
            path.append(part)
    except ValueError:  # `methods.peft:lora.lr`
        return text.strip().split(".")
    return path


def read_value(text: str) -> Any:
    """Return the value of a text as TOML reads it; the text itself if it is not TOML."""
    try:
        table = tomllib.loads(f"v = {text}")
        return table["v"] if len(table) == 1 else text.strip()  # a text of several lines may have several keys
    except (tomllib.TOMLDecodeError, RecursionError):
        return text.strip()


def check_tree(tree: Mapping[str, Any]) -> None:
    """Check that a tree is not too large, that its keys are texts, and that its whole numbers have at most 64 bits.

    TOML, Arrow and the samplers need the latter.

    Raises:
        SpecError: one of these is not so.
    """
    problems = []
    for count, (field, value) in enumerate(_leaves(tree)):
        if count >= VALUES:
            raise SpecError([Problem("file", None, f"has more than {VALUES:,} values")])
        if isinstance(value, int) and value not in _INTEGERS:
            problems.append(Problem(field, value, f"must be between {_INTEGERS[0]} and {_INTEGERS[-1]}"))
    if problems:
        raise SpecError(problems)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted field, value) for every value of a tree that is not a table or list."""
    unvisited: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while unvisited:
        path, value = unvisited.pop()
        field = ".".join(path)
        if len(path) > DEPTH:
            raise SpecError([Problem(field, None, f"has more than {DEPTH} levels")])
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise SpecError([Problem(field or "file", key, "a key must be text", f'"{key}"')])
                unvisited.append(((*path, key), inner))
        elif isinstance(value, list | tuple):
            unvisited += [((*path, str(i)), inner) for i, inner in enumerate(value)]
        else:
            yield field, value
