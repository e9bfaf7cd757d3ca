"""Write class-balanced parts of Fashion-MNIST as Parquet image files of the hub's form, upright and with quarter turns.

Usage, with the idx files of Debian's package (``apt-get install dataset-fashion-mnist``, or ``apt-get download`` and
``dpkg -x``), or through torchvision's download::

    python -m tools.embedded.pack_fashion_mnist --idx /usr/share/datasets/fashion-mnist
    python -m tools.embedded.pack_fashion_mnist --torchvision DOWNLOAD_FOLDER
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image

from tools.embedded.settings import EMBEDDED

Array = npt.NDArray[np.uint8]
NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SEED = 20170828  # the data set's release date
#: images of each class; the turned set is the quickstart's and so has more
SETS = {
    "fashion-mnist": {"train": 300, "test": 100},
    "fashion-mnist-turned": {"train": 600, "test": 200},
}


def read_idx(folder: Path, split: str) -> tuple[Array, Array]:
    """Return (images (N, 28, 28), labels (N,)) of the idx files, gzipped or not."""
    stem = {"train": "train", "test": "t10k"}[split]
    parts = []
    for kind, header in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8)):
        path = next(p for p in (folder / f"{stem}-{kind}.gz", folder / f"{stem}-{kind}") if p.exists())
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        parts.append(np.frombuffer(raw, np.uint8, offset=header))
    return parts[0].reshape(-1, 28, 28), parts[1]


def read_torchvision(folder: Path, split: str) -> tuple[Array, Array]:
    """Return images and labels as `read_idx` does, from torchvision, which downloads them if needed."""
    from torchvision.datasets import FashionMNIST

    data = FashionMNIST(str(folder), train=split == "train", download=True)
    return data.data.numpy(), data.targets.numpy().astype(np.uint8)


def choose(images: Array, labels: Array, per_class: int, seed: int) -> list[int]:
    """Return positions of ``per_class`` images of each class by one seeded permutation, without repeated images.

    The result is in the permutation's order, so that any leading part is close to balanced.
    """
    left = dict.fromkeys(range(len(NAMES)), per_class)
    digests: set[bytes] = set()
    chosen = []
    for i in np.random.default_rng(seed).permutation(len(labels)):
        key = hashlib.sha256(images[i].tobytes()).digest()
        label = int(labels[i])
        if left[label] > 0 and key not in digests:
            digests.add(key)
            left[label] -= 1
            chosen.append(int(i))
    return chosen


def turns(chosen: list[int], split: str) -> list[int]:
    """Draw 0 to 3 counter-clockwise quarter turns for each chosen position. An image has the same turns in any part."""
    drawn = np.random.default_rng((SEED, 1 + (split == "test"))).integers(0, 4, 60_000)
    return [int(drawn[i]) for i in chosen]


def png(pixels: Array) -> bytes:
    """Return one grey image (H, W) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--idx", type=Path)
    source.add_argument("--torchvision", type=Path)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    arguments = parser.parse_args()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for name, sizes in SETS.items():
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, per_class in sizes.items():
            images, labels = (
                read_idx(arguments.idx, split) if arguments.idx else read_torchvision(arguments.torchvision, split)
            )
            chosen = choose(images, labels, per_class, SEED)
            turned = turns(chosen, split) if name.endswith("-turned") else [0] * len(chosen)
            pictures = [np.rot90(images[i], k) for i, k in zip(chosen, turned, strict=True)]
            rows = {
                "image": [
                    {"bytes": png(pixels), "path": f"{split}-{i:05d}.png"}
                    for pixels, i in zip(pictures, chosen, strict=True)
                ],
                "label": [int(labels[i]) for i in chosen],
            }
            path = folder / f"{split}.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
            print(f"{path}: {len(chosen)} images, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
