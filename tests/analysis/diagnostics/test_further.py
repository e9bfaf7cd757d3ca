"""Further tasks by lm-eval: its numbers on a trained model in memory are its numbers on the exported model."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from analysis import open_store
from tests.analysis.diagnostics.support import tiny_results
from tests.support import sweeps
from tests.trainables.tiny_language import THINGS, save_model, write_rows

TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: multiple_choice
test_split: train
doc_to_text: "Which colour has {{{{thing}}}}?"
doc_to_choice: ["red", "green", "blue"]
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: brier_score
metadata:
  version: 3.0
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of LoRA and full fine-tuning of a language model, with a task file of lm-eval's beside them."""
    place = tmp_path_factory.mktemp("further")
    save_model(place / "llama", "llama")
    write_rows(place / "rows")
    chance = random.Random(0)
    things = [{"thing": thing, "answer": chance.randrange(3)} for thing in 3 * (*THINGS,)]
    (place / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in things), encoding="utf-8")
    (place / "tasks").mkdir()
    (place / "tasks" / "colours.yaml").write_text(TASK.format(data=place / "colours.jsonl"), encoding="utf-8")
    text = {"model": {"id": f"local:{place / 'llama'}"}, "data": {"datasets": [f"json:{place / 'rows'}"]}}
    train = {"epochs": 2, "global_batch_size": 16}
    return tiny_results(place / "results", methods={"lora": {}, "full": {}}, train=train, **text)


@pytest.mark.filterwarnings("ignore")  # of lm-eval and of datasets
def test_its_scores_are_those_of_the_exported_model(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: lm-eval)")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    before = open_store(trained).table("best").to_pylist()
    asked = ("analyze", "tasks", trained, "--task", "colours", "--include", trained.parent / "tasks")
    done = sweeps(*asked, "--backend", "inline", "--json")
    assert done.exit_code == 0, done.output
    rows = open_store(trained).table("tasks").to_pylist()
    assert {(r["method"], r["metric"]) for r in rows} == {
        (method, metric) for method in ("lora", "full", "zero-shot") for metric in ("acc", "brier_score")
    }
    assert {(r["task"], r["examples"], r["task_version"]) for r in rows} == {("colours", 18, "3.0")}
    for method in ("lora", "full"):
        (trial,) = {r["trial_id"] for r in rows if r["method"] == method}
        assert sweeps("export", trained, trial, tmp_path / method, "--form", "merged").exit_code == 0
        theirs = lm_eval.simple_evaluate(
            model=HFLM(pretrained=str(tmp_path / method), device="cpu", dtype="float32", batch_size=8),
            tasks=["colours"],
            task_manager=TaskManager(include_path=str(trained.parent / "tasks")),
            log_samples=False,
            bootstrap_iters=10,
        )["results"]["colours"]
        ours = {r["metric"]: r for r in rows if r["method"] == method}
        for metric, row in ours.items():
            assert row["value"] == pytest.approx(theirs[f"{metric},none"], abs=1e-5)
        assert ours["acc"]["stderr"] == pytest.approx(theirs["acc_stderr,none"], abs=1e-5)
    values = {r["method"]: r["value"] for r in rows if r["metric"] == "brier_score"}
    assert len(set(values.values())) == 3  # the weights that were trained are those that were asked
    assert open_store(trained).table("best").to_pylist() == before  # nothing is chosen by it


def test_what_is_missing_is_said(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # importing it raises ImportError
    for words, said in (
        ((), "--task"),
        (("--task", "colours", "--examples", "5"), "randlora-sweeps[lm-eval]"),
        (("--task", "colours", "--examples", "0.5"), "whole number"),
        (("--task", "colours", "--points", "9"), "points"),
    ):
        refused = sweeps("analyze", "tasks", trained, "--backend", "inline", *words)
        assert refused.exit_code == 2 and said in " ".join(refused.output.split()), refused.output
    other = sweeps("analyze", "cka", trained, "--backend", "inline", "--task", "colours")
    assert other.exit_code == 2 and "task" in other.output
