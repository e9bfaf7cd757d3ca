"""`sweeps again`: one trial once more from the journal's configuration, held against the tables."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from analysis.store.tables import write_part
from tests.support import sweeps
from trainables.config import TrialConfig
from trainables.training.measured import Measured, Result
from trainables.training.worker import run_trial

TRIAL = TrialConfig.model_validate(
    {
        "stage": "TUNE",
        "cell_id": "c",
        "model": "embedded:tiny-clip",
        "adapt": "vision",
        "targets": ["mlp.c_fc"],
        "dataset": "embedded:fashion-mnist",
        "train_size": "1-shot",
        "method": "full-targets",
        "lr": 1e-3,
        "data_seed": 3,
        "init_seed": 3,
        "basis_seed": 3,
        "train": {"epochs": 1, "global_batch_size": 4},
    }
)


def folder(place: Path, score: float, trial: TrialConfig = TRIAL, **more: Any) -> Path:
    row: dict[str, Any] = {"sweep": "s", "trial_id": trial.trial_id, "cell_id": "c", "attempt": 1, "stage": "TUNE"}
    row |= {"slot": 0, "method": trial.method, "status": "finished", "val_score": score, **more}
    (place / "tables").mkdir(parents=True)
    write_part(place, "trials", [row])
    lanes = [{"per_worker": {"CPU": 1.0}}]
    ask = {"ev": "ask", "trial_id": trial.trial_id, "config": trial.model_dump(mode="json")}
    lines = [json.dumps({"ev": "sweep", "name": "s", "lanes": lanes}), json.dumps(ask)]
    (place / "journal.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


def test_a_trial_again_is_held_against_the_tables(tmp_path: Path) -> None:
    *_, last = run_trial(TRIAL, warm={}, directory=tmp_path / "first")
    score = last["result"].measured.val_score
    assert 0 <= score <= 1
    good = folder(tmp_path / "good", score)
    before = sorted(good.rglob("*"))
    done = sweeps("again", str(good), TRIAL.trial_id[:6])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "the same"), done.output
    assert sorted(good.rglob("*")) == before
    other = sweeps("again", str(folder(tmp_path / "other", score + 0.5)), TRIAL.trial_id, "--json")
    assert other.exit_code == 1
    assert json.loads(other.output)["val_again"] == score


def test_a_trial_again_has_its_paths_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its worker had them: which rows are drawn of `glue:DIR` goes by it."""
    trial = TrialConfig.model_validate({**TRIAL.model_dump(), "dataset": "folder:mine"})
    told: list[TrialConfig] = []

    def run(config: TrialConfig, **_: Any) -> list[dict[str, Any]]:
        told.append(config)
        return [{"result": Result(Measured(val_score=0.5))}]

    monkeypatch.setattr("trainables.training.worker.run_trial", run)
    monkeypatch.chdir(tmp_path)
    assert sweeps("again", str(folder(tmp_path / "r", 0.5, trial)), trial.trial_id).exit_code == 0
    assert [config.dataset for config in told] == [f"folder:{tmp_path / 'mine'}"]


def test_a_trial_again_names_the_versions_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.1.0", "numpy": version("numpy"), "no-such-package": "1.0"}
    place = folder(tmp_path, 0.5, versions=json.dumps(versions))
    last = {"result": Result(Measured(val_score=0.5))}
    monkeypatch.setattr("trainables.training.worker.run_trial", lambda *_, **__: [last])
    named = [f"torch 2.1.0, here {version('torch')}", "no-such-package 1.0, here not installed"]
    lines = sweeps("again", str(place), TRIAL.trial_id).output.splitlines()
    assert [line for line in lines if line.startswith("elsewhere")] == [f"elsewhere   {each}" for each in named]
    assert json.loads(sweeps("again", str(place), TRIAL.trial_id, "--json").output)["elsewhere"] == named


def test_a_trial_that_cannot_be_repeated(tmp_path: Path) -> None:
    place = folder(tmp_path, 0.5)
    assert "no such finished trial" in sweeps("again", str(place), "zzz").output
    (place / "journal.jsonl").write_text('{"ev": "sweep", "name": "s"}\n{"ev": "as')  # a torn line
    refused = sweeps("again", str(place), TRIAL.trial_id)
    assert refused.exit_code == 2
    assert "its configuration is not in" in refused.output


def test_a_trial_again_has_the_threads_of_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpus_per_worker` was changed after it, and it was not trained again."""
    place, threads = folder(tmp_path, 0.5), list[int]()

    def run(cpus: float) -> dict[str, Any]:
        return {"ev": "sweep", "name": "s", "lanes": [{"per_worker": {"CPU": cpus}}]}

    row: dict[str, Any] = {"sweep": "s", "trial_id": TRIAL.trial_id, "cell_id": "c", "attempt": 1, "stage": "TUNE"}
    row |= {"slot": 0, "method": TRIAL.method, "status": "finished", "val_score": 0.5}
    ask = {"ev": "ask", "trial_id": TRIAL.trial_id, "config": TRIAL.model_dump(mode="json")}
    other = {"ev": "finish", "row": row | {"trial_id": "0" * 16}}
    lines = [run(8.0), run(2.0), ask, {"ev": "finish", "row": row}, run(3.0), other]
    (place / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    last = {"result": Result(Measured(val_score=0.5))}
    monkeypatch.setattr("trainables.training.worker.run_trial", lambda *_, **__: [last])
    assert sweeps("again", str(place), TRIAL.trial_id).exit_code == 0
    assert threads[0] == 2


@pytest.mark.parametrize(
    ("adapt", "asked", "its", "given"),
    [
        ("vision", None, 4, None),
        ("vision", 8, 4, None),
        ("vision", 8, 2, 2),
        ("both", 8, 4, None),
        ("both", None, 2, None),
    ],
)
def test_a_trial_again_has_smaller_micro_batches_only_where_memory_had_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapt: str, asked: int | None, its: int, given: int | None
) -> None:
    """The row has the smaller of batch and micro-batch; two workers that share a contrastive batch have half each."""
    train = TRIAL.train.model_dump() | {"micro_batch_size": asked}
    trial = TrialConfig.model_validate({**TRIAL.model_dump(), "adapt": adapt, "train": train})
    told: list[int | None] = []

    def run(*_: Any, micro_batch_size: int | None, **__: Any) -> list[dict[str, Any]]:
        told.append(micro_batch_size)
        return [{"result": Result(Measured(val_score=0.5))}]

    monkeypatch.setattr("trainables.training.worker.run_trial", run)
    place = folder(tmp_path, 0.5, trial, micro_batch_size=its)
    assert sweeps("again", str(place), trial.trial_id).exit_code == 0
    assert told == [given]
