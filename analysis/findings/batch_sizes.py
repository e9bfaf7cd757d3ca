"""The batch sizes that a sweep searched, and which one each cell chose."""

from __future__ import annotations

import json
from collections.abc import Sequence

from analysis.format import Row, listed
from analysis.styles import short_name, style

_NAME = "global_batch_size"
"""Name of the batch size among the searched hyperparameters."""


def searched_batch_sizes(row: Row) -> list[int]:
    """Return the batch sizes that a cell searched, rising; [] if it searched none.

    Args:
        row: a row with the column `space` of the table `cells`.
    """
    space = json.loads(row.get("space") or "{}")
    return sorted(int(size) for size in space.get(_NAME, {}).get("values", ()))


def chosen_batch_size(row: Row) -> int | None:
    """Return the batch size that a cell chose; None if it searched none, or has no choice yet.

    Args:
        row: a row with the column `hyperparameters` of the table `choices`.
    """
    size = json.loads(row.get("hyperparameters") or "{}").get(_NAME)
    return None if size is None else int(size)


def end_of_list(row: Row) -> str | None:
    """Return "smallest" or "largest" if the chosen batch size is at that end of the searched list, else None.

    A batch of one example does not count as an end, because no smaller one exists.
    """
    sizes, size = searched_batch_sizes(row), chosen_batch_size(row)
    if not sizes or size is None or size == 1:
        return None
    return {sizes[0]: "smallest", sizes[-1]: "largest"}.get(size)


def batches_say(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on the batch sizes that were searched and chosen, or [] if none were searched.

    Args:
        rows: rows of the view `parity` for tuned cells.
    """
    lists = {tuple(searched_batch_sizes(r)) for r in rows}
    if not any(lists):
        return []
    each = [
        f"batches of {listed([f'{size:,}' for size in sizes], 'or')}" if sizes else "no batch sizes"
        for sizes in sorted(lists)
    ]
    equal = f"every tuned cell searched {each[0]} examples" if len(each) == 1 else f"{'; '.join(each)}: NOT equal"
    several_sets = len({r["dataset"] for r in rows}) > 1
    by_size: dict[int, list[str]] = {}
    for r in rows:
        if (size := chosen_batch_size(r)) is not None:
            name = style(r["method"]).name + (f" at {r['reference']}" if r["reference"] else "")
            by_size.setdefault(size, []).append(f"{name} on {short_name(r['dataset'])}" if several_sets else name)
    took = [f"{size:,} by {listed(list(dict.fromkeys(names)))}" for size, names in sorted(by_size.items())]
    text = f"Batch size: {equal}, together with the learning rate."
    return [f"{text} Chosen: {'; '.join(took)}." if took else text]
