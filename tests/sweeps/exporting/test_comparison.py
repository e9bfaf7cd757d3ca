"""PEFT's method_comparison loads the exported experiments, and PEFT builds adapters of the same size from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.store.store import open_store
from analysis.store.tables import write_part
from sweeps.exporting.comparison import export_experiments
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import sweeps
from trainables.models.shapes import meta_model

peft = pytest.importorskip("peft")

METHODS = ("lora", "dora", "randlora", "pissa", "lora-ga", "lora-plus", "peft:lora", "peft:hira", "peft:vblora")
RATE = 3e-4

FIELDS = {
    "model_id",
    "dtype",
    "max_seq_length",
    "batch_size",
    "batch_size_eval",
    "max_steps",
    "eval_steps",
    "compile",
    "use_gc",
    "query_template",
    "seed",
    "grad_norm_clip",
    "optimizer_type",
    "optimizer_kwargs",
    "lr_scheduler",
    "use_amp",
    "autocast_adapter_dtype",
    "generation_kwargs",
    "attn_implementation",
    "init_kv_cache_prefix",
}
"""What `training_params.json` may have: the fields of TrainConfig in their utils.py, September 2026."""


def results(folder: Path, **sections: Any) -> Path:
    """Results of a sweep on Llama-3.2-3B that nothing trained: rates and scores are made up, shapes are the model's."""
    spec = SweepSpec.parse(
        {
            "name": "theirs",
            "output": str(folder),
            "model": {"id": "hf:meta-llama/Llama-3.2-3B", "targets": ["q_proj", "v_proj"]},
            "data": {"datasets": ["metamathqa-gsm8k"], "train_size": [0.054]},
            "budgets": {"lora_rank": [32]},
            "methods": {name: {"lr": RATE} for name in METHODS},
            "confirm": {"seeds": 2},
            "evaluate": {"max_new_tokens": 300},
            "train": {"epochs": 1, "global_batch_size": 4, "max_tokens": 768, "loss_on_prompt": True}
            | {"weight_decay": 0.1, "warmup_fraction": 0.1, "precision": "bf16", "base_weights": "bf16"},
        }
        | sections
    )
    cells = Plan.from_spec(spec).feasible
    trials, lines = [], [json.dumps({"ev": "sweep", "name": spec.name})]
    folder.mkdir(parents=True)
    for cell in cells:
        for k in range(2):
            config = cell.trial("CONFIRM", RATE, (k, k, k), spec.train)
            names = {"trial_id": config.trial_id, "cell_id": cell.cell_id, "stage": "CONFIRM", "slot": k}
            asked = {"ev": "ask", **names, "seeds": (k, k, k), "config": config.model_dump(mode="json")}
            lines.append(json.dumps(asked))
            place = {"model": cell.model, "dataset": cell.dataset, "train_size": cell.train_size}
            found = {"test_score": 0.5 + k / 100, "val_score": 0.5, "samples": 19_999, "precision": "bf16"}
            made = {"sweep": spec.name, "attempt": 1, "status": "finished", "lr": RATE, "adapter_params": cell.count}
            seeds = {"data_seed": k, "init_seed": k, "basis_seed": k}
            trials.append({**names, **place, **found, **made, **seeds, "method": cell.method, "budget": cell.budget}
                          | {"reference": cell.reference})  # fmt: skip
    write_part(folder, "cells", [cell.row() for cell in cells])
    write_part(folder, "trials", trials)
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "spec.json").write_text(json.dumps({"identity": spec.identity()}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results(tmp_path_factory.mktemp("theirs") / "theirs")


@pytest.mark.filterwarnings("ignore")  # PEFT's, on models without weights
def test_their_loader_takes_the_experiments_and_peft_builds_the_counts(tuned: Path, tmp_path: Path) -> None:
    done = sweeps("export", tuned, tmp_path / "out", "--form", "method-comparison", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    inside = tmp_path / "out" / "experiments"
    places = {path.parent.relative_to(inside) for path in inside.rglob("training_params.json")}
    assert {str(place) for place in places} == set(answer["experiments"])
    assert {place.parts[0] for place in places} == {"lora", "randlora", "hira", "vblora"}
    left = dict(line.split(" at lora-32: ") for line in answer["left_out"])
    assert left.keys() == {"pissa", "lora-ga", "lora-plus", "peft:lora"}
    assert "at another rate" in left["lora-plus"] and "same experiment as lora" in left["peft:lora"]
    counts = {}
    for place in places:
        folder = inside / place
        assert len(place.parts) == 2  # their validate_experiment_path: experiments/TYPE/NAME
        given = json.loads((folder / "training_params.json").read_text())
        assert given.keys() <= FIELDS
        assert given["optimizer_kwargs"] == {"lr": RATE, "weight_decay": 0.1}
        assert given.keys() == {"optimizer_kwargs"}  # all else is as theirs: 19,999 texts are 5,000 steps of 4
        config = peft.PeftConfig.from_pretrained(str(folder))
        assert config.task_type == "CAUSAL_LM" and not config.inference_mode
        assert config.target_modules == {"q_proj", "v_proj"}
        if place.parts[0] != "vblora":  # draws from data that a model without weights has not
            model = peft.get_peft_model(meta_model("hf:meta-llama/Llama-3.2-3B"), config, low_cpu_mem_usage=True)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            counts[place.parts[0] + ("-dora" if "dora" in place.name else "")] = trained
    assert counts["lora"] == counts["hira"] == 9_175_040  # as in their results
    said = (tmp_path / "out" / "pull-request.md").read_text()
    assert all(f"`{place}`" in said for place in places) and "differs" not in said


def test_other_settings_are_written_and_what_their_runner_cannot_do_is_said(tmp_path: Path) -> None:
    train = {"epochs": 1, "global_batch_size": 100, "schedule": "constant", "precision": "fp32"}
    folder = results(tmp_path / "r", train=train, methods={"lora": {"lr": RATE}, "full": {"lr": RATE}})
    done = sweeps("export", folder, tmp_path / "out", "--form", "method-comparison")
    assert done.exit_code == 0, done.output
    full, path = sorted(tmp_path.rglob("training_params.json"))
    assert full.parent.parent.name == "full-finetuning" and not (full.parent / "adapter_config.json").exists()
    assert json.loads(full.read_text())["optimizer_kwargs"] == {"lr": RATE} | {"weight_decay": 0.1}
    assert json.loads(path.read_text()) == {
        "dtype": "float32",
        "max_seq_length": 256,
        "batch_size": 100,
        "max_steps": 200,
        "eval_steps": 200,
        "optimizer_kwargs": {"lr": RATE, "weight_decay": 0.0},
        "lr_scheduler": None,
        "use_amp": True,
    }
    assert "over the response alone" in (tmp_path / "out" / "pull-request.md").read_text()


def test_a_sweep_on_other_data_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    cell = {"sweep": "s", "cell_id": "c", "model": "local:base", "dataset": "json:rows", "train_size": "1.0"}
    write_part(folder, "cells", [{**cell, "method": "lora", "feasible": True}])
    refused = sweeps("export", folder, tmp_path / "out", "--form", "method-comparison")
    assert refused.exit_code == 2 and refused.output.count("error: ") == 2 and "metamathqa-gsm8k" in refused.output
    pushed = sweeps("export", folder, "--form", "method-comparison", "--push", "me/x", "--license", "mit")
    assert pushed.exit_code == 2 and "pull request" in pushed.output


def test_cells_that_are_not_confirmed_are_named(tmp_path: Path) -> None:
    folder = results(tmp_path / "r", methods={"lora": {"lr": RATE}, "dora": {"lr": RATE}})
    rows = [row for row in open_store(folder).table("trials").to_pylist() if row["method"] == "lora"]
    shutil.rmtree(folder / "tables" / "trials")
    write_part(folder, "trials", rows)
    written, left_out = export_experiments(folder, tmp_path / "out")
    assert len(written) == 1 and left_out == ["dora at lora-32: is not confirmed"]
