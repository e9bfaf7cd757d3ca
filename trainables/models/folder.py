"""Check a local model's folder before a library opens any of it: it must refer to nothing outside itself.

A folder may come from anyone. Its files say which others the libraries read: an index names the files of weights, and a
config may name a model of the hub. Reading a pipe would not end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainables.models.families import ModelError

_SOURCE = re.compile(r"(hf[-_]hub|local-dir):")
"""How timm and open_clip name a model that is elsewhere."""
_CONFIGS = ("open_clip_config.json", "config.json")
_FILE_NAMES = ("transformers_weights",)
_MODEL_NAMES = ("backbone", "timm_model_name")


def check_folder(folder: Path, model_id: str) -> None:
    """Raise ModelError for an entry that is not a file, and for an index or a config that names something elsewhere."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(f"{model_id!r}: {path.name} is a pipe or a device, not a file; replace it or take it away")
    for path in sorted(folder.glob("*.index.json")):
        index = _parsed(path)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        for name in shards.values() if isinstance(shards, dict) else ():
            if isinstance(name, str) and _is_outside(name):
                raise ModelError(
                    f"{model_id!r}: {path.name} takes weights from {name!r}, and all must be files in the folder; "
                    "save the model again with save_pretrained"
                )
    for path in (folder / name for name in _CONFIGS):
        for key, value in _texts(_parsed(path)) if path.is_file() else ():
            if _SOURCE.match(value) or (key in _MODEL_NAMES and _is_outside(value)):
                raise ModelError(
                    f"{model_id!r}: {key} = {value!r} in {path.name} names a model outside the folder; write the name "
                    "of its architecture alone"
                )
            if key in _FILE_NAMES and _is_outside(value):
                raise ModelError(
                    f"{model_id!r}: {key} = {value!r} in {path.name} is not in the folder; copy the file there"
                )


def _is_outside(name: str) -> bool:
    """Return whether a name leads to a file in another folder."""
    return name != Path(name).name or "\\" in name or name == ".."


def _parsed(path: Path) -> Any:
    """Return the content of a JSON file; None if it is damaged, which the library that reads it will report."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _texts(parsed: Any) -> Iterator[tuple[str, str]]:
    """Yield all texts of a parsed JSON file, each with its key."""
    pending = [("", parsed)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += ((key, inner) for inner in value)
