"""Which task can train a transformers model, told by its config."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from trainables.models.families import ModelError
from trainables.models.loading import load_model
from trainables.models.shapes import meta_model, model_kind


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("t5", "t5 is an encoder with a decoder, which no task trains"),
        ("bart", "bart is an encoder with a decoder, which no task trains"),
        ("clip", "clip has a tower for images and one for texts; .*open_clip:ViT-B-32/openai"),
        ("siglip", "siglip has a tower for images and one for texts; .*open_clip:ARCH/TAG"),
    ],
)
def test_a_model_that_no_task_trains_is_named(tmp_path: Path, family: str, message: str) -> None:
    transformers.AutoConfig.for_model(family).save_pretrained(tmp_path)
    for ask in (model_kind, meta_model, load_model):
        with pytest.raises(ModelError, match=rf"^'local:{tmp_path}': {message}"):
            ask(f"local:{tmp_path}")


@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model"])
def test_the_vision_tower_of_one_alone_is_an_image_encoder(tmp_path: Path, family: str) -> None:
    transformers.AutoConfig.for_model(family).save_pretrained(tmp_path)
    assert model_kind(f"local:{tmp_path}") == "hf-vision"
