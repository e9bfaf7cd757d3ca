"""Model ids, shapes on the meta device, default targets, and loading from local directories."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from randlora import LoraConfig, TargetError, attach, resolve_targets
from trainables.config import TrialConfig
from trainables.models.families import EMBEDDED, KINDS, ModelError, parse_id
from trainables.models.loading import load_model
from trainables.models.shapes import default_targets, meta_model, target_shapes
from trainables.training.adapting import base_weight_names

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    module = open_clip.CLIP(**TINY_CLIP)
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def save_hf(folder: Path, config: Any, auto: Any) -> Path:
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    return save_hf(tmp_path_factory.mktemp("dinov2"), config, transformers.AutoModel)


@pytest.fixture(scope="module")
def qwen2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.Qwen2Config(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return save_hf(tmp_path_factory.mktemp("qwen2"), config, transformers.AutoModelForCausalLM)


# -- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("ViT-B-32/openai", r"open_clip:ARCH/TAG.*nearest: 'open_clip:ViT-B-32/openai'"),
        ("clip:ViT-B-32/openai", "nearest: 'open_clip:ViT-B-32/openai'"),
        ("embeded:tiny-clip", "nearest: 'embedded:tiny-clip'"),
        ("embedded:tiny_clip", "nearest: 'embedded:tiny-clip'"),
        ("facebook/dinov2-base", "nearest: 'hf:facebook/dinov2-base'"),
        ("open_clip:", "embedded:tiny-clip"),
        ("open_clip:ViT-B-23/openai", "no architecture 'ViT-B-23'; nearest: .*'ViT-B-32'"),
        ("open_clip:ViT-B-32/openia", "no weights 'openia' for ViT-B-32; nearest: 'openai'"),
        ("hf:a/b/c", "ORG/NAME"),
        ("local:/nowhere/at/all", "not a directory"),
    ],
)
def test_an_unknown_id_names_the_forms_and_the_nearest(model_id: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_id(model_id)


def test_a_directory_without_its_prefix_or_misspelt_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"nearest: 'local:.*model'"):
        parse_id(str(tmp_path / "model"))
    with pytest.raises(ModelError, match="nearest: 'model'"):
        parse_id(f"local:{tmp_path / 'modle'}")
    with pytest.raises(ModelError, match=r"neither open_clip_config.json .* nor config.json"):
        meta_model(f"local:{tmp_path / 'model'}")


# -- shapes and targets -----------------------------------------------------------------------------------------------


def test_open_clip_shapes_need_no_weights_and_no_tag() -> None:
    shapes = target_shapes("open_clip:ViT-B-32/openai", None, "both")
    assert shapes == target_shapes("open_clip:ViT-B-32", ["attn.in_proj_weight", "mlp.c_fc", "mlp.c_proj"], "all")
    assert len(shapes) == 72
    assert shapes["visual.transformer.resblocks.0.attn.in_proj_weight"] == (2304, 768)
    vision = target_shapes("open_clip:ViT-B-32", None, "vision")
    assert len(vision) == 36
    assert all(name.startswith("visual.") for name in vision)


@pytest.mark.parametrize(
    ("arch", "targets"),
    [
        ("ViT-L-14", ["attn.in_proj_weight", "mlp.c_fc", "mlp.c_proj"]),
        (
            "ViT-B-16-SigLIP",
            ["attn.in_proj_weight", "mlp.c_fc", "mlp.c_proj", "attn.qkv", "mlp.fc1", "mlp.fc2"],
        ),
        ("coca_ViT-B-32", ["attn.in_proj_weight", "mlp.c_fc", "mlp.c_proj"]),
    ],
)
def test_default_targets_of_open_clip(arch: str, targets: list[str]) -> None:
    module = meta_model(f"open_clip:{arch}")
    assert default_targets(module) == targets
    assert {p.device.type for p in module.parameters()} == {"meta"}


def test_meta_models_leave_the_root_logger_alone() -> None:
    before = list(logging.getLogger().handlers)
    meta_model("open_clip:ViT-B-32")
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize("name", [name for name in KINDS if name != "open_clip"])
def test_every_transformers_family_has_targets_that_exist(name: str, tmp_path: Path) -> None:
    transformers.AutoConfig.for_model(name, num_hidden_layers=2).save_pretrained(tmp_path)
    shapes = target_shapes(f"local:{tmp_path}")
    layers = {part for weight in shapes for part in weight.split(".") if part.isdigit()}
    assert layers == {"0", "1"}
    assert not any("head" in weight or "pooler" in weight or "embed" in weight for weight in shapes)


def test_bert_like_models_adapt_six_matrices_a_layer(tmp_path: Path) -> None:
    transformers.RobertaConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    assert len(target_shapes(f"local:{tmp_path}")) == 12


def test_gpt2_shapes_are_out_by_in_though_conv1d_stores_them_the_other_way(tmp_path: Path) -> None:
    transformers.GPT2Config(n_layer=1).save_pretrained(tmp_path)
    assert list(target_shapes(f"local:{tmp_path}").values()) == [(2304, 768), (3072, 768), (768, 3072)]


def test_targets_that_do_not_fit_are_named(clip_folder: Path, qwen2_folder: Path, dinov2_folder: Path) -> None:
    with pytest.raises(TargetError, match=r"mlp.c_fcc.*nearest.*mlp.c_fc"):
        target_shapes(f"local:{clip_folder}", ["mlp.c_fcc"])
    for adapt in ("vision", "both"):
        with pytest.raises(ModelError, match=rf"'{adapt}', but no target lies in the visual tower; .*model\.targets"):
            target_shapes(f"local:{clip_folder}", ["transformer.resblocks.0.mlp.c_fc.weight"], adapt)
    with pytest.raises(ModelError, match="'both', but all targets lie in the visual tower; nearest: 'vision'"):
        target_shapes(f"local:{clip_folder}", ["visual.*.mlp.c_fc"], "both")
    for folder in (qwen2_folder, dinov2_folder):
        with pytest.raises(ModelError, match=r"(qwen2|dinov2) model has one tower; nearest: 'all'"):
            target_shapes(f"local:{folder}", None, "vision")
    with pytest.raises(ModelError, match="vision, both, all; got 'text'"):
        target_shapes(f"local:{clip_folder}", None, "text")


def test_both_towers_of_a_resnet_need_a_target_by_name() -> None:
    with pytest.raises(ModelError, match=r"'both', but no target lies in the visual tower; .*model\.targets"):
        target_shapes("open_clip:RN50", None, "both")
    assert len(target_shapes("open_clip:RN50", ["mlp.c_fc", "attnpool.c_proj"], "both")) == 13


def test_cocas_decoder_is_no_target(make_trial: Callable[..., TrialConfig]) -> None:
    coca = meta_model("open_clip:coca_ViT-B-32")
    assert {name.partition(".")[0] for name in target_shapes(coca, None, "both")} == {"visual", "text"}
    with pytest.raises(ModelError, match=r"'text_decoder\.\*' matches only weights that no task reads"):
        target_shapes(coca, ["mlp.c_fc", "text_decoder.*"], "both")
    for method in ("full", "full-targets"):
        trial = make_trial(method, model="open_clip:coca_ViT-B-32", adapt="both", targets=("mlp.c_fc",))
        names = base_weight_names(coca, trial)
        assert names and not [name for name in names if name.startswith("text_decoder.")]


def test_a_target_that_no_task_reads_is_left_out_or_refused(tmp_path: Path) -> None:
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    shapes = target_shapes(f"local:{tmp_path}", ["dense"])
    assert len(shapes) == 3
    assert "pooler.dense.weight" not in shapes
    with pytest.raises(ModelError, match=r"'pooler\.dense' matches only weights that no task reads"):
        target_shapes(f"local:{tmp_path}", ["query", "pooler.dense"])


def test_a_family_without_defaults_asks_for_targets(tmp_path: Path) -> None:
    transformers.AutoConfig.for_model("opt", num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'opt'.*model.targets"):
        default_targets(f"local:{tmp_path}")
    assert len(target_shapes(f"local:{tmp_path}", ["q_proj"])) == 1
    with pytest.raises(ModelError, match=r"no default targets for .*model\.targets"):
        default_targets(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "can't be read as JSON"), ('{"model_cfg": {"embed_dim": 8}}', "must have model_cfg with embed_dim")],
)
def test_a_malformed_open_clip_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        meta_model(f"local:{tmp_path}")


def test_a_malformed_open_clip_key_is_named(tmp_path: Path) -> None:
    config = {"model_cfg": {**TINY_CLIP, "vision_cfg": {"widht": 8}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="widht"):
        meta_model(f"local:{tmp_path}")


def test_a_malformed_transformers_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(ModelError, match="config can't be read"):
        meta_model(f"local:{tmp_path}")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -64},
        {"hidden_size": 10**30},
        {"num_hidden_layers": "two"},
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 0},
        {"vocab_size": -1},
        {"vocab_size": None},
        {"hidden_act": ["gelu"]},
    ],
)
def test_sizes_that_no_model_has_are_one_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **sizes, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"can't be read|no model can be built from its config|10,000 are allowed"):
        meta_model(f"local:{tmp_path}")


@pytest.mark.parametrize("where", ["config.json", "open_clip_config.json"])
def test_a_config_with_too_many_levels(tmp_path: Path, where: str) -> None:
    (tmp_path / where).write_text('{"a":' * 100_000)
    with pytest.raises(ModelError, match="can't be read"):
        meta_model(f"local:{tmp_path}")


@pytest.mark.parametrize(
    "tower", [{"layers": 10**9}, {"layers": "two"}, {"width": -8}, {"width": "8"}, [], {"layers": [10**9, 1, 1, 1]}]
)
def test_towers_that_no_model_has_are_one_error(tmp_path: Path, tower: Any) -> None:
    vision = {**TINY_CLIP["vision_cfg"], **tower} if tower else tower
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**TINY_CLIP, "vision_cfg": vision}}))
    with pytest.raises(ModelError, match=r"can't build its config|10,000 are allowed|must have model_cfg with"):
        meta_model(f"local:{tmp_path}")


def test_without_a_network_the_error_says_how_to_use_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    for ask in (meta_model, load_model):
        with pytest.raises(ModelError, match=r"couldn't connect to the hub\).*local:DIR"):
            ask("hf:facebook/dinov2-giant")


# -- weights ----------------------------------------------------------------------------------------------------------


def test_an_open_clip_directory_loads(clip_folder: Path) -> None:
    before = torch.get_rng_state()
    handlers = list(logging.getLogger().handlers)
    loaded = load_model(f"local:{clip_folder}")
    assert torch.equal(torch.get_rng_state(), before)
    assert logging.getLogger().handlers == handlers
    assert loaded.kind == "clip"
    assert not loaded.module.training
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert loaded.preprocess is not None
    assert (loaded.preprocess.recipe.size, loaded.preprocess.mean, loaded.preprocess.std) == (
        32,
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
    )
    torch.manual_seed(0)
    original = open_clip.CLIP(**TINY_CLIP).state_dict()
    assert all(torch.equal(original[name], tensor) for name, tensor in loaded.module.state_dict().items())
    assert loaded.tokenizer is not None
    tokens = loaded.tokenizer(["a photo", "of a much longer thing, too long for the context by far, I would say"])
    assert (tokens.shape, tokens.dtype) == ((2, 12), torch.int64)
    assert list(target_shapes(f"local:{clip_folder}")) == list(
        resolve_targets(loaded.module, default_targets(loaded.module))
    )


@pytest.mark.parametrize(("kind", "family"), [("hf-vision", "dinov2"), ("causal-lm", "qwen2")])
def test_a_transformers_directory_loads_with_the_names_that_were_counted(
    request: pytest.FixtureRequest, kind: str, family: str
) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    shapes = target_shapes(f"local:{folder}")
    loaded = load_model(f"local:{folder}")
    assert loaded.kind == kind
    assert not loaded.module.training
    assert resolve_targets(loaded.module, default_targets(loaded.module)) == shapes
    assert attach(loaded.module, LoraConfig(r=2), list(shapes)).count() == 2 * sum(sum(s) for s in shapes.values())
    assert loaded.text_tokenizer is None  # there are no tokenizer files
    if kind == "hf-vision":
        assert loaded.preprocess is not None
        assert loaded.preprocess.recipe.size == 28


def test_dinov2_files_keep_the_old_names_and_load_under_the_new(dinov2_folder: Path) -> None:
    stored = load_file(dinov2_folder / "model.safetensors")
    loaded = load_model(f"local:{dinov2_folder}").module
    assert torch.equal(
        loaded.get_parameter("encoder.layer.0.attention.q_proj.weight"),
        stored["encoder.layer.0.attention.attention.query.weight"],
    )
    assert default_targets(loaded)[:3] == ["attention.q_proj", "attention.k_proj", "attention.v_proj"]


def test_weights_that_are_missing_are_not_made_up(qwen2_folder: Path, tmp_path: Path) -> None:
    weights = load_file(qwen2_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((qwen2_folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"lack 1 of the model's tensors, model\.layers\.1\.mlp\.up_proj"):
        load_model(f"local:{tmp_path}")


def test_a_pooler_that_no_checkpoint_has_starts_the_same_every_time(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    save_hf(tmp_path, config, transformers.AutoModelForMaskedLM)
    first, second = (load_model(f"local:{tmp_path}") for _ in range(2))
    assert first.kind == "text-encoder"
    name = "pooler.dense.weight"
    assert torch.equal(first.module.get_parameter(name), second.module.get_parameter(name))


def test_image_settings_come_from_the_processor_file(dinov2_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((dinov2_folder / name).read_bytes())
    settings = {
        "crop_size": {"height": 14, "width": 14},
        "size": {"shortest_edge": 28},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocess = load_model(f"local:{tmp_path}").preprocess
    assert preprocess is not None
    assert (preprocess.recipe.size, preprocess.recipe.interpolation) == (14, "bilinear")
    assert preprocess.mean == (0.1, 0.2, 0.3)


def test_weights_must_be_named_present_and_safe(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"names no weights.*openai"):
        load_model("open_clip:ViT-B-32")
    config = (clip_folder / "open_clip_config.json").read_bytes()
    (tmp_path / "open_clip_config.json").write_bytes(config)
    with pytest.raises(ModelError, match=r"no \*.safetensors"):
        load_model(f"local:{tmp_path}")
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes((clip_folder / "open_clip_model.safetensors").read_bytes())
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"open_clip_pytorch_model\.bin"):
        load_model(f"local:{tmp_path}")
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    assert load_model(f"local:{tmp_path}").kind == "clip"


def test_weights_of_another_shape_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    config = {"model_cfg": {**TINY_CLIP, "embed_dim": 8}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((clip_folder / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(f"local:{tmp_path}")


def test_a_damaged_weight_file_is_refused(clip_folder: Path, dinov2_folder: Path, tmp_path: Path) -> None:
    for folder in (clip_folder, dinov2_folder):
        broken = tmp_path / folder.name
        broken.mkdir()
        for file in folder.glob("*.json"):
            (broken / file.name).write_bytes(file.read_bytes())
        (weights,) = folder.glob("*.safetensors")
        (broken / weights.name).write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(ModelError, match="can't be loaded"):
            load_model(f"local:{broken}")


def test_the_embedded_model_loads() -> None:
    if not (EMBEDDED["tiny-clip"] / "open_clip_config.json").is_file():
        pytest.skip("the embedded model has not been built: see tools/embedded")
    loaded = load_model("embedded:tiny-clip")
    assert loaded.kind == "clip"
    assert loaded.preprocess is not None
    assert list(target_shapes("embedded:tiny-clip")) == list(
        resolve_targets(loaded.module, default_targets(loaded.module))
    )
