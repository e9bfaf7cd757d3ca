"""Prompt learning in a sweep: solved, planned, refused, and taken out of a results folder with code that predicts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps.errors import SpecError
from sweeps.exporting.export import export_trial
from sweeps.exporting.kept import kept_trial
from sweeps.packing.choosing import unpackable
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.sweeps.engine.kept_results import keep_trials
from tests.trainables.tiny_images import COLOURS, noisy, write_colours
from trainables.config import TrialConfig
from trainables.models.shapes import method_shapes, target_shapes
from trainables.predicting.answers import answers
from trainables.predicting.trained import load_trained

MODEL = "embedded:tiny-clip"
WIDTH, IMAGE, LAYERS = 128, 192, 2


def tree(methods: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "prompts",
        "model": {"id": MODEL},
        "data": {"datasets": ["embedded:fashion-mnist"], "train_size": ["4-shot"]},
        "methods": methods,
        "budgets": {"params": [3 * WIDTH]},
        **more,
    }


def plan(methods: dict[str, Any], **more: Any) -> Plan:
    return Plan.from_spec(SweepSpec.parse(tree(methods, **more)))


def test_cells_are_solved_in_tokens_and_blocks() -> None:
    deep = {"method": "prompt:maple-depth", "tokens": 2, "unmatched": True}
    beside = {"method": "prompt:coop+lora", "tokens": 4, "unmatched": True}
    found = plan({"prompt:coop": {}, "deep": deep, "beside": beside, "lora": {"unmatched": True}})
    counts = {cell.method: (cell.row().capacity, cell.count) for cell in found.cells}
    unit = 2 * WIDTH + IMAGE * (WIDTH + 1)
    lora = counts["lora"][1]
    assert lora is not None
    assert counts["prompt:coop"] == (3, 3 * WIDTH)
    assert counts["deep"] == (1, unit)
    assert counts["beside"] == (1, 4 * WIDTH + lora)
    assert unpackable("prompt:coop", MODEL) is not None


@pytest.mark.parametrize(
    ("methods", "more", "message"),
    [
        ({"prompt:coop": {"capacity": 11}}, {}, "above the largest that prompt:coop is built with"),
        ({"prompt:maple": {"depth": 3, "unmatched": True}}, {}, "depth = 3 is more than the 2 of this model"),
        ({"prompt:mapel": {}}, {}, "nearest: 'maple'"),
        ({"prompt:coop": {"dpeth": 1}}, {}, "dpeth"),
        ({"prompt:coop": {}}, {"model": {"id": "hf:facebook/dinov2-base"}}, "cannot take prompt:coop"),
        ({"prompt:promptsrc": {"unmatched": True}}, {"train": {"select": "best"}}, 'train.select = "last"'),
    ],
)
def test_what_is_refused(methods: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        plan(methods, **more)


@pytest.mark.parametrize("method", ["prompt:coop", "prompt:cocoop", "prompt:maple+dept", "prompt:maple+lora"])
def test_an_exported_trial_predicts_by_its_readme(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(tmp_path / "colours")
    targets = ("mlp.c_fc",)
    names = method_shapes(method, MODEL, target_shapes(MODEL, targets))
    given: dict[str, Any] = {"stage": "CONFIRM", "cell_id": "cell", "model": MODEL, "adapt": "both", "lr": 0.02}
    given |= {"dataset": f"parquet:{tmp_path / 'colours'}", "train_size": 1.0, "targets": targets, "method": method}
    given |= {"capacities": tuple((n, 2) for n in names), "train": {"epochs": 1, "global_batch_size": 16}}
    trial = TrialConfig.model_validate({**given, "data_seed": 1, "init_seed": 2, "basis_seed": 3})
    kept = kept_trial(keep_trials(tmp_path / "results", [trial]))
    for form, why in (("peft", "PEFT can't hold this adapter"), ("merged", "so it can't be merged")):
        with pytest.raises(SpecError, match=why):
            export_trial(kept, tmp_path / form, form)
    to = export_trial(kept, tmp_path / "out")
    noisy(np.random.default_rng(9), COLOURS["green"]).resize((20, 24)).save(to / "image.png")
    (answer,) = answers(load_trained(kept.config, kept.folder), [str(to / "image.png")])
    monkeypatch.chdir(to)
    (code,) = re.findall(r"```python\n(.*?)```", (to / "README.md").read_text(), re.S)
    capsys.readouterr()
    found: dict[str, Any] = {}
    exec(compile(code, method, "exec"), found)
    assert capsys.readouterr().out.startswith(answer.answer)
    assert float(found["probability"]) == pytest.approx(answer.probability, abs=1e-4)
