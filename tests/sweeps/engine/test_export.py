"""Kept adapters taken out of a results folder: what transformers and PEFT load by themselves afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from analysis.store.tables import write_part
from randlora import LoraConfig, attach
from sweeps.engine.export import export_trial
from tests.trainables.tiny_language import save_model, save_tokenizer
from trainables.models.loading import load_model


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_a_language_model_loads_by_itself(tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = save_model(tmp_path / "a base", "llama")
    save_tokenizer(base)
    module = load_model(f"local:{base}").module
    adapted = attach(module, LoraConfig(r=2), ["q_proj", "down_proj"])
    with torch.no_grad():
        for p in adapted.parameters():
            p.add_(0.05)
    ids = torch.tensor([[5, 9, 20]])
    expected = module(input_ids=ids).logits
    adapted.save(tmp_path / "results" / "adapters" / "abc1")
    row = {"sweep": "s", "trial_id": "abc1", "cell_id": "c", "attempt": 1, "status": "finished"}
    write_part(tmp_path / "results", "trials", [{**row, "model": f"local:{base}"}])

    export_trial(tmp_path / "results", "abc", tmp_path / "for peft", "peft")
    again = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "for peft"
    )  # finds the base by its name in the file
    assert again.peft_config["default"].base_model_name_or_path == str(base)
    assert torch.allclose(again(input_ids=ids).logits, expected, atol=1e-5)

    merged = export_trial(tmp_path / "results", "abc", tmp_path / "merged", "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(merged)
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
    assert transformers.AutoTokenizer.from_pretrained(merged)("red")["input_ids"]
