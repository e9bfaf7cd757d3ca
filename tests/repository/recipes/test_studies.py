"""The recipes of `examples/studies`, other people's studies: each plans at both scales with exact counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT
from tests.trainables.tiny_language import SMOLLM2, write_rows

FOLDER = ROOT / "examples" / "studies"
NAMES = sorted(p.stem for p in FOLDER.glob("*.toml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `tools.real` leaves it, a configuration instead of weights."""
    import transformers

    folder = tmp_path_factory.mktemp("studies")
    llama = transformers.LlamaConfig(architectures=["LlamaForCausalLM"], **SMOLLM2)
    llama.save_pretrained(folder / "models" / "smollm2-135m")
    write_rows(folder / "data" / "study" / "sst2")
    return folder


def plan_of(name: str, scale: str, *overrides: str) -> Plan:
    return Plan.from_spec(SweepSpec.load(FOLDER / f"{name}.toml", overrides, scale))


@pytest.mark.parametrize("scale", ["full", "small"])
@pytest.mark.parametrize("name", NAMES)
def test_every_study_plans(name: str, scale: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(place)
    plan = plan_of(name, scale)
    assert [cell.label for cell in plan.cells if not cell.feasible] == []
    for cell in plan.cells:
        if cell.budget is not None:
            assert cell.count is not None and abs(cell.count - cell.budget) <= 0.05 * cell.budget
    assert len({cell.tune_trials for cell in plan.cells}) == 1  # as much tuning for each
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    if scale == "full":
        (cells, trials) = re.findall(r"length +(\d+) cells .*? = (\d+) trials", text)[0]
        assert (len(plan.cells), plan.n_trials) == (int(cells), int(trials))


def test_the_methods_of_lr_matters_have_equal_counts_rates_and_a_margin() -> None:
    pytest.importorskip("peft")
    spec = SweepSpec.load(FOLDER / "lr-matters.toml")
    assert set(spec.methods) == {
        "lora",
        "olora",
        "pissa",
        "milora",
        "init-ab",
        "lora-ga",
        "dora",
        "peft:gralora",
        "randlora",
    }
    assert spec.confirm.margin == 0.01
    plan = plan_of("lr-matters", "full")
    lora = next(cell for cell in plan.cells if cell.method == "lora")
    # rank 128 on seven linear weights of 28 layers: q and o, k and v, gate, up and down
    assert lora.count == 128 * 28 * (2 * (1024 + 2048) + 2 * (1024 + 1024) + 3 * (1024 + 3072))
    widths = {name: round(m.lr.high / m.lr.low) for name, m in spec.methods.items() if hasattr(m.lr, "low")}
    assert set(widths.values()) == {562}


def test_regret_asks_for_rank_1_to_512_and_full_fine_tuning_by_held_out_loss() -> None:
    plan = plan_of("lora-without-regret", "full")
    assert plan.spec.evaluate.metric == "loss"
    lora = [cell for cell in plan.cells if cell.method == "lora"]
    assert [cell.reference for cell in lora] == [f"lora-{2**k}" for k in range(10)]
    assert all(cell.count == cell.budget for cell in lora)
    assert any(cell.method == "full" for cell in plan.cells)


@pytest.mark.parametrize("part", ["layers", "batches"])
def test_the_other_commands_of_a_header_plan(part: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers that are adapted, and the batch size, are changed by the overrides that the header gives."""
    monkeypatch.chdir(place)
    head = (FOLDER / "lora-without-regret.toml").read_text(encoding="utf-8").split("\nname = ")[0]
    lines = re.search(rf"^#   {part} +(.*?)(?=^#   \w+ {{2,}})", head, re.MULTILINE | re.DOTALL)
    assert lines is not None
    given = re.findall(r"--set '?([\w.]+=(?:\[.*?\]|[\w-]+))'?", lines[1])
    assert len(given) >= 2
    for override in given:
        assert plan_of("lora-without-regret", "small", override).feasible


def test_the_best_batch_size_of_lora_without_regret_can_be_searched() -> None:
    text = (FOLDER / "lora-without-regret.toml").read_text(encoding="utf-8")
    sizes = "search.space.global_batch_size=[32,128,512]"
    assert sizes in text and "--set search.trials=19" in text
    plan = plan_of("lora-without-regret", "full", "search.trials=19", sizes)
    assert all(cell.feasible for cell in plan.cells)
    assert {plan.trials_of(cell) for cell in plan.cells} == {3 * 5 + 4 + 5}
