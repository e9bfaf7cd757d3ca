"""Model and data ids with a path in them, `local:DIR` or `parquet:DIR`.

Ids of cells and trials, and the tables, have them as the sweep file writes them, so that a results folder goes on where
the command is run on the same relative paths, on whatever machine. Workers, which run in other folders, get them whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.data.text.registry import TEXT_FORMS

PATH_FORMS = {"local", "folder", "parquet", "arrow", *TEXT_FORMS}


def absolute(name: str) -> str:
    """An id with its path made absolute, from the folder where the command is run; others as they are."""
    scheme, colon, path = name.partition(":")
    return f"{scheme}:{Path(path).expanduser().resolve()}" if colon and scheme in PATH_FORMS else name


def anchored(names: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration or a row whose `model` and `dataset` a process in any folder finds."""
    return {**names, "model": absolute(names["model"]), "dataset": absolute(names["dataset"])}
