"""Models of text of other architectures in a pack: soft caps, windows, shared layers, relative positions, dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from randlora import resolve_targets
from tests.trainables.tiny_language import WIDTH, save_tokenizer, uneven_rows
from tests.trainables.tiny_sentences import save_sentence_tokenizer, write_sst2
from tests.trainables.training.support import OWN, alone, together
from trainables.config import TrainSettings, TrialConfig
from trainables.models.shapes import meta_model

LLAMA_LIKE = {**WIDTH, "max_position_embeddings": 256, "num_key_value_heads": 2}
BERT_LIKE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 1}
MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "opt": (
        {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
         "word_embed_proj_dim": 32, "max_position_embeddings": 256, "attention_dropout": 0.1},
        ["q_proj", "fc1"],
    ),
    "mistral": (LLAMA_LIKE | {"sliding_window": 32, "attention_dropout": 0.1}, ["q_proj", "up_proj"]),
    "qwen3": (LLAMA_LIKE | {"head_dim": 8}, ["q_proj", "up_proj"]),
    "gemma2": (LLAMA_LIKE | {"head_dim": 8, "sliding_window": 32}, ["q_proj", "up_proj"]),
    "gpt_neox": (LLAMA_LIKE | {"hidden_dropout": 0.1, "attention_dropout": 0.1}, ["query_key_value"]),
    "phi": (LLAMA_LIKE | {"resid_pdrop": 0.1, "embd_pdrop": 0.1}, ["q_proj", "fc1"]),
    "bloom": (
        {"vocab_size": 400, "hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.1},
        ["query_key_value"],
    ),
    "distilbert": (
        {"vocab_size": 300, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "pad_token_id": 1},
        ["q_lin", "lin1"],
    ),
    "albert": (
        BERT_LIKE | {"embedding_size": 16, "intermediate_size": 64, "attention_probs_dropout_prob": 0.1},
        ["query", "ffn"],
    ),
    "mpnet": (BERT_LIKE | {"intermediate_size": 64, "max_position_embeddings": 66}, ["attn.q"]),
}  # fmt: skip
ENCODERS = ("distilbert", "albert", "mpnet")


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_other_families_equal_separate_trials(tmp_path: Path, family: str) -> None:
    settings, targets = MODELS[family]
    config = transformers.AutoConfig.for_model(family, **settings)
    folder = tmp_path / family
    encoder = family in ENCODERS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        auto: Any = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
        auto.from_config(config).save_pretrained(folder)
    if encoder:
        save_sentence_tokenizer(folder, "roberta")
        data = f"glue:{write_sst2(tmp_path / 'SST-2', train=24, test=6)}"
    else:
        save_tokenizer(folder)
        uneven_rows(tmp_path / "rows", train=20, test=6)
        data = f"json:{tmp_path / 'rows'}"
    model = f"local:{folder}"
    capacities = tuple((name, 3) for name in resolve_targets(meta_model(model), targets))
    shared = {
        "stage": "TUNE", "cell_id": "cell", "model": model, "adapt": "all", "targets": tuple(targets), "dataset": data,
        "train_size": 0.75, "method": "lora", "capacities": capacities,
        "train": TrainSettings(epochs=2, global_batch_size=5),
    }  # fmt: skip
    trials = [TrialConfig(**shared, **own) for own in OWN]
    packed = together(trials, tmp_path)
    for k, trial in enumerate(trials):
        for reports, want in zip(packed, alone(trial, tmp_path / f"alone{k}"), strict=True):
            assert reports[k]["train_loss"] == pytest.approx(want["train_loss"], rel=1e-4)  # type: ignore[index]
            assert reports[k]["val_further"] == pytest.approx(want["val_further"], rel=1e-3)  # type: ignore[index]
