"""Numbers from elsewhere: shipped ones are whole and sourced, and imported folders never pretend to have seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from analysis import StoreError, conclusion, open_store
from analysis.findings.all import pictures
from analysis.findings.published.publications import publication, publication_names, published_curve
from analysis.findings.results.finding import results_sheet
from analysis.findings.results.numbers import results_table
from analysis.findings.results.terminal import print_results_table
from analysis.findings.scaling.finding import averages_sheet
from analysis.imports.importing import PLACEHOLDER_BYTES, import_peft, import_published
from analysis.report.page import render
from analysis.sheets.terminal import safe_console
from analysis.verdict.comparisons import comparisons
from sweeps.cli.main import app
from trainables.data.facts import facts_of


@pytest.mark.parametrize("name", publication_names())
def test_every_publication_is_sourced(name: str) -> None:
    found = publication(name)
    assert found.points and found.title and found.precision
    for point in found.points:
        assert point["source"] and 0.0 <= point["score"] <= 1.0
        assert point["adapter_params"] is None or point["adapter_params"] >= 0
    keys = [tuple(p.get(k) for k in ("model", "dataset", "train_size", "method", "setting")) for p in found.points]
    assert len(set(keys)) == len(keys)


def test_known_numbers() -> None:
    points = {(p["method"], p["setting"]): p for p in publication("fig1-clip").points}
    assert points["lora", "32"]["adapter_params"] == 6_881_280
    assert points["lora", "32"]["score"] == pytest.approx(0.8374)
    assert points["randlora", "3"]["score"] == pytest.approx(0.8505)
    averages_sheet = [p for p in publication("shots").points if p["train_size"] == "1.0" and "B-32" in p["model"]]
    assert {p["method"]: p["score"] for p in averages_sheet} == pytest.approx(
        {"nola": 0.803, "vera": 0.746, "lora": 0.822, "randlora": 0.844, "full": 0.845}
    )


def test_the_mean_of_the_data_sets_is_the_printed_average() -> None:
    rows = [p for p in publication("clip-per-dataset").points if p["train_size"] == "1.0"]
    for method, printed in {"lora": 82.2, "randlora": 84.4, "full": 84.5}.items():
        scores = [100 * p["score"] for p in rows if p["method"] == method]
        assert len(scores) == 22
        assert sum(scores) / 22 == pytest.approx(printed, abs=0.15)


@pytest.mark.parametrize(
    ("tasks", "means", "off"), [("commonsense-tasks", "commonsense", 0.02), ("glue-tasks", "glue", 0.08)]
)
def test_the_means_over_tasks_are_the_printed_ones(tasks: str, means: str, off: float) -> None:
    found: dict[tuple[str, ...], list[float]] = {}
    for point in publication(tasks).points:
        data = point["dataset"].partition(":")[0] if means == "commonsense" else "glue-mean-of-6"
        found.setdefault((point["model"], data, point["method"], point["setting"]), []).append(100 * point["score"])
    printed = {
        (p["model"], p["dataset"], p["method"], p["setting"]): 100 * p["score"] for p in publication(means).points
    }
    assert len(found) == (36 if means == "commonsense" else 6) and found.keys() <= printed.keys()
    for key, scores in found.items():
        assert len(scores) == (8 if means == "commonsense" else 6)
        assert sum(scores) / len(scores) == pytest.approx(printed[key], abs=off), key


def test_published_data_sets_have_the_names_of_the_registry() -> None:
    """So that overlays join. Means over several sets have names of their own; tasks stand behind a colon."""
    points = [p for name in publication_names() for p in publication(name).points]
    names = {p["dataset"].partition(":")[0] for p in points if "mean-of" not in p["dataset"]}
    assert not [name for name in names if facts_of(name) is None]


def test_unknown_publication_lists_the_known() -> None:
    with pytest.raises(StoreError, match="fig1-clip"):
        publication("fig1-clap")


def test_published_curve_has_no_interval() -> None:
    table, title = published_curve("fig1-clip")
    assert "Figure 1" in title
    assert table["low"].null_count == table.num_rows == 11


def test_import_the_paper(tmp_path: Path) -> None:
    folder = import_published(tmp_path / "paper", ["fig1-clip", "commonsense"])
    store = open_store(folder)
    assert store.protocol == "imported"
    confirmed = store.table("confirmed")
    assert confirmed.num_rows == 11 + len(publication("commonsense").points)
    assert confirmed["data_seed"].null_count == confirmed.num_rows
    scaling = store.table("scaling")
    assert scaling["low"].null_count == scaling.num_rows
    assert "No conclusion" in conclusion(store)
    page = render(store)
    assert "Imported numbers" in page and "2502.00987" in page
    with pytest.raises(StoreError, match="exists"):
        import_published(folder)


def test_numbers_of_several_models_stand_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(import_published(tmp_path / "paper", ["glue-tasks"]))
    rows = [r for r in results_table(store).to_pylist() if (r["dataset"], r["method"]) == ("glue-rte", "lora")]
    assert {r["model"]: round(100 * r["mean"], 1) for r in rows} == {
        p["model"]: round(100 * p["score"], 1)
        for p in publication("glue-tasks").points
        if (p["dataset"], p["method"]) == ("glue-rte", "lora")
    }
    print_results_table(store, safe_console())
    said = capsys.readouterr().out
    assert len(rows) == 2 and all(f"of {r['model']} on glue-rte" in said for r in rows)
    titles = [
        axes.get_title(loc="left") for p in pictures(store) if p.stem == "scaling_curve" for axes in p.figure.axes
    ]
    titles = [title for title in titles if title]
    assert len(set(titles)) == len(titles) > 2 and any("roberta-large" in title for title in titles)
    assert [c.head for c in results_sheet(store).columns][:2] == ["model", "data"]
    means = [r for r in averages_sheet(store).rows if (r["method"], r["reference"]) == ("lora", "lora-4")]
    assert {r["model"] for r in means} == {r["model"] for r in rows} and len(means) == 2


def peft_result(name: str, at: str = "2025-06-19T19:15:35+00:00", **changes: Any) -> dict[str, Any]:
    config = {"peft_type": "LORA", "r": 32, "use_dora": False}
    return {
        "run_info": {
            "created_at": at,
            "total_time": 1993.5,
            "experiment_name": name,
            "train_config": {"model_id": "org/llm", "dtype": "bfloat16", "seed": 0, "optimizer_kwargs": {"lr": 1e-4}},
            "peft_config": changes.pop("config", config),
            "error_msg": changes.pop("error", ""),
        },
        "train_info": {
            "accelerator_memory_max": 22_273_851_392,
            "train_time": 1796.2,
            "file_size": 36_715_216,
            "num_trainable_params": 9_175_040,
            "status": "success",
            "metrics": [
                {"step": 250, "valid accuracy": 0.34, "train loss": 0.98},
                {"step": 5000, "valid accuracy": 0.5, "train loss": 0.61, "train samples": 20000},
                {"step": 5000, "test accuracy": 0.482, "train loss": 0.607},
            ],
            **changes,
        },
        "meta_info": {"package_info": {"torch-version": "2.7.1"}, "system_info": {"accelerator": "NVIDIA L40S"}},
    }


def test_import_peft(tmp_path: Path) -> None:
    place = tmp_path / "MetaMathQA" / "results"
    place.mkdir(parents=True)
    files = {
        "a": peft_result("lora/rank32"),
        "b": peft_result("lora/rank32", at="2025-07-01T00:00:00+00:00", num_trainable_params=9_175_041),
        "c": peft_result("lora/dora", config={"peft_type": "LORA", "r": 32, "use_dora": True}),
        "d": peft_result("full/lr1e-5", config=None, file_size=PLACEHOLDER_BYTES),
        "e": peft_result("boft/x", config={"peft_type": "BOFT"}, status="failed", error="out of memory", metrics=[]),
    }
    files["c"]["meta_info"]["system_info"] = {"gpu": "NVIDIA L40S"}  # as in their older results
    for stem, result in files.items():
        (place / f"{stem}.json").write_text(json.dumps(result))
    folder, left_out = import_peft(tmp_path / "peft", [place])
    assert len(left_out) == 1 and "a.json" in left_out[0]
    same = [peft_result("lora/rank32"), peft_result("lora/rank32", num_trainable_params=1)]
    for stem, result in zip("xy", same, strict=True):
        (tmp_path / f"{stem}.json").write_text(json.dumps(result))
    _, [left] = import_peft(tmp_path / "same", [tmp_path / "x.json", tmp_path / "y.json"])
    assert left.startswith(str(tmp_path / "y.json"))  # the first is kept
    rows = {r["cell_id"]: r for r in open_store(folder).table("trials").to_pylist()}
    assert rows["lora_rank32"]["adapter_params"] == 9_175_041
    assert rows["lora_rank32"]["test_score"] == pytest.approx(0.482)
    assert rows["lora_rank32"]["val_score"] == pytest.approx(0.5)
    assert rows["lora_rank32"]["dataset"] == "metamathqa"
    assert rows["lora_dora"]["method"] == "dora"
    assert {row["device"] for row in rows.values()} == {"NVIDIA L40S"}
    assert rows["full_lr1e-5"]["budget"] is None and rows["full_lr1e-5"]["stored_bytes"] is None
    assert rows["boft_x"]["status"] == "failed" and rows["boft_x"]["reason"] == "out of memory"
    assert "Imported numbers" in render(open_store(folder))


def test_an_import_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(peft_result("lora/rank32", at="2025")))
    with pytest.raises(StoreError, match="started_at"):
        import_peft(tmp_path / "to", [file])
    assert not (tmp_path / "to").exists()
    file.write_text(json.dumps(peft_result("lora/rank32")))
    assert import_peft(tmp_path / "to", [file])[0].is_dir()


def test_methods_with_a_setting_of_one_name_are_not_at_one_budget(tmp_path: Path) -> None:
    for name, kind, count in (("osf/default", "OSF", 2_000_000_000), ("lora/default", "LORA", 9_000_000)):
        result = peft_result(name, config={"peft_type": kind, "r": 8}, num_trainable_params=count)
        (tmp_path / f"{kind}.json").write_text(json.dumps(result))
    store = open_store(import_peft(tmp_path / "to", [tmp_path / "OSF.json", tmp_path / "LORA.json"])[0])
    best = {r["reference"]: (r["method"], r["rank_by_val"]) for r in store.table("best").to_pylist()}
    assert best == {"lora/default": ("lora", 1), "osf/default": ("osf", 1)}
    assert comparisons(store).num_rows == 0 and "Imported numbers" in render(store)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(StoreError, match="method_comparison"):
        import_peft(tmp_path / "out", [tmp_path / "x.json"])
    with pytest.raises(StoreError, match="no JSON file"):
        import_peft(tmp_path / "out", [])


def test_results_without_a_test_accuracy_are_left_out(tmp_path: Path) -> None:
    """PEFT's image generation has similarities and a drift."""
    images = peft_result("lora/cats", metrics=[{"step": 9, "test dino_similarity": 0.7, "drift": 0.1}])
    (tmp_path / "a.json").write_text(json.dumps(images))
    with pytest.raises(StoreError, match=r"nothing to import: .*a\.json: has no test accuracy; .*, drift"):
        import_peft(tmp_path / "to", [tmp_path / "a.json"])
    (tmp_path / "b.json").write_text(json.dumps(peft_result("lora/rank32")))
    folder, [left] = import_peft(tmp_path / "to", [tmp_path / "a.json", tmp_path / "b.json"])
    assert "a.json" in left and open_store(folder).table("trials").num_rows == 1


def test_the_verb(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["import", "paper", "fig1-llama3", "--to", str(tmp_path / "p"), "--json"])
    assert done.exit_code == 0, done.output
    assert open_store(tmp_path / "p").table("confirmed").num_rows == 6
    assert CliRunner().invoke(app, ["import", "papre"]).exit_code == 2
