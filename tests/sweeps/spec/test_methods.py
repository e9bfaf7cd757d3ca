"""Every method of the registry, and its options, from a sweep file to an attached adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import pytest
from torch import nn

from randlora import AdapterConfig, attach
from randlora.adapted.gradients import zero_gradients
from randlora.methods.bridge.kinds import KINDS
from randlora.methods.registry import METHODS
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.sweeps.spec.support import GOOD, Wrong, refused

OPTIONS: dict[str, dict[str, object]] = {
    "randlora": {"distribution": "ternary", "sparsity": "sqrt"},
    "randlora-a": {"r": 16, "distribution": "ternary", "sparsity": 6},
    "randlora-b": {"sparsity": 100},
    "svft": {"scale": 2},
    "adalora": {"initial": 2.0, "stop": 0.75, "allocate": "ranks"},
    "autolora": {"search": 0.25, "held_out": 0.5, "order": 1},
    "hydralora": {"heads": 2},
    "hybrid": {"share": 0.25},
    "pissa": {"alpha": 8},
    "lora-ga": {"gamma": 4, "rows": 8},
    "lora-plus": {"ratio": 4},
}


def tree(methods: dict[str, dict[str, object]]) -> dict[str, object]:
    import tomllib

    model = {"id": "embedded:tiny-clip", "targets": ["mlp.c_fc", "mlp.c_proj"]}  # HydraLoRA takes no packed weights
    return {**tomllib.loads(GOOD), "model": model, "methods": methods}


def test_every_method_is_planned_with_its_options_and_built() -> None:
    spec = SweepSpec.parse(tree({name: {**OPTIONS.get(name, {}), "unmatched": True} for name in METHODS}))
    plan = Plan.from_spec(spec)
    seen = set()
    for cell in plan.cells:
        seen.add(cell.method)
        method, options = METHODS[cell.method], dict(cell.options)
        assert {k: options[k] for k in OPTIONS.get(cell.method, {})} == OPTIONS.get(cell.method, {})
        if not cell.feasible:
            continue
        capacities = dict(cell.capacities)
        config = method.config.from_options(max(capacities.values()), options)
        layers = nn.ModuleList([nn.Linear(192, 576), nn.Linear(768, 192)])
        gradients = zero_gradients(method, {"0.weight": (576, 192), "1.weight": (192, 768)})
        adapted = attach(layers, config, ["*"], gradients=gradients)
        assert adapted.count() == method.total([(576, 192), (192, 768)], config.capacity, **options)
    assert seen == set(METHODS)


def test_a_method_that_may_miss_its_budget_is_no_farther_from_it_for_that() -> None:
    for methods in ({"randlora": {}}, {"randlora": {"unmatched": True}}):
        text = {**tree(methods), "budgets": {"lora_rank": [3], "tolerance": 0.005}}
        (cell,) = Plan.from_spec(SweepSpec.parse(text)).cells
        assert cell.solved is not None
        assert cell.solved.allocation == "fill" and abs(cell.solved.residual) < 0.005 * cell.solved.budget


def test_a_budget_out_of_reach_says_what_to_raise_under_the_variants_own_name() -> None:
    text = {**tree({"lora": {}, "big": {"method": "nola"}}), "budgets": {"params": [9_216]}}
    reason = {cell.method: cell.reason for cell in Plan.from_spec(SweepSpec.parse(text)).cells}["big"]
    assert reason is not None and "raise methods.big.r" in reason


def test_weights_are_not_selected_among_those_of_other_ranks() -> None:
    given = {**tree({"slow": {"method": "adalora"}}), "train": {"select": "best"}}
    found, *_ = refused(lambda: Plan.from_spec(SweepSpec.parse(given)))
    Wrong("methods.slow", None, 'train.select = "last"', ("train.select = 'best'",)).check(found)


@pytest.mark.parametrize("budgets", [{"lora_rank": [1]}, {"lora_rank": [1], "costs": True}, {"memory": ["30 MiB"]}])
@pytest.mark.parametrize("own", [False, True])
def test_micro_batches_that_a_loss_refuses_are_found_before_anything_is_computed(budgets: Any, own: bool) -> None:
    """A linear probe, the first method, has no contrastive loss; LoRA has."""
    micro = {"micro_batch_size": 4}
    given = {**tree({"linear-probe": {}, "lora": micro if own else {}}), "budgets": budgets}
    given["train"] = {"global_batch_size": 8, "precision": "fp32"} | ({} if own else micro)
    given["model"] = {"id": "embedded:tiny-clip", "adapt": "both"}
    (found,) = refused(lambda: Plan.from_spec(SweepSpec.parse(given)))
    field = "methods.lora.micro_batch_size" if own else "train.micro_batch_size"
    Wrong(field, 4, None, ("micro_batch_size 4", "global_batch_size 8", "negatives = 'part'")).check(found)


def test_one_method_may_take_smaller_parts_of_a_batch() -> None:
    """Full fine-tuning of ViT-H/14 trains on 4 x 32 in the paper, the other methods on 2 x 64."""
    given = {**tree({"lora": {}, "full": {"micro_batch_size": 2}})}
    given["train"] = {"global_batch_size": 8, "micro_batch_size": 4, "negatives": "part"}
    given["model"] = {"id": "embedded:tiny-clip", "adapt": "both"}
    plan = Plan.from_spec(SweepSpec.parse(given))
    found = {cell.method: (cell.settings(plan.spec.train).micro_batch_size, cell.negatives) for cell in plan.cells}
    assert found == {"lora": (4, 4), "full": (2, 2)}
    seeds = {cell.method: cell.trial("CONFIRM", 1e-3, (0, 0, 0), plan.spec.train) for cell in plan.cells}
    assert {name: trial.train.micro_batch_size for name, trial in seeds.items()} == {"lora": 4, "full": 2}


def test_a_range_of_an_option_that_counts_has_whole_numbers() -> None:
    given = tree({"adalora": {"space": {"interval": {"low": 5, "high": 10}}}})
    (found,) = Plan.from_spec(SweepSpec.parse(given)).feasible[0].dimensions
    assert found.integer and found.ends == (5, 10)


def test_full_fine_tuning_keeps_float32_weights() -> None:
    language = {"id": "hf:openai-community/gpt2-medium"}
    given = {**tree({"full": {}}), "model": language, "train": {"base_weights": "bf16"}}
    found, *_ = refused(lambda: Plan.from_spec(SweepSpec.parse(given)))
    Wrong("methods.full", None, 'train.base_weights = "fp32"', ("train.base_weights = 'bf16'",)).check(found)


def test_methods_of_peft_are_planned_and_built_at_the_count_of_the_budget() -> None:
    given: dict[str, dict[str, object]] = {
        "lora": {},
        "peft:lora": {"lora_dropout": 0.1},
        "dora-of-peft": {"method": "peft:lora", "use_dora": True},
        "peft:fourierft": {},
        "peft:shira": {},
        "peft:osf": {"allocation": "fill"},
        "peft:ia3": {},
    }
    plan = Plan.from_spec(SweepSpec.parse(tree(given)))
    cells = {(cell.method, cell.reference): cell for cell in plan.cells}
    assert cells["peft:lora", "lora-4"].count == cells["lora", "lora-4"].count
    exact, near = cells["peft:fourierft", "lora-4"].solved, cells["peft:osf", "lora-4"].solved
    assert exact is not None
    assert near is not None
    assert exact.residual == 0
    assert abs(near.residual) < 0.05 * (cells["lora", "lora-4"].count or 0)
    assert cells["dora-of-peft", "lora-4"].base == "peft:lora"
    assert not cells["peft:ia3", "lora-4"].feasible
    assert "largest count of peft:ia3" in (cells["peft:ia3", "lora-4"].reason or "")


@pytest.mark.parametrize(
    ("method", "options", "wrong"),
    [
        ("randlora", {"sparsity": "root"}, Wrong("methods.randlora.sparsity", "root", "sqrt")),
        ("hybrid", {"share": 1.5}, Wrong("methods.hybrid", names=("share", "0 and 1", "1.5"))),
        ("adalora", {"allocate": "rank"}, Wrong("methods.adalora", names=("allocate", "'rank'", "'ranks'"))),
        ("adalora", {"start": 0.6}, Wrong("methods.adalora", names=("start < stop", "start = 0.6", "stop = 0.5"))),
        ("autolora", {"search": 1.0}, Wrong("methods.autolora", names=("search", "0 and 1", "1.0"))),
        ("autolora", {"order": 3}, Wrong("methods.autolora", names=("order", "1 or 2", "3"))),
        ("hydralora", {"head": 2}, Wrong("methods.hydralora.head", 2, "heads")),
        ("nola", {"r": 8.0}, Wrong("methods.nola", names=("r must", "8.0"))),
        ("nola", {"r": "8"}, Wrong("methods.nola", names=("r must", "'8'"))),
        ("randlora-c", {}, Wrong("methods.randlora-c", "randlora-c", "randlora-b")),
        ("peft:mis", {}, Wrong("methods.peft:mis", "peft:mis", names=("'peft:miss'",))),
        ("peft:prefix_tuning", {}, Wrong("methods.peft:prefix_tuning", "peft:prefix_tuning", names=("cache",))),
        ("peft:lora", {"lora_alfa": 8}, Wrong("methods.peft:lora.lora_alfa", 8, "lora_alpha")),
        ("peft:lora", {"r": 8}, Wrong("methods.peft:lora.r", 8, "capacity = 8")),
        ("peft:lora", {"init_lora_weights": "olora"}, Wrong("methods.peft:lora", names=("'olora'", "pissa"))),
        ("peft:road", {"group_size": "x"}, Wrong("methods.peft:road.group_size", "x")),
    ],
)
def test_bad_options_are_named(method: str, options: dict[str, object], wrong: Wrong) -> None:
    (found,) = refused(lambda: SweepSpec.parse(tree({method: options})))
    wrong.check(found)


SIZES = [(f"peft:{name}", option, least) for name, kind in KINDS.items() for option, least in kind.sizes.items()]
SIZES += [("nola", "r", 1), ("randlora-a", "r", 1), ("hydralora", "heads", 1)]


@pytest.mark.parametrize(("method", "option", "least"), SIZES)
def test_an_option_that_sizes_a_method_is_refused_where_it_is_too_small(method: str, option: str, least: int) -> None:
    assert option in METHODS[method].options
    for value in (least - 1, -3):
        given = tree({"lora": {}, "m": {"method": method, option: value}})
        found, *_ = refused(partial(SweepSpec.parse, given))
        Wrong("methods.m", names=(option, f"at least {least}", str(value))).check(found)
    Plan.from_spec(SweepSpec.parse(tree({"lora": {}, "m": {"method": method, option: max(least, 1)}})))


@pytest.mark.parametrize("capacity", [0, -1])
@pytest.mark.parametrize("method", ["lora", "peft:lora", "peft:vblora", "prompt:coop"])
def test_a_capacity_that_is_too_small_is_refused(method: str, capacity: int) -> None:
    given = tree({"lora": {}, "m": {"method": method, "capacity": capacity}})
    found, *_ = refused(lambda: Plan.from_spec(SweepSpec.parse(given)))
    assert (found.field, found.value) == ("methods.m.capacity", capacity)


@pytest.mark.parametrize(
    ("method", "capacity", "field", "built", "near"),
    [
        ("oft", 29, "oft_block_size", 32, "24 or 32"),  # a divisor of in
        ("hra", 5, "r", 4, "4 or 6"),  # even
        ("road", 3, "variant", 2, "2 or 4"),
    ],
)
def test_a_pinned_capacity_that_no_weight_can_have_is_refused(
    method: str, capacity: int, field: str, built: int, near: str
) -> None:
    def plan(*capacities: int) -> Plan:
        pinned = {"method": f"peft:{method}", "capacity": list(capacities)}
        return Plan.from_spec(SweepSpec.parse(tree({"lora": {}, "m": pinned})))

    legal = [int(number) for number in near.split(" or ")]
    (found,) = refused(lambda: plan(*legal, capacity))
    Wrong("methods.m.capacity", capacity, near, (field, str(built))).check(found)
    assert [cell.row().capacity for cell in plan(*legal).cells if cell.method == "m"] == legal


@pytest.mark.parametrize("method", ["vera", "peft:vera", "peft:pvera"])
def test_random_vectors_may_be_longer_than_the_weights(method: str) -> None:
    """The VeRA paper's rank is 1024 on weights of 768 x 768; LoRA's is bound by the smaller side."""
    pinned = {"method": method, "capacity": 2048}
    (cell,) = (c for c in Plan.from_spec(SweepSpec.parse(tree({"lora": {}, "m": pinned}))).cells if c.method == "m")
    assert (cell.feasible, cell.row().capacity) == (True, 2048)
    bound = tree({"lora": {}, "m": {**pinned, "method": "peft:lora"}})
    found, *_ = refused(lambda: Plan.from_spec(SweepSpec.parse(bound)))
    assert (found.field, found.value) == ("methods.m.capacity", 2048)


@dataclass(frozen=True)
class SliceConfig(AdapterConfig):
    """Of a method of one's own that looks at none of its options."""

    method: ClassVar[str] = "slices"
    k: int
    r: int = 4
    capacity_field: ClassVar[str] = "k"


@pytest.mark.parametrize(
    ("r", "most", "names"),
    [
        (0, lambda shapes, r=4, **_: 64 // r, ("ZeroDivisionError",)),
        (0, lambda shapes, r=4, **_: 64, ("0 parameters", "1", "64")),
        (-2, lambda shapes, r=4, **_: 64, ("1", "64")),
        (-2, lambda shapes, r=4, **_: 64 * r, ("-128",)),
    ],
)
def test_a_method_of_ones_own_that_checks_nothing_is_refused_by_its_counts(
    r: int, most: Callable[..., int], names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"config": SliceConfig, "max_capacity": most}
    count = {"count": lambda shape, k, r=4, **_: k * r * shape[0], "update_rank": None, "freedom": None}
    monkeypatch.setitem(METHODS.registered, "slices", replace(METHODS["lora"], **changed, **count))
    (found,) = refused(lambda: Plan.from_spec(SweepSpec.parse(tree({"lora": {}, "slices": {"r": r}}))))
    Wrong("methods.slices", {"r": r}, found.nearest, names).check(found)
