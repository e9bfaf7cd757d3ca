"""The comparisons of all methods in `examples/peft/` plan, and leave none out."""

from __future__ import annotations

from pathlib import Path

import pytest

from randlora.methods.bridge.installed import PREFIX
from randlora.methods.bridge.kinds import KINDS
from randlora.methods.registry import METHODS
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT
from tests.trainables.tiny_images import write_colours
from tests.trainables.tiny_language import SMOLLM2
from tools.real import study_texts
from tools.real.fetch import VIT

FOLDER = ROOT / "examples" / "peft"
FOREIGN = {PREFIX + kind for kind in KINDS}
LATER = {"milora", "olora", "init-ab", "lora-ga", "lora-plus"}
"""Methods added after the league ran."""


@pytest.mark.slow
def test_the_league_has_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    transformers.Dinov2Config(architectures=["Dinov2Model"], **VIT).save_pretrained(tmp_path / "models" / "vit-s14")
    write_colours(tmp_path / "data" / "study" / "signdigits")
    monkeypatch.chdir(tmp_path)
    spec = SweepSpec.load(FOLDER / "league.toml")
    assert set(spec.methods) == {name for name in METHODS if ":" not in name} - LATER | FOREIGN
    plan = Plan.from_spec(spec)
    counts = {cell.method: cell.count for cell in plan.feasible}
    assert counts["lora"] == counts["peft:lora"] == 8 * 12 * (3 * 2 * 384 + 2 * 5 * 384)
    assert {cell.tune_trials for cell in plan.feasible} == {5}
    assert {cell.confirm_seeds for cell in plan.feasible} == {5}


@pytest.mark.slow
def test_so_has_the_league_on_a_language_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    llama = transformers.LlamaConfig(architectures=["LlamaForCausalLM"], **SMOLLM2)
    llama.save_pretrained(tmp_path / "models" / "smollm2-135m")
    (tmp_path / "data" / "SST-2").mkdir(parents=True)
    for part, n in (("train", 1300), ("dev", 1000)):
        lines = ["sentence\tlabel", *(f'a "{part}" film , take {k}\t{int(k % 3 > 0)}' for k in range(n))]
        (tmp_path / "data" / "SST-2" / f"{part}.tsv").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["study_texts"])
    study_texts.main()
    (tmp_path / "few.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\nboth\t0\nboth\t1\n")
    with pytest.raises(SystemExit, match="2 texts are left"):
        study_texts.rows(tmp_path / "few.tsv", least=4)
    images, spec = (SweepSpec.load(FOLDER / f"{name}.toml") for name in ("league", "league-language"))
    assert spec.methods == images.methods
    assert (spec.search, spec.budgets) == (images.search, images.budgets)
    assert (spec.confirm.seeds, spec.confirm.max_seeds, images.confirm.max_seeds) == ((0, 1, 2), 3, 5)
    counts = {cell.method: cell.count for cell in Plan.from_spec(spec).feasible}
    assert "peft:lily" in counts  # which needs called layers
    assert counts["lora"] == counts["peft:lora"] == counts["peft:adamss"] == 8 * 30 * (2 * 576 + 576 + 192)


@pytest.mark.slow
def test_pefts_own_comparison_is_planned_at_three_counts() -> None:
    spec = SweepSpec.load(FOLDER / "method-comparison.toml")
    assert spec.budgets.references() == ("lora-8", "lora-32", "lora-64")
    assert set(spec.methods) == FOREIGN | {"lora", "randlora"}
    plan = Plan.from_spec(SweepSpec.load(FOLDER / "method-comparison.toml", ["budgets.lora_rank=[32]"]))
    counts = {(cell.method, cell.reference): cell.count for cell in plan.feasible}
    assert counts["peft:lora", "lora-32"] == 9_175_040  # as their results have it
