"""PEFT's published counts of trained parameters, on a Llama-3.2-3B without weights."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from randlora import attach, get_method
from randlora.adapter import Shape
from randlora.methods.bridge.kinds import KINDS
from randlora.model.targets import resolve_targets

PUBLISHED = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))
EQUAL: dict[str, dict[str, Any]] = PUBLISHED["equal"]
UNLIKE: dict[str, dict[str, Any]] = PUBLISHED["unlike"]
BUILT = {entry["method"]: name for name, entry in EQUAL.items()}
"""An experiment for every type."""
SLOW = {"boft", "fourierft", "waveft"}
"""Types that make large tensors on the CPU even here: about a second a weight."""


@cache
def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "vocab_size": 128256}
    heads = {"num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def weights(entry: Mapping[str, Any]) -> dict[str, Shape]:
    by_weight = isinstance(entry["capacity"], Mapping)
    return dict(
        resolve_targets(llama(), entry.get("targets", entry["capacity"] if by_weight else ["q_proj", "v_proj"]))
    )


def capacities(entry: Mapping[str, Any]) -> dict[str, int]:
    """Of every weight."""
    names, given = list(weights(entry)), entry["capacity"]
    if isinstance(given, Mapping):
        return {name: given[name.split(".")[-2]] for name in names}
    if KINDS[entry["method"]].pooled:
        each, more = divmod(given, len(names))
        return {name: each + (i < more) for i, name in enumerate(names)}
    return dict.fromkeys(names, given)


def counted(entry: Mapping[str, Any]) -> int:
    method, shapes, options = get_method(f"peft:{entry['method']}"), weights(entry), entry.get("options", {})
    if method.together is not None:
        return method.total(shapes, entry["capacity"], **options)
    return sum(method.count(shapes[name], c, **options) for name, c in capacities(entry).items())


@pytest.mark.parametrize("name", EQUAL)
def test_a_count_is_the_published_one(name: str) -> None:
    assert counted(EQUAL[name]) == EQUAL[name]["count"]


@pytest.mark.parametrize("method", sorted(BUILT.keys() - SLOW))
def test_so_is_what_is_built(method: str) -> None:
    entry = EQUAL[BUILT[method]]
    each = capacities(entry)
    config = get_method(f"peft:{method}").config.from_options(next(iter(each.values())), entry.get("options", {}))
    adapted = attach(llama(), config, list(each), capacities=each)
    count = adapted.count()
    adapted.detach()
    assert count == entry["count"]


@pytest.mark.parametrize("name", UNLIKE)
def test_others_are_counted_otherwise_for_a_reason(name: str) -> None:
    assert counted(UNLIKE[name]) != UNLIKE[name]["count"]
    assert UNLIKE[name]["why"]


def test_every_type_but_those_without_an_experiment_is_there() -> None:
    assert len(EQUAL) >= 55
    assert KINDS.keys() - BUILT.keys() == {"hra", "ia3"}  # HRA has no result, IA3's are unlike
