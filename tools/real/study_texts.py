"""Choose texts for causal language models: SST-2's phrases as questions with two choices, and E2E.

    python -m tools.real.study_texts [--into data/study]

| folder | from what you bring (docs/results.md) | validation | training | test, at most |
|---|---|---:|---:|---:|
| sst2 | `data/SST-2/{train,dev}.tsv`, GLUE's columns `sentence` and `label` | 160 | 640 | 600 |
| e2e | `data/E2E/{devset,testset_w_refs}.csv`: facts, one text of each to train on | 40 | 240 | 120 |

The texts are in the order of the SHA-256 of their prompts. SST-2's classes take turns. No random numbers are used, so
nobody can draw again. A set that is missing is left out, and the script says so.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Collection
from hashlib import sha256
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv

CHOICES = ("bad", "good")
VALIDATION, TRAIN, TEST = 160, 640, 600
E2E_VALIDATION, E2E_TRAIN, E2E_TEST = 40, 240, 120  # few, because writing texts takes the most time
FACTS = ("mr", "ref")


def rows(path: Path, least: int, taken: Collection[str] = ()) -> list[dict[str, object]]:
    """Return a file's texts in the form that `questions:DIR` reads. The classes take turns.

    Texts in `taken` and texts that have both classes are left out.

    Raises:
        SystemExit: fewer than `least` texts are left.
    """
    plain = csv.ParseOptions(delimiter="\t", quote_char=False)
    classes = defaultdict(set)
    for row in csv.read_csv(path, parse_options=plain).to_pylist():
        classes[CHOICES[row["label"]]].add(f"Good or bad? {row['sentence'].strip()}")
    unclear = set.intersection(*classes.values()).union(taken)
    in_order = ([(text, name) for text in sorted(classes[name] - unclear, key=_digest)] for name in CHOICES)
    mixed = chain.from_iterable(zip(*in_order, strict=False))  # equally many of each class
    texts = [{"instruction": text, "answer": name, "choices": CHOICES} for text, name in mixed]
    _check(len(texts), least, path)
    return texts


def _sst2(brought: Path, into: Path) -> None:
    train = rows(brought / "train.tsv", VALIDATION + TRAIN)
    test = rows(brought / "dev.tsv", TEST, {str(row["instruction"]) for row in train})
    parts = {"validation": train[:VALIDATION], "train": train[VALIDATION : VALIDATION + TRAIN], "test": test[:TEST]}
    for part, texts in parts.items():
        (into / f"{part}.json").write_text(json.dumps(texts, indent=1), encoding="utf-8")
        print(f"{into / part}.json: {len(texts)} texts")


def _e2e(brought: Path, into: Path) -> None:
    held, test = _texts(brought / "devset.csv"), _texts(brought / "testset_w_refs.csv")
    facts = sorted(held, key=_digest)
    _check(len(facts), E2E_VALIDATION + E2E_TRAIN, brought / "devset.csv")
    check, train = facts[:E2E_VALIDATION], facts[E2E_VALIDATION : E2E_VALIDATION + E2E_TRAIN]
    parts = {
        "trainset": [(fact, min(held[fact], key=_digest)) for fact in train],
        "devset": [(fact, text) for fact in check for text in held[fact]],
        "testset_w_refs": [(fact, text) for fact in sorted(test, key=_digest)[:E2E_TEST] for text in test[fact]],
    }
    for part, pairs in parts.items():
        columns = {name: [pair[i] for pair in pairs] for i, name in enumerate(FACTS)}
        csv.write_csv(pa.table(columns), into / f"{part}.csv")
        print(f"{into / part}.csv: {len(pairs)} texts of {len({fact for fact, _ in pairs})} facts")


def _texts(path: Path) -> dict[str, list[str]]:
    texts_by_fact = defaultdict(list)
    for row in csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True)).to_pylist():
        texts_by_fact[row["mr"]].append(row["ref"])
    return texts_by_fact


def _check(count: int, least: int, path: Path) -> None:
    if count < least:
        raise SystemExit(f"{path}: {count} texts are left; at least {least} are needed")


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


SETS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "sst2": ("SST-2", _sst2),
    "e2e": ("E2E", _e2e),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brought", type=Path, default=Path("data"), help="folder of the sets that you bring")
    parser.add_argument("--into", type=Path, default=Path("data/study"))
    arguments = parser.parse_args()
    for name, (source, write) in SETS.items():
        if not (arguments.brought / source).is_dir():
            print(f"{name}: left out (no {arguments.brought / source})")
            continue
        (arguments.into / name).mkdir(parents=True, exist_ok=True)
        write(arguments.brought / source, arguments.into / name)


if __name__ == "__main__":
    main()
