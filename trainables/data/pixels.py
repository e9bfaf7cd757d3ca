"""Decoded images: resized once to the model's size, kept as uint8, decoded row by row on first use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainables.data.dataset import ImageSplit

KEEP_BYTES = 4 * 2**30
"""A split whose decoded images would take more is decoded again for every batch."""

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Recipe:
    """How an image becomes the model's square: open_clip's evaluation transform without the normalisation.

    "shortest" resizes the shorter side and crops the centre, "longest" resizes the longer side and pads,
    "squash" ignores the aspect.
    """

    size: int
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"

    def apply(self, image: Image.Image) -> Image.Image:
        """The size x size image."""
        size, (width, height) = self.size, image.size
        if (width, height) == (size, size):
            return image
        how = _FILTERS[self.interpolation]
        if self.resize_mode == "squash" or width == height:
            return image.resize((size, size), how)
        side = min(width, height) if self.resize_mode == "shortest" else max(width, height)
        rounded = int if self.resize_mode == "shortest" else round  # torchvision's rule; open_clip's
        width, height = max(1, rounded(size * width / side)), max(1, rounded(size * height / side))
        image = image.resize((width, height), how)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return image.crop((left, top, left + size, top + size))  # outside the image, crop pads with black


class Pixels:
    """The decoded images of one split at one size.

    Memory is touched row by row, so a few-shot trial decodes its few rows and no more.
    """

    def __init__(self, split: ImageSplit, recipe: Recipe, *, keep_bytes: int = KEEP_BYTES) -> None:
        self.split = split
        self.recipe = recipe
        shape = (len(split), 3, recipe.size, recipe.size)
        self.nbytes = int(np.prod(shape))
        self._all = torch.empty(shape, dtype=torch.uint8) if self.nbytes <= keep_bytes else None
        self._done = torch.zeros(len(split), dtype=torch.bool)

    @property
    def kept_bytes(self) -> int:
        """Bytes that stay allocated; 0 for a split too large to keep."""
        return 0 if self._all is None else self.nbytes

    def rows(self, index: Tensor) -> Tensor:
        """Images of the given rows: (n, 3, size, size) uint8. Raises DataError naming a row that can't be decoded."""
        if self._all is None:
            return self._decode(index)
        missing = torch.unique(index[~self._done[index]])
        if len(missing):
            self._all[missing] = self._decode(missing)
            self._done[missing] = True
        return self._all[index]

    def _decode(self, index: Tensor) -> Tensor:
        numbers = index.tolist()
        if len(numbers) < 32 or torch.get_num_threads() == 1:
            images = [self._one(i) for i in numbers]
        else:  # Pillow lets go of the interpreter lock while it decodes
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                images = list(pool.map(self._one, numbers, chunksize=16))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    def _one(self, row: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.asarray(self.recipe.apply(self.split.image(row)), dtype=np.uint8)
