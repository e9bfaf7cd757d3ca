"""An allowance in seconds is spent on one kind of device: refused otherwise, before anything is written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from analysis.store.store import open_store
from sweeps.cli.status import progress_of
from sweeps.cluster import hardware
from sweeps.cluster.hardware import DeviceError, Machine, check_devices, kind_of, kinds, machines, processor
from sweeps.lanes.pool import Pool
from tests.fakes import FakeCell, FakePlan, FakeResources, FakeSamples, FakeSearch, FakeSpec, fake_plan
from tests.sweeps.support import go

A = Machine("a", 8, 0, "Xeon 6")
B = Machine("b", 8, 0, "EPYC 9")
H100 = Machine("h", 8, 2, "Xeon 6", ("NVIDIA H100", "NVIDIA H100"))
MIXED = Machine("m", 8, 2, "Xeon 6", ("NVIDIA H100", "NVIDIA A100"))
CELLS = (FakeCell("lora", options=(("seconds", 20.0),)),)  # an epoch of three, however long it really takes


def in_seconds(
    folder: Path, seconds: float | None = 320.0, cells: tuple[FakeCell, ...] = CELLS, **how: Any
) -> FakePlan:
    allowance = None if seconds is None else FakeSamples(seconds=seconds)
    return fake_plan(folder, cells, search=FakeSearch(sampler="qmc", allowance=allowance), **how)


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        ([A, A], {}, {"Xeon 6": ["a", "a"]}),
        ([A, B], {}, {"Xeon 6": ["a"], "EPYC 9": ["b"]}),
        ([A, Machine("small", 1, 0, "EPYC 9")], {"cpus_per_worker": 4}, {"Xeon 6": ["a"]}),
        ([A, H100], {"gpus_per_worker": "auto"}, {"NVIDIA H100": ["h"]}),
        ([A, H100], {"gpus_per_worker": 0.5}, {"NVIDIA H100": ["h"]}),
        ([A, H100], {"gpus_per_worker": 0}, {"Xeon 6": ["a", "h"]}),
        ([MIXED], {"gpus_per_worker": 1}, {"NVIDIA H100": ["m"], "NVIDIA A100": ["m"]}),
        ([Machine("x", 8, 1, "Xeon 6")], {"gpus_per_worker": 1}, {"GPU": ["x"]}),
        ([A], {"gpus_per_worker": 1}, {}),
    ],
)
def test_kinds_that_a_trial_may_get(
    found: list[Machine], asked: dict[str, Any], expected: dict[str, list[str]]
) -> None:
    assert kinds(FakeResources(**asked), found) == expected


def test_the_kind_that_a_trial_ran_on() -> None:
    assert kind_of({"device": "cpu", "processor": "Xeon 6"}) == "Xeon 6"
    assert kind_of({"device": "NVIDIA H100", "processor": "Xeon 6"}) == "NVIDIA H100"
    assert kind_of({"device": "cpu"}) == "cpu"
    assert kind_of({"device": None}) is None


def said(spec: FakeSpec, rows: list[dict[str, Any]], found: list[Machine]) -> str | None:
    try:
        check_devices(spec, [{"stage": "TUNE", **row} for row in rows], found)
    except DeviceError as error:
        return str(error)
    return None


def test_what_is_refused_and_how(tmp_path: Path) -> None:
    spec = in_seconds(tmp_path, 60).spec
    on_a, on_b = ({"device": "cpu", "processor": m.processor} for m in (A, B))
    old, lost, gpu = {"device": "cpu"}, {"device": None}, {"device": "NVIDIA H100", "processor": "EPYC 9"}
    assert said(spec, [], [A]) is None
    assert said(spec, [on_a, old, lost], [A]) is None
    assert said(spec, [{**on_b, "stage": "CONFIRM"}], [A]) is None
    assert said(spec, [], [A, B]) == (
        "search.allowance.seconds = 60: seconds compare on one kind of device only, and trials may run on Xeon 6 (a); "
        "EPYC 9 (b). Nearest: search.allowance = { samples = N }, or machines of one kind."
    )
    assert said(spec, [on_a, on_b], [A]) == (
        "search.allowance.seconds = 60: seconds compare on one kind of device only, and this run has Xeon 6, where "
        "TUNE trials of the sweep ran on EPYC 9. Nearest: a machine with EPYC 9, or search.allowance = "
        "{ samples = N }, or machines of one kind."
    )
    assert "ran on NVIDIA H100" in str(said(spec, [gpu], [A]))
    on_gpus = in_seconds(tmp_path, 60, resources=FakeResources(gpus_per_worker=1)).spec
    assert said(on_gpus, [gpu], [A, H100]) is None
    assert "this run has NVIDIA H100, where TUNE trials of the sweep ran on cpu" in str(said(on_gpus, [old], [H100]))
    assert "NVIDIA H100 (m); NVIDIA A100 (m)" in str(said(on_gpus, [], [MIXED]))
    for allowance in (None, FakeSamples(samples=100)):
        other = fake_plan(tmp_path, CELLS, search=FakeSearch(allowance=allowance)).spec
        assert said(other, [on_a, on_b], [A, B]) is None


def test_this_machine_has_names(monkeypatch: pytest.MonkeyPatch) -> None:
    (here,) = machines(None)
    assert here.processor == processor() != ""
    assert here.cpus >= 1
    assert len(here.accelerators) >= here.gpus

    class Smi:
        stdout = "NVIDIA H100 80GB HBM3\nNVIDIA H100 80GB HBM3\n"

    monkeypatch.setattr(hardware.subprocess, "run", lambda *args, **how: Smi)
    assert hardware.names_here()[1] == ("NVIDIA H100 80GB HBM3",) * 2


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stages(folder: Path) -> Counter[str]:
    return Counter(open_store(folder).table("trials").column("stage").to_pylist())


def test_a_sweep_in_seconds_and_what_becomes_of_it_elsewhere(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    monkeypatch.setattr("sweeps.engine.run.machines", lambda address: [A, B])
    with pytest.raises(DeviceError, match="trials may run on"):
        go(in_seconds(folder), pool)
    assert not folder.exists()
    monkeypatch.undo()
    assert go(in_seconds(folder), pool).complete  # a fake trial says that it trained 60 s
    assert stages(folder) == {"TUNE": 5 + 1, "CONFIRM": 2}
    progress = progress_of(folder)
    assert (progress["trials"], progress["finished"], progress["cells_confirmed"]) == (8, 8, 1)
    before = contents(folder)
    monkeypatch.setattr("sweeps.engine.run.machines", lambda address: [B])
    again = go(in_seconds(folder), None)  # nothing is left to run, so it may be looked at anywhere
    assert (again.finished, again.skipped, again.complete) == (0, 8, True)
    longer, larger = in_seconds(folder, 440.0), in_seconds(folder, cells=(*CELLS, FakeCell("nola")))
    for plan in (longer, larger):
        with pytest.raises(DeviceError, match="ran on"):
            go(plan, pool)
        assert contents(folder) == before
    in_trials = fake_plan(folder, CELLS, search=FakeSearch(sampler="qmc", trials=6))
    assert go(in_trials, None).skipped == 8  # another kind of allowance is the way out
    monkeypatch.undo()
    done = go(longer, pool)
    assert done.complete
    assert done.skipped == 5  # the points; the re-run counts when it is known which it is
    assert len({t["lr"] for t in open_store(folder).table("trials").to_pylist() if t["stage"] == "TUNE"}) == 7
