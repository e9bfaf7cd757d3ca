"""Images of coloured noise, and an encoder of random weights that a test can train on them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image

SIDE = 16
COLOURS = {"red": (200, 60, 60), "green": (60, 190, 60), "blue": (60, 60, 210), "grey": (120, 120, 120)}


def save_dinov2(folder: Path, dropout: float = 0.0) -> Path:
    """A DINOv2 of 2 layers, 32 wide, patches of 8 pixels, made for images of 32 pixels."""
    config = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.AutoModel.from_config(config)
        with torch.no_grad():  # a drawn embedding of 0.02 says nothing of the image
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and "token" not in name:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return folder


def noisy(rng: np.random.Generator, colour: tuple[int, int, int]) -> Image.Image:
    """A SIDE x SIDE image of one colour under noise."""
    pixels = np.array(colour) + rng.normal(0, 60, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def image_table(images: list[bytes], labels: list[int], names: list[str] | None) -> pa.Table:
    """A table in the hub's Parquet image form."""
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": b, "path": None} for b in images],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "label": pa.array(labels, pa.int64()),
        }
    )
    if names is None:
        return table
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def colour_tables(per_class: int = 16, test_per_class: int = 8) -> dict[str, pa.Table]:
    """train and test of the colour set."""
    rng = np.random.default_rng(0)
    tables = {}
    for which, n in (("train", per_class), ("test", test_per_class)):
        labels = [i % len(COLOURS) for i in range(n * len(COLOURS))]
        images = [png(noisy(rng, list(COLOURS.values())[label])) for label in labels]
        tables[which] = image_table(images, labels, list(COLOURS))
    return tables


def write_colours(folder: Path) -> Path:
    """The colour set as Parquet files: 64 training images, 32 test images, 4 classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for which, table in colour_tables().items():
        pq.write_table(table, folder / f"{which}.parquet")
    return folder


def write_photos(folder: Path, per_class: int, test_per_class: int) -> Path:
    """The colour set as image files in a folder for each class."""
    rng = np.random.default_rng(0)
    for which, n in (("train", per_class), ("test", test_per_class)):
        for name, colour in COLOURS.items():
            (folder / which / name).mkdir(parents=True)
            for i in range(n):
                noisy(rng, colour).save(folder / which / name / f"{i}.png")
    return folder
