"""Choose the images of `examples/real/study/` and of the league of methods, the same ones each time.

    python -m tools.real.study_images

| folder | for | validation | training | test, at most |
|---|---|---:|---:|---:|
| data/study | `examples/peft/league.toml` | 160 | 640 | 600 |
| data/study-wide | `examples/real/study/` | 320 | 960 | 1,000 |
| data/study-six | `examples/real/study/new-sets.toml` | 320 | 840 | 1,000 |

| set | from | licence |
|---|---|---|
| cifar10, gtsrb, signdigits, dtd10 | `data/NAME/{train,test}.parquet`, which you bring (docs/results.md) | theirs |
| those of study-six | likewise | theirs |
| fashion-mnist | comes with the product | MIT |
| digits | scikit-learn's 8 x 8 scans | BSD |

Images are chosen evenly over the classes, in the order of the SHA-256 of their files. No random numbers are used, so
nobody can draw again. The set digits has no test split. The images after its training images are taken as one. A set
that is missing is left out, and the script says so. dtd10 is too small for the wide layout, and is left out there.
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
NEW = ("omniglot_alphabets", "chest_xray3", "plant_seedlings", "rsscn7", "neu_defects", "intel_scenes")
LAYOUTS = {"study": (160, 640, 600), "study-wide": (320, 960, 1000)}
"""Numbers of validation, training and (at most) test images, by folder."""
NEW_LAYOUT = {"study-six": (320, 840, 1000)}
"""The same, for the sets of `NEW`."""


def spread(table: pa.Table) -> pa.Table:
    """Return the rows in an order in which classes take turns: the first image of each by SHA-256, then the second."""
    digests = [hashlib.sha256(image["bytes"]).hexdigest() for image in table["image"].to_pylist()]
    labels = table["label"].to_pylist()
    class_counts: Counter[int] = Counter()
    places = {}
    for row in sorted(range(len(labels)), key=digests.__getitem__):
        places[row] = (class_counts[labels[row]], digests[row])
        class_counts[labels[row]] += 1
    return table.take(sorted(places, key=places.__getitem__))


def scans() -> pa.Table:
    """Return scikit-learn's digits as PNG files (1797 rows), with grey levels 0 to 16 scaled to 0 to 255."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    files = []
    for pixels in digits.images:
        file = io.BytesIO()
        Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(file, "PNG")
        files.append({"bytes": file.getvalue()})
    return pa.table({"image": files, "label": [int(v) for v in digits.target]})


def whole(name: str, brought: Path) -> tuple[pa.Table, pa.Table | None]:
    """Return the training images and the test images of a set, both ordered by `spread`.

    The test images are None if the set has no test split.

    Raises:
        FileNotFoundError: the set is missing.
    """
    if name == "digits":
        return spread(scans()), None
    folder = brought / name if name in BROUGHT + NEW else EMBEDDED / name
    train, test = (spread(pq.read_table(folder / f"{part}.parquet")) for part in ("train", "test"))
    return train, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brought", type=Path, default=Path("data"), help="folder of the sets that you bring")
    parser.add_argument("--into", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    for name in (*BROUGHT, *NEW, "fashion-mnist", "digits"):
        try:
            images, tests = whole(name, arguments.brought)
        except FileNotFoundError as error:
            print(f"{name}: left out ({error})")
            continue
        for layout, (validation, train, test) in (NEW_LAYOUT if name in NEW else LAYOUTS).items():
            if images.num_rows < validation + train:
                print(f"{arguments.into / layout / name}: left out, it has {images.num_rows} training images")
                continue
            folder = arguments.into / layout / name
            folder.mkdir(parents=True, exist_ok=True)
            parts = {
                "validation": images.slice(0, validation),
                "train": images.slice(validation, train),
                "test": (images.slice(validation + train) if tests is None else tests).slice(0, test),
            }
            for part, table in parts.items():
                pq.write_table(table, folder / f"{part}.parquet")
                print(f"{folder / part}.parquet: {table.num_rows} images")
            if tests is None:  # the files of all other sets name their classes
                names = {"class_names": [str(number) for number in range(10)]}
                (folder / "dataset.json").write_text(json.dumps(names), encoding="utf-8")


if __name__ == "__main__":
    main()
