"""Recipes trained end to end at `--scale small`, on random weights where the hub has the real model; a family each.

`make test-all` runs them. `make test` plans every recipe (test_plans.py) and trains steps of one (test_steps.py).

Figure 4, whose sweeps end in diagnostics, is in tests/analysis/diagnostics/test_figure4.py.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from analysis.store.store import open_store
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.plan.inputs import check_inputs
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT
from tests.trainables.tiny_images import save_dinov2, write_colours
from tests.trainables.tiny_language import save_model, write_e2e, write_rows
from tests.trainables.tiny_sentences import save_encoder, write_sst2

FOLDER = ROOT / "examples" / "paper"
SHORT = ("search.trials=2", "confirm.seeds=1", "train.epochs=1")
FEW = ('data.train_size=["1-shot"]', "train.global_batch_size=16")


@dataclass(frozen=True)
class Case:
    """What replaces the hub's model and data; `metric` is what the trials then have."""

    recipe: str
    metric: str
    model: str = ""
    data: str = ""
    more: tuple[str, ...] = ()
    missing: str = ""


CASES = [
    Case("fig1-clip", "accuracy", more=(*FEW, "budgets.lora_rank=[1]")),
    Case(
        "table1-qwen2",
        "accuracy (generation)",
        "qwen2",
        "json:rows",
        ("methods.vera.capacity=32", "methods.nola.capacity=64"),
    ),
    Case("fig1-dinov2", "accuracy", "dinov2", "parquet:colours", ("model.image_size=16", *FEW)),
    Case("fig2-clip-b32", "accuracy", more=FEW),
    Case("table4-bases", "accuracy", more=FEW),
    Case("table5-prompts", "accuracy", more=FEW),
    Case("cost-clip-b32", "accuracy", more=(*FEW, "confirm.seeds=1")),
    Case(
        "glue-base",
        "accuracy",
        "roberta",
        "glue:SST-2",
        ("methods.vera.capacity=32", "data.train_size=[1.0]", "train.max_tokens=64"),
    ),
    Case("e2e", "bleu", "gpt2", "e2e:restaurants", ("methods.vera.capacity=32", "data.train_size=[1.0]"), "sacrebleu"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    save_dinov2(folder / "dinov2")
    save_encoder(folder / "roberta")
    save_model(folder / "qwen2", "qwen2")
    save_model(folder / "gpt2", "gpt2")
    write_colours(folder / "colours")
    write_rows(folder / "rows")
    write_sst2(folder / "SST-2")
    write_e2e(folder / "restaurants")
    return folder


def small(name: str, place: Path, *overrides: str) -> Plan:
    given = (f'output="{place / "results" / name}"', *overrides)
    return Plan.from_spec(SweepSpec.load(FOLDER / f"{name}.toml", given, "small"))


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(c, id=c.recipe) for c in CASES])
def test_a_recipe_trains(case: Case, place: Path, pool: Pool) -> None:
    if case.missing and importlib.util.find_spec(case.missing) is None:
        pytest.skip(f"needs {case.missing}, of the extra text-metrics")
    given = [t for t in SHORT if case.recipe != "cost-clip-b32" or not t.startswith("search")]
    if case.model:
        form, _, name = case.data.partition(":")
        given += [f'model.id="local:{place / case.model}"', f'data.datasets=["{form}:{place / name}"]']
        given += ["budgets.lora_rank=[2]", *_labels(case.recipe, "lora-2")]
    plan = small(case.recipe, place, *given, *case.more)
    check_inputs(plan)
    summary = run(plan, progress=False, backend=using(pool))
    assert (summary.finished, summary.failed) == (plan.n_trials, 0)
    trials = open_store(plan.spec.folder).table("trials").to_pylist()
    assert {t["metric"] for t in trials} == {case.metric}
    assert {t["method"] for t in trials} == {c.method for c in plan.cells if c.feasible} and len(plan.feasible) > 1
    counts = {(t["method"], t["budget"]): t["adapter_params"] for t in trials if t["budget"] is not None}
    assert counts == {(c.method, c.budget): c.count for c in plan.feasible if c.budget is not None}
    first = [t for t in trials if t["stage"] == "TUNE" and t["slot"] == 0]
    if plan.spec.protocol == "standard":
        assert {t["origin"] for t in first} == {"published"}
        centre = {c.method: c.lr_centre for c in plan.cells}
        assert all(t["lr"] == pytest.approx(centre[t["method"]]) for t in first)


def _labels(recipe: str, label: str) -> list[str]:
    """Methods that name a budget of the file's own list take the one there is."""
    spec = SweepSpec.load(FOLDER / f"{recipe}.toml", scale="small")
    return [f'methods.{name}.budgets=["{label}"]' for name, section in spec.methods.items() if section.budgets]
