"""`sweeps analyze` on tiny trained weights: the tables, what is computed again and what is not, Ray, kills."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from analysis import StoreError, open_store
from analysis.diagnostics import spectrum, weights
from analysis.diagnostics.analyze import analyze, cka_sentence, in_process, plan
from analysis.diagnostics.bench import bench_of
from analysis.diagnostics.cka import _cka_or_none
from analysis.diagnostics.cka import plan as cka_plan
from analysis.diagnostics.units import Unit, compute_missing, rows_of
from analysis.diagnostics.weights import kept_trials
from analysis.findings.diagnostics.figure import draw_cka
from analysis.findings.diagnostics.sheets import diagnostic_sheets
from analysis.report.page import render
from analysis.store.remote import Location
from sweeps.backends.ray.pool import Pool
from sweeps.cli.main import app
from sweeps.engine.analyze import ray_tasks
from sweeps.records.upload import Upload
from tests.analysis.diagnostics.support import numbers, tiny_results

FEW = {"examples": 16, "points": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_results(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def tiny(made: Path, tmp_path: Path) -> Path:
    """A copy of its own: diagnostics add to a folder."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def nothing(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[dict[str, Any]]]]:
    raise AssertionError(f"computed again: {[u.label for u in units]}")


@pytest.mark.slow
def test_spectrum_of_trained_weights(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "WEIGHTS", 1)  # a fit takes seconds
    store = open_store(tiny)
    assert {k.row["method"] for k in kept_trials(store)} == {"lora", "randlora", "full"}
    table, paths, says = analyze(store, "spectrum")
    rows = table.to_pylist()
    assert "Effective rank" in says and "RandLoRA" in says and {"spectrum.png", "spectrum.pdf"} <= set(paths)
    fits = store.table("approximation").to_pylist()
    assert {r["target"] for r in fits} == {"trained", "random"} and "of a random matrix" in says
    assert len(fits) == 2 * len({(r["weight"], r["form"], r["lora_rank"]) for r in fits})
    assert all(r["error"] <= r["bound"] + 1e-9 for r in fits if r["form"] == "randlora" and r["target"] == "trained")
    assert {r["form"] for r in fits} == {"lora", "randlora", "vera"} and all(0 <= r["error"] <= 1 for r in fits)
    assert all((r["bound"] is not None) == (r["form"] == "randlora") for r in fits)
    lora = [r for r in rows if r["method"] == "lora"]
    assert all(r["rank"] <= 2 for r in lora)  # LoRA's rank bounds its update's
    assert all(r["rank"] > 16 for r in rows if r["method"] == "randlora")
    assert {r["weight"] for r in rows if r["method"] == "full"} == {r["weight"] for r in lora}
    assert all(r["overlap"] is None or 0 <= r["overlap"] <= 1 + 1e-9 for r in rows)
    odd = "len(singular_values) <> least(out_features, in_features) or abs(singular_values[1] - spectral) > 1e-6"
    assert store.sql(f"select count(*) as n from spectrum where {odd}").to_pylist() == [{"n": 0}]
    analyze(store, "spectrum", execute=nothing)
    sheets = {sheet.name: sheet for sheet in diagnostic_sheets(store)}
    assert [r[0] for r in sheets["diagnostic_spectrum"].cells] == ["RandLoRA", "LoRA", "full fine-tuning"]
    assert {r[0] for r in sheets["diagnostic_approximation"].cells} == {"RandLoRA", "LoRA", "VeRA"}


def test_an_update_that_is_no_matrix_has_no_spectrum(tmp_path: Path) -> None:
    called = {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["mlp.c_fc"]}
    methods = {"lora": {}, "hydralora": {"unmatched": True}}
    store = open_store(tiny_results(tmp_path / "tiny", model=called, methods=methods))
    table, paths, says = analyze(store, "spectrum")
    assert set(table.column("method").to_pylist()) == {"lora"} and "spectrum.png" in paths
    assert says.endswith("Left out, since their updates are no matrices: HydraLoRA at lora-2.")
    shutil.rmtree(next(k.folder for k in kept_trials(store) if k.row["method"] == "lora"))
    with pytest.raises(StoreError, match=r"no kept trial has a spectrum. Left out, .* HydraLoRA at lora-2"):
        plan(store, "spectrum")


def test_activations_need_no_merged_weights(tmp_path: Path) -> None:
    called = {"id": "embedded:tiny-clip", "adapt": "vision", "targets": ["mlp.c_fc"]}  # which have a bias
    loose = {"hydralora": {}, "peft:ia3": {"capacity": 1}}
    methods = {"lora": {}, "full": {}} | {name: facts | {"unmatched": True} for name, facts in loose.items()}
    store = open_store(tiny_results(tmp_path / "tiny", model=called, methods=methods))
    assert {k.row["method"] for k in kept_trials(store) if not k.matrix} == {"hydralora"}
    rows = analyze(store, "cka")[0].to_pylist()
    last = {r["method"]: r["cka"] for r in rows if r["depth"] == max(r["depth"] for r in rows)}
    assert set(last) == {"lora", "zero-shot", *loose} and len(set(last.values())) == 4  # each has its own adapter on
    lora = next(k for k in kept_trials(store) if k.row["method"] == "lora")
    bench = bench_of(store, lora.row["trial_id"])
    some = bench.examples(("train",), 4)
    with bench.trained(lora) as state:
        on = bench.activations(state, some)
    merged, base = bench.activations(bench.state(lora), some), bench.activations({}, some)
    for name, found in on.items():
        torch.testing.assert_close(found, merged[name])
    assert any(not torch.equal(found, base[name]) for name, found in on.items())


def test_how_probable_full_rank_is(tiny: Path) -> None:
    store = open_store(tiny)
    table, paths, says = analyze(store, "full_rank")
    rows = table.to_pylist()
    assert paths == {} and "full rank in every draw with bases uniform" in says
    assert {(r["distribution"], r["full"], r["mean_rank"]) for r in rows if r["sparsity"] is None} == {
        ("uniform", 1.0, 1.0),
        ("normal", 1.0, 1.0),
    }
    assert all(r["log10_collinear"] is None or r["log10_collinear"] < 0 for r in rows if r["sparsity"] in (None, 2, 6))
    by_a = {r["sparse_a"]: r["mean_rank"] for r in rows if r["sparsity"] == 200}
    assert by_a[True] < 0.5 < by_a[False]  # a sparse A of few rows has columns of zeros
    (sheet,) = diagnostic_sheets(store)
    assert sheet.name == "diagnostic_full_rank" and len(sheet.cells) == len(rows)
    analyze(store, "full_rank", execute=nothing)


def test_cka_of_trained_weights(tiny: Path) -> None:
    store = open_store(tiny)
    table, paths, says = analyze(store, "cka")
    rows = table.to_pylist()
    assert {(r["method"], r["trial_id"] is None) for r in rows} == {
        ("lora", False),
        ("randlora", False),
        ("zero-shot", True),
    }
    assert len({r["layer"] for r in rows}) == 6 and len(rows) == 18  # attention and MLP of three blocks
    assert all(r["cka"] <= 1 + 1e-6 for r in rows) and "last layer" in says
    assert {(r["examples"], r["batch_size"]) for r in rows} == {(40, 40)}  # 20 training images, 20 of validation
    assert list(paths) == ["cka.png", "cka.svg", "cka.pdf", "cka.txt"]
    page = render(store)
    assert "Diagnostics of the trained updates" in page and "mean over layers" in page
    shown = CliRunner().invoke(app, ["query", str(tiny), "select count(distinct against) as n from cka", "--csv"])
    assert shown.output.split() == ["n", "1"]


def test_the_plane_of_trained_weights(tiny: Path) -> None:
    store = open_store(tiny)
    table, paths, says = analyze(store, "landscape", points=5, examples=20)
    plane = [r for r in table.to_pylist() if r["kind"] == "plane"]
    edges = [r for r in table.to_pylist() if r["kind"] == "edge"]
    assert len(plane) == 2 * 25 and len({(r["a"], r["b"]) for r in edges}) == 3
    assert all(r["barrier"] >= 0 and math.isfinite(r["loss"]) for r in edges) and "barrier" in says
    for which in ("train", "val"):
        at = {(r["a"], r["t"]): r["loss"] for r in edges if (r["a"], r["b"], r["split"]) == (0, 1, which)}
        corner = {(r["x"], r["y"]): r["loss"] for r in plane if r["split"] == which}
        assert corner[0.0, 0.0] == pytest.approx(at[0, 0.0], rel=1e-4)
        assert corner[1.0, 0.0] == pytest.approx(at[0, 1.0], rel=1e-4)
    assert {"landscape.svg", "landscape-surface.png", "landscape-surface.pdf", "landscape.txt"} <= set(paths)
    (sheet,) = diagnostic_sheets(store)
    assert sheet.name == "diagnostic_landscape" and len(sheet.cells) == 6
    assert sheet.cells[0][:3] == ["LoRA", "RandLoRA", "training"]
    ids = {k.row["method"]: k.row["trial_id"] for k in kept_trials(store)}
    assert {(r["corner_0"], r["corner_1"], r["corner_2"]) for r in edges} == {
        (ids["lora"], ids["randlora"], ids["full"])
    }


def test_what_was_cut_off_goes_on_and_ends_the_same(made: Path, tiny: Path, tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def cut(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[dict[str, Any]]]]:
        yield from in_process(folder, units[:2])
        raise Cut

    run: list[str] = []

    def counted(folder: Path, units: Sequence[Unit]) -> Iterator[tuple[Unit, list[dict[str, Any]]]]:
        run.extend(u.unit_id for u in units)
        return in_process(folder, units)

    store = open_store(tiny)
    units = plan(store, "landscape", **FEW)
    with pytest.raises(Cut):
        compute_missing(store, units, cut)
    there = set(store.table("landscape").column("unit").to_pylist())
    assert compute_missing(store, units, counted) == 4
    ids = {u.unit_id for u in units}
    assert len(there) == 2 and len(ids) == 6 and set(run) == ids - there
    resumed = numbers(rows_of(store, units, "landscape"))
    other = open_store(shutil.copytree(made, tmp_path / "other" / "tiny"))
    compute_missing(other, units, in_process)
    assert resumed == numbers(rows_of(other, units, "landscape"))

    assert compute_missing(store, units, nothing) == 0  # nothing is computed twice
    before = store.table("landscape").num_rows
    assert compute_missing(store, units[:2], counted, force=True) == 2
    assert store.table("landscape").num_rows == before and numbers(rows_of(store, units, "landscape")) == resumed
    part = min(tiny.glob("tables/landscape/part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-40])
    store = open_store(tiny)  # parts are thought never to change, so they are not read twice
    assert compute_missing(store, units[2:], nothing) == 0  # the forced ones' first rows
    assert part.with_suffix(".parquet.damaged").is_file() and store.table("landscape").num_rows == before
    assert not ids & {u.unit_id for u in plan(store, "landscape", examples=16, points=4)}  # other settings, other units


@pytest.mark.slow
def test_ray_tasks_give_what_this_process_gives(tiny: Path, pool: Pool) -> None:
    store = open_store(tiny)
    table, _, _ = analyze(store, "cka", execute=ray_tasks(cpus=0, progress=False), examples=32)  # lanes hold the CPUs
    rows = numbers(table)
    for unit, wanted in in_process(tiny, cka_plan(store, examples=32)):
        found = [r for r in rows if r["unit"] == unit.unit_id]
        assert [r["cka"] for r in found] == pytest.approx([r["cka"] for r in wanted], rel=1e-5)


def test_the_verb_computes_in_this_process_without_ray(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.backends.ray.cluster.session.Session", lambda *_: pytest.fail("a session of Ray"))
    ask = ["analyze", "cka", str(tiny), "--backend"]
    done = CliRunner().invoke(app, [*ask, "inline", "--examples", "16", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == open_store(tiny).table("cka").num_rows > 0
    for words, named in (([*ask, "inline", "--address", "auto"], "--address"), ([*ask, "dask"], "--backend")):
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code == 2 and f"error: {named} = " in refused.output


def test_a_layer_that_says_nothing_is_null() -> None:
    constant, drawn = torch.ones(8, 3), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    assert _cka_or_none([(constant, drawn)]) is None and _cka_or_none([(drawn * math.nan, drawn)]) is None
    rows = [{"method": "lora", "adapter_params": 1, "depth": 0, "cka": None}]
    assert "no CKA" in cka_sentence(pa.Table.from_pylist(rows))
    rows.append({"method": "lora", "adapter_params": 1, "depth": 1, "cka": 0.5})
    assert "LoRA 0.500" in cka_sentence(pa.Table.from_pylist(rows))
    draw_cka(pa.Table.from_pylist(rows))


@pytest.mark.slow
def test_a_task_that_fails_says_why_and_leaves_no_rows(tiny: Path, pool: Pool) -> None:
    store = open_store(tiny)
    damaged = next(k for k in kept_trials(store) if k.row["method"] == "lora")
    (damaged.folder / "adapter.json").write_text("{}")
    with pytest.raises(ValueError, match="has format None"):
        analyze(store, "cka", execute=ray_tasks(cpus=0, progress=False), examples=32)
    assert {row["method"] for row in store.table("cka").to_pylist()} <= {"randlora", "zero-shot"}


def test_what_is_held_against_full_fine_tuning_has_its_seeds(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where each cell keeps the seed that did best: others have other training rows."""
    store, moved = open_store(tiny), ["lora"]
    trained = weights.confirmed_as_trained
    monkeypatch.setattr(
        weights,
        "confirmed_as_trained",
        lambda store: [r | ({"data_seed": 7} if r["method"] in moved else {}) for r in trained(store)],
    )
    assert {unit.trials[0]["method"] for unit in plan(store, "cka")} == {"randlora", "full"}
    with pytest.raises(StoreError, match=r"no budget at which .* kept: full, randlora lora-2"):
        plan(store, "landscape")
    moved.append("randlora")
    with pytest.raises(StoreError, match=r'none is kept of the seed of full fine-tuning\'s; .*adapters = "confirm"'):
        plan(store, "cka")


def test_what_cannot_be_done_is_said(tiny: Path) -> None:
    store = open_store(tiny)
    for kind, given, words in (
        ("spectrum", {"examples": 4}, "takes no examples"),
        ("cka", {"points": 4}, "takes no points"),
        ("cka", {"examples": 3}, "at least 4"),
        ("landscape", {"points": 2}, "at least 3"),
    ):
        with pytest.raises(StoreError, match=words):
            analyze(store, kind, **given)  # type: ignore[arg-type]
    for kept in kept_trials(store):
        if kept.row["method"] == "randlora":
            shutil.rmtree(kept.folder)
    with pytest.raises(StoreError, match="kept: full, lora lora-2"):
        analyze(store, "landscape")
    for kept in kept_trials(store):
        if kept.full:
            shutil.rmtree(kept.folder)
    with pytest.raises(StoreError, match=r"\[keep\] full = true"):
        analyze(store, "cka")
    (tiny / "spec.json").unlink()
    done = CliRunner().invoke(app, ["analyze", "cka", str(tiny), "--json"])
    assert done.exit_code == 2 and "[keep]" in done.output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_driver_loses_only_what_runs(made: Path, tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweeps.cli.main", "analyze", "landscape", str(tiny), "--points", "6"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while len(list(tiny.glob("tables/landscape/part-*.parquet"))) < 3:
            assert driver.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    kept = {p.name for p in tiny.glob("tables/landscape/part-*.parquet")}
    assert 3 <= len(kept) < 9
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    now = {p.name for p in tiny.glob("tables/landscape/part-*.parquet")}
    assert kept < now and len(now) == 9
    other = open_store(shutil.copytree(made, tmp_path / "other" / "tiny"))
    whole, _, _ = analyze(other, "landscape", points=6)
    store = open_store(tiny)
    again, _, _ = analyze(store, "landscape", points=6, execute=nothing)
    for found, wanted in zip(numbers(again), numbers(whole), strict=True):
        assert found == {**wanted, "loss": pytest.approx(wanted["loss"], rel=1e-5), "barrier": found["barrier"]}


def test_tables_are_copied_beside_the_sweep_s(tiny: Path, tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    (tiny / "tables" / "cka").mkdir()
    (tiny / "tables" / "cka" / "part-x.parquet").write_bytes(b"of a diagnostic")
    Upload(tiny, Location.of(there.as_uri())).sync()
    assert (there / "tables" / "cka" / "part-x.parquet").is_file() and list(there.glob("tables/trials/part-*"))
    ask = ["analyze", "cka", str(tiny), "--upload"]
    (there / "spec.json").write_text('{"identity": {"name": "other"}}')
    refused = CliRunner().invoke(app, [*ask, there.as_uri()])
    assert refused.exit_code == 2 and "belongs to another sweep" in refused.output
    (tiny / "spec.json").unlink()
    refused = CliRunner().invoke(app, [*ask, there.as_uri()])
    assert refused.exit_code == 2 and "no spec.json" in refused.output


@pytest.mark.slow
def test_a_diagnostic_uploads_what_it_found(tiny: Path, tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    done = CliRunner().invoke(
        app, ["analyze", "cka", str(tiny), "--examples", "16", "--cpus", "0", "--upload", there.as_uri()]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert open_store(there).table("cka").num_rows == open_store(tiny).table("cka").num_rows > 0
