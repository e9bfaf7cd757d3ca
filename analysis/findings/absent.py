"""Which data sets were left out because their data was missing.

This is not part of `weak`, so that the verb `status` need not load the statistics.
"""

from __future__ import annotations

from collections.abc import Iterable

from analysis.format import Row
from analysis.styles import dataset_text


def absent_data(cells: Iterable[Row]) -> list[str]:
    """Return a sentence on the data sets that were left out because their data was missing, or [] if none was."""
    rows = list(cells)
    names = list(dict.fromkeys(short_name(r["dataset"]) for r in rows if r.get("absent")))
    if not names:
        return []
    return [f"{len(names)} of {len({r['dataset'] for r in rows})} data sets left out, not at hand: {', '.join(names)}"]


def short_name(name: str) -> str:
    """Return a data set's short name if the store that is shown knows it, else its id (of a path the last part)."""
    shown_name = dataset_text(name)
    if shown_name != name:
        return shown_name
    return name.rstrip("/").rpartition("/")[2] if "/" in name and name.partition(":")[0] != "hf" else name
