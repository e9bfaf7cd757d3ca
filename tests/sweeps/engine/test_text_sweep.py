"""A text encoder through the whole engine, and what a sweep file may not ask of models of text."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.store.store import open_store
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.errors import SpecError
from sweeps.plan.inputs import check_inputs
from sweeps.plan.plan import Plan
from sweeps.plan.split_sizes import split_sizes
from sweeps.records.locks import write_identity
from sweeps.search.stages import SweepState
from sweeps.spec.paths import with_absolute_paths
from sweeps.spec.spec import SweepSpec
from tests.sweeps.support import begin
from tests.trainables.tiny_language import instruction_rows, save_model, write_e2e, write_rows
from tests.trainables.tiny_sentences import save_encoder, write_sst2, write_stsb
from trainables.config import EvaluateSettings, TrialConfig, identifying
from trainables.data.registry import load_text_dataset
from trainables.data.splits import split, split_of
from trainables.data.text.dataset import TextDataset
from trainables.tasks.text.rows import limited


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama in `llama/`, a tiny RoBERTa in `roberta/`, and data for both."""
    folder = tmp_path_factory.mktemp("text-sweep")
    save_model(folder / "llama", "llama")
    save_encoder(folder / "roberta")
    write_rows(folder / "rows")
    write_sst2(folder / "SST-2")
    write_e2e(folder / "restaurants")
    plain = [{"instruction": f"What is {n} + 1?", "output": f"It is {n + 1}", "answer": str(n + 1)} for n in range(20)]
    solved = [{"query": row["instruction"], "response": f"The answer is: {row['answer']}"} for row in plain]
    mute = [{"instruction": row["instruction"], "output": row["output"]} for row in plain]
    for name, rows in (("plain", plain), ("mute", mute), ("solved", solved)):
        (folder / name).mkdir()
        for which, part in (("train", rows[:15]), ("test", rows[15:])):
            (folder / name / f"{which}.json").write_text(json.dumps(part), encoding="utf-8")
    return folder


def tree(place: Path, model: str = "llama", data: str = "json:rows", **given: Any) -> dict[str, Any]:
    form, _, name = data.partition(":")
    return {
        "name": f"tiny-{model}",
        "output": str(place / f"results-{model}"),
        "model": {"id": f"local:{place / model}"},
        "data": {"datasets": [f"{form}:{place / name}"]},
        "budgets": {"lora_rank": [2]},
        "methods": {"lora": {}, "randlora": {}},
        "search": {"trials": 2, "rerun_rates": 0, "rerun_seeds": 0},
        "confirm": {"seeds": 1},
        "train": {"epochs": 1, "global_batch_size": 16},
        "keep": {"adapters": "confirm"},
    } | given


def test_a_text_encoder_sweep_end_to_end(place: Path, pool: Pool) -> None:
    methods: dict[str, Any] = {"lora": {}, "linear-probe": {}}
    plan = Plan.from_spec(SweepSpec.parse(tree(place, "roberta", "glue:SST-2", methods=methods)))
    summary = run(plan, progress=False, backend=using(pool))
    assert (summary.finished, summary.failed) == (2 * (2 + 1), 0)
    trials = open_store(place / "results-roberta").table("trials").to_pylist()
    heads = {t["method"]: t["head_params"] for t in trials}
    assert heads == {"lora": 32 * 32 + 32 + 2 * 32 + 2, "linear-probe": 2 * 32}
    assert {t["metric"] for t in trials} == {"accuracy"}


def test_rows_to_evaluate_are_counted(place: Path) -> None:
    plan = Plan.from_spec(SweepSpec.parse(tree(place, evaluate={"test_rows": 10})))
    assert [split_sizes(cell) for cell in plan.cells] == [(36, 4, 10)] * 2


def test_changed_texts_are_noticed(place: Path, tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "rows")
    whole = tree(place, output=str(tmp_path / "results")) | {"data": {"datasets": [f"json:{folder}"]}}
    plan = Plan.from_spec(SweepSpec.parse(whole))
    check_inputs(plan)
    begin(plan)
    rows = [row | {"instruction": row["instruction"] + " "} for row in instruction_rows(12, seed=5)]
    (folder / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(SpecError, match="not the data that the trials"):
        check_inputs(plan)


@pytest.mark.parametrize(
    ("model", "data", "given", "words"),
    [
        ("llama", "glue:SST-2", {}, r"data\.datasets.*holds sentences.*causal-lm learns from instructions or"),
        ("roberta", "json:rows", {}, r"data\.datasets.*holds instructions.*text-encoder learns from sentences"),
        ("roberta", "e2e:restaurants", {}, r"data\.datasets.*holds meanings"),
        ("llama", "json:rows", {"methods": {"lora": {}, "linear-probe": {}}}, r"methods\.linear-probe.*has none"),
        ("roberta", "glue:SST-2", {"methods": {"lora": {}, "zero-shot": {}}}, r"methods\.zero-shot.*linear-probe"),
        ("llama", "json:rows", {"train": {"augment": "crop-flip"}}, r"train\.augment.*is for images"),
        (
            "llama",
            "json:rows",
            {"methods": {"full": {}}, "train": {"train_temperature": True}},
            r"train\.train_temperature = True: is for full fine-tuning of both towers of a CLIP",
        ),
        (
            "roberta",
            "glue:SST-2",
            {"evaluate": {"protocol": "generation"}},
            r"evaluate\.protocol.*is for language models",
        ),
        ("llama", "problems:solved", {}, r"evaluate\.max_new_tokens = 32: is the default.*longer.*Nearest: 300"),
        ("llama", "json:rows", {"evaluate": {"beams": 2}}, r"evaluate\.beams.*known: .*num_beams"),
    ],
)
def test_what_a_model_of_text_cannot_do_is_named(
    place: Path, model: str, data: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        Plan.from_spec(SweepSpec.parse(tree(place, model, data, **given)))


@pytest.mark.parametrize(
    ("data", "protocol", "words"),
    [
        ("json:plain", None, r"evaluate\.protocol: .*plain/train\.json, row \d+: no choices to compare"),
        ("json:mute", "generation", r"mute/train\.json, row \d+: the row has no answer"),
        ("problems:solved", "log-likelihood", r"numbers as answers instead of choices; use 'generation'"),
        ("e2e:restaurants", "log-likelihood", r"reference texts instead of choices; use 'generation'"),
        ("e2e:restaurants", None, r"pycocoevalcap, which is not installed: .*\[text-metrics\]"),
        ("json:plain", "generation", None),
    ],
)
def test_texts_that_cannot_be_judged_stop_a_sweep(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, protocol: str | None, words: str | None
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", sys)  # whatever is installed
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    evaluate = {"max_new_tokens": 8} | ({"protocol": protocol} if protocol else {})
    plan = Plan.from_spec(SweepSpec.parse(tree(place, "llama", data, output=str(tmp_path / "out"), evaluate=evaluate)))
    with pytest.raises(SpecError, match=words) if words else contextlib.nullcontext():
        check_inputs(plan)


def test_the_rows_that_a_worker_evaluates_are_looked_at(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of an earlier version they depend on the data's absolute path, which workers have."""
    monkeypatch.chdir(place)
    looked: list[tuple[tuple[str, ...], list[str]]] = []

    def check(data: TextDataset, settings: EvaluateSettings, validated: Tensor) -> str:
        rows = limited(data.train, validated, settings, "val").tolist()
        looked.append((data.train.groups, [data.train.place(row) for row in rows]))
        return "generation"

    monkeypatch.setattr("sweeps.plan.inputs.choose_protocol", check)
    given = {"output": str(tmp_path / "out"), "evaluate": {"max_new_tokens": 8, "validation_rows": 1}}
    whole = tree(place, "llama", "problems:solved", **given) | {"data": {"datasets": ["problems:solved"]}}
    spec = SweepSpec.parse(whole)
    (tmp_path / "out").mkdir()
    write_identity(tmp_path / "out", spec.identity())
    plan = Plan.from_spec(spec)
    assert plan.spec.evaluate.rows_by is None
    check_inputs(plan)
    slot = SweepState(plan.feasible, plan.spec).next_slot()
    assert slot is not None
    trial = TrialConfig.model_validate(with_absolute_paths(slot.config))
    data = load_text_dataset(trial.dataset, stage=trial.stage)
    rows = limited(data.train, split_of(data, trial).val_idx, trial.evaluate, "val").tolist()
    assert looked == [(data.train.groups, [data.train.place(row) for row in rows])]


@pytest.mark.parametrize("data", ["glue:SST-2", "problems:solved"])
def test_the_rows_that_are_evaluated_follow_from_the_data_alone(place: Path, tmp_path: Path, data: str) -> None:
    """Another machine has them elsewhere. A folder of an earlier version goes on with the rows it has."""
    form, _, name = data.partition(":")
    copies = [tmp_path / each / name for each in ("here", "there")]
    most = {"validation_rows": 1, "test_rows": 1, "max_new_tokens": 300 if form == "problems" else 32}
    model = "llama" if form == "problems" else "roberta"
    trials = []
    for copy in copies:
        shutil.copytree(place / name, copy)
        whole = tree(place, model, output=str(copy.parent / "out"), evaluate=most)
        plan = Plan.from_spec(SweepSpec.parse(whole | {"data": {"datasets": [f"{form}:{copy}"]}}))
        assert plan.spec.identity()["evaluate"]["rows_by"] == "data"
        trials.append(plan.cells[0].trial("CONFIRM", 1e-3, (0, 0, 0), plan.spec.train))

    def drawn(copy: Path, settings: EvaluateSettings) -> tuple[list[int], list[int]]:
        rows = load_text_dataset(f"{form}:{copy}", stage="CONFIRM")
        val = split(rows, 1.0, 0, "CONFIRM").val_idx
        test = torch.arange(len(rows.test))
        return limited(rows.train, val, settings, "val").tolist(), limited(rows.test, test, settings, "test").tolist()

    assert drawn(copies[0], trials[0].evaluate) == drawn(copies[1], trials[1].evaluate)
    old = {"evaluate": most}
    begun = plan.as_begun(plan.spec.identity() | old)
    assert begun.spec.evaluate.rows_by is None and {cell.evaluate.rows_by for cell in begun.cells} == {None}
    was = begun.cells[0].trial("CONFIRM", 1e-3, (0, 0, 0), begun.spec.train)
    assert was.trial_id != trials[1].trial_id and "rows_by" not in identifying(was)["evaluate"]
    assert plan.as_begun(plan.spec.identity()).cells == plan.cells


@pytest.mark.parametrize(("model", "data", "positions"), [("llama", "json:rows", 256), ("roberta", "glue:SST-2", 64)])
def test_texts_longer_than_the_window_are_refused_beforehand(
    place: Path, model: str, data: str, positions: int
) -> None:
    def planned(most: int) -> Plan:
        return Plan.from_spec(SweepSpec.parse(tree(place, model, data, train={"epochs": 1, "max_tokens": most})))

    assert planned(positions).n_trials
    with pytest.raises(SpecError, match=rf"max_tokens = {positions + 1}.*model's {positions} positions"):
        planned(positions + 1)


def test_numbers_are_not_smoothed(place: Path, tmp_path: Path) -> None:
    numbers = write_stsb(tmp_path / "STS-B")
    train = {"epochs": 1, "global_batch_size": 16, "label_smoothing": 0.1}
    for data, words in ((f"glue:{numbers}", r"train\.label_smoothing.*are numbers"), ("glue:SST-2", None)):
        whole = tree(place, "roberta", data, output=str(tmp_path / "out"), train=train)
        plan = Plan.from_spec(SweepSpec.parse(whole))
        with pytest.raises(SpecError, match=words) if words else contextlib.nullcontext():
            check_inputs(plan)


def test_bad_rows_of_text_are_not_skipped(place: Path) -> None:
    with pytest.raises(SpecError, match=r"data\.skip_bad.*is for images"):
        Plan.from_spec(
            SweepSpec.parse(tree(place) | {"data": {"datasets": [f"json:{place / 'rows'}"], "skip_bad": True}})
        )
