"""One file at two scales, and the verb that lists data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sweeps.cli.main import app
from sweeps.spec.spec import SweepSpec
from tests.sweeps.spec.support import Wrong, refused

FILE = """
name = "t"
[model]
id = "embedded:tiny-clip"
adapt = "both"
[data]
datasets = ["cars", "dtd"]
epochs = "paper"
[budgets]
lora_rank = [16, 32]
[methods.lora]
alpha = 16
[methods.vera]
[train]
epochs = 10
[small]
drop = ["methods.vera", "budgets.lora_rank", "data.epochs"]
model.adapt = "vision"
data.datasets = ["embedded:fashion-mnist"]
budgets.params = [8064]
methods.lora.lr = 1e-2
train = { epochs = 1, augment = "none" }
"""


DROP = '["methods.vera", "budgets.lora_rank", "data.epochs"]'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "t.toml"
    path.write_text(FILE)
    return path


def test_both_scales_of_a_file(file: Path) -> None:
    full, small = SweepSpec.load(file), SweepSpec.load(file, scale="small")
    assert SweepSpec.load(file, scale="full") == full
    assert (full.name, small.name) == ("t", "t-small")
    assert (full.model.adapt, small.model.adapt) == ("both", "vision")
    assert small.data.datasets == ("embedded:fashion-mnist",)
    assert small.data.epochs is None
    assert small.budgets.params == (8064,)
    assert list(small.methods) == ["lora"]
    assert small.methods["lora"].options == {"alpha": 16}
    assert small.train.epochs == 1
    assert SweepSpec.load(file, ("train.epochs=2", "name=other"), "small").train.epochs == 2
    file.write_text('output = "runs/t/"\n' + FILE)
    assert [SweepSpec.load(file, scale=s).folder for s in ("full", "small")] == [Path("runs/t"), Path("runs/t-small")]


def test_a_name_with_dots_stands_in_quotes(file: Path) -> None:
    text = FILE.replace("[methods.vera]", '[methods."lora-0.5"]\nmethod = "lora"')
    file.write_text(text.replace('"methods.vera"', "'methods.\"lora-0.5\"'"))
    assert list(SweepSpec.load(file, scale="small").methods) == ["lora"]
    full = SweepSpec.load(file, ('methods."lora-0.5".alpha=8', "methods.peft:lora.lora_alpha=4"))
    assert full.methods["lora-0.5"].options == {"alpha": 8}
    assert full.methods["peft:lora"].options == {"lora_alpha": 4}
    given = ('data.datasets=["folder:/a.b"]', "data.epochs={}", "data.epochs.'folder:/a.b'=3")
    assert SweepSpec.load(file, given).data.epochs == {"folder:/a.b": 3}
    file.write_text(text.replace('"methods.vera"', "'methods.\"lora-0.6\"'"))
    (found,) = refused(lambda: SweepSpec.load(file, scale="small"))
    Wrong("small.drop", found.value, 'methods."lora-0.5"').check(found)


@pytest.mark.parametrize(
    ("change", "scale", "wrong"),
    [
        (("", ""), "tiny", Wrong("--scale", "tiny", names=("full, published, small",))),
        (("[small]", "[smaller]"), "small", Wrong("--scale", "small", names=("[small]",))),
        (('"methods.vera"', '"methods.veras"'), "small", Wrong("small.drop", "methods.veras", "methods.vera")),
        ((DROP, "3"), "small", Wrong("small.drop", 3, '"methods.NAME"')),
        ((DROP, '"methods.veras"'), "small", Wrong("small.drop", "methods.veras", "methods.vera")),
        (("train = { epochs = 1,", "train = { epoch = 1,"), "small", Wrong("train.epoch", 1, "epochs")),
    ],
)
def test_bad_scales(file: Path, change: tuple[str, str], scale: str, wrong: Wrong) -> None:
    file.write_text(FILE.replace(*change))
    (found,) = refused(lambda: SweepSpec.load(file, scale=scale))
    wrong.check(found)


def test_plan_takes_a_scale(file: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(file), "--scale", "small", "--json"])
    assert done.exit_code == 0, done.output
    (cell,) = json.loads(done.output)["cells"]
    assert (cell["method"], cell["count"], cell["sweep"]) == ("lora", 8064, "t-small")
    assert CliRunner().invoke(app, ["plan", str(file), "--scale", "tiny"]).exit_code == 2


def test_data_lists_and_describes() -> None:
    done = CliRunner().invoke(app, ["data"])
    assert done.exit_code == 0, done.output
    assert "oxford-pets" in done.output
    assert "commonsense-170k" in done.output
    listed = json.loads(CliRunner().invoke(app, ["data", "--json"]).output)
    assert len({each["name"] for each in listed}) == len(listed) > 40
    cars = json.loads(CliRunner().invoke(app, ["data", "cars", "--json"]).output)
    assert cars["sizes"] == {"train": 7330, "val": 814, "test": 8041}
    assert cars["prompt"] == "An image of {}"
    shown = CliRunner().invoke(app, ["data", "imagenet"]).output
    assert "accept the terms" in shown
    assert CliRunner().invoke(app, ["data", "embedded:fashion-mnist"]).exit_code == 0
    wrong = CliRunner().invoke(app, ["data", "carz"])
    assert wrong.exit_code == 2


ALIASED = """
name: t
model: {id: "embedded:tiny-clip"}
data: {datasets: ["embedded:fashion-mnist"]}
budgets: {lora_rank: [1]}
methods:
  lora: &base {lr: {low: 1.0e-4, high: 1.0e-1}}
  dora: *base
  randlora: {<<: *base}
small: {drop: ["methods.lora.lr", "methods.dora.lr"], methods: {randlora: {lr: {low: 1.0e-3}}}}
"""


def test_what_an_alias_is_changed_to_holds_for_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(ALIASED, encoding="utf-8-sig")  # as editors on Windows save it
    spec = SweepSpec.load(path, ("methods.lora.lr.low=1e-6", "methods.dora.lr=1e-3"))
    lows = {name: None if m.lr is None else m.lr.low for name, m in spec.methods.items()}
    assert lows == {"lora": 1e-6, "dora": None, "randlora": 1e-4}
    small = SweepSpec.load(path, scale="small")
    assert [m.lr is None for m in small.methods.values()] == [True, True, False]
    assert small.methods["randlora"].lr is not None and small.methods["randlora"].lr.low == 1e-3


def test_the_published_form_is_a_table_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(FILE.replace("[small]", '[published]\nprotocol = "paper"\nconfirm = { seeds = 1 }\n\n[small]'))
    full, small, published = (SweepSpec.load(file, scale=scale) for scale in ("full", "small", "published"))
    assert (full.protocol, small.protocol, published.protocol) == ("standard", "standard", "paper")
    assert (published.name, published.folder) == ("t-published", Path("results/t-published"))
    assert published.confirm.seeds == (0,) and published.methods.keys() == full.methods.keys()
