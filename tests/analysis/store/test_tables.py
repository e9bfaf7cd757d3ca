"""Schemas, parts and the journal: what is on disk is whole, named when damaged, and counted once."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import StoreError, open_store
from analysis.store.diagnostic_rows import ROWS as DIAGNOSTICS
from analysis.store.journal import journal_line, read_journal
from analysis.store.schemas import SCHEMA_VERSION, SCHEMAS, TABLES
from analysis.store.tables import part_paths, scan_parts, set_aside, to_table, write_part
from tests.analysis.synthetic import make_results
from tests.support import ROOT


def row(trial_id: str = "a", attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {"sweep": "s", "trial_id": trial_id, "attempt": attempt, "status": "finished", **more}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_says_what_it_means(name: str) -> None:
    schema = SCHEMAS[name]
    assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert schema.metadata[b"doc"]
    for field in schema:
        doc = field.metadata[b"doc"]
        assert len(doc) > 5 and doc.endswith(b"."), field.name
    assert set(TABLES[name].key) <= set(schema.names)


def test_the_page_lists_every_column_and_view() -> None:
    from analysis.store.sql.views import VIEWS

    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")  # test_plans holds that it is made of them
    for name, schema in SCHEMAS.items():
        assert f"## `{name}`" in page
        for field in schema:
            assert re.search(rf"^- `{field.name}`( \([^)]*\))?: ", page, re.M)
    assert all(f"- `{view}`: " in page for view in VIEWS)


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    path = write_part(
        tmp_path, "trials", [row(lr=1e-3, started_at="2025-03-01T09:00:00+00:00", versions={"torch": "2"})]
    )
    assert path.parent == tmp_path / "tables" / "trials"
    assert not list(path.parent.glob("*.tmp"))
    assert pq.read_schema(path).metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    table, damaged = scan_parts(tmp_path, "trials")
    assert not damaged
    back = table.to_pylist()[0]
    assert back["lr"] == 1e-3
    assert back["started_at"] == datetime(2025, 3, 1, 9, tzinfo=UTC)
    assert json.loads(back["versions"]) == {"torch": "2"}
    assert back["val_score"] is None


def test_values_as_json_has_them() -> None:
    table = to_table("predictions", [{"sweep": "s", "trial_id": "a", "correct": "gA==", "n_examples": 1}])
    assert table.column("correct").to_pylist() == [b"\x80"]
    metrics = to_table("metrics", [{"trial_id": "a", "epoch": 1.0, "train_loss": float("nan")}]).to_pylist()[0]
    assert metrics["train_loss"] is None
    assert metrics["epoch"] == 1
    naive = (
        to_table("choices", [{"chosen_at": "2025-03-01T09:00:00"}, {"chosen_at": 0}]).column("chosen_at").to_pylist()
    )
    assert naive == [datetime(2025, 3, 1, 9, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("trials", [{"trial": "a"}], "trial_id"),
        ("trails", [{}], "trials"),
        ("trials", [{"epochs": 1.5}], "not a whole number"),
        ("trials", [{"lr": "fast"}], "Peak learning rate"),
        ("cells", [{"feasible": 1}], "not a boolean"),
        ("predictions", [{"correct": "???"}], "correct"),
        ("choices", [{"chosen_at": "yesterday"}], "yesterday"),
    ],
)
def test_rows_that_do_not_fit_are_refused(name: str, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(StoreError, match=said.replace("?", r"\?")):
        to_table(name, rows)


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="at least one row"):
        write_part(tmp_path, "trials", [])


def test_of_one_key_the_last_written_counts(tmp_path: Path) -> None:
    write_part(tmp_path, "trials", [row("a"), row("b", val_score=0.1)])
    write_part(tmp_path, "trials", [row("b", val_score=0.2), row("b", 2, val_score=0.3)])
    table, _ = scan_parts(tmp_path, "trials")
    got = [(r["trial_id"], r["attempt"], r["val_score"]) for r in table.to_pylist()]
    assert got == [("a", 1, None), ("b", 1, 0.2), ("b", 2, 0.3)]


@pytest.mark.parametrize("harm", ["truncated", "flipped", "emptied"])
def test_a_damaged_part_is_named_and_can_be_set_aside(tmp_path: Path, harm: str) -> None:
    write_part(tmp_path, "trials", [row("a")])
    bad = write_part(tmp_path, "trials", [row(f"b{i}", val_score=i / 999) for i in range(999)])
    data = bytearray(bad.read_bytes())
    if harm == "truncated":
        bad.write_bytes(data[: len(data) // 2])
    elif harm == "emptied":
        bad.write_bytes(b"")
    else:
        for at in range(300, 400):  # in a data page, the footer is whole: only the checksum can tell
            data[at] ^= 0xFF
        bad.write_bytes(data)
    table, damaged = scan_parts(tmp_path, "trials")
    assert table.column("trial_id").to_pylist() == ["a"]
    assert [d.path for d in damaged] == [bad]
    assert str(bad) in str(damaged[0])
    aside = set_aside(damaged[0])
    assert aside.exists()
    assert aside.name.endswith(".damaged")
    assert scan_parts(tmp_path, "trials")[1] == []


def foreign(place: Path, name: str) -> Path:
    """A part that lies among those of `trials` and is not of it."""
    path = place / "part-99990101T000000000000-00000000.parquet"
    own = pq.read_table(part_paths(place.parents[1], "trials")[0])
    others: dict[str, pa.Table] = {
        "of metrics": to_table("metrics", [{"sweep": "s", "trial_id": "a", "attempt": 1, "epoch": 1}]),
        "of metrics, bare": pa.table({"sweep": ["s"], "epoch": [1], "val_score": [0.9]}),
        "of others": pa.table({"x": [1]}),
        "text as a score": own.set_column(own.column_names.index("test_score"), "test_score", pa.array(["0.9"])),
        "a word as a score": own.set_column(own.column_names.index("test_score"), "test_score", pa.array(["good"])),
        "no id": own.set_column(own.column_names.index("trial_id"), "trial_id", pa.array([None], pa.string())),
    }
    pq.write_table(others[name], path)
    return path


@pytest.mark.parametrize(
    "name", ["of metrics", "of metrics, bare", "of others", "text as a score", "a word as a score", "no id"]
)
def test_a_part_of_another_table_adds_no_row_and_is_named(tmp_path: Path, name: str) -> None:
    part = write_part(tmp_path, "trials", [row("a", test_score=0.5)])
    bad = foreign(part.parent, name)
    table, damaged = scan_parts(tmp_path, "trials")
    assert [(r["trial_id"], r["test_score"]) for r in table.to_pylist()] == [("a", 0.5)]
    assert [d.path for d in damaged] == [bad]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOENT])
def test_a_part_that_cannot_be_read_now_is_not_damaged(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [write_part(tmp_path, "trials", [row(name)]) for name in "ab"]
    real = Path.open

    def refuse(path: Path, *how: Any, **named: Any) -> Any:
        if path == parts[1]:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *how, **named)

    monkeypatch.setattr(Path, "open", refuse)
    if code in (errno.EMFILE, errno.EACCES):
        with pytest.raises(OSError, match=os.strerror(code)):
            scan_parts(tmp_path, "trials")
    else:  # a disk that has lost it; a driver that set it aside meanwhile
        table, damaged = scan_parts(tmp_path, "trials")
        assert table.num_rows == 1 and len(damaged) == (code == errno.EIO)


def test_older_parts_are_read_and_newer_ones_refused(tmp_path: Path) -> None:
    place = tmp_path / "tables" / "trials"
    place.mkdir(parents=True)
    old = pa.table({"trial_id": ["a"], "attempt": pa.array([1], pa.int32()), "gone": [0]})
    pq.write_table(old, place / "part-0.parquet")
    back = scan_parts(tmp_path, "trials")[0]
    assert back.schema.equals(SCHEMAS["trials"])
    assert back.to_pylist()[0]["attempt"] == 1
    newer = old.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION + 1)})
    pq.write_table(newer, place / "part-1.parquet")
    with pytest.raises(StoreError, match="upgrade the package"):
        scan_parts(tmp_path, "trials")


LATER = (
    "metric",
    "unit",
    "further",
    "hyperparameters",
    "origin",
    "micro_batch_size",
    "skipped",
    "train_examples",
    "global_batch_size",
)
"""Columns of `trials` and `choices` that the first release did not have."""


def test_a_store_of_the_first_release_gives_the_same_results_after_an_upgrade(tmp_path: Path) -> None:
    new, old = (make_results(tmp_path / name, sweep="made") for name in ("new", "old"))
    for name in ("trials", "choices", "cells"):
        for path in part_paths(old, name):
            part = pq.read_table(path)
            columns = [c for c in part.column_names if c not in LATER]
            fields = [pa.field(c, part.schema.field(c).type) for c in columns]  # no descriptions, no version
            pq.write_table(part.select(columns).cast(pa.schema(fields)), path)
            assert b"schema_version" not in (pq.read_schema(path).metadata or {})
    journal = old / "journal.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    for event in events:
        if event["ev"] in ("finish", "choose"):
            event["row"] = {k: v for k, v in event["row"].items() if k not in LATER}
    journal.write_text("".join(json.dumps(e) + "\n" for e in events))
    before, after = open_store(old), open_store(new)
    for name in SCHEMAS:
        assert before.table(name).schema == after.table(name).schema
        assert before.table(name).num_rows == after.table(name).num_rows
        assert before.table(name).num_rows > 0 or name in {row.table for row in DIAGNOSTICS}
    for view in ("scaling", "best", "coverage", "parity", "failures", "cost"):
        assert before.table(view).to_pylist() == after.table(view).to_pylist()
    assert before.table("trials").column("metric").null_count == before.table("trials").num_rows


def test_a_torn_tail_did_not_happen(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_journal(path).events == ()
    whole = b'{"ev":"sweep"}\n{"ev":"ask","trial_id":"a"}\n'
    for tail in (b"", b'{"ev":"fin', b'{"ev":"ask"}', b"\0\0\0\0", b'{"ev":"as\n', b"\xff\xfe"):
        path.write_bytes(whole + tail)
        journal = read_journal(path)
        assert [e["ev"] for e in journal.events] == ["sweep", "ask"]
        assert journal.size == len(whole)
        assert journal.torn == (tail or None)


def test_a_line_without_checksum_is_older_than_all_that_have_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    old, new = b'{"ev":"sweep"}\n', journal_line({"ev": "ask"})
    path.write_bytes(old + old + new + new)
    assert [e["ev"] for e in read_journal(path).events] == ["sweep", "sweep", "ask", "ask"]
    robbed = b'{"ev":"ask","trial_id":"a"}\n'
    for lines in (old + new + robbed, new + robbed + new, new + robbed + b'{"ev'):
        path.write_bytes(lines)
        with pytest.raises(StoreError, match=r"line \d has no checksum, and one before it has"):
            read_journal(path)


def test_a_row_robbed_of_its_checksum_does_not_override_a_sealed_one(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "made")
    journal = folder / "journal.jsonl"
    events = [json.loads(line) for line in journal.read_bytes().splitlines()]
    lines = [journal_line(event) for event in events]
    at = next(k for k, event in enumerate(events) if event["ev"] == "finish" and event["row"]["test_score"])
    events[at]["row"]["test_score"] = 0.999
    lines[at] = json.dumps(events[at]).encode() + b"\n"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(StoreError, match=f"line {at + 1} has no checksum"):
        open_store(folder).table("trials")


def test_damage_before_the_tail_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"ev":"sweep"}\n{"ev":\n{"ev":"ask"}\n', encoding="utf-8")
    with pytest.raises(StoreError, match="line 2"):
        read_journal(path)


def test_the_journal_fills_what_the_parts_lack(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "made")
    whole = open_store(folder).table("trials")
    finished = [e for e in read_journal(folder / "journal.jsonl").events if e["ev"] == "finish"]
    sealed = scan_parts(folder, "trials")[0].num_rows
    assert 0 < sealed < whole.num_rows == len(finished)
    part = part_paths(folder, "trials")[0]
    part.write_bytes(part.read_bytes()[:100])
    again = open_store(folder)
    assert [d.path for d in again.damaged] == [part]
    assert sorted(again.table("trials").column("trial_id").to_pylist()) == sorted(whole.column("trial_id").to_pylist())
    (folder / "journal.jsonl").unlink()
    assert 0 < open_store(folder).table("trials").num_rows < sealed


def test_a_sealed_row_is_not_replaced_by_the_journals(tmp_path: Path) -> None:
    """It is never written again, so `sweeps verify` reports a journal that says something else."""
    folder = make_results(tmp_path / "made")
    before = open_store(folder).table("trials")
    sealed = set(scan_parts(folder, "trials")[0]["trial_id"].to_pylist())
    path = folder / "journal.jsonl"
    events = [json.loads(line) for line in path.read_bytes().splitlines()]
    for event in events:
        if event["ev"] == "finish" and event["trial_id"] in sealed:
            event["row"]["test_score"] = 0.999
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    assert open_store(folder).table("trials").equals(before)


def test_a_file_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    """JSON has it as a lone surrogate, which the faster parser refuses."""
    path = tmp_path / "journal.jsonl"
    path.write_bytes(journal_line({"ev": "trouble", "path": "sp\udce9c.toml"}))
    assert read_journal(path).events == ({"ev": "trouble", "path": "sp\udce9c.toml"},)


def test_a_store_follows_a_running_sweep(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "made")
    store = open_store(folder)
    before = store.table("trials").num_rows
    event = {"ev": "finish", "trial_id": "new", "attempt": 1, "row": {"trial_id": "new", "attempt": 1}, "metrics": []}
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
    assert store.table("trials").num_rows == before + 1
    assert store.table("trials").to_pylist()[-1]["sweep"] == "made"  # filled in from the journal


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    make_results(tmp_path / "quickstart", trials=False)
    with pytest.raises(StoreError, match=r"does not exist.*quickstart"):
        open_store(tmp_path / "quickstrat")
    (tmp_path / "bare").mkdir()
    with pytest.raises(StoreError, match="holds no sweep"):
        open_store(tmp_path / "bare")
    with pytest.raises(StoreError, match="trials"):
        open_store(tmp_path / "quickstart").table("trails")


def test_nothing_here_imports_torch_or_ray() -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'ray'): raise ImportError(name + ' is not to be imported')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import analysis, analysis.report.page, analysis.findings.results.terminal, analysis.findings.tuning.figure\n"
        "assert analysis.open_store and analysis.write_report"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    lazy = "import sys, analysis.store.tables; assert not {'scipy', 'matplotlib', 'duckdb'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", lazy], cwd=ROOT, check=True)
    undrawn = "import sys, analysis.findings.all; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", undrawn], cwd=ROOT, check=True)


def test_the_public_names_are_these() -> None:
    import analysis

    assert {name for name in dir(analysis) if getattr(analysis, name)} == set(analysis.__all__)
    with pytest.raises(AttributeError, match="open_store"):
        analysis.open_stor  # noqa: B018
