"""What a bad disk, a wrong clock or another's hand does to a results folder: refused with a reason, or without effect.

Every case starts from a finished sweep, hurts its folder and runs the same command again, with `--retry-failed` too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import StoreError
from analysis.store.journal import read_journal
from analysis.store.store import open_store
from analysis.store.tables import part_paths
from sweeps.records.locks import IdentityError
from tests.fakes import FakeKeep, FakeTrain
from tests.sweeps.inline import go_inline, lines
from tests.sweeps.records.support import FRAGILE, Harm, assert_retried, edit, small, without
from tests.sweeps.support import assert_same_tables, events, rows


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed sweep of `FRAGILE`."""
    folder = tmp_path_factory.mktemp("failed") / "r"
    assert go_inline(small(folder, FRAGILE)).failed == 2
    return folder


def rewrite(order: Callable[[list[bytes]], list[bytes]]) -> Harm:
    return lambda folder: (folder / "journal.jsonl").write_bytes(b"".join(order(lines(folder))))


def shuffled(found: list[bytes]) -> list[bytes]:
    random.Random(0).shuffle(found)
    return found


def cut(share: float, *, tables: bool = True) -> Harm:
    """A crash long ago: the journal ends early, with or without the tables of what came after."""

    def harm(folder: Path) -> None:
        found = lines(folder)
        (folder / "journal.jsonl").write_bytes(b"".join(found[: int(share * len(found))]))
        if not tables:
            shutil.rmtree(folder / "tables")

    return harm


def old_lines(folder: Path) -> None:
    """As before checksums and numbers of choices."""
    found = [json.loads(line) for line in lines(folder)]
    for event in found:
        del event["crc"]
        event.get("row", {}).pop("sequence", None)
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in found))


def damaged(folder: Path) -> None:
    for name in ("trials", "choices"):
        part = part_paths(folder, name)[-1]
        part.write_bytes(part.read_bytes()[:100])


HARMLESS: dict[str, Harm] = {
    "torn last line": rewrite(lambda found: [*found[:-1], found[-1][:-7]]),
    "zeros after a power cut": rewrite(lambda found: [*found, b"\0" * 512]),
    "every line twice": rewrite(lambda found: [line for line in found for _ in range(2)]),
    "the whole journal twice": rewrite(lambda found: found * 2),
    "lines in reverse": rewrite(lambda found: found[::-1]),
    "lines shuffled": rewrite(shuffled),
    "lines as of an older version": old_lines,
    "no journal": without("journal.jsonl"),
    "an empty journal": rewrite(lambda found: []),
    "no tables": without("tables"),
    "no trials table": without("tables/trials"),
    "no choices and no cells": without("tables/choices", "tables/cells"),
    "damaged tables": damaged,
    "asks lost": lambda folder: edit(folder, lambda e: e.__setitem__(slice(None), [x for x in e if x["ev"] != "ask"])),
    "cut at a fifth": cut(0.2, tables=False),
    "cut at a half": cut(0.5, tables=False),
    "cut after the last choice": cut(0.9, tables=False),
    "sealed, and the events after it lost": cut(0.3),
    "sealed, and the last events lost": cut(0.9),
}


@pytest.mark.parametrize("harm", HARMLESS.values(), ids=HARMLESS)
def test_the_same_command_comes_to_the_same_tables(tmp_path: Path, whole: Path, harm: Harm) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "r"))
    harm(folder)
    left = len({e["row"]["trial_id"] for e in events(folder, "finish")}) if (folder / "journal.jsonl").exists() else 0
    lost = 0 if (folder / "tables/trials").exists() else len(rows(whole, "trials")) - left
    summary = go_inline(small(folder))
    assert summary.complete and summary.finished == lost
    assert_same_tables(folder, whole)
    assert go_inline(small(folder), retry_failed=True).finished == 0


@pytest.mark.parametrize("harm", HARMLESS.values(), ids=HARMLESS)
def test_failed_trials_are_tried_again_with_their_own_rates_and_seeds(
    tmp_path: Path, whole: Path, failed: Path, harm: Harm
) -> None:
    folder = Path(shutil.copytree(failed, tmp_path / "r"))
    harm(folder)
    assert assert_retried(small(folder, FRAGILE), whole).finished >= 2
    assert {r["trial_id"] for r in rows(folder, "trials")} == {r["trial_id"] for r in rows(whole, "trials")}


def test_attempts_are_counted_on_where_the_journal_is_lost(tmp_path: Path, failed: Path) -> None:
    folder = Path(shutil.copytree(failed, tmp_path / "r"))
    (folder / "journal.jsonl").unlink()
    summary = go_inline(small(folder, FRAGILE), trial="tests.fakes:mended_trial", retry_failed=True)
    assert (summary.finished, summary.failed_before) == (2, 0)
    tries = [(r["attempt"], r["status"]) for r in open_store(folder).table("trials").to_pylist() if r["lr"] == 1e-1]
    assert sorted(tries) == [(1, "failed"), (1, "failed"), (2, "finished"), (2, "finished")]


def foreign_spec(folder: Path) -> None:
    path = folder / "spec.json"
    stored = json.loads(path.read_text())
    stored["identity"]["train"]["epochs"] = 9
    path.write_text(json.dumps(stored))


def foreign_tables(folder: Path) -> None:
    """Another sweep's trials under this one's cells."""
    other = small(folder.parent / "other", train=FakeTrain(2))
    go_inline(other)
    shutil.rmtree(folder / "tables")
    shutil.copytree(folder.parent / "other" / "tables", folder / "tables")


def strayed(folder: Path) -> None:
    """An unfinished trial whose folder, and everything in it, would be a neighbour's."""

    def change(found: list[dict[str, Any]]) -> None:
        ask = next(e for e in found if e["ev"] == "ask")
        found[:] = [e for e in found if e.get("trial_id") != ask["trial_id"] or e is ask]
        ask["trial_id"] = "../../../victim"

    edit(folder, change)
    shutil.rmtree(folder / "tables")


def strayed_row(folder: Path) -> None:
    """The same in a finished row, which `keep = best` would go by."""

    def change(found: list[dict[str, Any]]) -> None:
        event = [e for e in found if e["ev"] == "finish"][-1]
        event["row"]["trial_id"] = "../../victim"

    edit(folder, change)
    shutil.rmtree(folder / "tables")


def other_rate(folder: Path) -> None:
    edit(folder, lambda found: next(e for e in found if e["ev"] == "ask")["config"].update(lr=0.5))


def flipped(folder: Path) -> None:
    path = folder / "journal.jsonl"
    data = bytearray(path.read_bytes())
    place = data.index(b'"val_score":0.') + len(b'"val_score":0.')
    data[place] ^= 1
    path.write_bytes(bytes(data))


REFUSED: dict[str, tuple[Harm, type[Exception], str]] = {
    "an id that leads elsewhere": (strayed, StoreError, r"trial '../../../victim' does not match its configuration"),
    "a row's id that leads elsewhere": (strayed_row, StoreError, r"'../../victim' does not belong to cell vera-1000"),
    "a rate that was edited": (other_rate, StoreError, r"journal.jsonl: trial '\w{16}' is not what .*: restore it"),
    "a flipped bit": (flipped, StoreError, r"line \d+ is no event, or does not match its checksum.*Restore it"),
    "no spec.json": (without("spec.json"), IdentityError, "has results, but no spec.json that says whose"),
    "a journal alone": (without("spec.json", "tables"), IdentityError, "has results, but no spec.json"),
    "another sweep's spec.json": (foreign_spec, IdentityError, r"train\.epochs = 3: .* were made with 9"),
    "another sweep's tables": (foreign_tables, StoreError, r"tables/trials: trial '\w{16}' does not belong to cell"),
}


@pytest.mark.parametrize(("harm", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_this_sweeps_is_refused(
    tmp_path: Path, whole: Path, harm: Harm, error: type[Exception], says: str
) -> None:
    folder, victim = Path(shutil.copytree(whole, tmp_path / "r")), tmp_path / "victim"
    (victim / "x").mkdir(parents=True)
    (folder / "work" / "trials").mkdir(parents=True)
    (folder / "adapters").mkdir()
    harm(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(error, match=says):
        go_inline(small(folder, keep=FakeKeep("best")))
    assert victim.is_dir()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_folder_of_the_users_own_work_is_refused(tmp_path: Path) -> None:
    thesis = tmp_path / "work" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.touch()
    with pytest.raises(IdentityError, match=r"has a folder 'work' that no sweep made.*Nearest: \".*/results\""):
        go_inline(small(tmp_path))
    assert list(tmp_path.rglob("*")) == [thesis.parent, thesis]


def test_no_flipped_bit_of_the_journal_goes_unseen(tmp_path: Path, whole: Path) -> None:
    path, drawn = tmp_path / "journal.jsonl", random.Random(0)
    data = (whole / "journal.jsonl").read_bytes()
    events = read_journal(whole / "journal.jsonl").events
    last = data.rindex(b"\n", 0, -1) + 1
    named = 0
    for place in drawn.sample(range(last), 150):
        hurt = bytearray(data)
        hurt[place] ^= 1 << drawn.randrange(8)
        path.write_bytes(bytes(hurt))
        try:
            found = read_journal(path).events
        except StoreError:
            named += 1
        else:  # a bit of the checksum's own name
            assert [{key: now[key] for key in event} for event, now in zip(events, found, strict=True)] == list(events)
    assert named > 140


@pytest.mark.parametrize("name", ["with space", 'it\'s "quoted" $HOME `x` %s {}', "опыт-実験-تجربة", "-rf", "a\nb"])
def test_any_name_of_a_folder_will_do(tmp_path: Path, whole: Path, name: str) -> None:
    folder, fragile = tmp_path / "r" / name, tmp_path / "f" / name
    go_inline(small(folder), stop_after(5))
    assert go_inline(small(folder)).complete
    assert_same_tables(folder, whole)
    assert go_inline(small(fragile, FRAGILE), stop_after(5)).failed
    assert assert_retried(small(fragile, FRAGILE), whole).skipped


def stop_after(count: int) -> Callable[[int], None]:
    def before(done: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return before


def test_drafts_of_a_killed_driver_are_removed_and_those_of_the_living_stay(tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "r"))
    dead = [
        folder / "tables" / "trials" / "part-20260101T000000000000-0123abcd.tmp",
        folder / ".spec.json.999999999.tmp",
    ]
    alive = [folder / f".sweep.json.{os.getppid()}.tmp", folder / "notes.tmp", folder / "tables" / "cka" / "part-1.tmp"]
    for path in (*dead, *alive):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    go_inline(small(folder))
    assert [path.exists() for path in (*dead, *alive)] == [False] * 2 + [True] * 3
