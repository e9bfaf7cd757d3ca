"""What a sweep will detect, from the results of one like it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.prospects import Design, Pilot, _between, _Tuned
from analysis.store.store import open_store
from analysis.verdict.comparisons import comparisons
from analysis.verdict.power import detectable
from tests.support import ROOT

RESULTS = ROOT / "docs" / "results"
AS_PHOTOS = Design(seeds=8, maximum=8, rows=6, means=1)


@pytest.fixture(scope="module")
def photos() -> Pilot:
    return Pilot(open_store(RESULTS / "photos"))


def test_a_sweep_like_itself_detects_what_its_own_table_says() -> None:
    """The quickstart: three budgets of five seeds, all declared later, so that the look had four fifths of 5 %."""
    store = open_store(RESULTS / "quickstart")
    rows = [r for r in comparisons(store).to_pylist() if r["method"] == "randlora"]
    own = sorted(r["detectable"] for r in rows if r["reference"])
    found = Pilot(store).detectable(Design(seeds=5, maximum=5, rows=3, means=1))
    assert found.each == pytest.approx(own[1], rel=1e-6)
    assert found.mean == pytest.approx(next(r["detectable"] for r in rows if not r["reference"]), rel=1e-6)


def test_more_seeds_examples_reruns_and_rates_detect_smaller_differences(photos: Pilot) -> None:
    def each(**changed: object) -> float:
        found = photos.detectable(replace(AS_PHOTOS, **changed)).each  # type: ignore[arg-type]
        assert found is not None
        return found

    assert photos.tells_examples and photos.examples == 160 and photos.seeds == 8
    assert each(seeds=2, maximum=2) > each(seeds=3, maximum=3) > each()  # many more lessen only the seeds' part
    assert each(examples=40) > each() > each(examples=1600)
    assert each(reruns=(3, 1)) > each() > each(reruns=(3, 8))
    assert each(rates=4) > each(rates=9) > each(rates=30)
    assert each(rows=1, means=0) < each() < each(rows=60)
    assert each() < each(maximum=80) and each() < each(maximum=None)


def test_nothing_is_said_of_one_seed(photos: Pilot) -> None:
    assert photos.detectable(replace(AS_PHOTOS, seeds=1)).each is None


@pytest.mark.parametrize("name", ["section6", "peft-published"])
def test_results_of_one_seed_or_none_tell_nothing(name: str) -> None:
    found = Pilot(open_store(RESULTS / name))
    assert found.seeds == 0
    assert found.detectable(AS_PHOTOS).each is found.detectable(AS_PHOTOS).mean is None


@pytest.mark.parametrize("own", [0.0, 0.02])
def test_the_noise_of_a_score_on_more_examples_is_found(own: float) -> None:
    """The noise of simulated runs has two parts: each example is answered right by chance, with a probability of its
    own, and in some runs all probabilities are a little higher than in others.
    """
    rng = np.random.default_rng(0)

    def runs(count: int, examples: int) -> np.ndarray:  # type: ignore[type-arg]
        chance = np.linspace(0.2, 0.9, examples)
        luck = own * rng.normal(size=(count, 1))
        return (rng.random((count, examples)) < chance + luck).astype(np.uint8)

    here = runs(40_000, 100)
    tuned = _Tuned(np.zeros(3), 0.0, float(here.mean(axis=1).var(ddof=1)), 100, _between(runs(4000, 500)))
    for examples in (25, 400, 1000):
        true = runs(4000, examples).mean(axis=1).var(ddof=1)
        assert tuned.noise_at(examples) == pytest.approx(true, rel=0.15)
    assert tuned.noise_at(None) == tuned.noise


def test_the_variance_of_a_mean_of_n_seeds_is_that_of_one_over_n(photos: Pilot) -> None:
    row, tested = photos._each[0]
    least = photos._least(row, tested, Design(seeds=20, maximum=20, rows=1, means=0), 0.05)
    one = tested.variances[0] * tested.pairs[0]
    other = replace(tested, variances=(one / 20,), freedoms=(19.0,), added=row["choice_sd"] ** 2)
    assert least == detectable(other, 0.05)
