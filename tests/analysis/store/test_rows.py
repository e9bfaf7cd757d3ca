"""Rows as dataclasses: tables are what they were before, and every committed folder is read and written back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import StoreError, open_store
from analysis.store.codec import Column, _as_it_is, _fitted, columns_of, from_values, to_json
from analysis.store.rows import ChoiceRow, MetricRow, TrialRow
from analysis.store.schemas import SCHEMAS, TABLES
from analysis.store.slot_kinds import SlotKind
from analysis.store.tables import to_table
from tests.support import ROOT

COLUMNS = json.loads(Path(__file__).with_name("columns.json").read_text(encoding="utf-8"))
"""Name, type and nullability of every column, as they were when rows became dataclasses."""
FOLDERS = sorted(path.parent for path in ROOT.glob("docs/results/*/spec.json"))


@pytest.mark.parametrize("table", COLUMNS)
def test_no_column_has_left_moved_or_changed_its_type(table: str) -> None:
    now = [[field.name, str(field.type), field.nullable] for field in SCHEMAS[table]]
    assert [column for column in now if column in COLUMNS[table]] == COLUMNS[table]
    assert all(nullable for _, _, nullable in now)  # a part from before a column has nulls there


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_committed_folder_is_read_as_rows_and_written_as_it_was(folder: Path) -> None:
    store = open_store(folder)
    counts = {}
    for name, row in TABLES.items():
        table = store.table(name)
        rows = [from_values(row, values) for values in table.to_pylist()]
        assert to_table(name, rows).equals(table), name
        assert [from_values(row, json.loads(json.dumps(to_json(each)))) for each in rows[:500]] == rows[:500]
        counts[name] = len(rows)
    assert counts["trials"] and counts["cells"]


VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): st.text(),
    pa.int64(): st.integers(-(2**53), 2**53),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
    pa.bool_(): st.booleans(),
    pa.binary(): st.binary(),
    pa.timestamp("us", tz="UTC"): st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC)),
    pa.list_(pa.float64()): st.lists(st.floats(allow_nan=False, allow_infinity=False)),
}


def value_of(column: Column) -> st.SearchStrategy[Any]:
    found = st.dictionaries(st.text(), st.integers() | st.text()) if column.parsed else VALUES[column.kind]
    return found if column.required else st.none() | found


@pytest.mark.parametrize("table", TABLES)
@given(data=st.data())
def test_a_row_comes_back_from_json_and_from_arrow(table: str, data: st.DataObject) -> None:
    row = TABLES[table]
    drawn = data.draw(st.fixed_dictionaries({column.name: value_of(column) for column in columns_of(row)}))
    made = from_values(row, {name: value for name, value in drawn.items() if value is not None})
    assert from_values(row, json.loads(json.dumps(to_json(made), allow_nan=False))) == made
    (stored,) = to_table(table, [made]).to_pylist()
    assert from_values(row, stored) == made


WHOLE = {"sweep": "s", "trial_id": "t", "cell_id": "c", "stage": "TUNE", "slot": 0, "status": "finished"}


def test_what_is_missing_is_the_default_and_what_is_needed_is_named() -> None:
    row = from_values(TrialRow, WHOLE)
    assert (row.attempt, row.val_score, row.started_at) == (1, None, None)
    for name in WHOLE:
        with pytest.raises(StoreError, match=f"'{name}'"):
            from_values(TrialRow, {**WHOLE, name: None})


@pytest.mark.parametrize(
    ("row", "values", "named"),
    [
        (TrialRow, WHOLE | {"val_scor": 0.5}, "val_score"),
        (TrialRow, WHOLE | {"epochs": 1.5}, "epochs"),
        (TrialRow, WHOLE | {"versions": "[1]"}, "versions"),
        (TrialRow, WHOLE | {"further": "{"}, "further"),
        (MetricRow, {"sweep": "s", "trial_id": "t", "cell_id": "c", "attempt": 1, "epoch": "last"}, "epoch"),
        (ChoiceRow, {"sweep": "s", "cell_id": "c", "lr": 0.1, "n_trials": 1, "chosen_at": "today"}, "chosen_at"),
    ],
)
def test_a_value_that_does_not_fit_is_named(row: Any, values: dict[str, Any], named: str) -> None:
    with pytest.raises(StoreError, match=rf"table '{row.table}'.*'{named}'|nearest: {named}"):
        from_values(row, values)


@given(st.sampled_from(SlotKind), st.integers(0, 99_999))
def test_a_slot_number_says_its_kind(kind: SlotKind, index: int) -> None:
    assert SlotKind.of(kind.slot(index)) is kind
    assert {kind.name: kind.value for kind in SlotKind} == {
        "PLANNED": 0,
        "WIDENED": 100_000,
        "WIDENED_LATE": 200_000,
        "REFINED": 300_000,
    }  # as results folders have them


@given(value=st.one_of(st.text(), st.integers(), st.floats(), st.booleans()))
def test_a_value_that_is_taken_as_it_is_is_what_fitting_makes_of_it(value: Any) -> None:
    for kind, own in ((pa.string(), str), (pa.int64(), int), (pa.float64(), float)):
        column = Column("x", kind, "A value.")
        assert column._plain is own
        if type(value) is own and _as_it_is(value):
            fitted = _fitted(kind, value)
            assert type(fitted) is own and fitted == column.stored("t", value) == value
