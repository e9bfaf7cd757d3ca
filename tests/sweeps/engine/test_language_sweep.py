"""A causal language model through the whole engine, by both evaluation protocols; and what a sweep file may not ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.store.store import open_store
from randlora import load
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.errors import SpecError
from sweeps.plan.inputs import check_inputs
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.sweeps.support import language_tree
from tests.trainables.tiny_language import save_model, write_rows
from trainables.models.loading import load_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama in `llama/` and instructions in `rows/`."""
    folder = tmp_path_factory.mktemp("language-sweep")
    save_model(folder / "llama", "llama")
    write_rows(folder / "rows")
    return folder


def test_a_language_sweep_end_to_end(place: Path, pool: Pool) -> None:
    plan = Plan.from_spec(SweepSpec.parse(language_tree(place, evaluate={"test_rows": 7})))
    check_inputs(plan)
    summary = run(plan, progress=False, backend=using(pool))
    assert (summary.finished, summary.failed) == (2 * (2 + 2) + 1, 0)
    trials = open_store(place / "results").table("trials").to_pylist()
    assert {t["metric"] for t in trials} == {"accuracy (log-likelihood)"}
    assert {t["unit"] for t in trials} == {"texts"}
    assert all((t["test_score"] is None) == (t["stage"] == "TUNE") for t in trials)
    assert all({"accuracy-per-byte", "loss"} <= set(json.loads(t["further"])["val"]) for t in trials)
    seen = open_store(place / "results").table("predictions").to_pylist()
    assert {p["n_examples"] for p in seen} == {7}
    one = next(t for t in trials if t["method"] == "randlora" and t["stage"] == "CONFIRM")
    model = load_model(f"local:{place / 'llama'}").module
    assert load(model, place / "results" / "adapters" / one["trial_id"]).count() == one["adapter_params"]


def test_the_two_protocols_are_two_sweeps(place: Path) -> None:
    by_likelihood = SweepSpec.parse(language_tree(place))
    by_default = SweepSpec.parse(language_tree(place, evaluate={}))
    by_generation = SweepSpec.parse(language_tree(place, evaluate={"protocol": "generation"}))
    assert by_likelihood.identity() == by_default.identity() != by_generation.identity()
    trials = [
        Plan.from_spec(s).cells[0].trial("TUNE", 1e-3, (1, 1, 1), s.train) for s in (by_likelihood, by_generation)
    ]
    assert [t.evaluate.protocol for t in trials] == [None, "generation"]
    assert trials[0].trial_id != trials[1].trial_id


def refusals(given: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        Plan.from_spec(SweepSpec.parse(given))
    return str(caught.value)


def test_what_a_language_sweep_may_not_ask(place: Path) -> None:
    methods = {"lora": {}, "linear-probe": {}}
    train = {"epochs": 1, "augment": "crop-flip"}
    found = refusals(language_tree(place, methods=methods, train=train, data={"datasets": ["embedded:fashion-mnist"]}))
    assert "linear-probe" in found and "a language model has none" in found
    assert "train.augment = 'crop-flip'" in found
    assert "'embedded:fashion-mnist'" in found and "is a set of images, and the model reads texts" in found


def test_what_an_image_sweep_may_not_ask_of_language(place: Path) -> None:
    train = {"epochs": 1, "max_tokens": 9}
    given = language_tree(place, model={"id": "embedded:tiny-clip"}, train=train, evaluate={"protocol": "generation"})
    found = refusals(given)
    assert "evaluate.protocol = 'generation'" in found and "train.max_tokens = 9" in found
    assert "is a set of texts, and the model reads images" in found
