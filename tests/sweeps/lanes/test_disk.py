from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError

from sweeps.lanes.packed_worker import run_together
from sweeps.lanes.packs import Packing
from sweeps.lanes.reports import Line, failed, keep, make_folder, results_of, storage_fault
from sweeps.lanes.tune import Dispatcher
from sweeps.lanes.worker import _Worker, lane_loop
from sweeps.records.journal import Journal
from sweeps.records.ledger import Ledger
from sweeps.records.sealing import Sealer
from sweeps.search.stages import SweepState
from tests.fakes import TRIAL, FakeCell, FakeSearch, fake_plan
from tests.sweeps.support import events


def own_folder(tmp_path: Path) -> Path:
    """A trial's folder in a results folder."""
    own = tmp_path / "r" / "work" / "trials" / "0123456789abcdef"
    own.mkdir(parents=True)
    return own


def test_what_the_system_says_is_found_whoever_passes_it_on(tmp_path: Path) -> None:
    own = own_folder(tmp_path)
    assert storage_fault(OSError(errno.ENOSPC, "No space left on device"), own) == errno.ENOSPC
    assert storage_fault(SafetensorError("I/O error: Read-only file system (os error 30)"), own) == errno.EROFS
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert storage_fault(error, own) == errno.EDQUOT


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_a_results_folder_that_refuses_is_storage_and_another_file_is_the_trials_own(tmp_path: Path, code: int) -> None:
    own, words = own_folder(tmp_path), os.strerror(code)
    for inside in (own / "state", tmp_path / "r" / "adapters" / "x", own.parent):
        assert storage_fault(OSError(code, words, str(inside)), own) == code
        assert storage_fault(OSError(code, words, "/elsewhere", None, str(inside)), own) == code
    assert storage_fault(OSError(code, words, str(tmp_path / "data" / "a.png")), own) is None
    assert storage_fault(SafetensorError(f"{words} (os error {code})"), own) is None  # of a model's file, perhaps


def test_a_results_folder_that_is_gone_is_storage_and_a_missing_file_is_the_trials_own(tmp_path: Path) -> None:
    own = own_folder(tmp_path)
    for missing in (own / "state", tmp_path / "data" / "a.png"):
        assert storage_fault(FileNotFoundError(errno.ENOENT, "gone", str(missing)), own) is None
    make_folder(own)
    (tmp_path / "r").rename(tmp_path / "away")
    assert storage_fault(FileNotFoundError(errno.ENOENT, "gone", str(own / "state")), own) == errno.ENOENT
    assert storage_fault(SafetensorError("No such file or directory (os error 2)"), own) == errno.ENOENT
    with pytest.raises(FileNotFoundError, match="the results folder is gone") as raised:
        make_folder(own)
    assert storage_fault(raised.value, own) == errno.ENOENT
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone"), ValueError("x"), pa.ArrowInvalid("x"), None]
)
def test_other_errors_are_the_trials_own(tmp_path: Path, error: Exception | None) -> None:
    assert storage_fault(error, own_folder(tmp_path)) is None


def test_the_words_of_a_real_writer_without_room(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch\nfrom pathlib import Path\nfrom safetensors.torch import save_file\n"
        "from sweeps.lanes.reports import storage_fault\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    save_file({'x': torch.zeros(10_000)}, sys.argv[1])\n"
        "except Exception as error:\n    print(storage_fault(error, Path(sys.argv[1]).parent))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.strip() == str(errno.EFBIG)


def test_kept_weights_are_the_last_attempts(tmp_path: Path) -> None:
    own, kept = own_folder(tmp_path), tmp_path / "r" / "adapters" / "x"
    for attempt in ("one whose end nobody heard", "the row's"):
        (own / "adapter").mkdir()
        (own / "adapter" / "weights").write_text(attempt)
        keep({"keep": str(kept)}, own)
    assert (kept / "weights").read_text() == "the row's"


def test_storage_trouble_of_a_pack_says_nothing_of_packing(tmp_path: Path) -> None:
    class Heard(Line):
        def ask(self, what: str, *arguments: Any) -> Any:
            said.append((what, *arguments))

    said: list[Any] = []
    own = own_folder(tmp_path)
    shutil.rmtree(results_of(own))
    run_together(Heard(None, "lane0/0", "t"), [{"key": key, "directory": str(own)} for key in "ab"])
    ((what, keys, why, cause),) = said
    assert (what, keys, cause) == ("unpack", ["a", "b"], "storage") and "the results folder is gone" in why


class Said:
    """A broker: `take` gives the outcomes in turn; two machines are there until `status` was asked `patience` times."""

    def __init__(self, *outcomes: dict[str, Any], patience: int = 1000) -> None:
        self.outcomes, self.patience = list(outcomes), patience
        self.given: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._answer(name, *arguments))

    def _answer(self, name: str, *arguments: Any) -> Any:
        self.given.append(name)
        if name == "take":
            return self.outcomes.pop(0)
        self.patience -= name == "status"
        told = {
            "workers": {"lane0/0": "n1", "lane1/0": "n2", "lane2/0": "n2"},
            "dead": None if self.patience > 0 else "shut down",
        }
        return told if name == "status" else None


def trouble(host: str = "n2") -> dict[str, Any]:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")
    return {**failed(error, Path("/r/trials/x")), "state": "failed", "host": host}


Tell = Callable[..., tuple[Dispatcher, list[str]]]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tell]:
    """Passes outcomes to a dispatcher, each of the trial that is then next; it, and the ids of those trials."""
    monkeypatch.setattr("sweeps.lanes.tune.ray.get", lambda answer: answer)
    plan = fake_plan(tmp_path / "r", (FakeCell("lora"),), search=FakeSearch(pruner="asha"))
    state = SweepState(plan.feasible, plan.spec)
    with Journal(tmp_path / "r" / "journal.jsonl") as journal:
        ledger = Ledger(state, journal, Sealer(tmp_path / "r"), tmp_path / "r", "none")

        def told(*outcomes: dict[str, Any]) -> tuple[Dispatcher, list[str]]:
            dispatcher = Dispatcher(ledger, Said(*outcomes), "broker", TRIAL, 9, lambda: None, Packing(1, 2, {}))
            tried = []
            for number in range(len(outcomes)):
                assert isinstance(dispatcher.suggest(f"tune{number}"), dict)
                tried.append(next(iter(dispatcher.slots.values())).trial_id)
                dispatcher.on_trial_complete(f"tune{number}", error=False)
            return dispatcher, tried

        yield told


def test_storage_trouble_of_one_machine_is_noted_and_its_trial_goes_elsewhere(
    tmp_path: Path, tell: Tell, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {"state": "finished", "result": None, "events": [], "host": "n1"}
    dispatcher, tried = tell(trouble(), trouble(), whole)  # of two lanes of that machine, perhaps
    assert dispatcher.error is None and not dispatcher.interrupted
    assert len(set(tried)) == 1 and dispatcher.ledger.finished[0].attempt == 1
    event, _ = events(tmp_path / "r", "trouble")
    assert event["host"] == "n2" and "No space left on device" in event["reason"]
    assert [r.message for r in caplog.records if "(on host n2)" in r.message]
    again, _ = tell(trouble("n1"), whole, trouble("n2"))  # not both at a time
    assert again.error is None


def test_storage_trouble_of_all_machines_ends_the_sweep(tell: Tell) -> None:
    dispatcher, tried = tell(trouble("n1"), trouble("n2"))
    assert isinstance(dispatcher.error, OSError) and dispatcher.interrupted
    assert dispatcher.error.errno == errno.ENOSPC and "on host n2" in str(dispatcher.error)
    assert tried[0] == tried[1]


def test_storage_trouble_of_a_groups_further_machine_is_its_workers_too(tell: Tell) -> None:
    def group(name: str) -> dict[str, Any]:
        return trouble("n3") | {"worker": (name, "n2")}

    whole = {"state": "finished", "result": None, "events": [], "host": "n2", "worker": ("lane1/0", "n2")}
    assert tell(trouble("n1"), group("lane1/0"))[0].error is None
    assert tell(trouble("n1"), group("lane1/0"), whole, group("lane2/0"))[0].error is None
    assert isinstance(tell(trouble("n1"), group("lane1/0"), group("lane2/0"))[0].error, OSError)


def test_a_trial_that_was_stopped_stays_so_where_storage_fails_then(
    tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.lanes.tune.should_stop", lambda *_: True)
    dispatcher, _ = tell()
    dispatcher.broker = Said(trouble())
    given = dispatcher.suggest("t")
    assert isinstance(given, dict)
    report = {"status": "running", "epoch": 1, "score": 0.1, "seconds": 1.0, "train_loss": 0.1}
    assert dispatcher.saw(given["key"], report)
    dispatcher.on_trial_complete("t", error=False)
    assert dispatcher.error is None
    assert [row["status"] for row in dispatcher.ledger.finished] == ["pruned"]
    assert len(events(tmp_path / "r", "trouble")) == 1


def test_storage_trouble_of_the_driver_too_ends_the_sweep(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Journal.write

    def write(self: Journal, event: dict[str, Any], *, sync: bool = True) -> None:
        if event["ev"] == "trouble":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(self, event, sync=sync)

    monkeypatch.setattr(Journal, "write", write)
    dispatcher, _ = tell(trouble())
    assert isinstance(dispatcher.error, OSError) and "on host n2" in str(dispatcher.error)
    assert isinstance(dispatcher.error.__cause__, OSError) and dispatcher.error.__cause__.errno == errno.EROFS


def test_a_worker_rests_after_storage_trouble_until_it_is_told_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("sweeps.lanes.reports.ray.get", lambda answer: answer)
    monkeypatch.setattr("sweeps.lanes.reports.time.sleep", slept.append)
    line = Line(Said(patience=4), "lane1/0", "t")
    line.finish("k", None, {"status": "failed", "storage": None})
    line.rest()
    assert not slept
    line.finish("k", None, {"status": "failed", "storage": errno.EIO})
    line.rest()
    assert len(slept) == 3


def test_a_lane_rests_between_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    orders = iter([{"key": "k"}, [{"key": "a"}, {"key": "b"}], "stop"])
    context = SimpleNamespace(get_world_rank=lambda: 0)
    monkeypatch.setattr("sweeps.lanes.worker.ray.train.get_context", lambda: context)
    monkeypatch.setattr("sweeps.lanes.worker.run_together", lambda worker, orders: done.append("pack"))
    for name, does in {
        "hello": lambda self: None,
        "ask": lambda self, *_: next(orders),
        "run": lambda self, order: done.append("trial"),
        "rest": lambda self: done.append("rest"),
    }.items():
        monkeypatch.setattr(_Worker, name, does)
    config = {"broker": None, "lane": "lane0", "group": False, "isolated": False, "threads": torch.get_num_threads()}
    assert lane_loop(config) == 3
    assert done == ["trial", "rest", "pack", "rest"]
