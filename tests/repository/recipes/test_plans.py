"""The recipes of `examples/paper`: each validates and plans at both scales without a network, with exact counts."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from analysis.findings.published.publications import publication_names
from sweeps.plan.plan import Plan
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT
from tools.pages import PAGES, header
from tools.recipe_hours import facts, trial_seconds

FOLDER = ROOT / "examples" / "paper"
NAMES = sorted(p.stem for p in FOLDER.glob("*.toml"))
QUICK = (
    "cost-clip-b32",
    "e2e",
    "fig1-clip",
    "fig1-dinov2",
    "glue-base",
    "table1-qwen2",
    "table3-ranks",
    "table4-bases",
)
"""One of every model family and every kind of method section."""
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
PAPER_RANKS = [  # recipe, what the paper pinned, (LoRA's rank, its count), RandLoRA's count: reference counts, exact
    ("fig1-clip", 6, (32, 6_881_280), 5_170_320),
    ("fig2-clip-b32", 6, (32, 4_128_768), 3_566_592),
    ("fig2-clip-l14", 8, (32, 11_010_048), 9_510_912),
    ("fig3-clip-b32", 6, (32, 6_881_280), 5_170_320),
    ("fig3-clip-l14", 8, (32, 15_138_816), 12_192_768),
    ("fig3-clip-h14", 10, (32, 29_360_128), 23_519_664),
    ("table1-qwen2", 10, (16, 5_898_240), 5_956_992),
    ("table1-qwen2", 5, (32, 11_796_480), 11_842_944),
    ("table1-phi3", 40, (16, 22_020_096), 23_003_904),
    ("table1-phi3", 20, (32, 44_040_192), 45_712_128),
    ("table1-llama3", 60, (16, 28_311_552), 28_778_112),
    ("table1-llama3", 30, (32, 56_623_104), 56_626_112),
    ("fig1-llama3", 15, (64, 113_246_208), 112_723_968),
    ("glue-base", 64, (4, 663_552), 718_848),
    ("glue-large", 100, (4, 1_769_472), 1_780_416),
]
OWN_COUNTS = {  # VeRA's and NoLA's pinned cells, as the paper counts them
    ("fig3-clip-b32", "vera"): 141_312,
    ("fig3-clip-b32", "nola"): 147_456,
    ("glue-base", "vera"): 156_672,
    ("glue-large", "vera"): 258_048,
    ("table1-qwen2", "nola"): 245_760,
    ("table1-phi3", "nola"): 196_608,
    ("table1-llama3", "nola"): 327_680,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(real: Callable[..., Any], at: int) -> Callable[..., Any]:
        def ask(*given: Any, **named: Any) -> Any:
            where = given[at][0] if isinstance(given[at], tuple) else given[at]
            if str(where).startswith(("127.", "/")):  # a Ray of earlier tests is watched
                return real(*given, **named)
            raise AssertionError(f"a recipe asked {where} while it was planned")

        return ask

    monkeypatch.setattr(socket.socket, "connect", refusing(socket.socket.connect, at=1))
    monkeypatch.setattr(socket, "getaddrinfo", refusing(socket.getaddrinfo, at=0))


def plan_of(name: str, *overrides: str, scale: str | None = None) -> Plan:
    return Plan.from_spec(SweepSpec.load(FOLDER / f"{name}.toml", overrides, scale))


@pytest.mark.parametrize("scale", ["full", "small"])
@pytest.mark.parametrize("name", ALL)
def test_every_recipe_plans(name: str, scale: str) -> None:
    plan = plan_of(name, scale=scale)  # builds every method on the meta device, and holds its count to the prediction
    assert plan.spec.name == (name if scale == "full" else f"{name}-small")
    assert [cell.label for cell in plan.cells if not cell.feasible] == []
    for cell in plan.cells:
        pinned = plan.spec.methods[cell.method].capacity is not None
        if cell.budget is not None and not pinned:
            assert cell.count is not None and abs(cell.count - cell.budget) <= 0.05 * cell.budget
    if scale == "small":
        assert plan.n_trials <= 60
        assert plan.spec.train.epochs <= 2


@pytest.mark.filterwarnings("ignore:sparse_a")  # as the paper's
@pytest.mark.parametrize("name", ALL)
def test_the_published_form_is_the_papers(name: str) -> None:
    """One rank for all weights, one trial at one rate for each number, and the released starts."""
    plan = plan_of(name, scale="published")
    assert (plan.spec.protocol, plan.spec.name) == ("paper", f"{name}-published")
    assert [cell.label for cell in plan.cells if not cell.feasible] == []
    assert {cell.tune_trials for cell in plan.cells} == {0}
    assert {cell.confirm_seeds for cell in plan.cells} == {5 if name.startswith("glue") else 1}
    images = name.startswith(("fig1-clip", "fig1-dino", "fig2", "fig3", "fig4", "fig5", "table3", "table4-bases"))
    for cell in plan.cells:
        assert len(set(cell.capacities.values())) <= 1 and cell.dimensions == ()
        assert cell.reference is None or cell.reference == f"{cell.method}-{cell.solved.capacity}"  # type: ignore[union-attr]
        options = dict(cell.options)
        if images and cell.base.startswith("randlora"):
            assert options["start"] == "gamma"
        if cell.base == "nola":
            assert (options["start"], options["r"], cell.count) == ("released", 1, 2048 * len(cell.capacities))


PUBLISHED_COUNTS = {  # by recipe: the counts of its published form, by method
    "fig1-clip": {
        "lora": {215_040, 860_160, 1_720_320, 3_440_640, 6_881_280, 13_762_560},
        "randlora": {285_696, 693_720, 2_608_272, 5_170_320, 10_275_876},
    },
    "table3-ranks": {
        **{"lora": {6_881_280}, "randlora": {5_170_320}, "randlora-a": {5_177_088}, "randlora-b": {5_147_208}},
    },
    "table1-qwen2": {
        **{"lora": {5_898_240, 11_796_480}, "randlora": {5_956_992, 11_842_944}, "vera": {288_768}, "nola": {245_760}},
    },
}


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_counts_of_the_published_form(name: str) -> None:
    cells = plan_of(name, scale="published").cells
    found = {m: {c.count for c in cells if c.method == m} for m in {c.method for c in cells if c.count is not None}}
    assert found == PUBLISHED_COUNTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_headers_say_what_a_user_needs(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    head = "\n".join(line for line in text.split("\nname = ")[0].splitlines())
    assert f"sweeps run examples/paper/{name}.toml\n" in head
    assert f"sweeps run examples/paper/{name}.toml --scale small" in head
    for word in ("hardware", "length", "paper", "counts", "expected"):
        assert re.search(rf"^#   {word}   +\S", head, re.MULTILINE), word
    assert re.search(r"length +[\d,]+ trials, about [\d.,]+ GPU-hours", head)
    spec = SweepSpec.load(FOLDER / f"{name}.toml")
    assert spec.protocol == "paper" or spec.search.warm_start == ("published",)


@pytest.mark.parametrize(
    ("name", "rank", "lora", "count"),
    [pytest.param(*row, marks=() if row[0] in QUICK else pytest.mark.slow) for row in PAPER_RANKS],
)
def test_the_papers_ranks_give_the_papers_counts(name: str, rank: int, lora: tuple[int, int], count: int) -> None:
    dataset = "cifar100" if "clip" in name else "glue-rte" if "glue" in name else "commonsense-15k"
    only = f'data.datasets=["{dataset}"]'
    plan = plan_of(name, f"methods.randlora.capacity={rank}", f"budgets.lora_rank=[1, {lora[0]}]", only, *_free(name))
    (pinned,) = {cell.count for cell in plan.cells if cell.method == "randlora"}
    assert pinned == count
    (found,) = {cell.count for cell in plan.cells if (cell.method, cell.reference) == ("lora", f"lora-{lora[0]}")}
    assert found == lora[1]


@pytest.mark.parametrize(
    ("name", "ranks", "counts"),
    [  # the paper's counts are one basis more of each: 340,992 and so on to 10,303,632
        ("fig1-clip", (128, 50, 12, 6, 3), (285_696, 693_720, 2_608_272, 5_170_320, 10_275_876)),
        pytest.param("fig1-llama3", (60, 30, 15), (28_778_112, 56_626_112, 112_723_968), marks=pytest.mark.slow),
    ],
)
def test_figure_1s_own_ranks_are_a_list(name: str, ranks: tuple[int, ...], counts: tuple[int, ...]) -> None:
    given = f"methods.randlora.capacity={list(ranks)}"
    assert given.replace(" ", "") in (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    dataset = "cifar100" if name == "fig1-clip" else "commonsense-15k"
    plan = plan_of(name, given, f'data.datasets=["{dataset}"]')
    found = [c for c in plan.cells if c.method == "randlora"]
    assert [(s.capacity, s.count, s.budget, s.residual) for c in found if (s := c.solved) is not None] == [
        (rank, count, count, 0) for rank, count in zip(ranks, counts, strict=True)
    ]
    assert [c.reference for c in found] == [f"randlora-{rank}" for rank in ranks]
    longer, shorter = (plan_of(name, f"methods.randlora.capacity={c}").spec.identity() for c in ([6, 3], [6]))
    assert longer == shorter != plan_of(name, "methods.randlora.capacity=6").spec.identity()


def _free(name: str) -> list[str]:
    """VeRA and NoLA name a budget of the file's own list; here they take the smallest."""
    spec = SweepSpec.load(FOLDER / f"{name}.toml")
    return [f'methods.{m}.budgets=["lora-1"]' for m, s in spec.methods.items() if s.budgets and m != "lora"]


@pytest.mark.parametrize(
    ("name", "method", "count"),
    [pytest.param(*k, n, marks=() if k[0] in QUICK else pytest.mark.slow) for k, n in OWN_COUNTS.items()],
)
def test_the_papers_own_counts_of_vera_and_nola(name: str, method: str, count: int) -> None:
    assert {cell.count for cell in plan_of(name).cells if cell.method == method} == {count}


def test_first_trials_are_the_papers_hyperparameters() -> None:
    plan = plan_of("fig1-clip", 'data.datasets=["cifar100"]')
    first = {cell.method: (cell.lr_centre, dict(cell.published)) for cell in plan.cells}
    assert first["lora"] == (pytest.approx(1e-3), {"alpha": 1.0})  # 1 / r
    assert first["randlora"] == (pytest.approx(1e-3), {"alpha": 10.0})  # 10 / r
    assert first["vera"] == (pytest.approx(1e-2), {})
    assert first["full"] == (pytest.approx(1e-5), {})
    train = plan.cells[0].settings(plan.spec.train)
    assert (train.epochs, train.global_batch_size, train.weight_decay, train.augment) == (
        6,
        128,
        0.1,
        "crop-flip-original",
    )


@pytest.mark.parametrize("name", ["fig1-clip", pytest.param("table1-qwen2", marks=pytest.mark.slow)])
def test_the_papers_protocol_is_one_setting_away(name: str) -> None:
    plan = plan_of(name, "protocol=paper", "confirm.seeds=1")
    assert {cell.tune_trials for cell in plan.cells} == {0}
    assert plan.n_trials == len(plan.feasible) and (name != "fig1-clip" or plan.n_trials == 336)  # the page's number
    (lora,) = {dict(cell.options)["alpha"] for cell in plan.cells if cell.method == "lora"}
    assert lora == (1 if name == "fig1-clip" else "2r")


IMAGES: dict[str, object] = {  # Table 8 and appendix C.1; the released code
    **{"global_batch_size": 128, "weight_decay": 0.1, "full_weight_decay": 0.1, "grad_clip": 1.0},
    **{"schedule": "cosine", "min_lr_ratio": 0.01, "warmup_steps": None, "warmup_fraction": 0.0},
    **{"augment": "crop-flip-original", "sampling": "replacement"},
}
TEXTS: dict[str, object] = {"schedule": "linear", "min_lr_ratio": 0.0, "augment": "none"}
LANGUAGE = TEXTS | {  # Table 9, appendix C.4; the released scripts
    **{"global_batch_size": 16, "weight_decay": 0.0, "warmup_steps": 100, "max_tokens": 256, "loss_on_prompt": True},
}
GLUE = TEXTS | {  # the released train_all.sh and run_glue.py
    **{"global_batch_size": 64, "epochs": 10, "max_tokens": 128, "warmup_fraction": 0.06, "head_lr": "lr"},
}
E2E = TEXTS | {  # the released NLG/train.sh, which is LoRA's
    **{"global_batch_size": 8, "epochs": 5, "weight_decay": 0.01, "warmup_steps": 500, "label_smoothing": 0.1},
}
VISION_ALONE = {"lora": 1e-2, "randlora": 1e-2, "full": 1e-5, "vera": 1e-2, "nola": 1e-3}  # appendix C.3
BOTH_TOWERS = VISION_ALONE | {"lora": 1e-3, "randlora": 1e-3, "randlora-a": 1e-3, "randlora-b": 1e-3, "dora": 1e-3}
OF_LANGUAGE = {"lora": 1e-4, "dora": 1e-4, "randlora": 1e-4, "nola": 1e-4, "vera": 1e-2}  # VeRA: base_vera.sh
OF_GPT2 = {"lora": 2e-4, "randlora": 2e-4, "vera": 2e-2}
CLIP_ALPHAS: dict[str, object] = {"lora": 1, "randlora": 10}  # scales 1 / r and 10 / r
TEXT_ALPHAS: dict[str, object] = {"lora": "2r", "dora": "2r", "randlora": "2r/sqrt(n)"}  # scales 2 and 2 / sqrt(n)
FAMILIES: dict[str, tuple[dict[str, float], dict[str, object], dict[str, object]]] = {
    **dict.fromkeys(
        ("fig1-clip", "fig3-clip", "cost-clip", "table3-ranks", "table4-bases"), (BOTH_TOWERS, CLIP_ALPHAS, IMAGES)
    ),
    **dict.fromkeys(("fig4b", "fig5"), (BOTH_TOWERS, CLIP_ALPHAS, IMAGES)),  # the released loss_vis.sh
    **dict.fromkeys(("fig2-clip", "fig4a"), (VISION_ALONE, CLIP_ALPHAS, IMAGES)),
    **dict.fromkeys(
        ("fig1-dinov2", "fig2-dinov2", "fig4-dinov2"), (VISION_ALONE, CLIP_ALPHAS, IMAGES | {"head_lr": 1e-3})
    ),
    **dict.fromkeys(
        ("fig1-llama3", "table1", "table2", "table4-llama3", "cost-llama3"), (OF_LANGUAGE, TEXT_ALPHAS, LANGUAGE)
    ),
    "table5": (BOTH_TOWERS | {"prompt:maple+dept": 3.5e-3}, CLIP_ALPHAS, IMAGES | {"head_lr": 6.5 * 3.5e-3}),
    "glue": (OF_LANGUAGE, TEXT_ALPHAS, GLUE),
    "e2e": (OF_GPT2, TEXT_ALPHAS, E2E),
}
"""By the beginning of a recipe's name: rates and alphas of methods, and settings of training."""


@pytest.mark.parametrize("form", ["search", "protocol=paper"])
@pytest.mark.parametrize("name", NAMES)
def test_a_first_trial_is_the_papers(name: str, form: str) -> None:
    """Rates, scales and training of every file against tables 8 and 9, appendix C and the released scripts."""
    spec = SweepSpec.load(FOLDER / f"{name}.toml", () if form == "search" else (form,))
    ((rates, alphas, train),) = (found for start, found in FAMILIES.items() if name.startswith(start))
    for method, section in spec.methods.items():
        base = spec.base(method)
        if base in rates:
            assert section.lr is not None and section.lr.centre == rates[base], method
        if base in alphas:
            assert section.options["alpha"] == alphas[base], method
    assert {key: getattr(spec.train, key) for key in train} == train
    few = name.startswith(("cost", "table5")) and spec.train.epochs <= 10
    assert spec.data.epochs == "paper" or few  # Table 7, and 10 of few shots
    assert spec.protocol == "paper" or spec.search.warm_start == ("published",)


@pytest.mark.parametrize(
    "name", ["fig1-llama3", "table1-llama3", "table1-phi3", "table1-qwen2", "table2-dora", "table4-llama3"]
)
def test_language_models_have_the_papers_scales_and_warm_up(name: str) -> None:
    """Appendix C.4, table 9: 2 for LoRA, 2 / sqrt(n) for RandLoRA, whatever the rank; 100 steps of warm-up."""
    spec = SweepSpec.load(FOLDER / f"{name}.toml")
    assert spec.train.warmup_steps == 100
    assert (spec.train.select, spec.train.select_every) == ("best", 200)  # section 5.4, and the released scripts
    assert spec.train.base_weights == "bf16"  # the released scripts load float16
    rules = {"lora": "2r", "dora": "2r", "randlora": "2r/sqrt(n)"}
    for method in rules.keys() & spec.methods.keys():
        assert spec.methods[method].options["alpha"] == rules[method]
        space = spec.methods[method].space
        assert space is not None and rules[method] in space["alpha"].values


def test_the_pages_are_in_step_with_headers_and_registry() -> None:
    for name, make in PAGES.items():
        page = (FOLDER.parents[1] / name).read_text(encoding="utf-8")
        assert page == make(), f"run: python -m tools.pages ({name})"


def test_no_title_in_the_table_of_recipes_is_cut() -> None:
    rows = [line for line in PAGES["docs/recipes.md"]().splitlines() if line.startswith("| [`")]
    assert len(rows) == len(NAMES) and all(row.count("(") == row.count(")") for row in rows)


def test_every_published_name_in_a_header_is_there() -> None:
    for name in NAMES:
        said = header(FOLDER / f"{name}.toml").get("published", "")
        if "import paper" in said or "--overlay" in said:
            (found,) = re.findall(r"(?:import paper|--overlay) (\S+)", said)
            assert found in publication_names(), name
        elif said:
            rows = json.loads((FOLDER.parents[1] / said).read_text(encoding="utf-8"))["rows"]
            assert [row for row in rows if row["recipe"] == name]


def test_hours_are_computed_from_the_plan() -> None:
    plan = plan_of("cost-clip-b32")
    path = FOLDER / "cost-clip-b32.toml"
    written = header(path)
    computed = {name: " ".join(line.split()) for name, line in facts(path).items()}
    assert {name: written[name] for name in computed} == computed, "run: python -m tools.recipe_hours --write"
    assert written.keys() >= {"length", "paper", "counts", "cache"}
    seconds = {c.method: trial_seconds(c, plan.spec, "CONFIRM", 100e12) for c in plan.cells}
    assert seconds["lora"] < seconds["full"] < seconds["randlora"] < seconds["dora"]
    twice = plan_of("cost-clip-b32", "train.epochs=6")
    more = {c.method: trial_seconds(c, twice.spec, "CONFIRM", 100e12) for c in twice.cells}
    assert all(seconds[m] < more[m] < 2 * seconds[m] for m in seconds)
