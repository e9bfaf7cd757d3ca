"""The reading side of the journal: one JSON object a line, append-only, fsync'd; a torn last line is forgiven.

Events (`ev`): `estimate` and `sweep` (forecast and provenance of one run), `ask` (a trial's configuration, before it
starts), `report` (one epoch), `finish` (a trial's row, metrics and predictions), `choose` (a cell's learning rate),
`declare` (CONFIRM's seeds, their maximum and the margin, and how many test scores were there to be seen), `memory` (a
trial's micro-batch made smaller), `unpack` (a pack of trials given up).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import StoreError
from analysis.format import Row

JOURNAL = "journal.jsonl"
"""File name in a results folder."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """What a journal holds.

    Attributes:
        events: all whole events, in order.
        size: bytes up to the end of the last whole event; a writer truncates the file to it before it appends.
        torn: what followed, where the last line was cut off by a crash; else None.
    """

    events: tuple[Event, ...]
    size: int
    torn: bytes | None


def read_journal(path: Path, start: int = 0) -> Journal:
    """Read a journal from byte `start` (the `size` of an earlier reading). A file that does not exist is empty.

    A last line without a newline is torn: it was never acknowledged, so it did not happen.
    Raises StoreError: a damaged line that is not the last one; names the line.
    """
    if not path.exists():
        return Journal((), 0, None)
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    events: list[Event] = []
    position = 0
    while position < len(data):
        end = data.find(b"\n", position) + 1
        event = _parse(data[position:end]) if end else None
        if event is None:
            if end and data[end:].strip(b"\n\0 "):
                after = f"after byte {start} " if start else ""
                raise StoreError(
                    f"{path}: line {len(events) + 1} {after}is not a JSON object and is not the last line "
                    f"({data[position : min(end, position + 60)]!r}); the journal was edited or the disk is damaged. "
                    "Restore it from a copy, or cut the file before that line to repeat what came after"
                )
            return Journal(tuple(events), start + position, data[position:])
        if event["ev"] in ("finish", "choose") and not isinstance(event.get("row"), dict):
            where = f"line {len(events) + 1}{f' after byte {start}' if start else ''}"
            raise StoreError(
                f"{path}: the event {event['ev']!r} of {where} has no row; restore the journal from a copy"
            )
        events.append(event)
        position = end
    return Journal(tuple(events), start + position, None)


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):  # JSON's and UTF-8's errors are ValueErrors
        return None
    return event if isinstance(event, dict) and "ev" in event else None


def rows_of(events: Iterable[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """The table rows that events carry, by table: trials, metrics and predictions (`finish`), choices (`choose`)."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for event in events:
        if event["ev"] == "finish":
            rows["trials"].append({"attempt": event.get("attempt", 1), **event["row"]})
            rows["metrics"] += event.get("metrics") or []
            if event.get("prediction"):
                rows["predictions"].append(event["prediction"])
        elif event["ev"] == "choose" and event.get("row"):
            rows["choices"].append(event["row"])
    return dict(rows)
