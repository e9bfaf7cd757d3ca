"""Parts of fused weights from the command line and the sweep file to what trains."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import randlora
from analysis.diagnostics.weights import Kept, deltas, trained_state
from sweeps.cli.main import main
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.sweeps.spec.support import GOOD
from trainables.models.loading import load_model
from trainables.training.adapting import base_weight_names

QV = "attn.in_proj_weight[q,v]"


def test_budget_sees_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    """24 square matrices of width 768 and 512 instead of 12 fused ones a tower."""
    with pytest.raises(SystemExit) as done:
        main(["budget", "--model", "open_clip:ViT-B-32", "--lora-rank", "4", "--targets", QV, "--all", "--json"])
    assert not done.value.code
    answer = json.loads(capsys.readouterr().out)
    assert answer["budget"] == 4 * 24 * (2 * 768 + 2 * 512)
    rand = next(m for m in answer["methods"] if m["method"] == "randlora" and m["allocation"] == "uniform")
    r = rand["ranks"]
    assert rand["count"] == 24 * sum(-(-d // r) * (r + d) for d in (768, 512))


def test_a_sweep_file_plans_parts_and_full_targets_trains_their_weights() -> None:
    model = {"id": "embedded:tiny-clip", "adapt": "vision", "targets": [QV]}
    methods = {"lora": {}, "randlora": {"unmatched": True}, "full-targets": {}}
    plan = Plan.from_spec(SweepSpec.parse({**tomllib.loads(GOOD), "model": model, "methods": methods}))
    names = {n for cell in plan.feasible for n in cell.capacities}
    assert names and all(n.startswith("visual.") and n.endswith(("[q]", "[v]")) for n in names)
    cell = next(c for c in plan.feasible if c.method == "full-targets")
    trial = cell.trial("CONFIRM", cell.lr_centre, (0, 0, 0), plan.spec.train)
    whole = base_weight_names(load_model(trial.model).module, trial)
    assert whole == sorted({n.partition("[")[0] for n in names}, key=whole.index)


def test_diagnostics_read_parts(tmp_path: Path) -> None:
    module: Any = load_model("embedded:tiny-clip").module
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    adapted = randlora.attach(module, randlora.LoraConfig(2), [QV])
    with torch.no_grad():
        for p in adapted.parameters():
            p.fill_(0.1)
    adapted.save(tmp_path / "adapter")
    adapted.detach()
    kept = Kept({"method": "lora"}, tmp_path / "adapter")
    mine = deltas(module, kept)
    state = trained_state(module, kept)
    assert set(state) == {n.partition("[")[0] for n in mine}
    for name, after in state.items():
        q, k, v = (after - before[name]).chunk(3)
        torch.testing.assert_close(q, mine[f"{name}[q]"])
        torch.testing.assert_close(v, mine[f"{name}[v]"])
        assert not k.any()
    full = tmp_path / "full"
    full.mkdir()
    save_file(state, full / "weights.safetensors")
    theirs = deltas(module, Kept({"method": "full"}, full), list(mine))
    assert theirs.keys() == mine.keys()
    for name, delta in theirs.items():
        torch.testing.assert_close(delta, mine[name])
