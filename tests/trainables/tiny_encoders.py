"""Encoders of random weights in the hub's folder layout, small enough to train in a test."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers


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
