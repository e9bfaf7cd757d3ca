"""Where a search starts that is told to start from what a method has when nothing is searched."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

from randlora.methods.registry import METHODS
from sweeps.plan.plan import Plan
from sweeps.spec.cell import Cell
from sweeps.spec.search_space import option_names
from sweeps.spec.spec import SweepSpec
from tests.sweeps.spec.support import refused
from trainables.models.shapes import target_shapes

RANGE = {"low": 1e-3, "high": 1e6, "log": True}
SCALED = [name for name in METHODS if METHODS[name].config(METHODS[name].min_capacity).own_alpha([(8, 8)])]


PEFTS = [("peft:lora", {}), ("peft:lora", {"use_rslora": True}), ("peft:gralora", {}), ("peft:randlora", {})]


def cell(method: str, space: Any, **options: Any) -> Cell:
    tree = {
        "name": "t",
        "model": {"id": "embedded:tiny-clip", "targets": ["mlp.c_fc", "mlp.c_proj"]},
        "data": {"datasets": ["embedded:fashion-mnist"]},
        "budgets": {"params": [30_000]},
        "methods": {method: {**options, "unmatched": True, "space": space}},
        "search": {"warm_start": "published"},
    }
    return Plan.from_spec(SweepSpec.parse(tree)).cells[0]


def alphas(found: Cell, **more: Any) -> list[Any]:
    """The scale of every weight; of PEFT's methods the alpha that it is given."""
    capacities = dict(found.capacities)
    config: Any = METHODS[found.base].config.from_options(max(capacities.values()), {**dict(found.options), **more})
    if hasattr(config, "kind"):
        return [getattr(config.peft_config(4), config.kind.alpha[0])]
    shapes = target_shapes(found.model, found.targets, found.adapt)
    return [config.scale_of(config.bases(shapes[name])) for name in capacities]


def test_every_method_with_an_alpha_is_among_them() -> None:
    assert set(SCALED) >= {name for name in METHODS if "alpha" in option_names(name)}


@pytest.mark.parametrize("method", SCALED)
@pytest.mark.parametrize("rule", [{}, {"alpha": "3r"}])
def test_the_searched_alpha_starts_at_the_methods_own_scale(method: str, rule: dict[str, str]) -> None:
    found = cell(method, {"alpha": RANGE}, **rule)
    assert alphas(found, **dict(found.published)) == pytest.approx(alphas(found), rel=1e-5)


@pytest.mark.parametrize(("method", "options"), PEFTS)
def test_that_of_pefts_methods_too(method: str, options: dict[str, Any]) -> None:
    pytest.importorskip("peft")
    found = cell(method, {METHODS[method].config.kind.alpha[0]: RANGE}, **options)  # type: ignore[attr-defined]
    assert alphas(found, **dict(found.published)) == pytest.approx(alphas(found), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "options"), [("lora", {"rank_stabilised": True}), ("nola", {"r": 4}), ("adalora", {"initial": 2.0})]
)
def test_options_that_the_scale_depends_on_are_heeded(method: str, options: dict[str, Any]) -> None:
    found = cell(method, {"alpha": RANGE}, **options)
    assert alphas(found, **dict(found.published)) == pytest.approx(alphas(found), rel=1e-5)


@pytest.mark.parametrize("method", ["randlora", "randlora-b", "randlora-svd"])
def test_a_rule_with_a_scale_for_every_weight_starts_at_their_mean(method: str) -> None:
    found = cell(method, {"alpha": RANGE}, alpha="2r/sqrt(n)")
    assert fmean(alphas(found, **dict(found.published))) == pytest.approx(fmean(alphas(found)), rel=1e-5)


def test_of_a_list_the_value_with_the_nearest_scale_is_taken() -> None:
    assert cell("lora", {"alpha": ["0.3r", "0.9r", "4r"]}).published == (("alpha", "0.9r"),)
    assert cell("lora", {"alpha": ["0.3r", "4r"]}, alpha="3r").published == (("alpha", "4r"),)
    found = cell("lora", {"alpha": [1, 50, 10_000]}, alpha="20r")
    assert found.published == (("alpha", 50),)


def test_a_word_in_a_range_of_numbers_starts_at_its_low_end() -> None:
    found = cell("randlora", {"sparsity": {"low": 2, "high": 8}}, sparsity="sqrt", distribution="ternary")
    assert found.published == (("sparsity", 2.0),)


def test_searched_epochs_start_at_those_of_the_data_set() -> None:
    tree = {
        "name": "t",
        "model": {"id": "embedded:tiny-clip"},
        "data": {"datasets": ["embedded:fashion-mnist"], "epochs": {"embedded:fashion-mnist": 7}},
        "budgets": {"lora_rank": [4]},
        "methods": {"lora": {}},
        "search": {"warm_start": "published", "space": {"epochs": [2, 7, 10]}},
    }
    (found,) = Plan.from_spec(SweepSpec.parse(tree)).cells
    assert found.published == (("epochs", 7),)


def test_one_value_that_changes_the_number_of_parameters_belongs_to_the_method() -> None:
    (problem,) = refused(lambda: cell("hydralora", {"heads": [2]}))
    assert (problem.field, problem.nearest) == ("methods.hydralora.space", "heads = 2")
    assert "[methods.hydralora]" in problem.rule
