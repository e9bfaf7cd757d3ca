"""What evidence is weak in: each statement from the tables alone, and none where the evidence is good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import Store, open_store
from analysis.findings.results.numbers import results_table
from analysis.findings.weak import weak_evidence
from analysis.report.facts import facts
from analysis.store.tables import write_part
from tests.analysis.odd import odd_results

LORA, NOLA, ZERO = ("lora", "lora-1", "d"), ("nola", "lora-1", "d"), ("zero-shot", None, "d")
SOUND = {LORA: {s: 0.6 + s / 100 for s in range(5)}}


def says(store: Store) -> list[str]:
    return weak_evidence(store.table("signs").to_pylist())


def with_columns(folder: Path, **columns: Any) -> Store:
    """The folder with these values in all its rows of `cells`."""
    cells = [row | columns for row in open_store(folder).table("cells").to_pylist()]
    write_part(folder, "cells", cells)
    return open_store(folder)


def test_nothing_is_said_of_good_evidence(tmp_path: Path) -> None:
    folder = odd_results(tmp_path / "good", SOUND, seeds=5, tune=(0.5, 0.6, 0.51))
    assert says(open_store(folder)) == []  # as of a folder from before: how many examples is not known
    assert says(with_columns(folder, val_examples=600, test_examples=1000)) == []


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"val_examples": 24}, "The validation split has 24 examples: one of them is 4.2 % of the score."),
        ({"val_examples": 1}, "The validation split has 1 example: one of them is 100.0 % of the score."),
        ({"test_examples": 36}, "The test split has 36 examples: one of them is 2.8 % of the score."),
        ({"test_lacks": '["Dress", "Coat"]'}, "The test split of d has no example of Dress and Coat."),
        (
            {"count": 9408, "dof": 2484},
            "More than a tenth of the parameters cannot act: LoRA at lora-1 (2,484 of 9,408 act).",
        ),
        (
            {"confirm_seeds": 2},
            "There are 2 seeds: intervals reach 12.7 standard errors each way; with 5 seeds they reach 2.8.",
        ),
        ({"confirm_seeds": 1}, "There is 1 seed: no interval is known, and no difference can be tested."),
        ({"dataset": "folder:/a/leaves", "test_lacks": '["x"]'}, "The test split of leaves has no example of x."),
    ],
)
def test_what_the_data_and_the_seeds_do_not_tell(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    folder = odd_results(tmp_path / "few", SOUND, seeds=5, tune=(0.5, 0.6, 0.51))
    assert says(with_columns(folder, **columns)) == [said]


def test_cells_whose_seeds_failed_are_named(tmp_path: Path) -> None:
    """The plan had enough; what is there has not."""
    runs = {LORA: {0: 0.6, 1: 0.62, **dict.fromkeys(range(2, 5))}, NOLA: SOUND[LORA], ZERO: {0: 0.4}}
    store = open_store(odd_results(tmp_path / "few", runs, seeds=5, tune=(0.5, 0.6, 0.51)))
    assert says(store) == ["Fewer than 3 seeds have a score: LoRA at lora-1 (2 of 5 seeds)."]


def test_one_split_is_named_once_whatever_trains_on_it_and_by_name_among_others() -> None:
    cells = [
        {"dataset": d, "train_size": s, "method": m, "reference": "lora-1", "lr_centre": 1.0, "confirm_seeds": 5}
        | {"val_examples": 40}
        for d in ("d", "e")
        for s in ("0.5", "1.0")
        for m in ("lora", "vera")
    ]
    assert weak_evidence(cells) == [
        f"The validation split of {d} has 40 examples: one of them is 2.5 % of the score." for d in ("d", "e")
    ]


def test_cells_that_tie_and_that_did_not_train(tmp_path: Path) -> None:
    runs = {LORA: {0: 0.6, 1: 0.6, 2: 0.6}, NOLA: {0: 0.6, 1: 0.7, 2: 0.6}, ZERO: {0: 0.6}}
    store = open_store(odd_results(tmp_path / "flat", runs, tune=(0.53, 0.55, 0.55, 0.54, 0.5)))
    untrained, tie = says(store)
    assert "as the untrained model does" in untrained and untrained.endswith(": LoRA at lora-1.")
    assert tie.endswith(": LoRA at lora-1 (2 of 5 rates) and NoLA at lora-1 (2 of 5 rates).")
    rows = {r["method"]: r["weak"] for r in results_table(store).to_pylist()}
    assert untrained in rows["lora"] and "untrained" not in rows["nola"] and rows["zero-shot"] is None
    assert facts(store)["weak"] == says(store)


def test_seeds_that_all_have_one_score_are_named(tmp_path: Path) -> None:
    """Also if no zero-shot run says that it is the untrained model's."""
    runs = {LORA: {0: 0.6, 1: 0.6, 2: 0.6}, NOLA: {0: 0.6, 1: 0.6}, ("vera", "lora-1", "d"): {0: 0.6, 1: 0.6, 2: 0.7}}
    (line,) = says(open_store(odd_results(tmp_path / "equal", runs, seeds=2, tune=(0.5, 0.6, 0.51))))[:1]
    assert line.endswith("exactly the same score: LoRA at lora-1.")


@pytest.mark.parametrize(("gains", "said"), [((0.02, 0.04, 0.03), True), ((0.06, 0.05, -0.001), False)])
def test_validation_that_rises_to_the_last_epoch_in_every_run(
    tmp_path: Path, gains: tuple[float, ...], said: bool
) -> None:
    folder = odd_results(tmp_path / "rising", SOUND, seeds=5, tune=(0.5, 0.6, 0.51))
    trials = [r | {"epochs": 3} for r in open_store(folder).table("confirmed").to_pylist()]
    write_part(folder, "trials", trials)
    scores = [
        (r, epoch, 0.5 + gain * (epoch == 3)) for r, gain in zip(trials, gains, strict=False) for epoch in (1, 2, 3)
    ]
    keys = ("sweep", "trial_id", "cell_id", "attempt")
    write_part(folder, "metrics", [{k: r[k] for k in keys} | {"epoch": e, "val_score": v} for r, e, v in scores])
    found = says(open_store(folder))
    assert len(found) == said and all(
        line.endswith("change the order: LoRA at lora-1 (by 3.0 points).") for line in found
    )


def test_under_tuned_cells_are_named_once_with_the_reason_and_marked(tmp_path: Path) -> None:
    runs = {(m, f"lora-{r}", "d"): {0: 0.6, 1: 0.62, 2: 0.7} for m in ("lora", "nola") for r in (1, 2, 4)}
    store = open_store(odd_results(tmp_path / "under", runs, tune=(0.5, 0.6, 0.59, None, None)))
    (line,) = says(store)
    assert ": LoRA at lora-1 (few rates finished, a better rate is expected between those tried), " in line
    assert line.endswith(" and 2 more.")


def test_splits_of_two_sizes_are_told_apart() -> None:
    cell = {"dataset": "d", "method": "lora", "reference": "lora-1", "lr_centre": 1.0, "confirm_seeds": 5}
    cells = [
        cell | {"train_size": size, "val_examples": n} for size, n in (("1-shot", 10), ("4-shot", 40), ("1.0", 500))
    ]
    assert weak_evidence(cells) == [
        "The validation split of d at 1-shot has 10 examples: one of them is 10.0 % of the score.",
        "The validation split of d at 4-shot has 40 examples: one of them is 2.5 % of the score.",
    ]
