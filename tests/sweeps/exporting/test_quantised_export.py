"""What was trained beside base weights in 4 or 8 bits, taken out of a results folder in every form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from randlora.model.quantised import is_quantised
from sweeps.exporting.export import FORMS, export_trial
from sweeps.exporting.kept import KeptTrial, kept_trial
from tests.sweeps.engine.kept_results import keep_trials
from tests.trainables.support import one_tower_trial
from tests.trainables.tiny_language import save_model, write_rows
from trainables.models.base_weights import round_as
from trainables.models.loading import load_model
from trainables.predicting.answers import answers
from trainables.predicting.trained import load_trained

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quantised`)")
HELD = ("nf4", "int8")
QUESTION = "Is water wet?\n\nAnswer format: true/false"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KeptTrial]:
    place = tmp_path_factory.mktemp("quantised-export")
    # bitsandbytes' kernels need whole blocks
    save_model(place / "llama", "llama", hidden_size=64, intermediate_size=128)
    write_rows(place / "rows")
    found = {}
    for held in HELD:
        train = {"epochs": 1, "global_batch_size": 16, "base_weights": held}
        trial = one_tower_trial("lora", model=place / "llama", train=train, dataset=f"json:{place / 'rows'}")
        found[held] = kept_trial(keep_trials(place / held, [trial]))
    return found


@pytest.mark.filterwarnings("ignore:Found missing adapter keys", "ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("held", HELD)
def test_the_readme_loads_the_base_as_it_was_in_training(
    kept: dict[str, KeptTrial], held: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    to = export_trial(kept[held], tmp_path / "out", form)
    text = (to / "README.md").read_text()
    assert held in text and ("read back" in text) == (form == "merged")
    monkeypatch.chdir(to)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert ("BitsAndBytesConfig" in code) == (form != "merged")
    found: dict[str, Any] = {}
    exec(compile(code, f"{held} {form}", "exec"), found)
    model = found["model"]
    assert any(is_quantised(m) for m in model.modules()) == (form != "merged")
    said = torch.tensor([found["log_likelihood"](f"the correct answer is {w}") for w in ("true", "false")])
    (expected,) = answers(load_trained(kept[held].config, kept[held].folder), [QUESTION])
    assert float(said.softmax(0).max()) == pytest.approx(expected.probability, abs=0.02 if form != "merged" else 1e-4)


@pytest.mark.parametrize("held", HELD)
def test_merged_weights_are_those_read_back_and_the_change(
    kept: dict[str, KeptTrial], held: str, tmp_path: Path
) -> None:
    one = kept[held]
    merged = load_model(f"local:{export_trial(one, tmp_path / 'out', 'merged')}").module.state_dict()
    trained = load_trained(one.config, one.folder)
    assert trained.adapted is not None
    deltas = trained.adapted.deltas()
    base = load_model(one.config.model).module
    before = {name: t.clone() for name, t in base.state_dict().items()}
    round_as(base, held)
    for name, weight in base.state_dict().items():
        expected = weight + deltas[name] if name in deltas else weight
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)
        assert merged[name].dtype == torch.float32
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(base.state_dict()[name], before[name])
