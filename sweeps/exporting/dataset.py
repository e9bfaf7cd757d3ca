"""Exports a results folder as a data set: its sealed tables, JSON files and a card, but no weights and no journal."""

from __future__ import annotations

import shutil
from pathlib import Path

from analysis import open_store
from analysis.store.remote import FACTS
from analysis.store.schemas import SCHEMAS
from analysis.store.tables import part_paths
from sweeps.errors import Problem, SpecError
from sweeps.exporting.card import dataset_card


def export_results(folder: Path, to: Path, licence: str | None = None, repo: str | None = None) -> Path:
    """Copy the files that `sweeps best` and `sweeps query` read into a new folder, and write its README.md.

    Args:
        folder: the results folder.
        to: the folder to write. It must not exist yet.
        licence: the Hub's identifier of the licence.
        repo: its repository on the Hub, ORG/NAME, for the commands on the card.

    Returns:
        The new folder.

    Raises:
        SpecError: `to` exists, or no table is sealed yet.
    """
    if to.exists():
        raise SpecError([Problem("to", str(to), "exists; give a new folder")])
    parts = {name: part_files for name in SCHEMAS if (part_files := part_paths(folder, name))}
    if not parts:
        rule = "has no sealed table yet; a run seals its tables every few minutes and at its end"
        raise SpecError([Problem("results", str(folder), rule)])
    card = dataset_card(open_store(folder), [*parts], licence, repo)
    paths = [path for part_files in parts.values() for path in part_files]
    for path in (*paths, *(folder / name for name in FACTS if (folder / name).is_file())):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (to / "README.md").write_text(card, encoding="utf-8")
    return to
