"""Measure how well a CLIP classifies another data set before and after training: how much it forgets.

The score is the zero-shot accuracy on the test split of a data set that no trial of the sweep was trained on. Zero-shot
means that the CLIP compares an image with the names of the classes. "Before" is the base model without an adapter.
"After" is each kept trial of stage CONFIRM, with all its seeds, so that methods can be paired by seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from analysis.diagnostics.bench import Bench
from analysis.diagnostics.units import Unit, sweep_facts
from analysis.diagnostics.weights import Kept, every_kept
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from trainables.data.images.dataset import ImageSplit
from trainables.data.registry import load_dataset
from trainables.errors import DataError
from trainables.tasks.task import Scores


def plan(store: Store, data: str) -> list[Unit]:
    """Return a unit for each kept trial, of every seed.

    Args:
        data: the id of the other data set.

    Raises:
        StoreError: no weights are kept, the sweep's specification is missing, or the data set is unknown, or one of the
            sweep's own.
    """
    kept_trials, facts = every_kept(store), sweep_facts(store)
    if data in (own := {kept.row["dataset"] for kept in kept_trials}):
        raise StoreError(
            f"--data {data}: this sweep trained on it. Name another data set; it trained on {', '.join(sorted(own))}"
        )
    try:
        load_dataset(data)
    except DataError as error:
        raise StoreError(f"--data {data}: {error}") from error
    facts |= {"data": data}  # made absolute for workers in another folder; `settings` has it as it was typed
    return [Unit("image_retention", (kept.brief,), {"data": data}, facts) for kept in kept_trials]


def rows(folder: Path, unit: Unit, cache: dict[str, Any]) -> list[Row]:
    """Return the row of one unit of `plan`. Arguments as in `analyze.compute`.

    Raises:
        StoreError: the model is not a CLIP, or a test image of the other data set is one of the trial's own images.
    """
    data, kept = unit.facts["data"], Kept.of(unit.trials[0], folder)
    trial = Bench(unit.facts, unit.trials[0], cache)
    if trial.loaded.kind != "clip":
        raise StoreError(
            f"--data {data}: this needs a CLIP, which tells classes apart by their names, and "
            f"{trial.loaded.model_id!r} is of another kind"
        )
    refuse_overlap(trial, unit.trials[0]["dataset"], data, cache)
    other = Bench(unit.facts, unit.trials[0] | {"dataset": data, "train_size": "1.0"}, cache, test=True)
    key = f"retention on {data} of {trial.loaded.model_id}"
    if key not in cache:  # the base model's accuracy is the same for all trials
        cache[key] = _scores(other, {})
    before: Scores = cache[key]
    with other.trained(kept) as state:
        after = _scores(other, state)
    seeds = {name: kept.row[name] for name in ("data_seed", "init_seed", "basis_seed")}
    about = {"data": unit.settings["data"], "images": after.n_examples, "score": kept.row["test_score"]}
    change = {"before": before.score, "after": after.score, "change": after.score - before.score}
    return [unit.place | kept.named | seeds | about | change]


def _scores(bench: Bench, state: dict[str, Any]) -> Scores:
    """Return the scores on the test split with the weights of `state`."""

    def evaluate() -> Scores | None:
        return bench.task.evaluate("test", batch_size=bench.at_once)

    scores: Scores | None = bench.under(state, evaluate)
    assert scores is not None  # a data set has a test split
    return scores


def refuse_overlap(bench: Bench, dataset: str, data: str, cache: dict[str, Any]) -> None:
    """Raise StoreError if a test image of the other data set is, byte for byte, an image that the trial has read.

    Of its own data set a trial reads the images that it trains on, those that it validates on, and all test images.

    Args:
        bench: the trial.
        dataset: the id of the data set that it trained on.
        data: the id of the other data set.
        cache: keeps the digests of images for other trials.
    """
    own, other = bench.open_dataset(dataset), bench.open_dataset(data)

    def digests(split: ImageSplit, key: str, numbers: Iterable[int]) -> dict[bytes, int]:
        known: dict[int, bytes] = cache.setdefault(f"digests of {key}", {})
        for row in numbers:
            if row not in known:
                known[row] = split.digest(row)
        return {known[row]: row for row in numbers}

    rows_read = torch.cat([bench.task.rows("train"), bench.task.rows("val")]).tolist()
    images = {
        "training or validation image": digests(own.train, f"{dataset}, train", rows_read),
        "test image": digests(own.test, f"{dataset}, test", range(len(own.test))),
    }
    for digest, row in digests(other.test, f"{data}, test", range(len(other.test))).items():
        for which, read in images.items():
            if digest in read:
                raise StoreError(
                    f"--data {data}: its test image {row} is {which} {read[digest]} of {dataset}, byte for byte; "
                    "name a data set without these images"
                )
