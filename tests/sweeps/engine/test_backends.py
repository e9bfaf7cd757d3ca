"""One plan on both backends, killed and resumed on either: the same tables to the digit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.store.journal import read_journal
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.backends.registry import backend_names, find_backend
from sweeps.engine.run import run
from sweeps.errors import SpecError
from sweeps.plan.plan import Plan
from sweeps.records.replay import replay
from sweeps.records.sealing import Sealer
from sweeps.search.stages import SweepState
from sweeps.spec.spec import SweepSpec
from tests.fake_packs import TOGETHER
from tests.fakes import (
    TRIAL,
    FakeCell,
    FakeConfirm,
    FakeLimits,
    FakePlan,
    FakeResources,
    FakeSearch,
    FakeTrain,
    fake_plan,
)
from tests.support import ROOT
from tests.sweeps.inline import go_inline
from tests.sweeps.support import PAIR, Undisturbed, assert_same_tables, events, go, rows


def interrupt_after(count: int) -> Any:
    def before(ended: int) -> None:
        if ended == count:
            os.kill(os.getpid(), signal.SIGTERM)

    return before


def test_inline_makes_the_tables_of_ray(tmp_path: Path, pool: Pool, undisturbed: Undisturbed) -> None:
    assert go_inline(fake_plan(tmp_path / "r")).complete
    assert_same_tables(tmp_path / "r", undisturbed())


def test_a_sweep_that_begins_on_one_backend_ends_on_the_other(
    tmp_path: Path, pool: Pool, undisturbed: Undisturbed
) -> None:
    first = go_inline(fake_plan(tmp_path / "r", PAIR), interrupt_after(5))
    assert (first.interrupted, first.signal) == (True, signal.SIGTERM)
    assert 5 <= first.finished < 16
    assert go(fake_plan(tmp_path / "r", PAIR), pool).skipped == first.finished
    assert_same_tables(tmp_path / "r", undisturbed(PAIR))
    go(fake_plan(tmp_path / "other", PAIR[:1]), pool)
    assert go_inline(fake_plan(tmp_path / "other", PAIR)).skipped == 8
    assert_same_tables(tmp_path / "other", undisturbed(PAIR))


def test_a_trial_goes_on_from_its_checkpoint(tmp_path: Path, undisturbed: Undisturbed) -> None:
    log = tmp_path / "log"
    options = (("log", str(log)),)
    cells = (FakeCell("lora", options=options), FakeCell("vera", options=options))
    plan = fake_plan(tmp_path / "r", cells)

    class Display:
        """Interrupts after the first report."""

        def start(self, state: Any) -> None: ...
        def note(self, text: str) -> None: ...
        def stop(self, state: Any) -> None: ...

        def update(self, state: Any) -> None:
            if any(cell.curves for cell in state.cells.values()):
                os.kill(os.getpid(), signal.SIGINT)

    assert run(plan, backend="inline", trial=TRIAL, progress=Display()).interrupted
    assert run(plan, backend="inline", trial=TRIAL, progress=False).complete
    lines = [tuple(line.split()[:2]) for line in log.read_text().splitlines()]
    assert len(lines) == len(set(lines)), "an epoch was trained twice"
    assert_same_tables(tmp_path / "r", undisturbed(PAIR))


@pytest.mark.parametrize("pruner", ["asha", "median"])
def test_the_pruner_stops_trials_inline(tmp_path: Path, pruner: str) -> None:
    search = FakeSearch(trials=12, sampler="qmc", pruner=pruner, rerun_rates=0, rerun_seeds=0)
    summary = go_inline(fake_plan(tmp_path / "r", PAIR, search=search, train=FakeTrain(9), confirm=FakeConfirm((0,))))
    assert summary.pruned > 0
    assert summary.failed == 0
    stopped = [row for row in rows(tmp_path / "r", "trials") if row["status"] == "pruned"]
    assert all(row["reason"].startswith("stopped by the pruner at epoch") for row in stopped)
    assert not (tmp_path / "r" / "work").exists()


def packed_plan(folder: Path, pack: int, **options: Any) -> FakePlan:
    cells = tuple(FakeCell(method, options=tuple(options.items())) for method in ("lora", "vera"))
    return fake_plan(folder, cells, resources=FakeResources(pack=pack))


@pytest.mark.parametrize("options", [{}, {"refuse_pack": True}, {"pack_oom_above": 2}])
def test_packs_inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr("sweeps.engine.loop.TOGETHER", TOGETHER)
    monkeypatch.setattr("sweeps.engine.runner.TOGETHER", TOGETHER)
    assert go_inline(packed_plan(tmp_path / "r", 4, **options)).complete
    assert go_inline(packed_plan(tmp_path / "whole", 1)).complete
    assert_same_tables(tmp_path / "r", tmp_path / "whole")
    packed = {event["row"]["packed"] for event in events(tmp_path / "r", "finish")}
    assert (max(packed) > 1) == ("refuse_pack" not in options)


def test_failures_and_memory_inline(tmp_path: Path) -> None:
    cells = (FakeCell("lora", options=(("fail_above", 1e-3),)), FakeCell("vera", options=(("oom_above", 16),)))
    summary = go_inline(fake_plan(tmp_path / "r", cells))
    trials = rows(tmp_path / "r", "trials")
    failed = [row for row in trials if row["status"] == "failed"]
    assert summary.failed == len(failed) > 0
    assert {row["method"] for row in failed} == {"lora"}
    assert {row["micro_batch_size"] for row in trials if row["method"] == "vera"} == {16}


def test_a_limit_ends_an_inline_run(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path / "r", PAIR, limits=FakeLimits(max_hours=1e-9))
    summary = run(plan, backend="inline", trial=TRIAL, progress=False)
    assert summary.stopped_by == "limits.max_hours = 1e-09"
    assert not summary.complete


def test_a_limit_of_accelerator_time_counts_trials_of_one_epoch_inline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that trains a trial's last epoch also ends the trial."""
    monkeypatch.setattr("sweeps.engine.loop.EVERY_S", 0.0)
    plan = fake_plan(tmp_path / "r", PAIR, train=FakeTrain(1), limits=FakeLimits(max_accelerator_hours=1e-9))
    summary = run(plan, backend="inline", trial=TRIAL, progress=False)
    assert summary.stopped_by is not None and summary.stopped_by.startswith("limits.max_accelerator_hours = 1e-09")
    assert summary.finished == 1


def test_the_pruner_knows_earlier_curves_without_a_journal(tmp_path: Path) -> None:
    """As after a machine was lost, and the run goes on from the copy."""
    search = FakeSearch(trials=12, sampler="qmc", pruner="asha", rerun_rates=0, rerun_seeds=0)
    plan = fake_plan(tmp_path / "r", PAIR, search=search, train=FakeTrain(9), confirm=FakeConfirm((0,)))
    assert go_inline(plan).pruned > 0
    lines = read_journal(tmp_path / "r" / "journal.jsonl").events
    sealer, found = Sealer(tmp_path / "r"), []
    for events_left in (lines, lines[::-1], []):
        state = SweepState(plan.feasible, plan.spec)
        replay(state, sealer, events_left, sealer.rows, None, sealer.curves)
        found.append({cell_id: cell.curves for cell_id, cell in state.cells.items()})
    assert found[0] == found[1] == found[2] and all(len(curves) >= 12 for curves in found[0].values())


@pytest.mark.parametrize(
    ("how", "given", "field"),
    [
        ({"address": "auto"}, {}, "--address"),
        ({}, {"workers": 2}, "resources.workers"),
        ({}, {"isolated": True}, "resources.isolated"),
        ({}, {"gpus_per_worker": 1.0}, "resources.gpus_per_worker"),
    ],
)
def test_what_the_inline_backend_refuses(
    tmp_path: Path, how: dict[str, Any], given: dict[str, Any], field: str
) -> None:
    plan = fake_plan(tmp_path / "r", PAIR, resources=FakeResources(**given))
    with pytest.raises(SpecError) as caught:
        run(plan, backend="inline", trial=TRIAL, progress=False, **how)
    assert [problem.field for problem in caught.value.problems] == [field]
    assert not (tmp_path / "r").exists()


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(SpecError) as caught:
        find_backend("inlin")
    (problem,) = caught.value.problems
    assert (problem.field, problem.value, problem.nearest) == ("--backend", "inlin", "inline")
    assert backend_names()[:2] == ["ray", "inline"]
    assert all(name in problem.rule for name in backend_names())


def test_a_package_can_add_a_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point is enough."""
    package = tmp_path / "mine-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[sweeps.backends]\nmine = sweeps.backends.inline:open_inline\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "mine" in backend_names()
    assert run(fake_plan(tmp_path / "r", PAIR), backend="mine", trial=TRIAL, progress=False).complete


NO_RAY = """
import sys
sys.modules["ray"] = None  # importing it is an error
from sweeps.cli.main import main
main()
"""


@pytest.mark.slow
def test_a_real_sweep_trains_without_ray_to_the_numbers_of_ray(tmp_path: Path, pool: Pool) -> None:
    """The quickstart, made small: planned, estimated, run and reported by the program."""
    small = ["search.trials=2", "confirm.seeds=[0]", "train.epochs=1", "methods={lora={}, randlora={}}"]
    given = [f"--set={each}" for each in (*small, f'output="{tmp_path / "inline"}"')]
    command = [sys.executable, "-c", NO_RAY, "run", "examples/quickstart.toml", *given, "--backend", "inline"]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    spec = SweepSpec.load(ROOT / "examples" / "quickstart.toml", [*small, f'output="{tmp_path / "ray"}"'])
    assert run(Plan.from_spec(spec), backend=using(pool), progress=False).complete
    varies = ("seconds", "samples_per_second", "peak_memory", "versions", "wall")
    for name in ("trials", "metrics", "predictions"):
        found, wanted = (
            [{k: v for k, v in row.items() if not k.startswith(varies)} for row in rows(tmp_path / each, name)]
            for each in ("inline", "ray")
        )
        assert found == wanted, name


def test_a_warm_start_that_fell_back_to_the_sampler_is_no_neighbour_after_a_resume(tmp_path: Path) -> None:
    """The smallest budget has no neighbour, so its first rate is the sampler's."""
    cells = (FakeCell("lora", 1000), FakeCell("lora", 4000))
    search = FakeSearch(trials=4, sampler="qmc", warm_start=("neighbour",))
    found = []
    for folder, cut in ((tmp_path / "whole", False), (tmp_path / "cut", True)):
        plan = fake_plan(folder, cells, search=search)
        if cut:
            assert go_inline(plan, interrupt_after(0)).interrupted
        assert go_inline(plan).complete
        found.append({(row["trial_id"], row["origin"]) for row in rows(folder, "trials")})
    assert found[0] == found[1] and {origin for _, origin in found[0]} == {None, "neighbour"}
