"""The images of `examples/real/study/`: of every set 800 training images and 600 test images at most, alike each time.

    python -m tools.real.study_images [--into data/study]

| set | from | licence |
|---|---|---|
| cifar10, gtsrb, signdigits, dtd10 | `data/NAME/{train,test}.parquet`, which you bring (docs/results.md) | theirs |
| fashion-mnist | comes with the product | MIT |
| digits | scikit-learn's 8 x 8 scans | BSD |

160 of the 800 validate. Images are drawn evenly over the classes, in the order of their files' SHA-256: no random
numbers, and no way to draw again. digits has no test split of its own: 600 of its further images in that order are one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.data.registry import EMBEDDED

BROUGHT = ("cifar10", "gtsrb", "signdigits", "dtd10")
VALIDATION, TRAIN, TEST = 160, 640, 600


def spread(table: pa.Table) -> pa.Table:
    """The rows with the classes in turn: every class's first image by SHA-256, then every class's second one ..."""
    digests = [hashlib.sha256(image["bytes"]).hexdigest() for image in table["image"].to_pylist()]
    labels = table["label"].to_pylist()
    seen: Counter[int] = Counter()
    places = {}
    for row in sorted(range(len(labels)), key=digests.__getitem__):
        places[row] = (seen[labels[row]], digests[row])
        seen[labels[row]] += 1
    return table.take(sorted(places, key=places.__getitem__))


def scans() -> pa.Table:
    """scikit-learn's digits as PNG files, (1797,) rows; grey levels 0 to 16 become 0 to 255."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    files = []
    for pixels in found.images:
        file = io.BytesIO()
        Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(file, "PNG")
        files.append({"bytes": file.getvalue()})
    return pa.table({"image": files, "label": [int(v) for v in found.target]})


def splits(name: str, brought: Path) -> dict[str, pa.Table]:
    """Training, validation and test rows of a set."""
    if name == "digits":
        table = spread(scans())
        train, test = table.slice(0, VALIDATION + TRAIN), table.slice(VALIDATION + TRAIN)
    else:
        folder = brought / name if name in BROUGHT else EMBEDDED / name
        train, test = (spread(pq.read_table(folder / f"{part}.parquet")) for part in ("train", "test"))
    return {
        "validation": train.slice(0, VALIDATION),
        "train": train.slice(VALIDATION, TRAIN),
        "test": test.slice(0, TEST),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brought", type=Path, default=Path("data"))
    parser.add_argument("--into", type=Path, default=Path("data/study"))
    asked = parser.parse_args()
    for name in (*BROUGHT, "fashion-mnist", "digits"):
        (asked.into / name).mkdir(parents=True, exist_ok=True)
        for part, table in splits(name, asked.brought).items():
            pq.write_table(table, asked.into / name / f"{part}.parquet")
            print(f"{asked.into / name / part}.parquet: {table.num_rows} images")
        if name == "digits":  # the other sets' files name their classes
            names = {"class_names": [str(number) for number in range(10)]}
            (asked.into / name / "dataset.json").write_text(json.dumps(names), encoding="utf-8")


if __name__ == "__main__":
    main()
