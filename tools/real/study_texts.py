"""SST-2's sentences as questions with two choices, for causal language models.

    python -m tools.real.study_texts [--into data/study]

Reads `data/SST-2/{train,dev}.tsv`, GLUE's columns `sentence` and `label`, which you bring (docs/results.md), and writes
`sst2/{train,validation,test}.json`: 640 and 160 sentences of train, 600 of dev. The classes take turns, each in the
order of its sentences' SHA-256: no random numbers, and no way to draw again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from hashlib import sha256
from itertools import chain
from pathlib import Path

import pyarrow.csv as csv

CHOICES = ("bad", "good")
VALIDATION, TRAIN, TEST = 160, 640, 600


def rows(path: Path) -> list[dict[str, object]]:
    """A file's sentences in the form that `questions:DIR` reads, the classes in turn."""
    plain = csv.ParseOptions(delimiter="\t", quote_char=False)
    classes = defaultdict(set)
    for row in csv.read_csv(path, parse_options=plain).to_pylist():
        classes[CHOICES[row["label"]]].add(row["sentence"].strip())
    in_order = ([(s, name) for s in sorted(classes[name], key=_digest)] for name in CHOICES)
    return [
        {"instruction": f"Good or bad? {sentence}", "answer": name, "choices": CHOICES}
        for sentence, name in chain.from_iterable(zip(*in_order, strict=False))
    ]


def _digest(sentence: str) -> str:
    return sha256(sentence.encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brought", type=Path, default=Path("data/SST-2"))
    parser.add_argument("--into", type=Path, default=Path("data/study"))
    asked = parser.parse_args()
    train, test = (rows(asked.brought / f"{part}.tsv") for part in ("train", "dev"))
    folder = asked.into / "sst2"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"validation": train[:VALIDATION], "train": train[VALIDATION : VALIDATION + TRAIN], "test": test[:TEST]}
    for part, found in parts.items():
        (folder / f"{part}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{folder / part}.json: {len(found)} sentences")


if __name__ == "__main__":
    main()
