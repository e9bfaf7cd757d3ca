"""Batches: which rows meet in which step, and what augmentation does to them. Functions of (data_seed, epoch) alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from trainables.seeds import generator


def samples_per_epoch(n: int, batch_size: int, min_batches: int = 0) -> int:
    """Examples that one epoch over n trains on: n, or `min_batches` full batches where n makes fewer."""
    return n if math.ceil(n / batch_size) >= min_batches else min_batches * batch_size


def epoch_batches(
    rows: Tensor, batch_size: int, min_batches: int, data_seed: int, epoch: int, *, replacement: bool = False
) -> list[Tensor]:
    """The batches of one epoch.

    Every row comes once in an order drawn for this epoch, the last batch being what is left; when that makes fewer
    than `min_batches`, fresh orders follow until there are `min_batches` full ones.

    Args:
        rows: (N,) the training rows.
        epoch: counted from 1.
        replacement: draw equally many rows, but each from all of them (arXiv 2502.00987's released code).
    """
    draw = generator(data_seed, "order", epoch)
    wanted = samples_per_epoch(len(rows), batch_size, min_batches)
    if replacement:
        return list(torch.split(rows[torch.randint(len(rows), (wanted,), generator=draw)], batch_size))
    orders = [rows[torch.randperm(len(rows), generator=draw)] for _ in range(math.ceil(wanted / len(rows)))]
    return list(torch.split(torch.cat(orders)[:wanted], batch_size))


def crop_flip_plan(n: int, draw: torch.Generator, image: Tensor | None = None) -> Tensor:
    """Affine maps (n, 2, 3) of random resized crops (area share in [0.5, 1], aspect in [3/4, 4/3]) with flips.

    The same law as torchvision's RandomResizedCrop and RandomHorizontalFlip, drawn from an explicit generator, which
    torchvision's transforms do not take.

    Args:
        image: (n,) width by height of the images that are cropped; None: squares.
    """
    own = torch.ones(n) if image is None else image
    area = torch.empty(n, 10).uniform_(0.5, 1.0, generator=draw)
    aspect = torch.empty(n, 10).uniform_(math.log(3 / 4), math.log(4 / 3), generator=draw).exp()
    width, height = (area * aspect / own[:, None]).sqrt(), (area / aspect * own[:, None]).sqrt()
    fits = (width <= 1.0) & (height <= 1.0)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first try that fits; when none does the most of the middle
    none = ~fits.any(dim=1)
    width = torch.where(none, (4 / 3 / own).clamp(max=1.0), width.gather(1, first).squeeze(1))
    height = torch.where(none, (own / (3 / 4)).clamp(max=1.0), height.gather(1, first).squeeze(1))
    place = (torch.rand(n, 2, generator=draw) * 2 - 1).masked_fill(none[:, None], 0.0)
    mirror = torch.where(torch.rand(n, generator=draw) < 0.5, -1.0, 1.0)
    plan = torch.zeros(n, 2, 3)
    plan[:, 0, 0], plan[:, 1, 1] = width * mirror, height
    plan[:, 0, 2], plan[:, 1, 2] = place[:, 0] * (1 - width), place[:, 1] * (1 - height)
    return plan


def apply_plan(images: Tensor, plan: Tensor, side: int | None = None) -> Tensor:
    """Resample images (n, 3, S, S), values 0..255, by the maps of `crop_flip_plan`; float32, (n, 3, side, side).

    Without `side` the shape stays. A crop has at most `pixels.WIDER` times as many pixels a side, so there is no
    anti-aliasing.
    """
    shape = [*images.shape[:2], *(images.shape[2:] if side is None else (side, side))]
    grid = affine_grid(plan.to(images.device), shape, align_corners=False)
    out = grid_sample(images.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return out.clamp_(0.0, 255.0)


class Normalise:
    """uint8 or float images in 0..255 -> (x / 255 - mean) / std, float32, on a device."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        m, s = torch.tensor(mean), torch.tensor(std)
        self._scale = (1.0 / (255.0 * s)).view(1, -1, 1, 1).to(device)
        self._shift = (-m / s).view(1, -1, 1, 1).to(device)
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        there = images.to(self.device).to(torch.float32)  # in this order a quarter of the bytes travel
        return torch.addcmul(self._shift, there, self._scale)
