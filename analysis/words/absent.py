"""The data sets that were not at hand; apart from `weak`, so that `status` loads no statistics."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.format import Row
from analysis.styles import dataset_text


def absent_data(cells: Iterable[Row]) -> list[str]:
    """Which of a sweep's data sets are left out because their data was not at hand; nothing where none is."""
    rows = list(cells)
    names = list(dict.fromkeys(short_name(r["dataset"]) for r in rows if r.get("absent")))
    if not names:
        return []
    return [f"{len(names)} of {len({r['dataset'] for r in rows})} data sets left out, not at hand: {', '.join(names)}"]


def short_name(name: str) -> str:
    """A data set's name: short if the store that is shown knows it; else its id, a path cut to its last part."""
    known = dataset_text(name)
    if known != name:
        return known
    return name.rstrip("/").rpartition("/")[2] if "/" in name and name.partition(":")[0] != "hf" else name
