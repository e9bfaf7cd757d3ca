"""The sweep file: defaults, strictness, all problems at once, overrides."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from sweeps.exporting.export import write_spec
from sweeps.spec.sections import TUNE_SEED
from sweeps.spec.spec import SweepSpec
from tests.sweeps.spec.support import GOOD, Wrong, problems, refused, write


def test_defaults(tmp_path: Path) -> None:
    spec = SweepSpec.load(write(tmp_path, GOOD))
    assert spec.folder == Path("results/t")
    assert spec.data.train_size == (1.0,)
    assert spec.search.rates == 13 - 4
    assert spec.confirm.seeds == (0, 1, 2, 3, 4)
    assert max(spec.confirm.seeds) < TUNE_SEED
    assert spec.budgets.references() == ("lora-1", "lora-4")


def test_yaml_reads_the_same(tmp_path: Path) -> None:
    text = (
        "name: t\nmodel: {id: 'embedded:tiny-clip'}\ndata: {datasets: ['embedded:fashion-mnist']}\n"
        "budgets: {lora_rank: [1, 4]}\nmethods: {lora: {}, randlora: {lr: 1e-3}}\n"
        "search: {space: {weight_decay: [1e-4, 1.0e-3, .1E0, 0]}}\n"
    )
    toml = GOOD + "lr = 1e-3\n[search.space]\nweight_decay = [1e-4, 1e-3, 0.1, 0]\n"
    assert SweepSpec.load(write(tmp_path, text, "s.yaml")) == SweepSpec.load(write(tmp_path, toml))


def test_a_json_file_may_name_its_schema(tmp_path: Path) -> None:
    tree = tomllib.loads(GOOD)
    named = write(tmp_path, json.dumps({"$schema": "sweep-file.schema.json"} | tree), "s.json")
    assert SweepSpec.load(named) == SweepSpec.load(write(tmp_path, GOOD))


def test_a_home_in_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SweepSpec.load(write(tmp_path, GOOD), ['output="~/x"']).folder == tmp_path / "x"
    assert SweepSpec.load(write(tmp_path, GOOD), ['output="~no-such-user/x"']).folder == Path("~no-such-user/x")


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = GOOD + '[methods.randlroa]\n[search]\ntrails = 3\nsampler = "gird"\n[confirm]\nseeds = []\n'
    found = problems(tmp_path, text)
    wrong = {problem.field: problem for problem in found}
    assert len(found) == len(wrong) == 4
    Wrong("methods.randlroa", "randlroa", "randlora").check(wrong["methods.randlroa"])
    Wrong("search.trails", 3, "trials").check(wrong["search.trails"])
    Wrong("search.sampler", "gird", "grid").check(wrong["search.sampler"])
    Wrong("confirm.seeds", [], names=("1",)).check(wrong["confirm.seeds"])


TWICE = {
    "budgets.lora_rank": (GOOD.replace("[1, 4]", "[1, 4, 1]"), [1, 4, 1]),
    "budgets.percent": (GOOD.replace("lora_rank = [1, 4]", "percent = [1, 1.0]"), [1, 1.0]),
    "confirm.seeds": (GOOD + "[confirm]\nseeds = [1, 1]", [1, 1]),
    "data.train_size": (GOOD.replace("[data]", "[data]\ntrain_size = ['2-shot', '2-shot']"), ["2-shot", "2-shot"]),
    "methods.vera.budgets": (GOOD + "[methods.vera]\nbudgets = ['lora-1', 'lora-1']", ["lora-1", "lora-1"]),
    "methods.vera.capacity": (GOOD + "[methods.vera]\ncapacity = [4, 4]", [4, 4]),
}
NO_PRUNER = 'search.pruner = "none"'


@pytest.mark.parametrize("field", TWICE)
def test_a_value_that_stands_twice(tmp_path: Path, field: str) -> None:
    text, value = TWICE[field]
    (found,) = problems(tmp_path, text)
    Wrong(field, value, names=(repr(value[-1]),)).check(found)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (GOOD.replace("lora_rank = [1, 4]", ""), Wrong("budgets", names=("lora_rank, params, percent",))),
        (
            GOOD.replace("lora_rank = [1, 4]", "lora_rank = [1]\nparams = [2]"),
            Wrong("budgets", names=("lora_rank, params, percent", "got lora_rank, params")),
        ),
        (GOOD + f"[confirm]\nseeds = [{TUNE_SEED}]", Wrong("confirm.seeds.0", TUNE_SEED, names=(str(TUNE_SEED),))),
        (GOOD + "[confirm]\nseeds = 0", Wrong("confirm.seeds", 0, names=("1", "10,000"))),
        (GOOD + "[confirm]\nmargin = 0", Wrong("confirm.margin", 0, names=("0", "1", "margin = 0.01"))),
        (GOOD + "[confirm]\nmargin = -0.01", Wrong("confirm.margin", -0.01, names=("0", "1", "margin = 0.01"))),
        (GOOD + "[confirm]\nmargin = 1", Wrong("confirm.margin", 1, names=("0", "1", "margin = 0.01"))),
        (GOOD + "[confirm]\nmargin = nan", Wrong("confirm.margin", float("nan"))),
        (
            GOOD + "[confirm]\nquestion = 'full'",
            Wrong("confirm.question", "full", "all", names=("all, lora, randlora",)),
        ),
        (GOOD + "[confirm]\nseeds = 5\nmax_seeds = 3", Wrong("confirm", names=("max_seeds = 3", "5"))),
        (GOOD + "[search]\ntrials = 4", Wrong("search", names=("rerun_rates", "rerun_seeds", "trials = 6"))),
        (
            GOOD + "[search]\npruner = 'asha'\nspace = { epochs = [3, 9] }",
            Wrong("search.space.epochs", nearest=NO_PRUNER),
        ),
        (
            GOOD + "[search]\npruner = 'median'\n[methods.full]\nspace = { epochs = [3, 9] }",
            Wrong("methods.full.space.epochs", nearest=NO_PRUNER),
        ),
        (GOOD + "[train]\nepochs = 0", Wrong("train.epochs", 0, names=("1",))),
        (GOOD + "[train]\nepoch = 3", Wrong("train.epoch", 3, "epochs", ("augment, base_dropout, base_weights",))),
        (GOOD + "[train]\ngrad_clip = inf", Wrong("train.grad_clip", float("inf"))),
        (GOOD + "[search.space]\nweight_decay = ['1e-4']", Wrong("search.space.weight_decay", "1e-4")),
        (GOOD + "[methods.vera]\nd_initial = 'x'", Wrong("methods.vera.d_initial", "x")),
        (GOOD + "[methods.vera]\nd_intial = 1.0", Wrong("methods.vera.d_intial", 1.0, "d_initial")),
        (GOOD + "[methods.vera]\nr = 8", Wrong("methods.vera.r", 8, "capacity = 8")),
        (
            GOOD + "[methods.vera]\nbudgets = ['lora-2']",
            Wrong("methods.vera.budgets", "lora-2", "lora-4", ("lora-1, lora-4",)),
        ),
        (GOOD + "[methods.full]\nbudgets = ['lora-1']", Wrong("methods.full.budgets", ("lora-1",), names=("full",))),
        (GOOD + "[methods.vera]\ncapacity = [4]\nbudgets = ['lora-1']", Wrong("methods.vera.budgets", ["lora-1"])),
        (GOOD + "[methods.zero-shot]\nlr = 0.1", Wrong("methods.zero-shot.lr", {"centre": 0.1}, None, ("zero-shot",))),
        (
            GOOD + "[methods.full]\nlr = { low = 1.0, high = 0.1 }",
            Wrong("methods.full.lr", names=("low 1", "high 0.1")),
        ),
        (GOOD + "[methods.full]\nlr = { low = 1.0 }", Wrong("methods.full.lr", names=("centre", "low", "high"))),
        (
            GOOD.replace('["embedded:fashion-mnist"]', '["x"]\ntrain_size = ["4-shots"]'),
            Wrong("data.train_size", ["4-shots"], names=("(0, 1]", "16-shot", "'4-shots'")),
        ),
        (
            GOOD.replace('["embedded:fashion-mnist"]', '["x"]\ntrain_size = [2.0]'),
            Wrong("data.train_size", [2.0], names=("(0, 1]", "16-shot", "2.0")),
        ),
        (GOOD.replace('name = "t"', 'name = "a/b"'), Wrong("name", "a/b", "a-b")),
    ],
)
def test_bad_values(tmp_path: Path, text: str, wrong: Wrong) -> None:
    (found,) = problems(tmp_path, text)
    wrong.check(found)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "quickstart.toml")
    missing = tmp_path / "quikstart.toml"
    found, *_ = refused(lambda: SweepSpec.load(missing))
    assert (found.value, found.nearest) == (str(missing), "quickstart.toml")


def test_broken_toml(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "name = \n")
    assert found.value == str(tmp_path / "s.toml")
    assert "line 1" in found.rule


def test_overrides(tmp_path: Path) -> None:
    spec = SweepSpec.load(write(tmp_path, GOOD), ["search.trials=6", "search.sampler=qmc", "methods.full.lr=1e-4"])
    assert spec.search.trials == 6
    assert spec.search.sampler == "qmc"
    assert spec.methods["full"].lr is not None
    assert spec.methods["full"].lr.centre == 1e-4
    (found,) = problems(tmp_path, GOOD, ("nonsense",))
    Wrong("--set", "nonsense", names=("KEY=VALUE", "--set search.trials=6")).check(found)
    (found,) = problems(tmp_path, GOOD, ("name.x=1",))
    Wrong("--set", "name.x=1", names=("name",)).check(found)


def test_identity_ignores_longer_lists_and_sees_other_training(tmp_path: Path) -> None:
    base = SweepSpec.load(write(tmp_path, GOOD))
    longer = SweepSpec.load(
        write(tmp_path, GOOD), ["budgets.lora_rank=[1, 4, 8]", "confirm.seeds=9", "search.trials=20"]
    )
    other = SweepSpec.load(write(tmp_path, GOOD), ["train.epochs=3"])
    assert base.identity() == longer.identity()
    assert base.identity() != other.identity()


def test_the_spec_kept_beside_results_reads_back_the_same(tmp_path: Path) -> None:
    spec = SweepSpec.load(
        write(tmp_path, GOOD), [f'output="{tmp_path}/out"', "methods.full.lr=1e-4", "confirm.seeds=2"]
    )
    (tmp_path / "out").mkdir()
    assert SweepSpec.load(write_spec(spec)) == spec
    tree = {**spec.model_dump(exclude_none=True), "search": {"sampler": "qmc", "allowance": {"samples": 5000}}}
    other = SweepSpec.parse({**tree, "resources": {"priority": ["lora", "lora-4"]}})
    assert SweepSpec.load(write_spec(other)) == other
    found = {p.field: p for p in refused(lambda: SweepSpec.parse({**tree, "search": {"allowance": {"seconds": 60}}}))}
    assert found.keys() == {"search.allowance.seconds", "search.allowance.samples"}
    unknown = found["search.allowance.seconds"]
    Wrong("search.allowance.seconds", 60, unknown.nearest, ("samples",)).check(unknown)


def test_epochs_by_data_set() -> None:
    def parse(**data: object) -> SweepSpec:
        return SweepSpec.parse({**tomllib.loads(GOOD), "data": data})

    spec = parse(datasets=["dtd", "cars"], train_size=["4-shot", 0.5], epochs="paper")
    assert [spec.data.epochs_of(n, s) for n in spec.data.datasets for s in spec.data.train_size] == [10, 76, 10, 35]
    spec = parse(datasets=["dtd", "cars"], epochs={"dtd": 3})
    assert [spec.data.epochs_of(n, 1.0) for n in spec.data.datasets] == [3, None]
    assert spec.identity()["data"] == {"epochs": {"dtd": 3, "cars": spec.train.epochs}}
    (found,) = refused(lambda: parse(datasets=["fashion-mnist"], epochs="paper"))
    Wrong("data", names=("'fashion-mnist'", 'data.epochs = { "fashion-mnist" = 10 }')).check(found)
    (found,) = refused(lambda: parse(datasets=["dtd"], epochs={"dtt": 3}))
    Wrong("data", names=("'dtt'", "dtd")).check(found)


WIDTH = ("lr = { decades = 3 }", "lr = { low = 1e-4, high = 1e-2 }")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("methods.lora.lr='1e-3'", Wrong("methods.lora.lr", "1e-3", names=("lr = 1e-3", WIDTH[1]))),
        ("search.lr=1e-3", Wrong("search.lr", 1e-3, names=WIDTH)),
        ("search.lr={low = 1e-4, high = 1e-2}", Wrong("search.lr", names=WIDTH)),
        ("search=3", Wrong("search", 3)),
        ("train.epochs=three", Wrong("train.epochs", "three")),
        ("search.trials=0", Wrong("search.trials", 0, names=("1",))),
        ("confirm.seeds=-1", Wrong("confirm.seeds", -1, names=("1", "10,000"))),
        ("data.epochs={x=0}", Wrong("data.epochs.x", 0, names=("1",))),
        ("data.epochs=papers", Wrong("data.epochs", "papers", "paper")),
        ("data.datasets=x", Wrong("data.datasets", "x", names=("[ ]",))),
        ("name=chiffres à la main", Wrong("name", "chiffres à la main", "chiffres-a-la-main")),
        ("train.batch_size=32", Wrong("train.batch_size", 32, "global_batch_size")),
        ("methods.lora.rank=4", Wrong("methods.lora.rank", 4, "capacity = 4")),
        ("methods.lora.learning_rate=1", Wrong("methods.lora.learning_rate", 1, "lr")),
        ("methods.lora.alpha=abc", Wrong("methods.lora", names=("alpha", "'2r'", "'abc'"))),
        ("confirm.margin=nan", Wrong("confirm.margin", float("nan"))),
        ("methods.randlora.sparsity=root", Wrong("methods.randlora.sparsity", "root", "sqrt")),
    ],
)
def test_a_wrong_value_is_told_its_rule_in_words(tmp_path: Path, line: str, wrong: Wrong) -> None:
    (found,) = problems(tmp_path, GOOD, (line,))
    wrong.check(found)
    assert not any(words in found.rule for words in ("Input should", "instance of"))  # those of pydantic
