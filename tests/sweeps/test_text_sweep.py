"""Models of text through the whole engine, and what a sweep file may not ask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.store import open_store
from randlora import load
from sweeps.cluster import Pool
from sweeps.engine import run
from sweeps.errors import SpecError
from sweeps.inputs import check_inputs, split_sizes
from sweeps.plan import Plan
from sweeps.spec import SweepSpec
from tests.trainables.tiny_language import instruction_rows, save_model, write_e2e, write_rows
from tests.trainables.tiny_sentences import save_encoder, write_sst2
from trainables.models import load_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama in `llama/`, a tiny RoBERTa in `roberta/`, and data for both."""
    folder = tmp_path_factory.mktemp("text-sweep")
    save_model(folder / "llama", "llama")
    save_encoder(folder / "roberta")
    write_rows(folder / "rows")
    write_sst2(folder / "SST-2")
    write_e2e(folder / "restaurants")
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


def test_a_language_model_sweep_end_to_end(place: Path, pool: Pool) -> None:
    methods: dict[str, Any] = {"randlora": {}, "zero-shot": {}}
    plan = Plan.from_spec(SweepSpec.parse(tree(place, methods=methods, evaluate={"test_rows": 10})))
    assert [split_sizes(cell) for cell in plan.cells] == [(36, 4, 10)] * 2
    summary = run(plan, progress=False, pool=pool)
    assert (summary.finished, summary.failed) == (2 + 1 + 1, 0)
    trials = open_store(place / "results-llama").table("trials").to_pylist()
    assert {t["metric"] for t in trials} == {"accuracy (log-likelihood)"}
    assert {t["unit"] for t in trials} == {"texts"}
    confirmed = [t for t in trials if t["stage"] == "CONFIRM"]
    assert all(t["test_score"] is not None and t["n_examples"] == 10 for t in confirmed)
    one = next(t for t in confirmed if t["method"] == "randlora")
    model = load_model(f"local:{place / 'llama'}").module
    assert load(model, place / "results-llama" / "adapters" / one["trial_id"]).count() == one["adapter_params"]


def test_a_text_encoder_sweep_end_to_end(place: Path, pool: Pool) -> None:
    methods: dict[str, Any] = {"lora": {}, "linear-probe": {}}
    plan = Plan.from_spec(SweepSpec.parse(tree(place, "roberta", "glue:SST-2", methods=methods)))
    summary = run(plan, progress=False, pool=pool)
    assert (summary.finished, summary.failed) == (2 * (2 + 1), 0)
    trials = open_store(place / "results-roberta").table("trials").to_pylist()
    heads = {t["method"]: t["head_params"] for t in trials}
    assert heads == {"lora": 32 * 32 + 32 + 2 * 32 + 2, "linear-probe": 2 * 32}
    assert {t["metric"] for t in trials} == {"accuracy"}


def test_evaluation_is_part_of_a_sweeps_identity_only_where_it_is_asked_for(place: Path) -> None:
    plain = SweepSpec.parse(tree(place))
    asked = SweepSpec.parse(tree(place, evaluate={"protocol": "generation", "num_beams": 2}))
    assert "evaluate" not in plain.identity()
    assert asked.identity()["evaluate"]["num_beams"] == 2
    cell = Plan.from_spec(asked).cells[0]
    trial = cell.trial("CONFIRM", 1e-3, (0, 0, 0), asked.train)
    assert (trial.evaluate.protocol, trial.evaluate.num_beams) == ("generation", 2)
    assert trial.trial_id != Plan.from_spec(plain).cells[0].trial("CONFIRM", 1e-3, (0, 0, 0), plain.train).trial_id


def test_changed_texts_are_noticed(place: Path, tmp_path: Path) -> None:
    from sweeps import inputs

    folder = write_rows(tmp_path / "rows")
    whole = tree(place, output=str(tmp_path / "results")) | {"data": {"datasets": [f"json:{folder}"]}}
    check_inputs(Plan.from_spec(SweepSpec.parse(whole)))
    (folder / "test.json").write_text(str(instruction_rows(12, seed=5)).replace("'", '"'), encoding="utf-8")
    inputs._load.cache_clear()
    with pytest.raises(SpecError, match="not the data that the trials"):
        check_inputs(Plan.from_spec(SweepSpec.parse(whole)))


@pytest.mark.parametrize(
    ("model", "data", "given", "words"),
    [
        ("llama", "glue:SST-2", {}, r"data\.datasets.*holds sentences.*'causal-lm' learns from prompts with responses"),
        ("roberta", "json:rows", {}, r"data\.datasets.*holds instructions.*'text-encoder' learns from labelled"),
        ("roberta", "e2e:restaurants", {}, r"data\.datasets.*holds meanings"),
        ("llama", "json:rows", {"methods": {"lora": {}, "linear-probe": {}}}, r"methods\.linear-probe.*has none"),
        ("roberta", "glue:SST-2", {"methods": {"lora": {}, "zero-shot": {}}}, r"methods\.zero-shot.*linear-probe"),
        ("llama", "json:rows", {"train": {"augment": "crop-flip"}}, r"train\.augment.*is for images"),
        ("roberta", "glue:SST-2", {"evaluate": {"protocol": "generation"}}, r"evaluate\.protocol.*labels are compared"),
        ("llama", "json:rows", {"evaluate": {"beams": 2}}, r"evaluate\.beams.*known: .*num_beams"),
    ],
)
def test_what_a_model_of_text_cannot_do_is_named(
    place: Path, model: str, data: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        Plan.from_spec(SweepSpec.parse(tree(place, model, data, **given)))


def test_images_and_texts_do_not_mix(place: Path) -> None:
    whole = tree(place) | {"model": {"id": "embedded:tiny-clip"}, "evaluate": {"num_beams": 2}}
    with pytest.raises(SpecError, match=r"(?s)holds instructions.*learns from images.*evaluate.*models of text"):
        Plan.from_spec(SweepSpec.parse(whole))
    with pytest.raises(SpecError, match=r"data\.skip_bad.*is for images"):
        skipping = {"datasets": [f"json:{place / 'rows'}"], "skip_bad": True}
        Plan.from_spec(SweepSpec.parse(tree(place) | {"data": skipping}))
