"""`sweeps verify`: an honest folder holds, and each attempt to cheat is refused or shown."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest

from analysis.errors import StoreError
from analysis.report.page import write_report
from analysis.store.journal import journal_line, read_journal
from analysis.store.store import open_store
from analysis.store.tables import part_paths, to_table
from sweeps.engine.rerun import Rerun
from sweeps.engine.run import run
from sweeps.engine.verifying import Verification, receipt_of, verify
from sweeps.plan.plan import Plan
from sweeps.records.journal import Journal
from sweeps.spec.sections import ConfirmSection, MethodSection
from tests.analysis.synthetic import make_results
from tests.fakes import TRIAL, FakeCell, FakeConfirm, FakeSearch, FakeTrial, fake_plan
from tests.support import ROOT, sweeps
from tests.sweeps.records.support import FRAGILE, small
from tests.sweeps.support import PAIR

Events = list[dict[str, Any]]
Cheat = Callable[[Path], object]

QUICKSTART = ROOT / "docs" / "results" / "quickstart"
SEEDS = FakeConfirm((0, 1, 2))
DATA = {"fake-data": "blake2b:aa"}


def go(plan: Plan, trial: str = TRIAL, **how: Any) -> None:
    with patch.object(os, "fsync", lambda _: None):
        run(plan, backend="inline", trial=trial, progress=False, **how)


def planned(folder: Path, cells: tuple[FakeCell, ...] = PAIR, confirm: ConfirmSection = SEEDS) -> Plan:
    return small(folder, cells, confirm=confirm, methods={cell.method: MethodSection() for cell in cells})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "r"
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps(DATA))
    go(planned(folder))
    return folder


def outcomes(found: Verification) -> dict[str, str]:
    return {check.name: check.outcome for check in found.checks}


def events_of(folder: Path, kind: str) -> Events:
    return [e for e in read_journal(folder / "journal.jsonl").events if e["ev"] == kind]


def lines(folder: Path, change: Callable[[list[bytes]], object]) -> None:
    """Change the journal's lines as they stand."""
    path = folder / "journal.jsonl"
    found = path.read_bytes().splitlines(keepends=True)
    change(found)
    path.write_bytes(b"".join(found))


def forge(folder: Path, change: Callable[[Events], object]) -> None:
    """Write the journal anew, its chain whole, and leave no part that contradicts it."""
    path = folder / "journal.jsonl"
    events = list(read_journal(path).events)
    change(events)
    path.unlink()
    for name in ("trials", "metrics", "predictions", "choices"):
        shutil.rmtree(folder / "tables" / name)
    with patch.object(os, "fsync", lambda _: None), Journal(path) as journal:
        for event in events:
            journal.write(event)


def edit_part(folder: Path, name: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    part = part_paths(folder, name)[-1]
    rows = pq.read_table(part).to_pylist()
    change(rows)
    pq.write_table(to_table(name, rows), part, compression="zstd", write_page_checksum=True)


def better(rows: list[dict[str, Any]], column: str = "test_score", stage: str = "CONFIRM") -> None:
    next(r for r in rows if r.get("stage", stage) == stage and r["lr"])[column] = 0.99


def finish(events: Events, stage: str = "CONFIRM") -> dict[str, Any]:
    found: dict[str, Any] = next(e for e in events if e["ev"] == "finish" and e["row"]["stage"] == stage)
    return found


def edit_line(found: list[bytes]) -> None:
    at = next(k for k, line in enumerate(found) if b'"ev":"finish"' in line and b'"stage":"CONFIRM"' in line)
    event = json.loads(found[at])
    event["row"]["test_score"] = 0.99
    del event["crc"]
    found[at] = journal_line(event)


def drop_line(found: list[bytes]) -> None:
    del found[max(k for k, line in enumerate(found) if b'"stage":"CONFIRM"' in line and b'"ev":"finish"' in line)]


def drop_tail(found: list[bytes]) -> None:
    del found[len(found) * 2 // 3 :]


def run_twice(events: Events) -> None:
    first = finish(events)
    events.append({**first, "attempt": 2, "row": {**first["row"], "attempt": 2, "test_score": 0.99}})


def read_early(events: Events) -> None:
    at = next(k for k, e in enumerate(events) if e["ev"] == "ask" and e["stage"] == "CONFIRM")
    events.insert(next(k for k, e in enumerate(events) if e["ev"] == "ask"), events.pop(at))


def choose_another(events: Events) -> None:
    made = next(e for e in events if e["ev"] == "choose")
    made["row"]["lr"] = 2 * made["row"]["lr"]


def other_seed(events: Events) -> None:
    next(e for e in events if e["ev"] == "ask" and e["stage"] == "CONFIRM")["config"]["data_seed"] = 12345


def undeclared_cell(events: Events) -> None:
    for event in events:
        if event["ev"] == "declare":
            event["cells"] = event["cells"][:1]


def undeclared_seed(events: Events) -> None:
    for event in events:
        if event["ev"] == "declare":
            event["seeds"] = [0, 1]


def rewrite(name: str, text: str) -> Cheat:
    return lambda folder: (folder / name).write_text(text)


def extend(cells: tuple[FakeCell, ...] = PAIR, confirm: ConfirmSection = SEEDS) -> Cheat:
    return lambda folder: go(planned(folder, cells, confirm))


def retry(folder: Path) -> None:
    shutil.rmtree(folder)
    go(planned(folder, FRAGILE))
    go(planned(folder, FRAGILE), "tests.fakes:mended_trial", retry_failed=True)


def confirm(**changed: Any) -> ConfirmSection:
    return ConfirmSection(**{"seeds": (0, 1, 2), **changed})


CHEATS: dict[str, tuple[Cheat, str, str]] = {
    "a line edited, its own checksum right": (lambda f: lines(f, edit_line), "journal", "fails"),
    "the row of that line differs from its part": (lambda f: lines(f, edit_line), "rows", "fails"),
    "a bad result's line removed": (lambda f: lines(f, drop_line), "journal", "fails"),
    "lines moved": (lambda f: lines(f, lambda found: found.insert(2, found.pop(9))), "journal", "fails"),
    "the end of the journal cut off": (lambda f: lines(f, drop_tail), "rows", "fails"),
    "a row of a part edited": (lambda f: edit_part(f, "trials", better), "rows", "fails"),
    "a finished run made again": (lambda f: forge(f, run_twice), "attempts", "fails"),
    "a failed run made again": (retry, "attempts", "noted"),
    "the test read early": (lambda f: forge(f, read_early), "test split", "fails"),
    "the test read while tuning": (
        lambda f: forge(f, lambda e: finish(e, "TUNE")["row"].update(test_score=0.9)),
        "test split",
        "fails",
    ),
    "a validation score edited": (
        lambda f: forge(f, lambda e: finish(e)["row"].update(val_score=0.99)),
        "scores",
        "fails",
    ),
    "another rate chosen": (lambda f: forge(f, choose_another), "choices", "fails"),
    "another seed trained": (lambda f: forge(f, other_seed), "configurations", "fails"),
    "another rate trained": (
        lambda f: forge(f, lambda e: finish(e)["row"].update(lr=0.5)),
        "configurations",
        "fails",
    ),
    "a seed run that was not declared": (lambda f: forge(f, undeclared_seed), "declared", "fails"),
    "a cell run that was not declared": (lambda f: forge(f, undeclared_cell), "declared", "fails"),
    "the declaration edited": (rewrite("declared.json", "[]"), "declared", "fails"),
    "data exchanged": (rewrite("data.json", '{"fake-data": "blake2b:bb"}'), "data", "fails"),
    "data tested on exchanged": (
        lambda f: forge(f, lambda e: finish(e)["prediction"].update(examples_hash="other")),
        "data",
        "fails",
    ),
    "a seed dropped": (extend(PAIR, confirm(seeds=(0, 1))), "declared", "noted"),
    "the readings of a dropped seed": (extend(PAIR, confirm(seeds=(0, 1))), "test split", "noted"),
    "seeds added until one wins": (extend(PAIR, confirm(seeds=4)), "declared", "noted"),
    "the margin changed": (extend(PAIR, confirm(margin=0.05)), "declared", "noted"),
    "the question changed": (extend(PAIR, confirm(question="vera")), "declared", "noted"),
    "a method added": (extend((*PAIR, FakeCell("nola"))), "declared", "noted"),
}


@pytest.mark.parametrize(("cheat", "name", "outcome"), CHEATS.values(), ids=CHEATS)
def test_what_was_done_to_a_folder_is_shown(tmp_path: Path, whole: Path, cheat: Cheat, name: str, outcome: str) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "r"))
    cheat(folder)
    with patch("sweeps.engine.verifying.TrialConfig", FakeTrial):  # whose id its faults do not change
        found = verify(open_store(folder))
    assert outcomes(found)[name] == outcome, found
    assert found.receipt.startswith("NOT" if outcome == "fails" else "Verified") and name in found.receipt


def test_an_honest_folder_holds(whole: Path) -> None:
    found = verify(open_store(whole))
    assert {check.outcome for check in found.checks} == {"holds"}, found
    rows = sum(open_store(whole).table(name).num_rows for name in ("trials", "metrics", "predictions", "choices"))
    assert f"{rows} of {rows} rows follow from the journal" in found.receipt
    tip = read_journal(whole / "journal.jsonl").tip
    assert tip in found.checks[0].says[0]


def test_a_line_without_checksum_is_refused(tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "r"))
    lines(folder, lambda found: found.__setitem__(5, json.dumps({"ev": "ask"}).encode() + b"\n"))
    with pytest.raises(StoreError, match="line 6 has no checksum"):
        verify(open_store(folder))


def test_a_folder_that_went_on_from_a_copy_says_which_rows_are_older(tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "r"))
    (folder / "journal.jsonl").unlink()
    alone = outcomes(verify(open_store(folder)))
    assert alone["journal"] == alone["rows"] == "not checked" and "fails" not in alone.values()
    go(planned(folder, PAIR, confirm(seeds=4)))
    found = verify(open_store(folder))
    assert outcomes(found)["rows"] == "noted" and not found.failed, found


def test_a_copy_that_chose_again_later_holds(tmp_path: Path, whole: Path) -> None:
    """The first choice is only in the table. The journal has a later one, after CONFIRM trials of the first."""
    folder = Path(shutil.copytree(whole, tmp_path / "r"))
    (folder / "journal.jsonl").unlink()
    go(planned(folder, PAIR, confirm(seeds=4)))
    methods = {cell.method: MethodSection() for cell in PAIR}
    go(fake_plan(folder, PAIR, search=FakeSearch(trials=6), confirm=confirm(seeds=4), methods=methods))
    assert events_of(folder, "choose")
    found = verify(open_store(folder))
    assert not found.failed, found


COPIED: dict[str, tuple[Cheat, str]] = {
    "a test score": (lambda f: edit_part(f, "trials", better), "scores"),
    "a validation score": (lambda f: edit_part(f, "trials", lambda r: better(r, "val_score", "TUNE")), "scores"),
    "a trial taken out": (lambda f: edit_part(f, "trials", lambda rows: rows.pop()), "scores"),
    "a choice": (lambda f: edit_part(f, "choices", lambda r: r[0].update(lr=2 * r[0]["lr"])), "choices"),
    "a number of parameters": (
        lambda f: edit_part(f, "trials", lambda rows: [r.update(adapter_params=1) for r in rows]),
        "parameters",
    ),
}


@pytest.mark.parametrize(("cheat", "name"), COPIED.values(), ids=COPIED)
def test_a_copy_without_a_journal_is_checked_against_itself(tmp_path: Path, cheat: Cheat, name: str) -> None:
    folder = Path(shutil.copytree(QUICKSTART, tmp_path / "r"))
    assert not verify(open_store(folder)).failed
    cheat(folder)
    assert name in {check.name for check in verify(open_store(folder)).failed}


@pytest.mark.parametrize("table", ["cells", "trials", "metrics", "predictions", "choices"])
def test_a_copy_without_a_journal_whose_table_is_damaged_is_not_verified(tmp_path: Path, table: str) -> None:
    folder = Path(shutil.copytree(QUICKSTART, tmp_path / "r"))
    part = next((folder / "tables" / table).glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    found = verify(open_store(folder))
    assert "rows" in {check.name for check in found.failed} and found.receipt.startswith("NOT verified")
    assert any(f"a part of the table {table!r} cannot be read" in text for c in found.failed for text in c.says)


def test_a_copy_says_which_tables_and_scores_it_lacks(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(QUICKSTART, tmp_path / "r"))
    shutil.rmtree(folder / "tables" / "metrics")
    shutil.rmtree(folder / "tables" / "predictions")
    [scores] = [check for check in verify(open_store(folder)).checks if check.name == "scores"]
    assert scores.outcome == "noted" and scores.says[0].startswith("0 of 174 scores follow")
    assert "validation scores cannot be checked: the tables lack their epochs" in scores.says[1]
    assert "test scores cannot be checked: the tables lack their answers" in scores.says[2]
    shutil.rmtree(folder / "tables" / "cells")
    [rows] = [check for check in verify(open_store(folder)).failed if check.name == "rows"]
    assert rows.says[0].startswith("trials has rows of 10 cells that the table 'cells' lacks")


@pytest.mark.parametrize("folder", sorted((ROOT / "docs" / "results").glob("*/")), ids=lambda path: path.name)
def test_committed_results_hold(folder: Path) -> None:
    assert not verify(open_store(folder)).failed


def test_methods_that_were_added_later_to_a_copied_study_are_named() -> None:
    (check,) = [c for c in verify(open_store(ROOT / "docs" / "results" / "images")).checks if c.name == "declared"]
    assert check.outcome == "noted"
    assert "methods added after 168 test scores: nola" in check.says


def test_a_report_has_the_receipt_and_its_tables_are_compared(tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "r"))
    receipt = receipt_of(folder)
    page = write_report(folder, receipt=receipt)["report"].read_text()
    assert receipt in page
    assert outcomes(verify(open_store(folder)))["report tables"] == "holds"
    table = folder / "report_tables" / "results.csv"
    table.write_text(table.read_text().replace("6", "9"))
    assert outcomes(verify(open_store(folder)))["report tables"] == "noted"


def test_the_exit_code_says_whether_all_holds(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(QUICKSTART, tmp_path / "r"))

    def called() -> tuple[int, dict[str, Any]]:
        done = sweeps("verify", str(folder), "--json")
        return done.exit_code, json.loads(done.output)

    code, said = called()
    assert (code, said["holds"]) == (0, True)
    edit_part(folder, "trials", better)
    code, said = called()
    assert (code, said["holds"]) == (1, False)
    assert [c["name"] for c in said["checks"] if c["outcome"] == "fails"] == ["scores"]


@pytest.mark.parametrize("moved", [0.0, 0.001])
def test_trials_are_drawn_and_trained_anew(whole: Path, monkeypatch: pytest.MonkeyPatch, moved: float) -> None:
    known = {r["trial_id"]: r for r in open_store(whole).table("last_attempts").to_pylist()}

    def train_again(folder: Path, trial: str) -> Rerun:
        row = known[trial]
        return Rerun(trial, row["val_score"], row["val_score"] + moved, row["test_score"], row["test_score"])

    monkeypatch.setattr("sweeps.engine.rerun.train_again", train_again)
    done = sweeps("verify", str(whole), "--again", "3", "--json")
    said = json.loads(done.output)
    assert len({one["trial_id"] for one in said["again"]} & known.keys()) == 3
    assert {one["word"] for one in said["again"]} == {"NOT the same" if moved else "the same"}
    assert (done.exit_code, said["holds"]) == ((1, False) if moved else (0, True))


@pytest.mark.parametrize(
    ("again", "elsewhere", "word"),
    [
        (0.5, (), "the same"),
        (0.5, ("device",), "the same"),
        (0.519, ("device",), "close"),
        (0.519, (), "NOT the same"),
        (0.521, ("device",), "NOT the same"),
        (None, ("device",), "NOT the same"),
    ],
)
def test_a_word_for_each_trial_that_is_trained_anew(again: float | None, elsewhere: tuple[str, ...], word: str) -> None:
    assert Rerun("a", 0.5, again, 0.4, 0.4, elsewhere).verdict == word


def test_a_folder_that_no_sweep_wrote_is_called_so(tmp_path: Path) -> None:
    found = verify(open_store(make_results(tmp_path / "made")))
    assert {"scores", "configurations"} <= {check.name for check in found.failed}
