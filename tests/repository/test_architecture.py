"""The page on the architecture: its stops are there, its examples run, its picture has every room."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from analysis import open_store
from randlora.methods.method import METHODS
from sweeps.cli import main
from sweeps.cli.data import describe
from sweeps.engine.run import run
from tests.fakes import TRIAL, FakeCell, FakeKeep, fake_plan
from tests.support import ROOT
from trainables.config import TrainSettings, TrialConfig
from trainables.data.registry import DATASETS
from trainables.tasks import make
from trainables.tasks.images import clip
from trainables.training.worker import run_trial

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
QUICKSTART = ROOT / "docs" / "results" / "quickstart"


def example(heading: str) -> dict[str, Any]:
    """The names that the block of code under a heading leaves."""
    block = PAGE.split(f"### {heading}\n")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"__name__": f"architecture_{heading.replace(' ', '_')}"}
    exec(compile(block, heading, "exec"), names)
    return names


def resolve(dotted: str) -> object:
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module in {dotted}")


def test_every_stop_is_there() -> None:
    stops = re.findall(r"^\d+\. `([\w.]+)`", PAGE, re.MULTILINE)
    assert 24 <= len(stops) <= 34
    assert all(callable(resolve(stop)) for stop in stops)


def test_the_picture_has_every_room() -> None:
    picture = PAGE.split("```text\n")[1].split("```")[0]
    words = set(re.findall(r"\w+", picture))
    for package in ("randlora", "trainables", "analysis", "sweeps"):
        rooms = {p.parent.name for p in (ROOT / package).glob("*/__init__.py")} - {"embedded"}
        assert rooms <= words, package


def test_the_method_and_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        example("A method")
    finally:
        METHODS.pop("vera-small-d", None)
    monkeypatch.setitem(DATASETS, "beans", example("A data set")["beans"])
    assert describe("beans")["classes"] == 3


def test_the_task_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoothed = example("A task")["SmoothedTask"]
    monkeypatch.setattr(clip, "ImageTask", smoothed)
    trial = TrialConfig(
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
    assert make.make_task  # the table that a new kind of model gets its line in
    last = list(run_trial(trial, warm={}, directory=tmp_path))[-1]
    assert last["done"] and torch.isfinite(torch.tensor(last["train_loss"]))


def test_the_figure_draws() -> None:
    (picture,) = example("A figure")["memory_picture"](open_store(QUICKSTART))
    assert picture.svg.startswith("<svg") and len(picture.figure.tips) == 9


def test_the_backend_runs_a_sweep(tmp_path: Path) -> None:
    cells = (FakeCell("lora", options=(("fail_above", 1e-2),)), FakeCell("vera"))
    plan = fake_plan(tmp_path / "r", cells, keep=FakeKeep("best"))
    summary = run(plan, backend=example("A backend")["open_one_by_one"], trial=TRIAL, progress=False)
    assert summary.finished + summary.failed == 16 and 0 < summary.failed < 8
    assert len(list((tmp_path / "r" / "adapters").iterdir())) == 2


def test_the_verb_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    app = main.typer.Typer()
    app.callback()(lambda: None)
    app.command("looks")(main._guarded(example("A verb")["looks"]))
    done = CliRunner().invoke(app, ["looks", str(QUICKSTART)])
    assert (done.exit_code, done.stdout) == (0, "46 looks at the test split\n")
    assert CliRunner().invoke(app, ["looks", "nowhere"]).exit_code == 2
