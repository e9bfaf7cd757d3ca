"""Decide which rows meet in which step, and augment them. Both depend on (data_seed, epoch) alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from trainables.seeds import generator


def samples_per_epoch(n: int, batch_size: int, min_batches: int = 0) -> int:
    """Return the number of examples in an epoch over n rows: n, or `min_batches` full batches if n makes fewer."""
    return n if math.ceil(n / batch_size) >= min_batches else min_batches * batch_size


def epoch_batches(
    rows: Tensor, batch_size: int, min_batches: int, data_seed: int, epoch: int, *, replacement: bool = False
) -> list[Tensor]:
    """Return the batches of one epoch.

    Every row comes once, in an order drawn for this epoch, and the last batch has what is left. If that makes fewer
    than `min_batches`, new orders follow until there are `min_batches` full batches.

    Args:
        rows: (N,) the training rows.
        batch_size: rows of a batch.
        min_batches: the smallest number of batches.
        data_seed: the seed of the order.
        epoch: counted from 1.
        replacement: draw as many rows, but each from all of them (arXiv 2502.00987's released code).
    """
    draw = generator(data_seed, "order", epoch)
    samples = samples_per_epoch(len(rows), batch_size, min_batches)
    if replacement:
        return list(torch.split(rows[torch.randint(len(rows), (samples,), generator=draw)], batch_size))
    orders = [rows[torch.randperm(len(rows), generator=draw)] for _ in range(math.ceil(samples / len(rows)))]
    return list(torch.split(torch.cat(orders)[:samples], batch_size))


def crop_flip_plan(n: int, draw: torch.Generator, image: Tensor | None = None) -> Tensor:
    """Return affine maps (n, 2, 3) of random resized crops (area share in [0.5, 1], aspect in [3/4, 4/3]) with flips.

    They follow the distribution of torchvision's RandomResizedCrop and RandomHorizontalFlip. Unlike these, they are
    drawn from an explicit generator.

    Args:
        n: the number of images.
        draw: the generator.
        image: (n,) width by height of the images that are cropped; None: squares.
    """
    aspects = torch.ones(n) if image is None else image
    area = torch.empty(n, 10).uniform_(0.5, 1.0, generator=draw)
    aspect = torch.empty(n, 10).uniform_(math.log(3 / 4), math.log(4 / 3), generator=draw).exp()
    width, height = (area * aspect / aspects[:, None]).sqrt(), (area / aspect * aspects[:, None]).sqrt()
    fits = (width <= 1.0) & (height <= 1.0)
    first = fits.int().argmax(
        dim=1, keepdim=True
    )  # the first try that fits; if none does, the largest crop of the middle
    none = ~fits.any(dim=1)
    width = torch.where(none, (4 / 3 / aspects).clamp(max=1.0), width.gather(1, first).squeeze(1))
    height = torch.where(none, (aspects / (3 / 4)).clamp(max=1.0), height.gather(1, first).squeeze(1))
    place = (torch.rand(n, 2, generator=draw) * 2 - 1).masked_fill(none[:, None], 0.0)
    mirror = torch.where(torch.rand(n, generator=draw) < 0.5, -1.0, 1.0)
    plan = torch.zeros(n, 2, 3)
    plan[:, 0, 0], plan[:, 1, 1] = width * mirror, height
    plan[:, 0, 2], plan[:, 1, 2] = place[:, 0] * (1 - width), place[:, 1] * (1 - height)
    return plan


def apply_plan(images: Tensor, plan: Tensor, side: int | None = None) -> Tensor:
    """Return images resampled by the maps of `crop_flip_plan`, (n, 3, side, side) float32.

    A crop has at most `pixels.WIDER` times as many pixels per side, so there is no anti-aliasing.

    Args:
        images: (n, 3, S, S), values 0..255.
        plan: the maps (n, 2, 3).
        side: side of the result; None for S.
    """
    shape = [*images.shape[:2], *(images.shape[2:] if side is None else (side, side))]
    grid = affine_grid(plan.to(images.device), shape, align_corners=False)
    out = grid_sample(images.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return out.clamp_(0.0, 255.0)


class Normalise:
    """Maps uint8 or float images in 0..255 to (x / 255 - mean) / std, float32, on a device."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        m, s = torch.tensor(mean), torch.tensor(std)
        self._scale = (1.0 / (255.0 * s)).view(1, -1, 1, 1).to(device)
        self._shift = (-m / s).view(1, -1, 1, 1).to(device)
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        values = images.to(self.device).to(torch.float32)  # moved as uint8, which is a quarter of the bytes
        return torch.addcmul(self._shift, values, self._scale)
