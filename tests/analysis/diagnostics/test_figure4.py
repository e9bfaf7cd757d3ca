"""Figure 4 of the paper at `--scale small`, from the recipe to the tables and figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import open_store
from analysis.diagnostics.analyze import analyze
from analysis.report.page import render
from sweeps.backends.ray.backend import using
from sweeps.backends.ray.pool import Pool
from sweeps.engine.analyze import ray_tasks
from sweeps.engine.run import run
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT

RECIPES = ROOT / "examples" / "paper"
LESS = ("search.trials=2", "search.rerun_rates=0", "confirm.seeds=1", 'data.train_size=["2-shot"]')


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("recipe", "kind"), [("fig4a-cka", "cka"), ("fig4b-landscape", "landscape")])
def test_the_diagnostics_of_figure_4(recipe: str, kind: str, tmp_path: Path, pool: Pool) -> None:
    given = (f'output="{tmp_path / "results"}"', *LESS, "train.global_batch_size=16")
    spec = SweepSpec.load(RECIPES / f"{recipe}.toml", given, "small")
    assert run(Plan.from_spec(spec), progress=False, backend=using(pool)).complete
    store = open_store(spec.folder)
    execute = ray_tasks(cpus=0, progress=False)  # the pool's lanes hold the CPUs
    table, paths, says = analyze(store, kind, execute=execute)
    rows = table.to_pylist()
    if kind == "cka":
        assert {r["method"] for r in rows} == {"lora", "randlora", "zero-shot"}
        assert all(r["cka"] <= 1 + 1e-6 for r in rows)
    else:
        assert sum(r["kind"] == "plane" and r["split"] == "train" for r in rows) == 81
        assert {(r["a"], r["b"]) for r in rows if r["kind"] == "edge"} == {(0, 1), (0, 2), (1, 2)}
        assert all(r["barrier"] >= 0 for r in rows if r["kind"] == "edge")
        assert {"landscape.png", "landscape.svg", "landscape.pdf", "landscape-surface.svg"} <= set(paths)
    assert says.split(".")[0] in (spec.folder / "diagnostics" / f"{kind}.txt").read_text()
    assert "Diagnostics of the trained updates" in render(store)
    assert store.table(kind).num_rows == len(rows)
