"""Images as the model's own image processor makes them, whatever its file leaves to its class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from trainables.models.encoders import hidden_size, image_encoder
from trainables.models.families import ModelError
from trainables.models.loading import load_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
STATED = {
    "image_processor_type": "BitImageProcessor", "crop_size": {"height": 28, "width": 28}, "do_center_crop": True,
    "size": {"shortest_edge": 28}, "resample": 3, "do_normalize": True, "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6], "do_rescale": True, "rescale_factor": 1 / 255,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("dinov2", STATED),
        ("vit", {"size": 28}),
        ("vit", {"size": 28, "do_normalize": False, "resample": 3}),
        ("vit", {"size": {"height": 28, "width": 28}, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]}),
        ("vit", {"size": 28, "do_rescale": False, "image_mean": [127.5, 127.5, 127.5], "image_std": [127.5, 120, 100]}),
        ("dinov2", {"size": 28, "crop_size": 28}),
        ("dinov2", {"size": {"height": 28, "width": 28}, "crop_size": 14, "do_center_crop": False}),
        ("vit", {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}),
    ],
)
def test_images_are_the_processors(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(family, **SIZES)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    draw = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(draw)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    theirs = torch.tensor(processor(image)["pixel_values"][0])
    look = load_model(f"local:{tmp_path}").preprocess
    assert look is not None
    pixels = torch.tensor(np.array(look.recipe.apply(image))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (look.mean, look.std))
    ours = (pixels - mean) / std
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-4)
    if settings is STATED:
        assert (look.mean, look.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 28, "resample": 0}, r"resample = .*0.*2 \(bilinear\) or 3 \(bicubic\)"),
        ({"size": 28, "resample": 1}, r"resample = .*1.*2 \(bilinear\) or 3 \(bicubic\)"),
        (
            {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 28}, "crop_size": 28},
            "do_flip_channel_order = true",
        ),
    ],
)
def test_what_cannot_be_done_to_images_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    config = transformers.AutoConfig.for_model("vit", **SIZES)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        load_model(f"local:{tmp_path}")


@torch.no_grad()
def test_mobilevits_head_reads_its_widened_last_stage() -> None:
    config = transformers.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 8, 8, 8, 16, 48], num_attention_heads=2
    )
    model = transformers.MobileViTModel(config).eval()
    vectors = image_encoder(model)(torch.zeros(1, 3, 64, 64))
    assert vectors.shape == (1, hidden_size(model, "local:mobilevit")) == (1, 48)
