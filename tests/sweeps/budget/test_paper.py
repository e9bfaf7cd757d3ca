"""The paper's counts (arXiv 2502.00987), exactly, on the models' real shapes: built on the meta device, no weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sweeps.budget.solver import reference_budget, solve, solve_pinned
from sweeps.spec.solution import Solution
from tests.sweeps.budget.shapes import clip_tower
from trainables.models.shapes import meta_model, target_shapes

CONFIGS: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "qwen2-0.5b": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "phi3-mini": {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "tie_word_embeddings": False,
    },
    "roberta-base": {"model_type": "roberta", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "roberta-large": {
        "model_type": "roberta",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}
PARAMETERS = {"llama3-8b": 8030.3, "qwen2-0.5b": 494.0, "phi3-mini": 3821.1}  # millions


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
    return {name: root / name for name in CONFIGS}


@cache
def shapes_of(model_id: str, adapt: str = "all", targets: tuple[str, ...] | None = None) -> dict[str, tuple[int, int]]:
    return target_shapes(model_id, targets, adapt)


QKV = ("attn.in_proj_weight",)
MLP = ("mlp.c_fc", "mlp.c_proj")
CLIP = [  # architecture, rank, adapt, targets, LoRA-16, LoRA-32, LoRA-64, RandLoRA
    ("ViT-B-32", 6, "vision", QKV, 589_824, 1_179_648, 2_359_296, 1_188_864),
    ("ViT-B-32", 6, "vision", (*QKV, "attn.out_proj", *MLP), 2_359_296, 4_718_592, 9_437_184, 4_755_456),
    ("ViT-B-32", 6, "vision", (*QKV, *MLP), 2_064_384, 4_128_768, 8_257_536, 3_566_592),
    ("ViT-B-32", 6, "both", QKV, 983_040, 1_966_080, 3_932_160, 1_723_440),
    ("ViT-B-32", 6, "both", (*QKV, *MLP), 3_440_640, 6_881_280, 13_762_560, 5_170_320),
    ("ViT-B-32", 6, "both", (*QKV, "attn.out_proj", *MLP), 3_932_160, 7_864_320, 15_728_640, 6_893_760),
    ("ViT-L-14", 8, "vision", QKV, 1_572_864, 3_145_728, 6_291_456, 3_170_304),
    ("ViT-L-14", 8, "vision", (*QKV, *MLP), 5_505_024, 11_010_048, 22_020_096, 9_510_912),
    ("ViT-L-14", 8, "both", (*QKV, *MLP), 7_569_408, 15_138_816, 30_277_632, 12_192_768),
    ("ViT-L-14", 8, "both", (*QKV, "attn.out_proj", *MLP), 8_650_752, 17_301_504, 34_603_008, 16_257_024),
    ("ViT-H-14", 10, "vision", QKV, 2_621_440, 5_242_880, 10_485_760, 5_283_840),
    ("ViT-H-14", 10, "vision", (*QKV, *MLP), 9_175_040, 18_350_080, 36_700_160, 15_851_520),
    ("ViT-H-14", 10, "both", (*QKV, *MLP), 14_680_064, 29_360_128, 58_720_256, 23_519_664),
    ("ViT-H-14", 10, "both", (*QKV, "attn.out_proj", *MLP), 16_777_216, 33_554_432, 67_108_864, 31_359_552),
]


@pytest.mark.parametrize(("arch", "rank", "adapt", "targets", "lora16", "lora32", "lora64", "randlora"), CLIP)
def test_clip_counts(
    arch: str, rank: int, adapt: str, targets: tuple[str, ...], lora16: int, lora32: int, lora64: int, randlora: int
) -> None:
    shapes = shapes_of(f"open_clip:{arch}", adapt, targets)
    assert [reference_budget(shapes, r) for r in (16, 32, 64)] == [lora16, lora32, lora64]
    assert solve_pinned("randlora", shapes, rank, lora32).count == randlora


@pytest.mark.parametrize(
    ("arch", "rank", "percent"), [("ViT-B-32", 5, -9.9), ("ViT-L-14", 6, 7.3), ("ViT-H-14", 8, -0.2)]
)
def test_clip_nearest_single_rank_for_both_towers(arch: str, rank: int, percent: float) -> None:
    shapes = shapes_of(f"open_clip:{arch}", "both")  # the default targets are the paper's
    answer = solve("randlora", shapes, reference_budget(shapes, 32), "uniform", tolerance=None)
    assert isinstance(answer, Solution)
    assert answer.capacity == rank
    assert 100 * answer.residual / answer.budget == pytest.approx(percent, abs=0.06)


def test_clip_b32_other_methods() -> None:
    shapes = shapes_of("open_clip:ViT-B-32", "both")
    assert len(shapes) == 72
    assert solve_pinned("nola", shapes, 2048, 1).count == 147_456
    assert solve_pinned("vera", shapes, 256, 1).count == 141_312
    assert solve_pinned("randlora", shapes, 10, 1).count == 3_133_800


LLM = [  # model, LoRA rank, its count, the paper's RandLoRA rank, its count
    ("qwen2-0.5b", 16, 5_898_240, 10, 5_956_992),
    ("qwen2-0.5b", 32, 11_796_480, 6, 9_883_104),
    ("qwen2-0.5b", 32, 11_796_480, 5, 11_842_944),
    ("phi3-mini", 16, 22_020_096, 40, 23_003_904),
    ("phi3-mini", 32, 44_040_192, 20, 45_712_128),
    ("phi3-mini", 64, 88_080_384, 10, 91_128_576),
    ("llama3-8b", 16, 28_311_552, 60, 28_778_112),
    ("llama3-8b", 32, 56_623_104, 30, 56_626_112),
    ("llama3-8b", 64, 113_246_208, 15, 112_723_968),
    ("roberta-base", 4, 663_552, 64, 718_848),
    ("roberta-large", 4, 1_769_472, 100, 1_780_416),
]


@pytest.mark.parametrize(("model", "lora_rank", "budget", "rank", "count"), LLM)
def test_language_model_counts(
    folders: dict[str, Path], model: str, lora_rank: int, budget: int, rank: int, count: int
) -> None:
    shapes = shapes_of(f"local:{folders[model]}")
    assert reference_budget(shapes, lora_rank) == budget
    assert solve_pinned("randlora", shapes, rank, budget).count == count


@pytest.mark.parametrize(
    ("model", "lora_rank", "rank"),
    [
        ("qwen2-0.5b", 16, 10),
        ("qwen2-0.5b", 32, 5),
        ("phi3-mini", 16, 42),
        ("phi3-mini", 32, 21),
        ("phi3-mini", 64, 10),
        ("llama3-8b", 16, 61),
        ("llama3-8b", 32, 30),
        ("llama3-8b", 64, 15),
    ],
)
def test_language_model_nearest_rank(folders: dict[str, Path], model: str, lora_rank: int, rank: int) -> None:
    shapes = shapes_of(f"local:{folders[model]}")
    answer = solve("randlora", shapes, reference_budget(shapes, lora_rank))
    assert isinstance(answer, Solution)
    assert (answer.allocation, answer.capacity) == ("uniform", rank)


@pytest.mark.parametrize(("model", "count"), [("qwen2-0.5b", 245_760), ("phi3-mini", 196_608), ("llama3-8b", 327_680)])
def test_nola_counts_two_coefficient_vectors_of_1024_a_matrix(folders: dict[str, Path], model: str, count: int) -> None:
    assert solve_pinned("nola", shapes_of(f"local:{folders[model]}"), 2048, 1, options={"r": 8}).count == count


def test_vera_and_down_proj_alone(folders: dict[str, Path]) -> None:
    large = shapes_of(f"local:{folders['roberta-large']}")
    assert solve_pinned("vera", large, 256, 1).count == 258_048
    down = shapes_of(f"local:{folders['phi3-mini']}", "all", ("down_proj",))
    assert reference_budget(down, 32) == 11_534_336
    assert solve_pinned("randlora", down, 20, 1).count == 15_237_376


@pytest.mark.parametrize("model", PARAMETERS)
def test_the_configs_are_the_published_models(folders: dict[str, Path], model: str) -> None:
    module = meta_model(f"local:{folders[model]}")
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(PARAMETERS[model], abs=0.05)
    assert all(p.device.type == "meta" for p in module.parameters())


def test_dinov2_as_its_authors_pack_it() -> None:
    shapes = clip_tower("blocks.", 12, 768)  # attn.qkv, mlp.fc1, mlp.fc2 have CLIP's shapes
    assert reference_budget(shapes, 1) == 129_024
    counts = {r: solve_pinned("randlora", shapes, r, 1).count for r in (128, 64, 32, 16)}
    assert counts == {128: 193_536, 64: 359_424, 32: 691_200, 16: 1_354_752}
