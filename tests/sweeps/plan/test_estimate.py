"""What a sweep will take, and what it took."""

from __future__ import annotations

import io
import json
import math
import os
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from analysis import open_store
from analysis.findings.estimate import estimate_table
from analysis.store.slot_kinds import SlotKind
from analysis.store.tables import write_part
from sweeps.backends.resources import Node
from sweeps.cli import printing
from sweeps.cli.main import app
from sweeps.cli.plan import print_estimate_line
from sweeps.cli.progress import progress_of
from sweeps.packing.sizes import Measured
from sweeps.plan import estimate
from sweeps.plan.disk_size import keep_bytes
from sweeps.plan.estimate import (
    PROBE_ROWS,
    START_SECONDS,
    TRIAL_OVERHEAD,
    _left,
    _Probe,
    _probe,
    estimate_plan,
    probe_config,
)
from sweeps.plan.plan import Plan
from sweeps.plan.split_sizes import split_sizes
from sweeps.records.rows import trial_row
from sweeps.search.stages import CellState
from sweeps.spec.cell import Cell
from sweeps.spec.space import Dimension, Point
from sweeps.spec.spec import SweepSpec
from tests.analysis.synthetic import START, make_results
from tests.support import ROOT
from tests.sweeps.spec.support import GOOD
from tests.trainables.tiny_language import save_model, write_rows
from trainables.errors import TrialError
from trainables.models.loading import load_model
from trainables.training import measured


def test_time_money_and_disk_of_a_plan(tmp_path: Path) -> None:
    words = ["methods={lora={}, zero-shot={}}", "budgets.lora_rank=[4]", "data.train_size=[0.05]", "train.epochs=2"]
    limits = ["limits.max_hours=1e-6", "limits.price_per_hour=36", "limits.max_cost=1000", 'keep.adapters="all"']
    spec = SweepSpec.load(ROOT / "examples" / "quickstart.toml", [*words, *limits, f'output="{tmp_path / "r"}"'])
    plan = Plan.from_spec(spec)
    told: list[tuple[str, int, int, str]] = []
    found = estimate_plan(plan, tell=lambda *probe: told.append(probe))
    assert list(dict.fromkeys(probe[:3] for probe in told)) == [("lora", 1, 2), ("zero-shot", 2, 2)]
    steps = [step for method, *_, step in told if method == "lora"]
    assert steps[0] == "loading the model" and steps[3].startswith("epoch 1, step 1 of ")
    lora, nothing = found.methods
    assert (lora.method, nothing.method) == ("lora", "zero-shot")
    assert (lora.trials, nothing.trials) == (spec.search.trials + len(spec.confirm.seeds), 1)
    assert found.trials_left == lora.trials + 1
    busy = lora.seconds_total + nothing.seconds_total
    assert found.seconds == pytest.approx(START_SECONDS + busy / found.concurrent)
    assert found.accelerator_hours == pytest.approx(busy / 3600)  # a worker each, no GPU
    assert found.cost == pytest.approx(36 * found.accelerator_hours)
    assert found.kept_bytes == keep_bytes(plan) > 0
    assert found.disk_bytes == found.kept_bytes + found.table_bytes
    assert found.memory_bytes > found.shared_bytes + 2**20
    model = load_model(plan.spec.model.id).module
    assert found.shared_bytes == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    apart = found.concurrent * found.memory_bytes
    assert found.together_bytes == apart - (found.concurrent - 1) * found.shared_bytes
    assert [line.split(" = ")[0] for line in found.over] == ["limits.max_hours"]
    assert found.as_dict()["disk_bytes"] == found.disk_bytes
    probe, many = (
        _Probe(train=1.0, evaluate=0.0, memory=0),
        spec.train.model_copy(update={"min_batches_per_epoch": 1000}),
    )
    seconds = probe.trial(plan.feasible[0], "TUNE", many) - TRIAL_OVERHEAD
    assert seconds == spec.train.epochs * 1000 * spec.train.global_batch_size
    searched = replace(plan.feasible[0], dimensions=(Dimension("epochs", values=(1, 3, 8)),))
    for stage, epochs in (("TUNE", 4), ("CONFIRM", 8)):
        assert probe.trial(searched, stage, many) - TRIAL_OVERHEAD == epochs * seconds / spec.train.epochs


def probed(*words: str) -> tuple[Plan, Cell]:
    plan = Plan.from_spec(SweepSpec.load(ROOT / "examples" / "quickstart.toml", words))
    return plan, plan.feasible[0]


def told(seconds: float, seconds_eval: float, samples: int) -> dict[str, Any]:
    return {"seconds": seconds, "seconds_eval": seconds_eval, "samples": samples, "peak_memory_bytes": 0}


def test_the_paper_s_protocol_pays_for_its_test_split() -> None:
    plan, cell = probed("methods={lora={}}", "protocol='paper'", "train.epochs=2")
    result = measured.Result(measured.Measured(seconds_eval=10.5), measured.Predicted(n_examples=500))
    probe = _Probe._from([told(9.0, 0.25, 100), told(3.0, 0.25, 200) | {"result": result}], cell)
    assert (probe.train, probe.evaluate) == (0.03, 0.02)
    train, val, test = split_sizes(cell)
    seconds = probe.trial(cell, "CONFIRM", plan.spec.train) - TRIAL_OVERHEAD
    assert val == 0 and seconds == pytest.approx(2 * train * 0.03 + test * 0.02)


@pytest.mark.parametrize(("method", "seconds"), [("lora", 2.0), ("autolora", 3.0)])
def test_a_search_on_rows_held_out_counts(method: str, seconds: float) -> None:
    _, cell = probed(f"methods={{{method}={{}}}}")
    assert _Probe._from([told(4.0, 0.0, 100), told(2.0, 0.0, 200)], cell).train == seconds / 100


def test_few_of_many_texts_are_evaluated(tmp_path: Path) -> None:
    save_model(tmp_path / "llama", "llama")
    write_rows(tmp_path / "rows", train=800, test=5)
    folders = [f'model={{id="local:{tmp_path / "llama"}"}}', f'data={{datasets=["json:{tmp_path / "rows"}"]}}']
    plan, cell = probed("methods={lora={}}", *folders)
    assert probe_config(cell, plan).evaluate.validation_rows == PROBE_ROWS == 64
    fewer = replace(cell, evaluate=cell.evaluate.model_copy(update={"validation_rows": 7}))
    assert probe_config(fewer, plan).evaluate.validation_rows == 7  # as a trial has
    probe = _Probe._from([told(8.0, 8.0, 8), told(8.0, 16.0, 16)], cell)
    assert (probe.train, probe.evaluate) == (1.0, 0.25)
    train, val, test = split_sizes(cell)
    seconds = probe.trial(cell, "CONFIRM", plan.spec.train) - TRIAL_OVERHEAD
    assert (val, test) == (80, 5) and seconds == plan.spec.train.epochs * (train + val / 4) + test / 4


def test_a_probe_has_the_methods_own_micro_batch_size() -> None:
    plan, cell = probed("methods={lora={micro_batch_size=8}}")
    train = probe_config(cell, plan).train
    assert (train.micro_batch_size, train.epochs) == (8, 2)


@pytest.mark.parametrize("every", [None, 10])
def test_looks_at_validation_count_as_often_as_a_trial_has_them(every: int | None) -> None:
    more = () if every is None else (f"train.select_every={every}",)
    plan, cell = probed("methods={lora={}}", "train.epochs=2", "train.select='best'", *more)
    assert (probe_config(cell, plan).train.select, plan.spec.train.select) == ("last", "best")
    train, val, _ = split_sizes(cell)
    steps = 2 * math.ceil(train / plan.spec.train.global_batch_size)
    probe, last = _Probe(1.0, 0.0, 0), plan.spec.train.model_copy(update={"select": "last", "select_every": None})
    added = probe.trial(cell, "TUNE", plan.spec.train) - probe.trial(cell, "TUNE", last)
    assert added == pytest.approx((2 if every is None else math.ceil(steps / every)) * val / 2)


@pytest.mark.parametrize("error", [TrialError("loss is nan"), KeyError("alpha"), torch.OutOfMemoryError("3 GiB")])
def test_a_method_whose_probe_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    given = ["methods={lora={}, randlora={}}", f'output="{tmp_path / "r"}"']
    plan = Plan.from_spec(SweepSpec.load(ROOT / "examples" / "quickstart.toml", given))
    held: dict[str, Any] = {}

    def probe(cell: Cell, plan: Plan, warm: dict[str, Any], *_: object) -> _Probe:
        held.update(warm=warm)
        warm["base"] = "the model"
        if cell.method == "randlora":
            raise error
        return _Probe(train=1.0, evaluate=0.0, memory=7)

    monkeypatch.setattr(_Probe, "of", probe)
    monkeypatch.setattr("sweeps.backends.memory.free_memory", lambda: held.update(freed=dict(held["warm"])))
    found = estimate_plan(plan)
    assert [m.method for m in found.methods] == ["lora"]
    assert found.trials_left == 2 * found.methods[0].trials
    assert list(found.unknown) == ["randlora"]
    print_estimate_line(found)
    assert f"no estimate of randlora: {type(error).__name__}: " in capsys.readouterr().err
    assert held["freed"] == {}  # a driver does not keep its largest probe


def test_what_trials_of_this_machine_measured_is_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["methods={lora={}, randlora={}}", f'output="{tmp_path / "r"}"']
    plan = Plan.from_spec(SweepSpec.load(ROOT / "examples" / "quickstart.toml", given))
    probed: list[str] = []

    def probe(cell: Cell, *_: object) -> _Probe:
        probed.append(cell.method)
        return _Probe(train=1.0, evaluate=1.0, memory=7)

    monkeypatch.setattr(_Probe, "of", probe)
    small, large = plan.feasible[0], plan.feasible[-1]
    assert (small.method, large.method) == ("lora", "randlora")
    (tmp_path / "r").mkdir()

    def write(cell: Cell, number: int, **more: object) -> None:
        row = {"sweep": plan.spec.name, "trial_id": f"{number:016}", "cell_id": cell.cell_id, "slot": 0}
        row |= {"status": "finished", "stage": "TUNE", "host": socket.gethostname(), "samples": 100, "epochs": 2}
        row |= {"seconds_train": 300.0, "seconds_eval": 2 * 0.5 * split_sizes(cell)[1], "peak_memory_bytes": 9, **more}
        write_part(tmp_path / "r", "trials", [row])

    still = _left(plan, False)
    monkeypatch.setattr(estimate, "_left", lambda *_: still)  # the rows are of no trial that the search would make
    write(small, 1)
    write(large, 2, host="another")
    write(large, 3, status="failed", samples=None)
    write(large, 4, packed=8)
    found = estimate_plan(plan)
    assert probed == ["randlora"]
    lora = next(m for m in found.methods if m.method == "lora")
    measured_here = _Probe(train=3.0, evaluate=0.5, memory=9)
    total = sum(
        trials * measured_here.trial(c.cell, stage, plan.spec.train)
        for c in still
        if c.cell.method == "lora"
        for stage, trials in (("TUNE", c.tune), ("CONFIRM", c.confirm))
    )
    assert lora.seconds_total == pytest.approx(total) and found.memory_bytes == 9
    write(large, 5)
    probed.clear()
    assert estimate_plan(plan).shared_bytes == 9 and probed == []


GIB = 2**30


@pytest.mark.parametrize(
    ("resources", "concurrent", "pack", "share"),
    [
        ("", 16, 1, 1 / 8),
        ("workers=2", 1, 1, 2.0),
        ("gpus_per_worker=1", 2, 1, 1.0),
        ('pack="auto", gpus_per_worker=0.5', 4, 8, 0.5),
        ('pack="auto", gpus_per_worker=0.1', 16, 6, 0.1),
        ("isolated=true", 16, 1, 1 / 8),
    ],
)
def test_trials_that_share_gpus_are_counted_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: str, concurrent: int, pack: int, share: float
) -> None:
    """Of two with 80 GiB each, trials of 1 GiB."""
    given = ["methods={zero-shot={}}", f"resources={{{resources}}}", f'output="{tmp_path / "r"}"']
    plan = Plan.from_spec(SweepSpec.load(ROOT / "examples" / "quickstart.toml", given))
    apart: list[Node] = []
    monkeypatch.setattr(estimate, "local_node", lambda: Node(16, 2))
    monkeypatch.setattr(estimate, "_probe_in_process", lambda *given: apart.append(given[2]) or _probe(*given))
    monkeypatch.setattr(estimate, "_measured", lambda peak: Measured(peak, 80 * GIB))
    monkeypatch.setattr(_Probe, "of", lambda *_: _Probe(train=1.0, evaluate=1.0, memory=GIB))
    found = estimate_plan(plan)
    assert apart == [Node(16, 2)]
    busy = sum(m.seconds_total for m in found.methods)
    assert (found.concurrent, found.pack) == (concurrent, pack)
    assert found.accelerator_hours == pytest.approx(share * busy / 3600)


def test_limits_of_the_whole_sweep_count_what_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hours at a price of 3 were used, and next to nothing is left; `max_hours` is of one run."""
    monkeypatch.setattr(_Probe, "of", lambda *_: _Probe(train=0.0, evaluate=0.0, memory=0))
    events = [{"ev": "sweep", "name": "quickstart", "accelerators": 1.0}, {"ev": "used", "used": 7200.0}]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    limits = "limits={max_hours=1, max_accelerator_hours=1.5, max_cost=6, price_per_hour=3}"
    words = [str(ROOT / "examples" / "quickstart.toml"), "--set", limits, "--set", f'output="{tmp_path}"', "--json"]
    over = json.loads(CliRunner().invoke(app, ["estimate", *words]).stdout)["over"]
    assert [line.split(",")[0] for line in over] == ["limits.max_accelerator_hours = 1.5", "limits.max_cost = 6"]
    assert [line.partition(" after ")[2] for line in over] == ["2", "6"]


def test_workers_share_the_seconds_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "local_node", lambda: Node(4, 0))
    monkeypatch.setattr(_Probe, "of", lambda *_: _Probe(train=1.0, evaluate=1.0, memory=GIB))
    one, two = (
        estimate_plan(Plan.from_spec(SweepSpec.load(ROOT / "examples" / "quickstart.toml", given)))
        for given in ([f'output="{tmp_path / "r"}"', f"resources.workers={n}"] for n in (1, 2))
    )
    for alone, shared in zip(one.methods, two.methods, strict=True):
        own = alone.seconds_per_trial - TRIAL_OVERHEAD
        assert shared.seconds_per_trial == pytest.approx(TRIAL_OVERHEAD + own / 2)
    assert two.accelerator_hours == pytest.approx(one.accelerator_hours, rel=1e-3)  # two workers, half as long
    assert (one.concurrent, two.concurrent) == (4, 2)


def test_a_gpu_for_every_trial_where_one_could_not_be_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run has it, whose own probe fails as well."""
    given = ["methods={lora={}, zero-shot={}}", f'output="{tmp_path / "r"}"']
    plan = Plan.from_spec(SweepSpec.load(ROOT / "examples" / "quickstart.toml", given))

    def probe(cell: Cell, plan: Plan, warm: dict[str, Any], *_: object) -> _Probe:
        if cell.method == "lora":
            raise torch.OutOfMemoryError("3 GiB")
        return _Probe(train=1.0, evaluate=1.0, memory=GIB)

    monkeypatch.setattr(_Probe, "of", probe)
    monkeypatch.setattr(estimate, "_measured", lambda peak: Measured(peak, 80 * GIB))
    found = _probe(plan, estimate._left(plan, retry_failed=False), Node(16, 2), None)
    assert (found.shapes[0].trials, list(found.unknown)) == (2, ["lora"])


@pytest.mark.parametrize(("terminal", "quiet_s", "shown"), [(False, 60.0, 2), (False, -1.0, 3), (True, 60.0, 3)])
def test_a_slow_probe_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet_s: float, shown: int
) -> None:
    """A log is told each method, and further steps only if they are slow; a terminal shows one line."""
    file = io.StringIO()
    monkeypatch.setattr(printing, "err", Console(file=file, force_terminal=terminal, width=200, highlight=False))
    monkeypatch.setattr(printing, "_QUIET_S", quiet_s)
    with printing.probing(quiet=False) as tell:
        assert tell is not None
        for method, number, step in (("lora", 1, "loading the model"), ("lora", 1, "step 1 of 3"), ("vera", 2, "x")):
            tell(method, number, 2, step)
    said = file.getvalue()
    assert said.count("probing ") == shown and said.count("\n") == (0 if terminal else shown)
    assert ("probing lora (1 of 2 methods): step 1 of 3" in said) == (shown == 3)
    with printing.probing(quiet=True) as tell:
        assert tell is None


def surroundings(*_: object) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("gpus", "visible"), [(0, ""), pytest.param("auto", "0", marks=pytest.mark.slow)])
def test_beside_gpus_another_process_probes(monkeypatch: pytest.MonkeyPatch, gpus: object, visible: str) -> None:
    """It sees none of them where trials get none."""
    spec = SweepSpec.load(ROOT / "examples" / "quickstart.toml", [f"resources.gpus_per_worker={json.dumps(gpus)}"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(estimate, "_probe", surroundings)
    process, seen = cast("tuple[int, str]", estimate._probe_in_process(Plan(spec, ()), [], Node(2, 1), None))
    assert process != os.getpid()
    assert seen == visible
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def foreseen(folder: Path, trials_left: int) -> dict[str, float]:
    """Put an estimate at the beginning of a made-up sweep's journal."""
    estimate = {
        "methods": [{"method": "lora", "trials": 60, "seconds_per_trial": 50.0, "seconds_total": 3000.0}],
        "trials_left": trials_left,
        "seconds": 3600.0,
        "accelerator_hours": 2.0,
        "accelerators": 0.5,
        "memory_bytes": 2**30,
        "disk_bytes": 2**20,
        "cost": 8.0,
    }
    event = {"ev": "estimate", "at": (START - timedelta(seconds=5)).isoformat(), "estimate": estimate}
    journal = folder / "journal.jsonl"
    journal.write_text(json.dumps(event) + "\n" + journal.read_text())
    return estimate


@pytest.mark.parametrize("whole", [True, False])
def test_estimate_against_actual(tmp_path: Path, whole: bool) -> None:
    folder = tmp_path / "results" / "made"
    make_results(folder)
    assert estimate_table(open_store(folder)).num_rows == 0
    trials = open_store(folder).table("trials").to_pylist()
    over = len({t["trial_id"] for t in trials})
    assert over < len(trials)  # a try after a failure is no other trial
    foreseen(folder, over if whole else over + 1)
    lines = {(r["quantity"], r["method"]): r for r in estimate_table(open_store(folder)).to_pylist()}
    hours = sum(t["seconds_total"] for t in trials) / 3600 * 0.5
    assert lines["trials", None]["actual"] == over
    assert lines["accelerator time", None]["actual"] == pytest.approx(hours)
    assert lines["accelerator time", None]["ratio"] == pytest.approx(hours / 2)
    assert lines["cost", None]["actual"] == pytest.approx(hours * 4)
    mine = [t["seconds_total"] for t in trials if t["method"] == "lora"]
    assert lines["seconds per trial", "lora"]["actual"] == pytest.approx(sum(mine) / len(mine))
    wall = (max(t["ended_at"] for t in trials) - START).total_seconds() + 5
    assert lines["wall time", None]["actual"] == (pytest.approx(wall) if whole else None)
    on_disk = sum(p.stat().st_size for p in (folder / "tables").rglob("*.parquet"))
    on_disk += (folder / "journal.jsonl").stat().st_size
    assert lines["disk", None]["actual"] == pytest.approx(on_disk / 2**20)
    used = {"ev": "sweep", "at": START.isoformat(), "accelerators": 0.5, "price_per_hour": 4.0}
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps(used) + "\n" + json.dumps({"ev": "used", "used": 7200 * hours + 3600}) + "\n")
    progress = progress_of(open_store(folder))
    assert progress["accelerator_hours"] == pytest.approx(hours + 0.5)  # with attempts that no row knows
    assert progress["cost"] == pytest.approx(4 * hours + 2)
    assert progress["estimate"] == {"estimated": 3600.0, "actual": pytest.approx(wall) if whole else None}
    shown = CliRunner().invoke(app, ["estimate", str(folder), "--compare", "--json"])
    assert {r["quantity"] for r in json.loads(shown.stdout)} == {quantity for quantity, _ in lines}
    assert "wall time" in CliRunner().invoke(app, ["estimate", str(folder), "--compare"]).stdout
    said = CliRunner().invoke(app, ["status", str(folder)]).stdout
    assert "estimated 60 min" in said
    assert "failed: " in said


def test_no_estimate_is_said(tmp_path: Path) -> None:
    folder, file = tmp_path / "results" / "made-small", tmp_path / "made.toml"
    make_results(folder)
    assert (
        "no run of this sweep was estimated" in CliRunner().invoke(app, ["estimate", str(folder), "--compare"]).stdout
    )
    file.write_text(f"output = {json.dumps(str(tmp_path / 'results' / 'made'))}\n{GOOD}[small]\n")
    asked = ["estimate", str(file), "--compare", "--scale", "small"]
    assert "no run of this sweep was estimated" in CliRunner().invoke(app, asked).stdout
    progress = progress_of(open_store(folder))
    assert progress["estimate"] is None
    assert progress["cost"] is None
    assert sum(progress["phases"].values()) == progress["cells"]


def test_rates_past_an_end_are_not_of_the_plan(tmp_path: Path) -> None:
    plan, cell = probed("methods={lora={}}", f"output='{tmp_path}'")
    state = CellState(cell, plan.spec)
    slot = state.next_slot()
    assert slot is not None
    past = state._make("TUNE", SlotKind.WIDENED.slot(0), Point(0.5, slot.extra), slot.seeds, "widened")
    outcome = {"status": "finished", "result": measured.Result(measured.Measured(val_score=0.5))}
    (tmp_path / "tables").mkdir()
    write_part(tmp_path, "trials", [trial_row(plan.spec.name, cell, each, outcome) for each in (slot, past)])
    left = next(each for each in _left(plan, retry_failed=False) if each.cell == cell)
    assert (left.tune, left.confirm) == (cell.tune_trials - 1, cell.confirm_seeds)
