"""The page on the architecture: its stops are there, its examples run, its picture has every room."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from typer.testing import CliRunner

from analysis import open_store
from analysis.findings import all as all_findings
from analysis.report.page import render
from randlora import attach
from randlora.methods.method import METHODS, register
from sweeps.cli import main
from sweeps.cli.data import describe
from sweeps.engine.run import run
from tests.fakes import TRIAL as FAKE_TRIAL
from tests.fakes import FakeCell, FakeKeep, fake_plan
from tests.randlora.support import block
from tests.support import ROOT, sweeps
from trainables.config import TrainSettings, TrialConfig
from trainables.data.facts import FOLDER, IMAGE_SETS, ImageSet, read_sets
from trainables.tasks import make
from trainables.tasks.images import clip
from trainables.tasks.images.images import ImageTask
from trainables.training.worker import run_trial

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
QUICKSTART = ROOT / "docs" / "results" / "quickstart"


TRIAL = TrialConfig(
    stage="TUNE",
    cell_id="a",
    model="embedded:tiny-clip",
    adapt="vision",
    targets=("attn.in_proj_weight",),
    dataset="embedded:fashion-mnist",
    train_size="1-shot",
    method="full-targets",
    lr=1e-3,
    data_seed=0,
    init_seed=0,
    basis_seed=0,
    train=TrainSettings(epochs=1, global_batch_size=10),
)


def example(heading: str, number: int = 0) -> dict[str, Any]:
    """The names that a block of code under a heading leaves."""
    block = PAGE.split(f"\n### {heading}\n")[1].split("\n### ")[0].split("```python\n")[1 + number].split("```")[0]
    module = ModuleType(f"architecture_{heading.replace(' ', '_')}")
    with patch.dict(sys.modules, {module.__name__: module}):  # dataclasses look up the module of their class
        exec(compile(block, heading, "exec"), vars(module))
    return vars(module)


def resolve(dotted: str) -> Any:
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module in {dotted}")


def test_every_stop_is_there() -> None:
    stops = re.findall(r"^\d+\. `([\w.]+)`", PAGE, re.MULTILINE)
    assert 24 <= len(stops) <= 38
    assert all(callable(resolve(stop)) for stop in stops)


def test_every_name_of_the_code_is_there() -> None:
    """Also those in the table of decisions, and those that a stop calls on its way."""
    names = re.findall(r"`((?:sweeps|analysis|trainables|randlora)\.[\w.]+)`", PAGE)
    assert len(set(names)) > 50
    for name in names:
        resolve(name)


SWEEP = """
name = "ways"
output = "{folder}"
model = {{ id = "embedded:tiny-clip", adapt = "vision", targets = ["attn.in_proj_weight"] }}
data = {{ datasets = ["embedded:fashion-mnist"], train_size = ["1-shot"] }}
budgets = {{ lora_rank = [1] }}
methods = {{ lora = {{ lr = 1e-3 }} }}
search = {{ trials = 2, rerun_rates = 0, rerun_seeds = 0 }}
confirm = {{ seeds = 1, max_seeds = 1 }}
train = {{ epochs = 1, global_batch_size = 10 }}
"""


def test_a_sweep_calls_the_stops_in_the_order_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but those of Ray, whose trials run in other processes. The loss of the first trial is NaN."""
    tasks: list[ImageTask] = []

    class FirstFails(ImageTask):
        def loss_sum(self, rows: torch.Tensor, plan: torch.Tensor | None) -> torch.Tensor:
            if self not in tasks:
                tasks.append(self)
            return super().loss_sum(rows, plan) * (math.nan if self is tasks[0] else 1.0)

    monkeypatch.setattr(clip, "ImageTask", FirstFails)
    ways = [
        [stop for stop in re.findall(r"^\d+\. `([\w.]+)`", way, re.MULTILINE) if ".ray." not in stop]
        for way in re.findall(r"^## From a .*?(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    ]
    assert [len(way) for way in ways] == [20, 6, 3]
    names = {inspect.unwrap(resolve(stop)).__code__: stop for way in ways for stop in way}
    calls: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in names:
            calls.append(names[frame.f_code])

    file = tmp_path / "ways.toml"
    file.write_text(SWEEP.format(folder=tmp_path / "r"), encoding="utf-8")
    sys.setprofile(note)
    try:
        done = sweeps("run", file, "--backend", "inline", "--quiet", "--no-report")
    finally:
        sys.setprofile(None)
    assert done.exit_code == 1, done.output
    reasons = [row["reason"] for row in open_store(tmp_path / "r").table("trials").to_pylist()]
    assert len([reason for reason in reasons if reason is not None and "loss became nan" in reason]) == 1
    for way in ways:
        left = iter(calls)
        assert [stop for stop in way if stop not in left] == []


def test_the_picture_has_every_room() -> None:
    picture = PAGE.split("```text\n")[1].split("```")[0]
    words = set(re.findall(r"\w+", picture))
    for package in ("randlora", "trainables", "analysis", "sweeps"):
        rooms = {p.parent.name for p in (ROOT / package).glob("*/__init__.py")} - {"embedded"}
        assert rooms <= words, package


def test_the_method_and_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    derived = register(example("A method")["VERA_SMALL_D"])
    try:
        assert derived.name == "vera-small-d"
        assert derived.count((64, 48), 8) == METHODS["vera"].count((64, 48), 8)
        assert attach(block(), derived.config(r=8), ["fc"]).count() == 8 + 24
    finally:
        METHODS.pop("vera-small-d")
    diff = PAGE.split("### A method\n")[1].split("```diff\n")[1].split("```")[0]
    registry = (ROOT / "randlora" / "methods" / "registry.py").read_text(encoding="utf-8")
    assert all(line[1:] in registry for line in diff.splitlines() if line.startswith("-"))
    entry = PAGE.split("### A data set\n")[1].split("```toml\n")[1].split("```")[0]
    sets = tmp_path / "images.toml"
    sets.write_text(f"{(FOLDER / sets.name).read_text(encoding='utf-8')}\n{entry}", encoding="utf-8")
    monkeypatch.setitem(IMAGE_SETS, "beans", read_sets(sets, ImageSet)["beans"])
    assert describe("beans")["classes"] == 3


MEASURE = """
import json, sys
from pathlib import Path
from analysis.store.journal import JOURNAL, Finish, journal_line
from analysis.store.store import open_store
from sweeps.records.journal import Journal
from sweeps.records.rows import trial_row
from sweeps.search.slots import Slot
from tests.fakes import FakeCell
from tools.pages import tables_page
from trainables.config import TrialConfig
from trainables.training.worker import run_trial

folder, config = Path(sys.argv[1]), json.loads(sys.argv[2])
reports = list(run_trial(TrialConfig.model_validate(config), warm={}, directory=folder / "trial"))
slot = Slot("a", "TUNE", 0, "t", config, 1e-3, (0, 0, 0))
outcome = {"status": "finished", "result": reports[-1].pop("result"), "events": reports}
with Journal(folder / JOURNAL) as journal:
    journal.write(Finish(trial_row("made", FakeCell("lora"), slot, outcome)).event())
(row,) = open_store(folder).sql("select * from trials").to_pylist()
said = [line for line in tables_page().splitlines() if "first_train_loss" in line]
print(json.dumps({"row": row["first_train_loss"], "reported": reports[0]["train_loss"], "said": said}))
"""


def test_the_measured_number_is_in_the_journal_the_table_and_the_page(tmp_path: Path) -> None:
    """The page's commit is made on a copy of the packages; nothing else is changed."""
    diff = PAGE.split("### A measured number\n")[1].split("```diff\n")[1].split("```")[0]
    for package in ("randlora", "trainables", "analysis", "sweeps"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}  # the copy is in no repository
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True, env=alone)
    (tmp_path / "r").mkdir()
    config = TRIAL.model_dump_json()
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "r"), config],
        cwd=tmp_path,
        env=paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["row"] == found["reported"] > 0
    assert found["said"] == ["- `first_train_loss`: Mean training loss of the first epoch, per image or target token."]


def test_the_task_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = example("A task")["SmoothedTask"]
    monkeypatch.setattr(clip, "ImageTask", smoothed)
    assert make.make_task  # the table that a new kind of model gets its line in
    last = list(run_trial(TRIAL, warm={}, directory=tmp_path))[-1]
    assert last["done"] and torch.isfinite(torch.tensor(last["train_loss"]))


def test_the_finding_is_a_table_and_a_figure_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = ModuleType("figure")  # the first block is figure.py, the second finding.py
    vars(drawing).update(example("A finding"))
    monkeypatch.setitem(sys.modules, "analysis.findings.memory.figure", drawing)
    store, memory = open_store(QUICKSTART), example("A finding", 1)["FINDING"]
    monkeypatch.setattr(all_findings, "FINDINGS", (memory,))
    (sheet,) = all_findings.pick(store, ["memory"])
    (shown,) = all_findings.show(store)
    (picture,) = shown.pictures
    assert [len(sheet.rows), len(picture.figure.tips)] == [9, 9]
    picture.figure.canvas.draw()
    ticks = [tick.get_text() for axes in picture.figure.axes for tick in axes.get_xticklabels()]
    assert ticks and not any("$" in tick for tick in ticks)
    assert picture.says.endswith("MiB) the most. Nothing is tested.")
    page = render(store, shown=[shown])
    assert '<table id="table-memory"' in page and '<figure id="figure-memory"' in page


def test_the_backend_runs_a_sweep(tmp_path: Path) -> None:
    cells = (FakeCell("lora", options=(("fail_above", 1e-2),)), FakeCell("vera"))
    plan = fake_plan(tmp_path / "r", cells, keep=FakeKeep("best"))
    summary = run(plan, backend=example("A backend")["open_one_by_one"], trial=FAKE_TRIAL, progress=False)
    assert summary.finished + summary.failed == 16 and 0 < summary.failed < 8
    assert len(list((tmp_path / "r" / "adapters").iterdir())) == 2


def test_the_backend_ends_the_run_if_storage_fails(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path / "r", (FakeCell("lora", options=(("full_disk", "always"),)),))
    with pytest.raises(OSError, match="No space left on device"):
        run(plan, backend=example("A backend")["open_one_by_one"], trial=FAKE_TRIAL, progress=False)
    assert [row["status"] for row in open_store(tmp_path / "r").table("trials").to_pylist()].count("failed") == 0


def test_the_verb_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    app = main.typer.Typer()
    app.callback()(lambda: None)
    app.command("looks")(main._with_error_messages(example("A verb")["looks"]))
    done = CliRunner().invoke(app, ["looks", str(QUICKSTART)])
    assert (done.exit_code, done.stdout) == (0, "46 looks at the test split\n")
    assert CliRunner().invoke(app, ["looks", "nowhere"]).exit_code == 2
