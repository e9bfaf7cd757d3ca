"""SST-2's phrases and sentences as questions with two choices, for causal language models.

    python -m tools.real.study_texts [--into data/study]

Reads `data/SST-2/{train,dev}.tsv`, GLUE's columns `sentence` and `label`, which you bring (docs/results.md), and writes
`sst2/{train,validation,test}.json`: 640 and 160 texts of train, 600 of dev. The classes take turns, each in the order
of its texts' SHA-256: no random numbers, and no way to draw again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Collection
from hashlib import sha256
from itertools import chain
from pathlib import Path

import pyarrow.csv as csv

CHOICES = ("bad", "good")
VALIDATION, TRAIN, TEST = 160, 640, 600


def rows(path: Path, least: int, taken: Collection[str] = ()) -> list[dict[str, object]]:
    """A file's texts in the form that `questions:DIR` reads, the classes in turn; none of `taken`, or of both classes.

    Raises SystemExit where fewer than `least` are left.
    """
    plain = csv.ParseOptions(delimiter="\t", quote_char=False)
    classes = defaultdict(set)
    for row in csv.read_csv(path, parse_options=plain).to_pylist():
        classes[CHOICES[row["label"]]].add(f"Good or bad? {row['sentence'].strip()}")
    unclear = set.intersection(*classes.values()).union(taken)
    in_order = ([(text, name) for text in sorted(classes[name] - unclear, key=_digest)] for name in CHOICES)
    found = chain.from_iterable(zip(*in_order, strict=False))  # as many of each class
    texts = [{"instruction": text, "answer": name, "choices": CHOICES} for text, name in found]
    if len(texts) < least:
        raise SystemExit(f"{path}: {len(texts)} texts are left, as many of each class; it takes {least}")
    return texts


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brought", type=Path, default=Path("data/SST-2"))
    parser.add_argument("--into", type=Path, default=Path("data/study"))
    asked = parser.parse_args()
    train = rows(asked.brought / "train.tsv", VALIDATION + TRAIN)
    test = rows(asked.brought / "dev.tsv", TEST, {str(row["instruction"]) for row in train})
    folder = asked.into / "sst2"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"validation": train[:VALIDATION], "train": train[VALIDATION : VALIDATION + TRAIN], "test": test[:TEST]}
    for part, found in parts.items():
        (folder / f"{part}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{folder / part}.json: {len(found)} texts")


if __name__ == "__main__":
    main()
