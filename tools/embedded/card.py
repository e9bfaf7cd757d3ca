"""Write the model card of the embedded CLIP, with the facts of the run that made it."""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP

from tools.embedded import fonts, render, scores, settings

TEXT = """# tiny-clip

A CLIP of {parameters:,} parameters ({vision:,} in the vision tower), built with open_clip's own classes and pretrained
from scratch on rendered pictures by `tools/embedded/pretrain.py`. It exists so that sweeps, tests and demonstrations
run without a network or a GPU; it is no model for use. Licence: Apache-2.0, as the project.

Load it with `open_clip.create_model_and_transforms("local-dir:" + directory)` and
`open_clip.get_tokenizer("local-dir:" + directory)`.

## Architecture
Vision: {size} x {size} pixels, patch {patch} ({tokens} patches and a class token), width {width}, {layers} layers.
Text: context {context}, width {text_width}, {text_layers} layers, byte-level BPE of {vocabulary} tokens trained on the
captions. Joint space: {embed}. Weights: float32 safetensors.

## Pretraining data
{pairs:,} pairs, each seen once, drawn by `tools/embedded/render.py` (stream seed {seed}): letters ({letters}), digits,
{symbols} symbols, {words} short words and {shapes} shapes ({shape_names}), in {fonts} font files, with varied colours,
sizes, positions, rotations, textures, blur and noise; captions such as "{example}".
No photograph, no scan, and no word for clothing is among them; in particular neither Fashion-MNIST's images nor its
class names, nor scikit-learn's digits.

Fonts: those that come with matplotlib (DejaVu), and these Debian packages: {packages}.
Only pictures were made from them; no font is shipped. By look, with the first digits of the SHA-256:

{looks}

Fonts kept out, for the scores below: {held}.

## Training
Symmetric contrastive loss (open_clip's `ClipLoss`), AdamW, learning rate {lr}, weight decay {decay}, batch {batch},
{steps:,} steps, 5 % warm-up, cosine decay, gradient norm clipped at 1, seed {seed}; {seconds:.0f} s with {threads}
compute thread(s) and one rendering process on a shared 2-core {machine} machine, torch {torch}, open_clip {open_clip}.

## Zero-shot scores
| images | accuracy | chance |
|---|---|---|
{rows}

The last two are low by intent: the downstream images and their words are foreign to the model, so that what fine-tuning
can move is what a sweep measures. Do not read any of these as the quality of CLIP models.
"""


def write(
    out: Path,
    *,
    model: CLIP,
    tokenizer: Any,
    font_list: Sequence[fonts.Font],
    arguments: argparse.Namespace,
    seconds: float,
) -> None:
    """Score ``model`` and write ``out/MODEL_CARD.md``."""
    by_look: dict[str, list[str]] = defaultdict(list)
    for font in font_list:
        by_look[font.look].append(f"{font.path.name} ({font.sha256})")
    vision, text = settings.MODEL["vision_cfg"], settings.MODEL["text_cfg"]
    steps = arguments.pairs // arguments.batch
    scored = scores.all_scores(model, tokenizer)
    filled = TEXT.format(
        parameters=sum(p.numel() for p in model.parameters()),
        vision=sum(p.numel() for p in model.visual.parameters()),
        size=vision["image_size"],
        patch=vision["patch_size"],
        tokens=(vision["image_size"] // vision["patch_size"]) ** 2,
        width=vision["width"],
        layers=vision["layers"],
        context=text["context_length"],
        text_width=text["width"],
        text_layers=text["layers"],
        vocabulary=text["vocab_size"],
        embed=settings.MODEL["embed_dim"],
        pairs=steps * arguments.batch,
        seed=arguments.seed,
        letters=len(render.LETTERS),
        symbols=len(render.SYMBOLS),
        words=len(render.WORDS),
        shapes=len(render.SHAPES),
        shape_names=", ".join(render.SHAPES),
        fonts=len(font_list),
        example=render.picture(font_list, arguments.seed, 8).caption,
        packages=", ".join(f"{name} ({licence})" for name, licence in fonts.PACKAGES.items()),
        looks="\n".join(f"- {look}: {', '.join(files)}" for look, files in sorted(by_look.items())),
        held=", ".join(fonts.HELD_OUT),
        lr=arguments.lr,
        decay=arguments.weight_decay,
        batch=arguments.batch,
        steps=steps,
        seconds=seconds,
        threads=arguments.threads,
        machine=platform.machine(),
        torch=torch.__version__,
        open_clip=open_clip.__version__,
        rows="\n".join(f"| {what} | {score:.1%} | {chance:.1%} |" for what, score, chance in scored),
    )
    (out / "MODEL_CARD.md").write_text(filled)
