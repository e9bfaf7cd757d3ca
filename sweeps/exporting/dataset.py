"""Exports a results folder as a data set: its tables, JSON files and a card, but no weights and no journal."""

from __future__ import annotations

import shutil
from pathlib import Path

from analysis import open_store
from analysis.store.remote import FACTS
from analysis.store.schemas import SCHEMAS
from analysis.store.tables import write_part
from sweeps.errors import Problem, SpecError
from sweeps.exporting.card import dataset_card


def export_results(folder: Path, to: Path, licence: str | None = None, repo: str | None = None) -> Path:
    """Write the tables and files that `sweeps best` and `sweeps query` read into a new folder, and its README.md.

    The tables also have the rows that are only in the journal: those of a sweep that runs, or that was killed. The card
    is made from the new folder, so it never says more than its tables do.

    Args:
        folder: the results folder.
        to: the folder to write. It must not exist yet.
        licence: the Hub's identifier of the licence.
        repo: its repository on the Hub, ORG/NAME, for the commands on the card.

    Returns:
        The new folder.

    Raises:
        SpecError: `to` exists, or no table has a row yet.
    """
    if to.exists():
        raise SpecError([Problem("to", str(to), "exists; give a new folder")])
    store = open_store(folder)
    # `trials` is the first: if the sweep goes on meanwhile, the other tables have at least the rows of these trials
    tables = {name: table for name in SCHEMAS if (table := store.table(name)).num_rows}
    if not tables:
        rule = "has no rows in any table yet; a sweep writes the first ones when it starts"
        raise SpecError([Problem("results", str(folder), rule)])
    to.mkdir(parents=True)
    for name in FACTS:
        if (folder / name).is_file():
            shutil.copy(folder / name, to / name)
    for name, table in tables.items():
        write_part(to, name, table.to_pylist())
    card = dataset_card(open_store(to), [*tables], licence, repo)
    (to / "README.md").write_text(card, encoding="utf-8")
    return to
