"""From a file to a tree of values: TOML, YAML or JSON by its suffix, and what no sweep file can hold."""

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
    """With 1e-3 and 1.0e3 as the numbers that they are in TOML, JSON and YAML 1.2; to PyYAML they are text.

    A key that stands twice in one table is an error, as in TOML.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Before `<<` is resolved, whose keys may stand again beside it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(None, None, _twice(key.value), key.start_mark)
                seen.add((key.tag, key.value))
        return node


def _twice(key: str) -> str:
    return f"key {key!r} stands twice in one table; leave one out, or make them one"


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which Python would keep the last of two keys and drop the first."""
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
"""By suffix; any other file is TOML."""
DEPTH, VALUES = 20, 100_000
"""Most levels of a sweep file and most values in it, those that a YAML alias repeats counted each time."""
_INTEGERS = range(-(2**63), 2**63)


def read_tree(path: Path) -> dict[str, Any]:
    """A sweep file's content. Raises SpecError: no such file, a folder, a file that can't be read, or no table."""
    if path.is_dir():
        own = path / "sweep.json"
        raise SpecError([Problem("file", str(path), "is a folder, no sweep file", str(own) if own.is_file() else None)])
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
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # PyYAML's of `!!bool maybe`, `!!int ''`
        said = f"can't be read: a value is not what its tag says ({reason(error)})"
        raise SpecError([Problem("file", str(path), said)]) from error
    if not isinstance(tree, dict):
        raise SpecError([Problem("file", str(path), "must be a table of sections")])
    return tree


def read_key(text: str) -> list[str]:
    """The parts of a dotted key, as TOML reads it: 'methods."lora-0.5".lr' has three; any other is cut at its dots."""
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
    """The value that TOML reads in a text; the text itself where it is no TOML."""
    try:
        read = tomllib.loads(f"v = {text}")
        return read["v"] if len(read) == 1 else text.strip()  # more lines are more keys
    except (tomllib.TOMLDecodeError, RecursionError):
        return text.strip()


def check_tree(tree: Mapping[str, Any]) -> None:
    """Raise SpecError for more levels or values than a sweep file has, keys that are no text, whole numbers too large.

    TOML, Arrow and the samplers know whole numbers of 64 bits.
    """
    problems = []
    for count, (field, value) in enumerate(_leaves(tree)):
        if count >= VALUES:
            raise SpecError([Problem("file", None, f"has more than {VALUES:,} values")])
        if isinstance(value, int) and value not in _INTEGERS:
            problems.append(Problem(field, value, f"must lie between {_INTEGERS[0]} and {_INTEGERS[-1]}"))
    if problems:
        raise SpecError(problems)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    left: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while left:
        path, value = left.pop()
        field = ".".join(path)
        if len(path) > DEPTH:
            raise SpecError([Problem(field, None, f"has more than {DEPTH} levels")])
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise SpecError([Problem(field or "file", key, "a key must be text", f'"{key}"')])
                left.append(((*path, key), inner))
        elif isinstance(value, list | tuple):
            left += [((*path, str(i)), inner) for i, inner in enumerate(value)]
        else:
            yield field, value
