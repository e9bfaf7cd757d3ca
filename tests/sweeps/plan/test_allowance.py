"""How many trials an allowance in samples is."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.errors import SpecError
from sweeps.plan.plan import Plan
from sweeps.plan.split_sizes import split_sizes
from sweeps.search.effort import Effort
from sweeps.search.stages import SweepState
from sweeps.spec.spec import SweepSpec

DATA = "embedded:fashion-mnist-turned"


def planned(samples: int, **sections: Any) -> Plan:
    tree = {
        "name": "s",
        "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
        "data": {"datasets": [DATA], "train_size": ["16-shot"]},
        "budgets": {"lora_rank": [1]},
        "methods": {"lora": {}, "zero-shot": {}},
        "search": {"sampler": "qmc", "allowance": {"samples": samples}},
        "train": {"epochs": 4},
    }
    return Plan.from_spec(SweepSpec.parse({**tree, **sections}))


@pytest.mark.parametrize(
    ("sections", "epochs"),
    [({}, 4), ({"data": {"datasets": [DATA], "train_size": ["16-shot"], "epochs": {DATA: 2}}}, 2)],
    ids=["of every data set", "of this one"],
)
def test_whole_trials_of_an_allowance_in_samples(sections: dict[str, Any], epochs: int) -> None:
    lora, nothing = planned(20 * 160 * 4 + 1, **sections).cells
    assert split_sizes(lora)[0] == lora.epoch_samples == 160
    assert (lora.epochs, lora.tune_trials, nothing.tune_trials) == (epochs, 20 * 4 // epochs, 0)
    assert lora.allowance_samples == 20 * 160 * 4 + 1
    trials = lora.tune_trials + lora.confirm_seeds + nothing.confirm_seeds
    assert repr(planned(20 * 160 * 4 + 1, **sections)) == f"<Plan s: 2 cells, {trials} trials on embedded:tiny-clip>"
    with pytest.raises(SpecError, match=rf"2 trials of {160 * epochs} samples .* Nearest: samples = "):
        planned(2 * 160 * epochs, **sections)


def test_re_runs_on_the_seeds_that_a_point_had_are_not_counted() -> None:
    plan = planned(10**6, search={}, confirm={"hold": {"data_seed": 1, "init_seed": 1, "basis_seed": 1}})
    assert plan.n_trials == sum(c.planned() for c in SweepState(plan.feasible, plan.spec).cells.values()) == 9 + 1 + 1


@pytest.mark.parametrize("space", [[1, 2], {"low": 1, "high": 2}, [2, 8]])
def test_searched_epochs_count_alike_before_and_while_it_runs(space: object) -> None:
    plan = planned(20 * 160 * 8, search={"allowance": {"samples": 20 * 160 * 8}, "space": {"epochs": space}})
    cell = plan.feasible[0]
    assert cell.tune_trials == 20 * 8 // (8 if space == [2, 8] else 2)
    assert len(Effort(cell, plan.spec.search).points({}, {})) == cell.tune_trials - plan.spec.search.reruns
