"""Paths in ids of models and data sets, such as `local:DIR` or `parquet:DIR`.

Ids of cells and trials, and the tables, have paths as the sweep file writes them. So a sweep can be resumed on another
machine with the same relative paths. Workers run in other folders, so they get absolute paths.
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
    """Return the path in an id, as it is written; None if the id has no path."""
    scheme, colon, path = name.partition(":")
    if scheme == FINE_TUNING:
        path = path.partition("?")[0]
    return Path(path).expanduser() if colon and scheme in PATH_FORMS else None


def _with_path(name: str, path: str) -> str:
    """Return the id with another path. Columns that the id of a set for fine-tuning names stay in it."""
    scheme, _, rest = name.partition(":")
    columns = "".join(rest.partition("?")[1:]) if scheme == FINE_TUNING else ""
    return f"{scheme}:{path}{columns}"


def absolute(name: str) -> str:
    """Return an id with its path made absolute, from the working directory. An id without a path stays as it is.

    Symbolic links are not followed: each node of a cluster may have another one at the same path.
    """
    path = path_of(name)
    return name if path is None else _with_path(name, os.path.abspath(path))  # noqa: PTH100  # without ..


def resolved(name: str) -> str:
    """Return an id with an absolute path in which symbolic links are followed, to compare the places of two ids."""
    path = path_of(name)
    return name if path is None else _with_path(name, str(path.resolve()))


def with_absolute_paths(names: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration or a row with absolute paths in `model` and `dataset`, for a process in any folder."""
    return {**names, "model": absolute(names["model"]), "dataset": absolute(names["dataset"])}
