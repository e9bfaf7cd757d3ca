"""How the level is spread over looks: added up, and on tables of a method against itself whose seeds are added to."""

from __future__ import annotations

import json
import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis import conclusion, open_store
from analysis.findings.all import pick
from analysis.findings.answer.words import conclude
from analysis.findings.decisions.numbers import decisions
from analysis.findings.decisions.words import would_change
from analysis.findings.full_fine_tuning import conclude_gap
from analysis.findings.parity.words import looks_says
from analysis.verdict.comparisons import comparisons
from analysis.verdict.groups import groups
from analysis.verdict.inference import LEVEL
from analysis.verdict.looks import Looks, level, looks
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import make_results


def ever_different(each: list[int], levels: list[float], runs: int = 20_000) -> float:
    """How often a method differs from itself at any look: `each` seeds more, until there is a difference."""
    draws = np.random.default_rng(0).normal(size=(runs, sum(each)))
    found = np.zeros(runs, dtype=bool)
    for seeds, alpha in zip(accumulate(each), levels, strict=True):
        found |= stats.ttest_1samp(draws[:, :seeds], 0.0, axis=1).pvalue <= alpha
    return float(found.mean())


@pytest.mark.parametrize("maximum", [None, 20])
def test_adding_seeds_until_there_is_a_difference_keeps_the_level(maximum: int | None) -> None:
    each = [5, 5, 5, 5]
    counts = list(accumulate(each))
    levels = [Looks(tuple(counts[: k + 1]), maximum).level for k in range(4)]
    assert sum(levels) <= 1 - LEVEL
    assert ever_different(each, levels) < 1 - LEVEL
    assert ever_different(each, [1 - LEVEL] * 4) > 0.1  # what it would be without


def test_the_levels_of_any_looks_sum_to_five_percent_at_most() -> None:
    for maximum, counts in [(None, range(1, 60)), (30, [3, 10, 11, 30]), (30, [30]), (7, [2, 7]), (5, [5, 10, 15])]:
        spent = [Looks(tuple(counts)[: k + 1], maximum).level for k in range(len(counts))]
        assert all(alpha >= 0 for alpha in spent) and sum(spent) <= 1 - LEVEL + 1e-12
    assert Looks((5,), 5).level == pytest.approx(1 - LEVEL)  # one look at all seeds has all of it
    assert Looks((5,)).level == pytest.approx(0.8 * (1 - LEVEL))
    assert [Looks(tuple(range(5, 5 * k + 1, 5)), 20).level for k in (1, 2, 3, 4)] == pytest.approx([0.0125] * 4)
    assert [Looks(tuple(range(5, 5 * k + 1, 5))).level for k in (1, 2, 3)] == pytest.approx([0.04, 0.008, 0.0016])
    assert Looks((5, 8), 20).level == pytest.approx(0.0075)  # three of twenty seeds
    assert Looks((5, 10), 5).level == 0.0  # every seed replaced: those that were declared are spent


def declared(folder: Path, *events: dict[str, Any]) -> Path:
    lines = [{"ev": "declare", "name": "a", "max_seeds": None, "margin": None, "scored": 0} | event for event in events]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_look_is_taken_where_seeds_are_added_to_scores(tmp_path: Path) -> None:
    events = [
        {"seeds": [0, 1]},
        {"seeds": [0, 1, 2]},  # before any score: no look was taken at two
        {"seeds": [0, 1], "scored": 6},  # what was removed was seen, and counts
        {"seeds": [0, 1], "scored": 6, "margin": 0.01},
        {"seeds": [3, 4], "scored": 6, "margin": 0.01},
        {"seeds": [0, 1, 2, 3, 4], "scored": 9, "margin": 0.02},
    ]
    store = open_store(declared(tmp_path, *events))
    assert looks(store) == {"a": Looks((3, 5), None, 2)}
    assert level(store) == pytest.approx(0.2 * 0.8 * (1 - LEVEL))
    assert looks_says(looks(store).values()) == [
        "Looks: scores of 3 seeds were there to be seen before there were 5; no maximum was declared, and tests of "
        "this look are made at 0.8 %.",
        "The margin of equivalence was changed 2 times after test scores were there: the first one counts.",
    ]


def test_later_looks_pay_for_the_first(tmp_path: Path) -> None:
    """In the table, its groups and the sentence: numbers that are enough at one look are not at the sixth."""
    make_results(tmp_path, seeds=3, advantage=0.03)
    (one, said_of_one, apart_of_one) = answers(tmp_path)
    looked_at(tmp_path)
    (two, said_of_two, apart_of_two) = answers(tmp_path)
    factor = (1 - LEVEL) / Looks((3, 4, 5, 6, 7, 8)).level
    assert [r["p_holm"] for r in two] == pytest.approx([min(1.0, factor * r["p_holm"]) for r in one])
    assert "(Holm, at 5 %" in said_of_one and "(Holm, at 0.0013 %" in said_of_two
    assert any(r["verdict"] == "higher" for r in one) and not any(r["verdict"] == "higher" for r in two)
    assert apart_of_two < apart_of_one


def looked_at(folder: Path) -> None:
    """The journal says that seeds were added five times."""
    more = {"ev": "declare", "name": folder.name, "max_seeds": None, "margin": None}
    with (folder / "journal.jsonl").open("a") as journal:
        for count in range(3, 9):
            journal.write(json.dumps(more | {"seeds": list(range(count)), "scored": count - 3}) + "\n")


def test_seeds_beyond_the_maximum_have_no_level_left(tmp_path: Path) -> None:
    """No test of such a look rejects anything, and the words say why."""
    plan = dict.fromkeys(("randlora", "lora", "nola"), ("lora-1",))
    make_results(tmp_path, datasets=[f"set-{i}" for i in range(3)], plan=plan, advantage=0.03)
    with (tmp_path / "journal.jsonl").open("a") as journal:
        for seeds, scored in (([3, 4, 5], 0), ([0, 1, 2], 9)):
            event = {"ev": "declare", "name": tmp_path.name, "max_seeds": 3, "margin": 0.05}
            journal.write(json.dumps(event | {"seeds": seeds, "scored": scored}) + "\n")
    store = open_store(tmp_path)
    shown = {sheet.name: sheet for sheet in pick(store, ("decisions", "comparisons", "seeds"))}
    tested = [r for r in comparisons(store).to_pylist() if r["p_holm"] is not None]
    assert level(store) == 0.0 and {r["p_holm"] for r in tested} == {1.0}
    assert {r["verdict"] for r in tested} == {"not distinguishable"}
    assert {r["group"] for r in groups(store).to_pylist()} == {"a"}
    for text in (conclusion(store), *looks_says(looks(store).values()), shown["comparisons"].note):
        assert text is not None and "no level, as looks have left none" in text
    assert all("left no level" in row[-1] for row in shown["decisions"].cells)
    assert not re.search(r"\b(nan|inf)\b", json.dumps([sheet.cells for sheet in shown.values()]))


def answers(folder: Path) -> tuple[list[dict[str, Any]], str, int]:
    """Tested rows of the comparisons, the conclusion, and the letters of all groups."""
    store = open_store(folder)
    compared = comparisons(store)
    letters = len({(r["dataset"], r["train_size"], r["reference"], r["group"]) for r in groups(store).to_pylist()})
    return [r for r in compared.to_pylist() if r["p_holm"] is not None], str(conclude(compared, level(store))), letters


def test_a_folder_that_declares_nothing_has_the_whole_level(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(json.dumps({"ev": "sweep", "name": "old"}) + "\n")
    store = open_store(tmp_path)
    assert (looks(store), level(store), looks_says([])) == ({}, pytest.approx(1 - LEVEL), [])


def test_a_maximum_is_said(tmp_path: Path) -> None:
    store = open_store(declared(tmp_path, {"seeds": [0, 1, 2, 3, 4], "max_seeds": 5}))
    (said,) = looks_says(looks(store).values())
    assert said == "Looks: one, at 5 seeds; 5 were declared as the most, and tests of this look are made at 5 %."


@pytest.mark.parametrize("rest", [{}, {3: None, 4: None}], ids=["to come", "failed for good"])
def test_a_conclusion_is_preliminary_while_seeds_are_to_come(tmp_path: Path, rest: dict[int, None]) -> None:
    scores = {
        "lora": (0.51, 0.53, 0.52, 0.50, 0.525),
        "randlora": (0.71, 0.74, 0.72, 0.69, 0.73),
        "vera": (0.5,),  # is not in question
    }
    cells: Cells = {(m, "lora-1", "d"): dict(enumerate(s)) for m, s in scores.items()}
    whole = open_store(odd_results(tmp_path / "whole", cells, seeds=5))
    assert conclusion(whole).startswith("At equal")
    cells["randlora", "lora-1", "d"] = {**dict(enumerate(scores["randlora"][:3])), **rest}
    early = open_store(odd_results(tmp_path / "early", cells, seeds=5))
    said = conclusion(early)
    begin = "" if rest else "Preliminary, 3 of 5 seeds: "
    if rest:  # two runs of RandLoRA failed, so it must not be called higher
        assert said.startswith("No conclusion: RandLoRA is ") and "failed runs scored as the untrained model" in said
    else:
        assert said.startswith(f"{begin}At equal trainable parameters RandLoRA scores higher")
    assert ("Preliminary" in said) is not bool(rest)
    for short in ("randlora", "lora"):  # the sentence on full fine-tuning is on both
        mine = cells | {("full", None, "d"): dict(enumerate((0.8, 0.81, 0.79, 0.8, 0.82)))}
        mine |= {(m, "lora-1", "d"): dict(enumerate(scores[m])) for m in ("lora", "randlora")}
        mine[short, "lora-1", "d"] = {**dict(enumerate(scores[short][:3])), **rest}
        gaps = comparisons(open_store(odd_results(tmp_path / f"gap-{short}", mine, seeds=5)), baseline="full")
        assert str(conclude_gap(gaps)).startswith(f"{begin}Against full fine-tuning")
    (taken,) = decisions(early).to_pylist()  # of all methods
    assert would_change(taken).startswith("Preliminary, 1 of 5 seeds: VeRA: ")
