"""The sweep file: defaults, strictness, all problems at once, overrides."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from sweeps.engine.export import write_spec
from sweeps.errors import SpecError
from sweeps.spec.sections import TUNE_SEED
from sweeps.spec.spec import SweepSpec
from tests.sweeps.spec.support import GOOD, problems, write


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


def test_a_home_in_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SweepSpec.load(write(tmp_path, GOOD), ['output="~/x"']).folder == tmp_path / "x"
    assert SweepSpec.load(write(tmp_path, GOOD), ['output="~no-such-user/x"']).folder == Path("~no-such-user/x")


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = GOOD + '[methods.randlroa]\n[search]\ntrails = 3\nsampler = "gird"\n[confirm]\nseeds = []\n'
    found = problems(tmp_path, text)
    assert len(found) == 4
    assert any("methods.randlroa" in p and "unknown method" in p and "Nearest: randlora" in p for p in found)
    assert any("search.trails" in p and "unknown key" in p and "Nearest: trials" in p for p in found)
    assert any("search.sampler = 'gird'" in p and "Nearest: grid" in p for p in found)
    assert any("confirm.seeds" in p and "at least 1" in p for p in found)


@pytest.mark.parametrize(
    ("text", "field", "rule"),
    [
        (GOOD.replace("lora_rank = [1, 4]", ""), "budgets", "exactly one of"),
        (GOOD.replace("lora_rank = [1, 4]", "lora_rank = [1]\nparams = [2]"), "budgets", "exactly one of"),
        (GOOD + "[confirm]\nseeds = [1, 1]", "confirm.seeds", "once"),
        (GOOD.replace("[1, 4]", "[1, 4, 1]"), "budgets.lora_rank", "each may stand once, and 1 stands twice"),
        (GOOD.replace("lora_rank = [1, 4]", "percent = [1, 1.0]"), "budgets.percent", "once, and 1.0 stands twice"),
        (GOOD.replace("[data]", "[data]\ntrain_size = ['2-shot', '2-shot']"), "data.train_size", "stands twice"),
        (GOOD + "[methods.vera]\nbudgets = ['lora-1', 'lora-1']", "methods.vera.budgets", "stands twice"),
        (GOOD + f"[confirm]\nseeds = [{TUNE_SEED}]", "confirm.seeds", "below 1000000"),
        (GOOD + "[confirm]\nseeds = 0", "confirm.seeds", "at least 1"),
        (GOOD + "[confirm]\nmargin = 0", "confirm.margin", "above 0 and below 1, the range of the scores"),
        (GOOD + "[confirm]\nmargin = -0.01", "confirm.margin", "above 0"),
        (GOOD + "[confirm]\nmargin = 1", "confirm.margin", "one point is margin = 0.01"),
        (GOOD + "[confirm]\nmargin = nan", "confirm.margin", "finite"),
        (
            GOOD + "[confirm]\nquestion = 'full'",
            "confirm.question",
            "unknown method with a budget; known: lora, randlora",
        ),
        (GOOD + "[confirm]\nseeds = 5\nmax_seeds = 3", "confirm", "max_seeds = 3 is below the 5 seeds"),
        (GOOD + "[search]\ntrials = 4", "search", "least that works is trials = 6"),
        (GOOD + "[search]\npruner = 'asha'\nspace = { epochs = [3, 9] }", "search.space.epochs", "with a pruner"),
        (
            GOOD + "[search]\npruner = 'median'\n[methods.full]\nspace = { epochs = [3, 9] }",
            "methods.full.space.epochs",
            "with a pruner",
        ),
        (GOOD + "[train]\nepochs = 0", "train.epochs", "at least 1"),
        (GOOD + "[train]\nepoch = 3", "train.epoch", "unknown key"),
        (GOOD + "[train]\ngrad_clip = inf", "train.grad_clip", "finite"),
        (GOOD + "[search.space]\nweight_decay = ['1e-4']", "search.space.weight_decay", "must be a number"),
        (GOOD + "[methods.vera]\nd_initial = 'x'", "methods.vera.d_initial", "must be a number"),
        (GOOD + "[methods.vera]\nd_intial = 1.0", "methods.vera.d_intial", "Nearest: d_initial"),
        (GOOD + "[methods.vera]\nr = 8", "methods.vera.r", "capacity = 8"),
        (GOOD + "[methods.vera]\nbudgets = ['lora-2']", "methods.vera.budgets", "unknown budget"),
        (GOOD + "[methods.full]\nbudgets = ['lora-1']", "methods.full.budgets", "no budget"),
        (GOOD + "[methods.vera]\ncapacity = [4, 4]", "methods.vera.capacity", "stands twice"),
        (GOOD + "[methods.vera]\ncapacity = [4]\nbudgets = ['lora-1']", "methods.vera.budgets", "budgets of its own"),
        (GOOD + "[methods.zero-shot]\nlr = 0.1", "methods.zero-shot.lr", "trains nothing"),
        (GOOD + "[methods.full]\nlr = { low = 1.0, high = 0.1 }", "methods.full.lr", "below"),
        (GOOD + "[methods.full]\nlr = { low = 1.0 }", "methods.full.lr", "both low and high"),
        (GOOD.replace('["embedded:fashion-mnist"]', '["x"]\ntrain_size = ["4-shots"]'), "data.train_size", "16-shot"),
        (GOOD.replace('["embedded:fashion-mnist"]', '["x"]\ntrain_size = [2.0]'), "data.train_size", "(0, 1]"),
        (GOOD.replace('name = "t"', 'name = "a/b"'), "name", "letters, digits"),
    ],
)
def test_bad_values(tmp_path: Path, text: str, field: str, rule: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(field)
    assert rule in found


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "quickstart.toml")
    with pytest.raises(SpecError, match=r"no such sweep file.*Nearest: quickstart.toml"):
        SweepSpec.load(tmp_path / "quikstart.toml")


def test_broken_toml(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "name = \n")
    assert "can't be read" in found


def test_overrides(tmp_path: Path) -> None:
    spec = SweepSpec.load(write(tmp_path, GOOD), ["search.trials=6", "search.sampler=qmc", "methods.full.lr=1e-4"])
    assert spec.search.trials == 6
    assert spec.search.sampler == "qmc"
    assert spec.methods["full"].lr is not None
    assert spec.methods["full"].lr.centre == 1e-4
    assert problems(tmp_path, GOOD, ("nonsense",)) == [
        "--set = 'nonsense': must be KEY=VALUE, such as --set search.trials=6."
    ]
    assert "not a section" in problems(tmp_path, GOOD, ("name.x=1",))[0]


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
    with pytest.raises(SpecError, match=r"search\.allowance\.seconds = 60: unknown key; known: samples"):
        SweepSpec.parse({**tree, "search": {"allowance": {"seconds": 60}}})


def test_epochs_by_data_set() -> None:
    def parse(**data: object) -> SweepSpec:
        return SweepSpec.parse({**tomllib.loads(GOOD), "data": data})

    spec = parse(datasets=["dtd", "cars"], train_size=["4-shot", 0.5], epochs="paper")
    assert [spec.data.epochs_of(n, s) for n in spec.data.datasets for s in spec.data.train_size] == [10, 76, 10, 35]
    spec = parse(datasets=["dtd", "cars"], epochs={"dtd": 3})
    assert [spec.data.epochs_of(n, 1.0) for n in spec.data.datasets] == [3, None]
    assert spec.identity()["data"] == {"epochs": {"dtd": 3, "cars": spec.train.epochs}}
    with pytest.raises(SpecError, match="Table 7 does not have 'fashion-mnist'"):
        parse(datasets=["fashion-mnist"], epochs="paper")
    with pytest.raises(SpecError, match="names 'dtt', which is not among"):
        parse(datasets=["dtd"], epochs={"dtt": 3})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("methods.lora.lr='1e-3'", "methods.lora.lr = '1e-3': give a number, the range's centre: lr = 1e-3; or ends"),
        ("search.lr=1e-3", "search.lr = 0.001: the width of every method's range: lr = { decades = 3 }"),
        ("search.lr={low = 1e-4, high = 1e-2}", "lr = { low = 1e-4, high = 1e-2 }"),
        ("search=3", "search = 3: must be a table."),
        ("train.epochs=three", "train.epochs = 'three': must be a whole number."),
        ("search.trials=0", "search.trials = 0: must be at least 1."),
        ("confirm.seeds=-1", "confirm.seeds = -1: a number of seeds, at least 1"),
        ("data.epochs={x=0}", "data.epochs.x = 0: must be at least 1."),
        ("data.epochs=papers", "data.epochs = 'papers': must be one of paper. Nearest: paper."),
        ("data.datasets=x", "data.datasets = 'x': must be a list, in [ ]."),
        ("name=chiffres à la main", "Nearest: chiffres-a-la-main."),
        ("train.batch_size=32", "Nearest: global_batch_size."),
        ("methods.lora.rank=4", "is decided by the budget; to pin it, write capacity. Nearest: capacity = 4."),
        ("methods.lora.learning_rate=1", "Nearest: lr."),
        ("methods.lora.alpha=abc", "methods.lora: lora: alpha must be a positive number or a rule such as '2r'"),
    ],
)
def test_a_wrong_value_is_told_its_rule_in_words(tmp_path: Path, line: str, says: str) -> None:
    found = problems(tmp_path, GOOD, (line,))
    assert any(says in problem for problem in found) and len(found) == 1, found
    assert not any("Input should" in problem or "instance of" in problem for problem in found)
