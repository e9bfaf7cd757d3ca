"""Compute zero-shot scores of the embedded CLIP on glyphs in unseen fonts, scanned digits and the photographs."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from open_clip.model import CLIP
from PIL import Image
from torch import Tensor

from tools.embedded import fonts, render
from tools.embedded.settings import EMBEDDED


def normalise(pixels: Tensor) -> Tensor:
    """Return uint8 pixels (N, 3, H, W) in the model's range, [-1, 1]."""
    return pixels.float() / 127.5 - 1


@torch.no_grad()
def zero_shot(model: CLIP, tokenizer: Any, pixels: Tensor, labels: Tensor, prompts: Sequence[Sequence[str]]) -> float:
    """Return the accuracy on uint8 pixels (N, 3, H, W) of choosing the class with the nearest mean prompt embedding."""
    classes = torch.stack([model.encode_text(tokenizer(list(p)), normalize=True).mean(0) for p in prompts])
    guesses = []
    for part in torch.split(pixels, 512):
        guesses.append((model.encode_image(normalise(part), normalize=True) @ classes.T).argmax(1))
    return float((torch.cat(guesses) == labels).float().mean())


def held_out_glyphs(characters: str, per_character: int, seed: int = 1_000_003) -> tuple[Tensor, Tensor]:
    """Return (pixels (N, 3, 28, 28) uint8, labels (N,)): plain pictures in fonts kept out of pretraining."""
    held_out = fonts.held_out()
    pictures, labels = [], []
    for label, character in enumerate(characters):
        for i in range(per_character):
            pictures.append(render.glyph(character, held_out[i % len(held_out)], seed, label * per_character + i))
            labels.append(label)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.tensor(labels)


def glyph_prompts(characters: str) -> list[list[str]]:
    """Return prompts in the words of the pretraining captions, for letters and digits."""
    prompts = []
    for c in characters:
        if c.isdigit():
            names = [f"digit {c}", f"digit {render.DIGIT_NAMES[int(c)]}"]
        else:
            names = [f"{'capital' if c.isupper() else 'lowercase'} letter {c}"]
        prompts.append([f"{article}{name}" for name in names for article in ("the ", "a ", "an image of the ")])
    return prompts


def sklearn_digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1,797 scanned digits, scaled from 8x8 to 28x28."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.clip(digits.images * 16, 0, 255).astype(np.uint8)
    big = [np.asarray(Image.fromarray(g).resize((22, 22), Image.Resampling.BICUBIC)) for g in grey]
    pixels = torch.from_numpy(np.pad(np.stack(big), ((0, 0), (3, 3), (3, 3))))
    return pixels[:, None].expand(-1, 3, -1, -1), torch.from_numpy(digits.target)


def packed(name: str, split: str = "test") -> tuple[Tensor, Tensor, list[list[str]]]:
    """Return (pixels (N, 3, 28, 28) uint8, labels (N,), prompts) of an embedded data set."""
    folder = EMBEDDED / name
    table = pq.read_table(folder / f"{split}.parquet")
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    templates = json.loads((folder / "dataset.json").read_text("utf-8"))["templates"]
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["image"].to_pylist()]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels, torch.tensor(table["label"].to_pylist()), [[t.format(name) for t in templates] for name in names]


def all_scores(model: CLIP, tokenizer: Any) -> list[tuple[str, float, float]]:
    """Return (what, zero-shot accuracy, accuracy by chance) of each held-out set."""
    rows = []
    for what, characters in (("10 digits", render.DIGITS), ("26 capital letters", render.LETTERS[:26])):
        pixels, labels = held_out_glyphs(characters, 40)
        score = zero_shot(model, tokenizer, pixels, labels, glyph_prompts(characters))
        rows.append((f"{what} rendered in fonts never seen (STIX)", score, 1 / len(characters)))
    pixels, labels = sklearn_digits()
    score = zero_shot(model, tokenizer, pixels, labels, glyph_prompts(render.DIGITS))
    rows.append(("scikit-learn's 1,797 digit scans, never seen", score, 0.1))
    for name in ("fashion-mnist", "fashion-mnist-turned"):
        pixels, labels, prompts = packed(name)
        score = zero_shot(model, tokenizer, pixels, labels, prompts)
        rows.append((f"test images of embedded:{name}; neither images nor words ever seen", score, 0.1))
    return rows
