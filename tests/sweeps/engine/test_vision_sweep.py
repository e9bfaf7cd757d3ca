"""An image encoder through the whole engine: plan, TUNE, CONFIRM, kept adapters; and what a sweep file may not ask."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from analysis.diagnostics.analyze import analyze
from analysis.findings.results.measures import further_measure
from analysis.store.store import open_store
from analysis.verdict.runs import score_name
from randlora import load
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.run import run
from sweeps.errors import SpecError
from sweeps.exporting.export import export_trial
from sweeps.exporting.kept import kept_trial
from sweeps.plan.estimate import estimate_plan
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.trainables.tiny_images import save_dinov2, write_colours
from trainables.models.encoders import load_head
from trainables.models.loading import load_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny DINOv2 in `dinov2/` and the colour set in `colours/`."""
    folder = tmp_path_factory.mktemp("vision-sweep")
    save_dinov2(folder / "dinov2")
    write_colours(folder / "colours")
    return folder


def tree(place: Path, **given: Any) -> dict[str, Any]:
    return {
        "name": "tiny-vision",
        "output": str(place / "results"),
        "model": {"id": f"local:{place / 'dinov2'}", "image_size": 16},
        "data": {"datasets": [f"parquet:{place / 'colours'}"]},
        "budgets": {"lora_rank": [2]},
        "methods": {"lora": {}, "randlora": {}, "full": {"lr": 1e-3}, "linear-probe": {}},
        "search": {"trials": 2, "rerun_rates": 0, "rerun_seeds": 0},
        "confirm": {"seeds": 2},
        "train": {"epochs": 2, "global_batch_size": 16},
        "keep": {"adapters": "confirm"},
    } | given


def test_a_vision_sweep_end_to_end(place: Path, pool: Pool) -> None:
    plan = Plan.from_spec(SweepSpec.parse(tree(place)))
    assert {cell.method: cell.adapt for cell in plan.cells} == dict.fromkeys(
        ("lora", "randlora", "full", "linear-probe"), "all"
    )
    summary = run(plan, progress=False, backend=using(pool))
    assert (summary.finished, summary.failed) == (4 * (2 + 2), 0)
    trials = open_store(place / "results").table("trials").to_pylist()
    assert {t["metric"] for t in trials} == {"accuracy"}
    assert {t["head_params"] for t in trials} == {4 * 32}
    assert all((t["test_score"] is None) == (t["stage"] == "TUNE") for t in trials)
    count = {t["method"]: t["adapter_params"] for t in trials}
    lora = 2 * sum(a + b for a, b in [(32, 32)] * 6 + [(32, 128)] * 4)
    assert (count["lora"], count["linear-probe"]) == (lora, 0)
    assert count["randlora"] == pytest.approx(lora, rel=0.05)
    one = next(t for t in trials if t["method"] == "randlora" and t["stage"] == "CONFIRM")
    folder = place / "results" / "adapters" / one["trial_id"]
    model = load_model(f"local:{place / 'dinov2'}").module
    assert load(model, folder).count() == count["randlora"]
    assert load_head(folder).weight.shape == (4, 32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's from_pretrained
def test_methods_of_peft_go_the_whole_way(place: Path, pool: Pool, tmp_path: Path) -> None:
    """From the sweep file to a folder that PEFT itself loads; a method without a matrix has no spectrum."""
    peft = pytest.importorskip("peft")
    methods = {"peft:miss": {"allocation": "uniform"}, "peft:pvera": {}}
    given = tree(place, output=str(tmp_path / "r"), methods=methods)
    plan = Plan.from_spec(SweepSpec.parse(given | {"budgets": {"params": [1024]}}))
    assert {m.method for m in estimate_plan(plan).methods} == set(methods)
    assert run(plan, progress=False, backend=using(pool)).finished == 2 * (2 + 2)
    store = open_store(tmp_path / "r")
    assert all(c["dof"] for c in store.table("cells").to_pylist())
    table, _, says = analyze(store, "spectrum")
    assert set(table.column("method").to_pylist()) == {"peft:miss"} and "Left out" in says and "PVeRA" in says
    miss = next(t for t in store.table("trials").to_pylist() if (t["method"], t["stage"]) == ("peft:miss", "CONFIRM"))
    out = export_trial(kept_trial(tmp_path / "r", miss["trial_id"]), tmp_path / "out", "peft")
    loaded = peft.PeftModel.from_pretrained(load_model(f"local:{place / 'dinov2'}").module, out)
    assert sum(p.numel() for n, p in loaded.named_parameters() if "miss" in n) == miss["adapter_params"]


def test_identity_and_cells_depend_on_the_image_size_and_not_on_spelling_the_default(place: Path) -> None:
    plain = SweepSpec.parse(tree(place))
    model = {"id": plain.model.id, "image_size": 16, "adapt": "all"}
    spelt = SweepSpec.parse(tree(place, model=model))
    assert spelt.identity() == plain.identity() == Plan.from_spec(plain).spec.identity()
    bigger = SweepSpec.parse(tree(place, model={"id": plain.model.id, "image_size": 24}))
    assert bigger.identity() != plain.identity()
    first, other = (Plan.from_spec(s).cells[0] for s in (plain, bigger))
    assert first.cell_id != other.cell_id


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"methods": {"lora": {}, "zero-shot": {}}}, r"methods\.zero-shot.*no head.*methods\.linear-probe"),
        ({"model": {"adapt": "vision"}}, r"model\.adapt.*'vision'.*one tower.*all"),
        ({"model": {"image_size": 20}}, r"model\.image_size.*20.*patch size, 8.*(16|24)"),
    ],
)
def test_what_an_encoder_cannot_do_is_named(place: Path, given: dict[str, Any], words: str) -> None:
    whole = tree(place)
    for name, section in given.items():
        whole[name] = (whole[name] | section) if name == "model" else section
    with pytest.raises(SpecError, match=words):
        Plan.from_spec(SweepSpec.parse(whole))


def test_clip_takes_no_image_size(place: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.image_size.*do not interpolate"):
        Plan.from_spec(SweepSpec.parse(tree(place, model={"id": "embedded:tiny-clip", "image_size": 32})))


def test_a_temperature_needs_full_fine_tuning_of_both_towers(place: Path) -> None:
    def planned(adapt: str, method: str) -> Plan:
        whole = tree(place, model={"id": "embedded:tiny-clip", "adapt": adapt})
        whole["train"]["train_temperature"] = True
        return Plan.from_spec(SweepSpec.parse(whole | {"methods": {method: {}}}))

    assert planned("both", "full").n_trials
    for adapt, method in (("vision", "full"), ("both", "lora")):
        with pytest.raises(SpecError, match=r"train\.train_temperature = True: is for full fine-tuning of both towers"):
            planned(adapt, method)


def test_a_sweep_by_loss_chooses_rates_and_scores_by_it(place: Path, tmp_path: Path) -> None:
    given = {"name": "by-loss", "output": str(tmp_path / "loss"), "evaluate": {"metric": "loss"}, "keep": {}}
    plan = Plan.from_spec(SweepSpec.parse(tree(place, methods={"lora": {}, "linear-probe": {}}, **given)))
    assert run(plan, progress=False, backend="inline").failed == 0
    store = open_store(tmp_path / "loss")
    for trial in store.table("trials").to_pylist():
        further = json.loads(trial["further"])
        assert trial["metric"] == "likelihood (accuracy)"
        assert trial["val_score"] == pytest.approx(math.exp(-further["val"]["loss"]))
        assert 0 <= further["val"]["accuracy"] <= 1
        if trial["stage"] == "CONFIRM":
            assert trial["test_score"] == pytest.approx(math.exp(-further["test"]["loss"]))
    by_rate = {
        (t["cell_id"], t["lr"]): t["val_score"] for t in store.table("trials").to_pylist() if t["stage"] == "TUNE"
    }
    for choice in store.table("chosen").to_pylist():
        tried = {lr: score for (cell, lr), score in by_rate.items() if cell == choice["cell_id"]}
        assert choice["lr"] == max(tried, key=lambda lr: tried[lr])
    other = further_measure(store)
    assert other is not None and other.name == "accuracy"
    assert score_name(store) == "test likelihood"
