"""`lr = "predicted"`: the first run measures and keeps the rates, later runs read them, bad requests are refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis import open_store
from analysis.diagnostics.analyze import analyze, in_process
from analysis.diagnostics.units import Unit
from analysis.format import Row
from sweeps import Plan, SpecError, SweepSpec
from sweeps.cli.run import predicted_words
from sweeps.engine.predicting import predict
from sweeps.engine.run import run
from sweeps.plan.predicted import EXPONENT, predicted_centre
from sweeps.records.locks import write_identity
from tests.analysis.diagnostics.support import tiny_results


def tree(folder: Path, **sections: Any) -> dict[str, Any]:
    """A sweep file: LoRA's rate is known, DoRA's and RandLoRA's are to be predicted."""
    return {
        "name": "predicted",
        "output": str(folder),
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": ["embedded:fashion-mnist"], "train_size": "2-shot"},
        "budgets": {"lora_rank": [2]},
        "methods": {"lora": {"lr": 1e-2}, "dora": {"lr": "predicted"}, "randlora": {"lr": "predicted"}},
        "search": {"trials": 1, "rerun_rates": 0, "rerun_seeds": 0, "lr": {"decades": 1}},
        "confirm": {"seeds": 1},
        "train": {"epochs": 1, "global_batch_size": 20, "min_batches_per_epoch": 1},
    } | sections


def plan_of(folder: Path, **sections: Any) -> Plan:
    return Plan.from_spec(SweepSpec.parse(tree(folder, **sections)))


def answering(**rates: float | None) -> Any:
    """An `Execute` that measures nothing: each method's first rate is given."""

    def execute(_: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
        for unit in units:
            yield unit, [{"first_rate": rates[unit.trials[0]["method"]]}]

    return execute


def refused(**sections: Any) -> str:
    with pytest.raises(SpecError) as caught:
        SweepSpec.parse(tree(Path("unused"), **sections))
    return str(caught.value)


def test_a_rate_is_loras_times_a_power_of_the_ratio(tmp_path: Path) -> None:
    planned = predict(plan_of(tmp_path), answering(lora=2e-3, dora=2e-3, randlora=2e-2))
    centres = {cell.method: cell.lr_centre for cell in planned.cells}
    assert centres == {"lora": 1e-2, "dora": 1e-2, "randlora": pytest.approx(1e-2 * 10**EXPONENT, rel=0.02)}
    (randlora,) = (cell for cell in planned.cells if cell.method == "randlora")
    assert randlora.lr_high is not None and randlora.lr_low is not None
    assert randlora.lr_high / randlora.lr_low == pytest.approx(10)
    assert predicted_centre(3e-3, 0.0012345, 0.0012345) == 3e-3
    assert not planned.unpredicted


def test_a_sweep_measures_once_and_goes_on_with_the_same_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    planned = plan_of(folder)
    assert [cell.method for cell in planned.unpredicted] == ["dora", "randlora"]
    unknown = {row["method"]: row["lr_centre"] for row in planned.table().to_pylist()}
    assert unknown == {"lora": 1e-2, "dora": None, "randlora": None}
    wanted = {cell.method: cell.lr_centre for cell in predict(planned, in_process).cells}

    assert run(planned, backend="inline", progress=False).complete
    store = open_store(folder)
    assert {row["method"]: row["lr_centre"] for row in store.table("cells").to_pylist()} == wanted
    tuned = store.sql("select method, lr from trials where stage = 'TUNE'").to_pylist()
    assert {row["method"]: row["lr"] for row in tuned} == wanted  # the only rate of a grid of one is its centre

    monkeypatch.setattr("sweeps.engine.prepare.predict", lambda *_: pytest.fail("measured again"))
    later = plan_of(folder, confirm={"seeds": 2})
    assert not later.unpredicted
    summary = run(later, backend="inline", progress=False)
    assert summary.complete and summary.finished == 3 and summary.skipped == 6
    lines = predicted_words(later)
    assert [line.partition(":")[0] for line in lines] == ["dora", "randlora"]
    assert f"{wanted['dora']:.2g} at lora-2, predicted" in lines[0]


def test_lost_tables_change_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    assert run(plan_of(folder), backend="inline", progress=False).complete
    known = {cell.method: cell.lr_centre for cell in plan_of(folder).cells}
    shutil.rmtree(folder / "tables")
    monkeypatch.setattr("sweeps.engine.prepare.predict", lambda *_: pytest.fail("measured again"))
    assert {cell.method: cell.lr_centre for cell in plan_of(folder).cells} == known
    write_identity(folder, plan_of(folder).spec.identity())  # as every later run does
    assert not plan_of(folder).unpredicted
    more = {"lora": {"lr": 1e-2}, "dora": {"lr": "predicted"}, "vera": {"lr": "predicted", "unmatched": True}}
    assert [cell.method for cell in plan_of(folder, methods=more).unpredicted] == ["vera"]


def test_memory_that_runs_out_refuses_the_sweep(tmp_path: Path) -> None:
    def execute(_: Path, __: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    with pytest.raises(SpecError, match=r"memory ran out; set a smaller train.micro_batch_size, or give numbers"):
        predict(plan_of(tmp_path), execute)


def test_it_measures_what_analyze_curvature_measures(tmp_path: Path) -> None:
    hold = {"hold": {"data_seed": 0, "init_seed": 0, "basis_seed": 0}}
    table, _, _ = analyze(open_store(tiny_results(tmp_path / "kept", confirm={"seeds": 1} | hold)), "curvature")
    wanted = {row["method"]: row["first_rate"] for row in table.to_pylist()}
    rates: dict[str, float] = {}

    def execute(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[Row]]]:
        for unit, rows in in_process(folder, units):
            rates[unit.trials[0]["method"]] = rows[0]["first_rate"]
            assert rows[0]["sharpness"] is None
            yield unit, rows

    predict(plan_of(tmp_path / "new", confirm={"seeds": 1} | hold), execute)
    assert rates["randlora"] == pytest.approx(wanted["randlora"], rel=0.01)
    assert rates["lora"] == pytest.approx(wanted["lora"], rel=0.01)
    assert abs(rates["randlora"] / rates["lora"] - 1) > 0.05


def test_a_loss_without_a_minimum_refuses_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"methods\.randlora\.lr.*no lowest point .* for randlora"):
        predict(plan_of(tmp_path), answering(lora=1e-3, dora=1e-3, randlora=None))


def test_a_gradient_of_zero_refuses_the_sweep_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    planned = plan_of(folder)
    monkeypatch.setattr("analysis.diagnostics.curvature.Curvature._gradient_at", lambda *_: torch.zeros(8))
    with pytest.raises(SpecError, match="gradient at the start is 0"):
        run(planned, backend="inline", progress=False)
    assert not folder.exists()


def test_what_cannot_be_predicted_is_refused_with_the_file() -> None:
    assert "give its best rate on this task" in refused(methods={"lora": {"lr": "predicted"}, "dora": {}})
    for lora in ({}, {"lr": "predicted"}):
        assert "give that in [methods.lora]" in refused(methods={"lora": lora, "dora": {"lr": "predicted"}})
    assert "give that in [methods.lora]" in refused(methods={"dora": {"lr": "predicted"}})
    with_lora = {"lora": {"lr": 1e-3}}
    assert "nothing is predicted for it" in refused(methods=with_lora | {"full": {"lr": "predicted"}})
    assert "trains nothing" in refused(methods=with_lora | {"zero-shot": {"lr": "predicted"}})
    assert 'or "predicted"' in refused(methods=with_lora | {"dora": {"lr": "guessed"}})
    assert "either centre" in refused(methods=with_lora | {"dora": {"lr": {"predicted": True, "centre": 1e-3}}})


def test_lora_must_run_at_the_same_budget(tmp_path: Path) -> None:
    methods = {"lora": {"lr": 1e-2, "budgets": ["lora-2"]}, "dora": {"lr": "predicted", "unmatched": True}}
    with pytest.raises(SpecError, match="LoRA does not run at lora-4"):
        plan_of(tmp_path, methods=methods, budgets={"lora_rank": [2, 4]})
