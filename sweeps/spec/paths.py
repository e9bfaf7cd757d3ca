"""Model and data ids with a path in them, `local:DIR` or `parquet:DIR`.

Ids of cells and trials, and the tables, have them as the sweep file writes them, so that a results folder goes on where
the command is run on the same relative paths, on whatever machine. Workers, which run in other folders, get them whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.data.text.fine_tuning import FORM as FINE_TUNING
from trainables.data.text.registry import TEXT_FORMS

PATH_FORMS = {"local", "folder", "parquet", "arrow", *TEXT_FORMS}


def path_of(name: str) -> Path | None:
    """The path in an id, as it is written; None where the id has none."""
    scheme, colon, path = name.partition(":")
    if scheme == FINE_TUNING:
        path = path.partition("?")[0]
    return Path(path).expanduser() if colon and scheme in PATH_FORMS else None


def _with_path(name: str, path: str) -> str:
    """Return the id with another path. The columns that the id of a set for fine-tuning names stay."""
    scheme, _, rest = name.partition(":")
    columns = "".join(rest.partition("?")[1:]) if scheme == FINE_TUNING else ""
    return f"{scheme}:{path}{columns}"


def absolute(name: str) -> str:
    """An id with its path made absolute, from the folder where the command is run; others as they are.

    Symbolic links stay: each machine of a cluster may have its own behind one path.
    """
    path = path_of(name)
    return name if path is None else _with_path(name, os.path.abspath(path))  # noqa: PTH100  # without ..


def resolved(name: str) -> str:
    """The same with symbolic links followed, which tells whether two ids are of one place."""
    path = path_of(name)
    return name if path is None else _with_path(name, str(path.resolve()))


def anchored(names: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration or a row whose `model` and `dataset` a process in any folder finds."""
    return {**names, "model": absolute(names["model"]), "dataset": absolute(names["dataset"])}
