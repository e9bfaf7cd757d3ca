from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError

from sweeps.backends.backend import Event, Finished, Lost, Order, Reported
from sweeps.backends.ray.backend import RayBackend
from sweeps.backends.ray.lanes.line import Line
from sweeps.backends.ray.lanes.worker import _Worker, lane_loop
from sweeps.backends.ray.tune import Ended
from sweeps.backends.reports import failed, keep, make_folder, results_of, storage_fault
from sweeps.records.journal import Journal
from sweeps.spec.resources import ResourceSection
from tests.fakes import TRIAL, FakeCell, FakeSearch, fake_plan
from tests.sweeps.engine.scripted import Scripted, loop_of
from tests.sweeps.support import events
from trainables.training.measured import Measured, Result


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
        "from sweeps.backends.reports import storage_fault\n"
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
    class Heard(_Worker):
        def ask(self, what: str, *arguments: Any) -> Any:
            said.append((what, *arguments))

    said: list[Any] = []
    own = own_folder(tmp_path)
    shutil.rmtree(results_of(own))
    Heard(None, "lane0/0", 0, 1).run([{"key": key, "directory": str(own)} for key in "ab"])
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


Tell = Callable[..., list[Lost | Finished]]


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Takes outcomes from a broker as the Ray backend does; gives the events that the engine gets."""
    monkeypatch.setattr("sweeps.backends.ray.backend.ray.get", lambda answer, **_: answer)
    monkeypatch.setattr(RayBackend, "_tune", lambda self: None)

    def told(*outcomes: dict[str, Any]) -> list[Lost | Finished]:
        pool: Any = SimpleNamespace(
            broker=Said(*outcomes),
            convert_lost_errors=contextlib.nullcontext,
            lost=None,
            down=None,
            follow_nodes=lambda: None,
            pack=lambda resources: 1,
            trials=1,
        )
        backend, ended = RayBackend(pool, ResourceSection()), []
        for number in range(len(outcomes)):
            backend.start([Order(f"t{number}", TRIAL, None, {}, Path("/r"), None, False)])
            backend._held.news.put(Ended(backend._keys[f"t{number}"], False))
            ended += backend.events(0.0)
            backend.stop(f"t{number}", over=False)  # the engine may ask for it while the event is on its way
        return ended

    return told


SCORED = Result(Measured(val_score=0.5))


def whole(host: str, **more: Any) -> dict[str, Any]:
    return {"status": "finished", "state": "finished", "result": SCORED, "events": [], "host": host, **more}


def elsewhere(ended: list[Lost | Finished]) -> list[bool]:
    """Of the lost trials, whether other nodes can run them."""
    return [event.elsewhere for event in ended if isinstance(event, Lost)]


def test_storage_trouble_of_one_node_leaves_the_others(tell: Tell) -> None:
    ended = tell(trouble(), trouble(), whole("n1"))  # of two lanes of that node, perhaps
    assert elsewhere(ended) == [True, True] and isinstance(ended[-1], Finished)
    assert isinstance(ended[0], Lost) and ended[0].fault is not None and ended[0].fault.errno == errno.ENOSPC
    assert elsewhere(tell(trouble("n1"), whole("n1"), trouble("n2"))) == [True, True]  # not both at a time
    assert elsewhere(tell(trouble("n1"), trouble("n2"))) == [True, False]


def test_storage_trouble_of_a_groups_further_node_is_its_workers_too(tell: Tell) -> None:
    def group(name: str) -> dict[str, Any]:
        return trouble("n3") | {"worker": (name, "n2")}

    fine = whole("n2", worker=("lane1/0", "n2"))
    assert elsewhere(tell(trouble("n1"), group("lane1/0"))) == [True, True]
    assert elsewhere(tell(trouble("n1"), group("lane1/0"), fine, group("lane2/0"))) == [True, True, True]
    assert elsewhere(tell(trouble("n1"), group("lane1/0"), group("lane2/0"))) == [True, True, False]


def lost_to_a_disk(order: Order, *, elsewhere: bool) -> Lost:
    outcome = trouble()
    return Lost(order.trial_id, outcome, OSError(outcome["storage"], f"{outcome['reason']} (on host n2)"), elsewhere)


def test_a_trial_that_storage_failed_is_tried_again_and_the_trouble_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def says(orders: Sequence[Order]) -> list[Event]:
        again = backend.tried.count(orders[0].trial_id) > 1
        return [Finished(orders[0].trial_id, whole("n1"))] if again else [lost_to_a_disk(orders[0], elsewhere=True)]

    backend = Scripted(says)
    plan = fake_plan(tmp_path / "r", (FakeCell("lora"),), search=FakeSearch(trials=1, rerun_rates=0, rerun_seeds=0))
    with contextlib.contextmanager(loop_of)(plan, tmp_path / "r", backend) as (loop, ledger):
        loop.run()
    assert [row.attempt for row in ledger.finished] == [1, 1, 1]
    assert Counter(backend.tried) == {row.trial_id: 2 for row in ledger.finished}
    assert {event["host"] for event in events(tmp_path / "r", "trouble")} == {"n2"}
    assert "No space left on device" in events(tmp_path / "r", "trouble")[0]["reason"]
    assert len([r for r in caplog.records if "(on host n2)" in r.message]) == 3


@pytest.mark.parametrize("driver_too", [False, True])
def test_storage_trouble_of_all_nodes_or_of_the_driver_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver_too: bool
) -> None:
    real = Journal.write

    def write(self: Journal, event: dict[str, Any], *, sync: bool = True) -> None:
        if event["ev"] == "trouble":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(self, event, sync=sync)

    monkeypatch.setattr(Journal, "write", write)
    backend = Scripted(lambda orders: [lost_to_a_disk(orders[0], elsewhere=driver_too)])
    with contextlib.contextmanager(loop_of)(
        fake_plan(tmp_path / "r", (FakeCell("lora"),)), tmp_path / "r", backend
    ) as (loop, ledger):
        with pytest.raises(OSError, match="on host n2") as caught:
            loop.run()
        assert caught.value.errno == errno.ENOSPC
        assert isinstance(caught.value.__cause__, OSError) == driver_too
        assert ledger.state.running == 0


def test_a_trial_that_was_stopped_stays_so_where_storage_fails_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.engine.loop.should_stop", lambda *_: True)

    def says(orders: Sequence[Order]) -> list[Event]:
        if orders[0].judged:
            return [Reported(orders[0].trial_id, 1, 0.1, 0.1, 1.0), lost_to_a_disk(orders[0], elsewhere=True)]
        return [Finished(orders[0].trial_id, whole("n1"))]

    plan = fake_plan(tmp_path / "r", (FakeCell("lora"),), search=FakeSearch(pruner="asha", rerun_rates=0))
    with contextlib.contextmanager(loop_of)(plan, tmp_path / "r", Scripted(says)) as (loop, ledger):
        loop.run()
    assert {row.status for row in ledger.finished if row.stage == "TUNE"} == {"pruned"}
    assert len(events(tmp_path / "r", "trouble")) == len([r for r in ledger.finished if r.stage == "TUNE"]) > 0


def test_a_worker_rests_after_storage_trouble_until_it_is_told_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("sweeps.backends.ray.lanes.line.ray.get", lambda answer: answer)
    monkeypatch.setattr("sweeps.backends.ray.lanes.line.time.sleep", slept.append)
    line = Line(Said(patience=4), "lane1/0", "t")
    line.finish("k", None, {"status": "failed", "storage": None})
    line.pause_after_storage_failure()
    assert not slept
    line.finish("k", None, {"status": "failed", "storage": errno.EIO})
    line.pause_after_storage_failure()
    assert len(slept) == 3


def test_a_lane_rests_between_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    orders = iter([[{"key": "k"}], [], [{"key": "a"}, {"key": "b"}], "stop"])
    context = SimpleNamespace(get_world_rank=lambda: 0)
    monkeypatch.setattr("sweeps.backends.ray.lanes.worker.ray.train.get_context", lambda: context)
    for name, does in {
        "hello": lambda self: None,
        "ask": lambda self, *_: next(orders),
        "run": lambda self, orders: done.append(f"run {len(orders)}"),
        "pause_after_storage_failure": lambda self: done.append("rest"),
    }.items():
        monkeypatch.setattr(_Worker, name, does)
    config = {"broker": None, "lane": "lane0", "group": False, "isolated": False, "threads": torch.get_num_threads()}
    assert lane_loop(config) == 3
    assert done == ["run 1", "rest", "run 2", "rest"]
