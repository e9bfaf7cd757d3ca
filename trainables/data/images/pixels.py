"""Decoded images: resized once to the model's size, and stored as uint8 on disk (`decoded`) or in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from trainables.cache import cache_folder
from trainables.data.images.dataset import ImageSplit
from trainables.data.images.decoded import DecodedRows
from trainables.errors import DataError

KEEP_BYTES = 4 * 2**30
"""The largest split that is kept in memory if nothing is stored on disk. A larger one is decoded again for
every batch."""

WIDER = 1.25
"""Images for crops are stored this many times as wide as the model's square.

A crop of half the area is 0.7 times as wide as its image. Wider copies would be sharper and take more disk: 1.25 takes
1.6 times as much as the squares, 1.5 would take 2.3 times.
"""

_SIZE = np.dtype("<u4")

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Recipe:
    """How an image becomes the model's square: open_clip's evaluation transform without the normalisation.

    "shortest" resizes the shorter side and crops the centre. "longest" resizes the longer side and pads. "squash"
    ignores the aspect. "whole" ignores it too, but `Pixels.aspects` remembers it: crops of the original image are cut
    from it (`wider`).
    """

    size: int
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash", "whole"] = "shortest"

    @property
    def wider(self) -> Recipe:
        """Return the recipe of whole images that are `WIDER` times as wide. Crops from them come out as large as this
        recipe's."""
        return dataclasses.replace(self, size=round(WIDER * self.size), resize_mode="whole")

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the size x size image."""
        size, (width, height) = self.size, image.size
        if (width, height) == (size, size):
            return image
        how = _FILTERS[self.interpolation]
        if self.resize_mode in ("squash", "whole") or width == height:
            return image.resize((size, size), how)
        side = min(width, height) if self.resize_mode == "shortest" else max(width, height)
        rounded = int if self.resize_mode == "shortest" else round  # torchvision's rule; open_clip's
        width, height = max(1, rounded(size * width / side)), max(1, rounded(size * height / side))
        image = image.resize((width, height), how)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return image.crop((left, top, left + size, top + size))  # outside the image, crop pads with black


class Pixels:
    """The decoded images of one split at one size.

    If the split's digest is known (`ImageSplit.content`), the images are kept in the machine's cache and memory-mapped.
    They are kept in this process's memory if it is not known, or if the disk is full. A row is decoded when a trial
    asks for it, so a few-shot trial decodes only its own rows.
    """

    def __init__(self, split: ImageSplit, recipe: Recipe, *, keep_bytes: int = KEEP_BYTES) -> None:
        self.split = split
        self.recipe = recipe
        self._shape = (3, recipe.size, recipe.size)
        self._count = int(np.prod(self._shape))
        self._sized = recipe.resize_mode == "whole"  # the last bytes of a row are the image's width and height
        self._width = self._count
        if self._sized:
            self._width += 2 * _SIZE.itemsize
        self._aspects = torch.full((len(split),), torch.nan)
        self.nbytes = len(split) * self._width
        folder = cache_folder()
        self._key = None if folder is None else key(split, recipe)
        self._mapped: DecodedRows | None = None
        if folder is not None and self._key is not None:
            self._mapped = DecodedRows(folder / self._key, len(split), self._width)
        self._keep_bytes = keep_bytes
        self._all: Tensor | None = None
        self._done = torch.zeros(len(split), dtype=torch.bool)

    @property
    def kept_bytes(self) -> int:
        """Return the bytes of this process's memory that stay allocated; 0 if images are memory-mapped, or too many to
        keep."""
        return 0 if self._mapped is not None or self.nbytes > self._keep_bytes else self.nbytes

    def prepare(self, index: Tensor, *, skip_bad: bool = False) -> Tensor:
        """Decode rows at once, and return those that can be used, in order. Raises DataError for others, unless
        `skip_bad`."""
        bad: set[int] = set()
        self._fetch(torch.unique(index), bad if skip_bad else None)
        return index[torch.tensor([row not in bad for row in index.tolist()], dtype=torch.bool)] if bad else index

    def rows(self, index: Tensor) -> Tensor:
        """Return the images of the given rows, (n, 3, size, size) uint8. Raises DataError that names one that cannot be
        decoded."""
        return self._bytes(index)[:, : self._count].view(-1, *self._shape)

    def aspects(self, index: Tensor) -> Tensor:
        """Return width by height of the original images of the given rows, (n,). Only for the recipe "whole"."""
        if len(missing := torch.unique(index[self._aspects[index].isnan()])):
            sizes = self._bytes(missing)[:, self._count :].contiguous().numpy().view(_SIZE).astype(np.float32)
            self._aspects[missing] = torch.from_numpy(sizes[:, 0] / sizes[:, 1])
        return self._aspects[index]

    def _bytes(self, index: Tensor) -> Tensor:
        """Return what is stored of the given rows, (n, width) uint8."""
        for _ in range(3):  # a damaged file is decoded again; if the disk damages every file, it is not used
            if (mapped := self._mapped) is None:
                break
            missing = torch.unique(index[~mapped.has(index)])
            if len(missing):
                self._fetch(missing, None)
            elif (mapped_rows := mapped.read(index)) is not None:
                return mapped_rows
        self._mapped = None
        if self.nbytes > self._keep_bytes:
            return self._decode(index, None)[1]
        self._fetch(torch.unique(index), None)
        assert self._all is not None
        return self._all[index]

    def _fetch(self, rows: Tensor, bad: set[int] | None) -> None:
        """Have distinct rows on disk, or in memory if the disk takes no more. If `bad` is given, add rows that cannot
        be decoded to it."""
        if self._mapped is not None:
            if self._mapped.add(rows, lambda part: self._decode(part, bad), self._is_same):
                return
            self._mapped = None
        if self.nbytes > self._keep_bytes:
            for part in torch.split(rows, 1024) if bad is not None else ():
                self._decode(part, bad)
            return
        if self._all is None:
            self._all = torch.empty((len(self.split), self._width), dtype=torch.uint8)
        good, images = self._decode(rows[~self._done[rows]], bad)
        self._all[good] = images
        self._done[good] = True

    def _is_same(self) -> bool:
        """Return whether what was decoded just now is what the cache's folder is named after.

        Raises:
            DataError: the images were changed since this object was made, so that a trial would see both versions.
        """
        now = key(self.split, self.recipe)
        if now not in (None, self._key):
            raise DataError(
                f"{self.split.source} ({self.split.name}): its images were changed while they were read; put them back "
                "and run the same command again, or start a sweep with another name"
            )
        return now is not None

    def _decode(self, index: Tensor, bad: set[int] | None) -> tuple[Tensor, Tensor]:
        """Return the rows that can be decoded, and their bytes. The others are added to `bad`; if that is None, they
        raise DataError."""
        numbers = index.tolist()

        def one(row: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None:
            try:
                image = self.split.image(row)
                pixels = np.asarray(self.recipe.apply(image), dtype=np.uint8).transpose(2, 0, 1).ravel()
                return np.append(pixels, np.array(image.size, _SIZE).view(np.uint8)) if self._sized else pixels
            except DataError:
                if bad is None:
                    raise
                bad.add(row)
                return None

        if len(numbers) < 32 or torch.get_num_threads() == 1:
            images = [one(i) for i in numbers]
        else:  # Pillow releases the interpreter lock while it decodes
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                images = list(pool.map(one, numbers, chunksize=16))
        good = [image for image in images if image is not None]
        if not good:
            return index[:0], torch.empty((0, self._width), dtype=torch.uint8)
        decodable = torch.tensor([image is not None for image in images], dtype=torch.bool)
        return index[decodable], torch.from_numpy(np.stack(good))


def key(split: ImageSplit, recipe: Recipe) -> str | None:
    """Return the name of the cache's folder, a hash of what decides the decoded bits; None if nothing is cached."""
    if split.content is None or (content := split.content()) is None:
        return None
    # the number: folders from before it was 3 are named by sizes and times of files, which others can have too
    parts = [3, content, split.examples_hash(torch.arange(len(split))), dataclasses.asdict(recipe), PIL.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
