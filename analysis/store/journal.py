"""Read the journal of a sweep: a file to which a run appends events, one JSON object a line.

A run flushes each line to the disk. If it was cut off while it wrote, the last line is torn, and readers ignore it.
The field `ev` names the kind of an event:

    estimate  the forecast of a run
    sweep     the provenance of a run
    ask       a trial's configuration, before the trial starts
    report    one epoch of a trial
    finish    a trial's row, metrics and predictions
    choose    the choice of a cell's learning rate
    declare   CONFIRM's seeds, their maximum, the margin, the cells, and how many test scores could be seen by then
    memory    a trial's micro-batch was made smaller
    unpack    a pack of trials was given up
    trouble   storage failed under a trial
    workers   the number of workers changed
    lost      the backend was lost
    used      the worker-seconds of all runs so far

Each line ends with two fields: `after`, a digest of the line before it, and `crc`, its own checksum. Every reader
refuses a line with a wrong checksum. A wrong `after` means that lines were changed, moved or removed. A run can still
use all events then, so only `sweeps verify` reports it.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from analysis.errors import StoreError
from analysis.format import Row, finite
from analysis.store.codec import from_values, to_json
from analysis.store.rows import ChoiceRow, MetricRow, PredictionRow, TrialRow

JOURNAL = "journal.jsonl"
"""File name in a results folder."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Journal:
    """The contents of a journal.

    Attributes:
        events: all whole events, in order.
        size: number of bytes up to the end of the last whole event. A writer truncates the file to this size before it
            appends.
        torn: the bytes after the last whole event, if a crash cut the last line off; None if it did not.
        tip: digest of the last whole line. The next line names it in `after`.
        unchained: number of lines at the beginning without `after`. Older versions wrote such lines.
        broken: numbers of the other lines, from 1, whose `after` does not name the line before them.
    """

    events: tuple[Event, ...]
    size: int
    torn: bytes | None
    tip: str
    unchained: int = 0
    broken: tuple[int, ...] = ()


def read_journal(path: Path) -> Journal:
    """Read a journal. A file that does not exist is empty.

    A last line without a newline is torn. No caller was told that it was written, so it is ignored. Versions before
    checksums wrote lines without one. Such a line is read only if no line before it has a checksum.

    Raises:
        StoreError: a line other than the last one is damaged, has a wrong checksum, or lacks its checksum. The message
            names the line.
    """
    if not path.exists():
        return Journal((), 0, None, line_digest(b""))
    data = path.read_bytes()
    events: list[Event] = []
    broken: list[int] = []
    position, torn, checked = 0, None, False
    tip, unchained = line_digest(b""), 0
    while position < len(data):
        end = data.find(b"\n", position) + 1
        event = _parse(data[position:end]) if end else None
        if event is None and end and data[end:].strip(b"\n\0 "):
            raise StoreError(
                f"{path}: line {len(events) + 1} is no event, or does not match its checksum, and is not the last line "
                f"({data[position : min(end, position + 60)]!r}); the journal was edited or the disk is damaged. "
                "Restore it from a copy, or cut the file before that line to repeat what came after"
            )
        if event is None:
            torn = data[position:]
            break
        if checked and "crc" not in event:
            raise StoreError(
                f"{path}: line {len(events) + 1} has no checksum, and one before it has: the journal was edited, or an "
                "older version wrote to it. Restore it from a copy, or cut the file before that line to repeat what "
                "came after"
            )
        checked = event.pop("crc", None) is not None
        if event["ev"] in ("finish", "choose") and not isinstance(event.get("row"), dict):
            where = f"{path}: the event {event['ev']!r} of line {len(events) + 1}"
            raise StoreError(f"{where} has no row; restore the journal from a copy")
        after = event.pop("after", None)
        if after is None and unchained == len(events):
            unchained += 1
        elif after != tip:
            broken.append(len(events) + 1)
        tip = line_digest(data[position:end])
        events.append(event)
        position = end
    _number(events)
    return Journal(tuple(events), position, torn, tip, unchained, tuple(broken))


def line_digest(line: bytes) -> str:
    """Return the digest by which the next line names this one. The first line names the digest of no bytes."""
    return hashlib.blake2b(line, digest_size=8).hexdigest()


def journal_line(event: Mapping[str, Any], after: str | None = None) -> bytes:
    """Return an event as a line that ends with its checksum `"crc"`: the CRC-32 of the bytes before it, in hexadecimal.

    Args:
        event: the event.
        after: digest of the line before it. If None, the line has no `after`, like those of older versions.

    Raises:
        ValueError: a number in the event is not finite.
    """
    chained = event if after is None else {**event, "after": after}
    text = json.dumps(chained, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return b'%b,"crc":"%08x"}\n' % (text, zlib.crc32(text))


_CRC = re.compile(rb',"crc":"([0-9a-f]{8})"\}\n')
_CRC_BYTES = 19


def _parse(line: bytes) -> Event | None:
    """Return the event of a line, with the checksum under "crc" if it has one, or None if the line is damaged."""
    checked = _CRC.fullmatch(line, max(0, len(line) - _CRC_BYTES))
    if checked is not None and zlib.crc32(line[:-_CRC_BYTES]) != int(checked[1], 16):
        return None
    try:
        event = _event(line)
    except (ValueError, RecursionError):  # errors of JSON and UTF-8 are ValueErrors
        return None
    return event if isinstance(event, dict) and "ev" in event and ("crc" in event) == (checked is not None) else None


def _event(line: bytes) -> Any:
    """Return the document in a line. Pydantic's parser is twice as fast as Python's, and refuses lone surrogates."""
    try:
        return from_json(line)
    except ValueError:
        return json.loads(line)


def _number(events: Iterable[Event]) -> None:
    """Number the choices of older versions, which have no `sequence`, by the order of their lines."""
    last_number: dict[str, int] = {}
    for event in events:
        row = event.get("row")
        if event["ev"] == "choose" and isinstance(row, dict):
            cell = str(event.get("cell_id"))
            last_number[cell] = max(row.get("sequence") or 0, last_number.get(cell, 0) + (not row.get("sequence")))
            row.setdefault("sequence", last_number[cell])


@dataclass(frozen=True)
class Finish:
    """The rows that a trial adds to the tables when it ends.

    Attributes:
        row: the row of the attempt.
        metrics: the rows of its epochs.
        prediction: the row of the test examples that it got right, or None if these are not known.
    """

    row: TrialRow
    metrics: tuple[MetricRow, ...] = ()
    prediction: PredictionRow | None = None

    def event(self) -> Event:
        """Return the rows as a `finish` event."""
        return {
            "ev": "finish",
            "trial_id": self.row.trial_id,
            "attempt": self.row.attempt,
            "row": to_json(self.row),
            "metrics": [to_json(row) for row in self.metrics],
            "prediction": None if self.prediction is None else to_json(self.prediction),
        }

    @classmethod
    def of(cls, event: Mapping[str, Any], sweep: str) -> Finish:
        """Read a `finish` event. Rows of the first release name no sweep, so they get `sweep`.

        Raises:
            StoreError: a row lacks a required column, or a value does not fit its column.
        """
        head = {"sweep": sweep}
        prediction = event.get("prediction")
        return cls(
            from_values(TrialRow, {**head, "attempt": event.get("attempt", 1), **event["row"]}),
            tuple(from_values(MetricRow, {**head, **row}) for row in event.get("metrics") or ()),
            None if not prediction else from_values(PredictionRow, {**head, **prediction}),
        )


def choose_event(row: ChoiceRow) -> Event:
    """Return a cell's choice as a `choose` event."""
    names = {"cell_id": row.cell_id, "lr": row.lr, "mean_val": finite(row.mean_val), "trials": row.n_trials}
    return {"ev": "choose", **names, "row": to_json(row)}


def choice_of(event: Mapping[str, Any], sweep: str) -> ChoiceRow:
    """Read a `choose` event. A row that names no sweep gets `sweep`.

    Raises:
        StoreError: the row lacks a required column, or a value does not fit its column.
    """
    return from_values(ChoiceRow, {"sweep": sweep, **event["row"]})


def rows_of(events: Iterable[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """Return the rows in events by table, as the journal has them.

    A `finish` event has rows of trials, metrics and predictions. A `choose` event has a row of choices.
    """
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
