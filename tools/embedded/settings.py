"""The architecture of the embedded CLIP, in the form of open_clip's configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).parents[2] / "trainables" / "embedded"
CLIP_FOLDER = EMBEDDED / "tiny_clip"

VOCABULARY = 512
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 28, "patch_size": 14, "width": 192, "head_width": 48, "layers": 3},
    "text_cfg": {
        "context_length": 20,
        "vocab_size": VOCABULARY,
        "width": 128,
        "heads": 4,
        "layers": 2,
        "hf_tokenizer_name": "tiny-clip",  # open_clip reads the tokenizer from the directory itself
    },
}
PREPROCESS: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
