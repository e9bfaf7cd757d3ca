"""A copy of the results on another file system: whole files only, gone on from elsewhere, and no harm when it fails."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from analysis import open_store
from analysis.errors import StoreError
from analysis.store.remote import Location
from analysis.store.tables import part_paths
from analysis.verdict.looks import Looks, looks, margin_of
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.backends.resources import ResourceError
from sweeps.engine.prepare import prepare
from sweeps.engine.run import RunSummary, run
from sweeps.errors import SpecError
from sweeps.plan.plan import Plan
from sweeps.records import sealing
from sweeps.records.locks import IdentityError, check_identity, write_identity
from sweeps.records.sealing import Sealer
from sweeps.records.upload import Upload, check_location, check_same, restore
from sweeps.spec.sections import ConfirmSection
from sweeps.spec.spec import SweepSpec
from tests.fakes import TRIAL, FakeCell, FakeConfirm, FakeKeep, FakePlan, FakeResources, FakeTrain, fake_plan
from tests.sweeps.inline import go_inline
from tests.sweeps.records.support import finish_events, small, subtree
from tests.sweeps.spec.support import GOOD, write
from tests.sweeps.support import PAIR, Undisturbed, assert_same_tables


class Flaky(LocalFileSystem):  # type: ignore[misc]
    """A disk that takes `room` bytes of a file and then is full."""

    room: int | None = None
    cachable = False

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **how: Any) -> Any:
        file = super()._open(path, mode, block_size, **how)
        if "w" in mode and self.room is not None:
            real, room = file.write, self.room

            def write(data: bytes) -> int:
                real(bytes(data)[:room])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            file.write = write
        return file


def sealed(folder: Path, count: int, tmp_path: Path) -> None:
    folder.mkdir()
    sealer = Sealer(folder)
    for event in finish_events(tmp_path, count):
        sealer.add(event)
    sealer.seal()
    (folder / "spec.json").write_text('{"identity": {}}')
    (folder / "adapters" / "x").mkdir(parents=True)
    (folder / "adapters" / "x" / "adapter.json").write_text("{}")


def test_parts_arrive_once_and_come_back(tmp_path: Path) -> None:
    sealed(tmp_path / "r", 3, tmp_path)
    there = subtree(tmp_path / "bucket")
    upload = Upload(tmp_path / "r", there)
    upload.sync()
    names = there.files()
    assert sorted({name.split("/")[0] for name in names}) == ["adapters", "spec.json", "tables"]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "bucket").rglob("*") if p.is_file()}
    upload.sync()
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "bucket").rglob("*") if p.is_file()}
    assert restore(tmp_path / "new", there) == 4  # three tables of trials, and spec.json
    assert open_store(tmp_path / "new").table("trials").equals(open_store(tmp_path / "r").table("trials"))
    (tmp_path / "new" / "spec.json").unlink()  # as if the fetch had been cut off
    shutil.rmtree(tmp_path / "new" / "tables" / "trials")
    assert restore(tmp_path / "new", there) == 2
    assert open_store(tmp_path / "new").table("trials").equals(open_store(tmp_path / "r").table("trials"))
    (tmp_path / "new" / "journal.jsonl").touch()
    assert restore(tmp_path / "new", there) == 0
    shutil.rmtree(tmp_path / "r" / "adapters" / "x")  # not the best of its cell, it turned out
    upload.sync()
    assert not [name for name in there.files() if name.startswith("adapters/")]


def test_a_row_that_arrived_has_all_its_rows_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r").mkdir()
    sealer, made, there = Sealer(tmp_path / "r"), finish_events(tmp_path, 2), subtree(tmp_path / "bucket")
    real = Location.put

    def put(location: Location, source: Path, name: str) -> None:
        if "/predictions/" in name:
            sealer.add(made[1])
            sealer.seal()  # as the driver does meanwhile
        real(location, source, name)

    monkeypatch.setattr(Location, "put", put)
    sealer.add(made[0])
    sealer.seal()
    Upload(tmp_path / "r", there).sync()
    restore(tmp_path / "copy", there)
    store = open_store(tmp_path / "copy")
    assert [store.table(name).num_rows for name in ("trials", "metrics", "predictions")] == [1, 3, 1]


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("cut", [True, False], ids=["cut off", "of the same size"])
def test_parts_that_were_damaged_come_again(tmp_path: Path, aside: bool, cut: bool) -> None:
    sealed(tmp_path / "r", 3, tmp_path)
    there = subtree(tmp_path / "bucket")
    Upload(tmp_path / "r", there).sync()
    restore(tmp_path / "copy", there)
    (tmp_path / "copy" / "journal.jsonl").touch()  # it has nothing of the old trials
    facts = tmp_path / "copy" / "spec.json"
    facts.write_text("{}")
    (part,) = part_paths(tmp_path / "copy", "trials")
    whole = part.read_bytes()
    part.write_bytes(b"" if cut else whole[:-3] + b"???")
    if aside:
        assert len(Sealer(tmp_path / "copy").damaged) == 1
    assert [restore(tmp_path / "copy", there) for _ in range(2)] == [1, 0]
    assert Sealer(tmp_path / "copy").damaged == [] and facts.read_text() == "{}"
    assert open_store(tmp_path / "copy").table("trials").equals(open_store(tmp_path / "r").table("trials"))


def test_an_adapter_that_is_outdone_before_the_first_copy_of_a_run_goes_there_too(tmp_path: Path) -> None:
    sealed(tmp_path / "r", 2, tmp_path)
    there = subtree(tmp_path / "bucket")
    Upload(tmp_path / "r", there).sync()
    again = Upload(tmp_path / "r", there)
    shutil.rmtree(tmp_path / "r" / "adapters" / "x")
    again.sync()
    assert not [name for name in there.files() if name.startswith("adapters/")]


def test_an_adapter_that_is_trained_again_is_copied_again(tmp_path: Path) -> None:
    sealed(tmp_path / "r", 2, tmp_path)
    there = subtree(tmp_path / "bucket")
    weights = tmp_path / "r" / "adapters" / "x" / "adapter.safetensors"
    weights.write_bytes(b"first attempt.")
    upload = Upload(tmp_path / "r", there)
    upload.sync()
    weights.write_bytes(b"second attempt")  # of the same size
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    upload.sync()
    assert there.read("adapters/x/adapter.safetensors") == b"second attempt"


def test_a_store_is_opened_by_its_uri(tmp_path: Path) -> None:
    sealed(tmp_path / "r", 2, tmp_path)
    uri = (tmp_path / "bucket").as_uri()
    Upload(tmp_path / "r", Location.of(uri)).sync()
    assert open_store(uri).table("trials").num_rows == 2
    assert open_store(uri).sql("select count(*) as n from metrics")["n"].to_pylist() == [6]
    with pytest.raises(StoreError, match="holds no sweep"):
        open_store((tmp_path / "elsewhere").as_uri())
    with pytest.raises(StoreError, match=r"nearest: file:///my%20results"):
        Location.of("file:///my results")
    with pytest.raises(StoreError, match=r"'nfs://x/y' is no place for results.*nearest: s3://BUCKET/FOLDER"):
        open_store("nfs://x/y")


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Location, "files", lambda _: {"spec.json": 2, "tables/../../victim/part-1.parquet": 2})
    monkeypatch.setattr(Location, "read", lambda *_: b"{}")
    with pytest.raises(StoreError, match=r"test://results/a: the file 'tables/../../victim/part-1.parquet' leads out"):
        restore(tmp_path / "r", subtree(tmp_path / "bucket"))
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


def test_a_copy_goes_where_nobody_else_can_put_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed(tmp_path / "r", 2, tmp_path)
    uri = (tmp_path / "bucket").as_uri()
    Upload(tmp_path / "r", Location.of(uri)).sync()
    monkeypatch.setenv("SWEEPS_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache" / f"stores-{os.getuid()}"
    assert open_store(uri).path.parent == place
    assert [folder.stat().st_mode & 0o777 for folder in (place, place.parent)] == [0o700] * 2
    shutil.rmtree(place)
    (tmp_path / "another").mkdir()
    place.symlink_to(tmp_path / "another")
    if os.getuid() == 0:
        os.chown(tmp_path / "another", 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        place.rename(place.with_name("stores-12345"))
    with pytest.raises(StoreError, match=r"is another user's \(uid \d+\); set SWEEPS_CACHE to a folder of yours"):
        open_store(uri)  # whose owner could put any results there
    assert list((tmp_path / "another").iterdir()) == []


@pytest.mark.parametrize("word", ["off", "OFF", "none", "0"])
def test_a_cache_switched_off_makes_no_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    sealed(tmp_path / "r", 2, tmp_path)
    uri = (tmp_path / "bucket").as_uri()
    Upload(tmp_path / "r", Location.of(uri)).sync()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEPS_CACHE", word)
    before = sorted(tmp_path.iterdir())
    assert open_store(uri).table("trials").num_rows == 2
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_was_cut_off_is_copied_again(tmp_path: Path) -> None:
    sealed(tmp_path / "r", 2, tmp_path)
    disk = Flaky()
    there = Location(pafs.PyFileSystem(pafs.FSSpecHandler(disk)), str(tmp_path / "bucket"), "test://full")
    notes: list[str] = []
    upload = Upload(tmp_path / "r", there, note=notes.append)
    disk.room = 100
    upload.copy_now()
    upload.copy_now()
    assert len(notes) == 1  # said once, not every five minutes
    assert "No space left" in notes[0]
    cut_off = there.files()
    assert "spec.json" in cut_off and not any(name.startswith("tables/trials/") for name in cut_off)
    part = part_paths(tmp_path / "r", "trials")[0].relative_to(tmp_path / "r")
    (tmp_path / "bucket" / part).parent.mkdir(parents=True)
    (tmp_path / "bucket" / part).write_bytes(b"PAR1")  # as an earlier driver left it when its machine was lost
    disk.room = None
    upload.start()
    assert upload.finish() is None
    parts = [p for name in ("trials", "metrics", "predictions") for p in part_paths(tmp_path / "r", name)]
    for part in parts:
        assert (tmp_path / "bucket" / part.relative_to(tmp_path / "r")).read_bytes() == part.read_bytes()


def test_a_fetched_part_that_was_cut_off_is_fetched_again(tmp_path: Path) -> None:
    sealed(tmp_path / "r", 2, tmp_path)
    there = subtree(tmp_path / "bucket")
    Upload(tmp_path / "r", there).sync()
    name = part_paths(tmp_path / "r", "trials")[0].relative_to(tmp_path / "r")
    copy = tmp_path / "bucket" / "results" / "a" / name
    whole = copy.read_bytes()
    copy.write_bytes(whole[:50])  # a reader comes while it is copied
    there.fetch(tmp_path / "read")
    assert len((tmp_path / "read" / name).read_bytes()) == 50
    copy.write_bytes(whole)
    assert there.fetch(tmp_path / "read") == 1
    assert open_store(tmp_path / "read").table("trials").num_rows == 2


@pytest.mark.parametrize("kind", [OSError, RuntimeError])  # pyarrow's own; as the HTTP client of hf:// has
def test_a_place_that_does_not_answer_is_bad_input(tmp_path: Path, kind: type[Exception]) -> None:
    class Deaf(Flaky):
        def find(self, *_: Any, **__: Any) -> Any:
            raise kind("connection refused")

        info = ls = find

    there = Location(pafs.PyFileSystem(pafs.FSSpecHandler(Deaf())), str(tmp_path), "test://deaf")
    for ask in (lambda: check_location(there, {}), lambda: restore(tmp_path / "r", there)):
        with pytest.raises(SpecError, match=r"--upload = 'test://deaf': does not answer \(.*connection refused"):
            ask()
    assert "connection refused" in str(Upload(tmp_path, there, note=lambda _: None).copy_now())


def test_rows_that_wait_long_are_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(sealing.time, "monotonic", lambda: clock[0])
    (tmp_path / "r").mkdir()
    sealer, made = Sealer(tmp_path / "r", every=60.0), finish_events(tmp_path, 2)
    sealer.add(made[0])
    clock[0] += 59
    sealer.add(made[1])
    sealer.seal_if_late()
    assert part_paths(tmp_path / "r", "trials") == []
    clock[0] += 1
    sealer.seal_if_late()  # while the next trial trains
    assert open_store(tmp_path / "r").table("trials").num_rows == 2


def test_a_refused_run_leaves_nothing_there_either(tmp_path: Path) -> None:
    there = subtree(tmp_path / "bucket")
    plan = fake_plan(tmp_path / "r", resources=FakeResources(concurrent=10_000))
    with pytest.raises(ResourceError):
        run(plan, trial=TRIAL, progress=False, upload=there)
    assert there.files() == {} and not (tmp_path / "r").exists()


def test_a_sweep_that_came_and_went_meanwhile_keeps_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another(*_: object) -> None:
        go_inline(small(tmp_path / "r", PAIR[:1], train=FakeTrain(9)))

    monkeypatch.setattr("sweeps.engine.prepare.check_location", another)
    with pytest.raises(IdentityError, match=r"train\.epochs = 3: the results in \S+ were made with 9"):
        go_inline(small(tmp_path / "r", PAIR[:1]), upload=subtree(tmp_path / "bucket"))
    assert open_store(tmp_path / "r").stored()["train"]["epochs"] == 9


def test_a_machine_that_comes_back_does_not_go_on_beside_the_copy(tmp_path: Path) -> None:
    def go(machine: str, *cells: FakeCell, seeds: int) -> RunSummary:
        plan = small(tmp_path / machine, cells, confirm=FakeConfirm(tuple(range(seeds))))
        return go_inline(plan, upload=subtree(tmp_path / "bucket"))

    go("a", *PAIR[:1], seeds=2)
    assert go("b", *PAIR, seeds=4).skipped == 6
    declared = tmp_path / "bucket" / "results" / "a" / "declared.json"
    before, lines = declared.read_bytes(), (tmp_path / "a" / "journal.jsonl").read_bytes()
    with pytest.raises(SpecError, match=r"has 1 part\(s\) of finished trials that \S+/a lacks.*move that folder"):
        go("a", *PAIR[:1], seeds=2)
    with pytest.raises(SpecError, match="lacks"):  # as `sweeps analyze --upload`
        check_same(subtree(tmp_path / "bucket"), tmp_path / "a")
    assert (declared.read_bytes(), (tmp_path / "a" / "journal.jsonl").read_bytes()) == (before, lines)
    part = part_paths(tmp_path / "b", "trials")[-1]
    part.write_bytes(part.read_bytes()[:-9])
    for _ in range(2):  # it is set aside, and written again from the journal
        assert go("b", *PAIR, seeds=4).finished == 0
    (tmp_path / "a").rename(tmp_path / "away")
    assert (again := go("a", *PAIR, seeds=4)).complete and again.finished == 0


def test_a_sweep_goes_on_from_the_copy(tmp_path: Path, pool: Pool, undisturbed: Undisturbed) -> None:
    there, confirm = subtree(tmp_path / "bucket"), ConfirmSection(seeds=(0, 1), margin=0.01)
    part = fake_plan(tmp_path / "r", PAIR[:1], keep=FakeKeep("best"), confirm=confirm)
    summary = run(part, trial=TRIAL, progress=False, backend=using(pool), upload=there)
    assert summary.not_uploaded is None
    assert len([name for name in there.files() if name.endswith("adapter.json")]) == 1
    shutil.rmtree(tmp_path / "r")  # the machine is lost
    again = run(
        fake_plan(tmp_path / "r", PAIR, confirm=confirm), trial=TRIAL, progress=False, backend=using(pool), upload=there
    )
    assert (again.skipped, again.finished) == (8, 8)
    whole = undisturbed(PAIR, confirm=confirm)
    assert_same_tables(tmp_path / "r", whole)
    restore(tmp_path / "copy", there)
    assert_same_tables(tmp_path / "copy", whole)
    for folder in (whole, tmp_path / "r", tmp_path / "copy"):
        assert (looks(open_store(folder)), margin_of(open_store(folder))) == ({"fake": Looks((2,))}, 0.01)
    other = FakePlan(part.spec.model_copy(update={"output": tmp_path / "other", "train": FakeTrain(9)}), part.cells)
    with pytest.raises(IdentityError, match=r"train\.epochs = 9: the results in test://results/a were made with 3"):
        run(other, trial=TRIAL, progress=False, upload=there)


TEXTS = GOOD.replace("embedded:tiny-clip", "hf:microsoft/Phi-3-mini-4k-instruct").replace(
    "embedded:fashion-mnist", "boolq"
)


@pytest.mark.parametrize("text", [GOOD, TEXTS + "[evaluate]\nvalidation_rows = 64\n"], ids=["images", "texts"])
def test_the_rules_of_the_copy_are_those_that_it_was_begun_with(tmp_path: Path, text: str) -> None:
    """A sweep file leaves the local fit and the rule of its evaluated rows to the program."""
    plan = Plan.from_spec(SweepSpec.load(write(tmp_path, text), [f"output={str(tmp_path / 'r')!r}"]))
    there = subtree(tmp_path / "bucket")
    copy = tmp_path / "bucket" / "results" / "a"
    copy.mkdir(parents=True)
    write_identity(copy, plan.spec.identity())
    with prepare(plan, backend="inline", trial=TRIAL, upload=there) as prepared:
        assert prepared.plan.spec.identity() == plan.spec.identity()
        assert prepared.plan.spec.search.refine == "auto"


def test_a_changed_hold_is_named_as_the_sweep_file_calls_it(tmp_path: Path) -> None:
    specs = [SweepSpec.load(write(tmp_path, GOOD), [f"confirm.hold={{data_seed={seed}}}", "name=t"]) for seed in (0, 1)]
    write_identity(tmp_path, specs[0].identity())
    with pytest.raises(IdentityError, match=r"confirm\.hold\.data_seed = 1: .* Nearest: confirm\.hold\.data_seed = 0"):
        check_identity(tmp_path, specs[1].identity())
