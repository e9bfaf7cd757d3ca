"""Sweep files that no person wrote: too deep, too large, of other types. Each is one error, and quick."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.errors import Problem, SpecError
from sweeps.plan.plan import Plan
from sweeps.spec.reading import read_tree, read_value
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT, sweeps
from tests.sweeps.spec.support import GOOD, Wrong, problems, refused, write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.toml", "a = " + "[" * 100_000),
        ("s.json", "[" * 100_000),
        ("s.json", '{"a":' * 100_000),
        ("s.yaml", "- " * 5_000 + "x"),
        ("s.yaml", "a: " + "[" * 25 + "]" * 25),
        ("s.toml", "a." * 30 + "b = 1"),
    ],
)
def test_a_file_with_too_many_levels(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (found,) = refused(lambda: SweepSpec.load(tmp_path / name))
    assert "20" in found.rule


def test_aliases_that_multiply_are_counted(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "s.yaml").write_text("\n".join(lines))
    (found,) = refused(lambda: SweepSpec.load(tmp_path / "s.yaml"))
    Wrong("file", names=("100,000",)).check(found)


@pytest.mark.parametrize(
    ("name", "content", "nearest"),
    [
        ("s.toml", b"\xff\xfe", None),
        ("s.json", b"", None),
        ("s.yaml", b"? [a]\n: 3\n", None),
        ("s.yaml", b"1: 2\n", '"1"'),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, name: str, content: bytes, nearest: str | None) -> None:
    (tmp_path / name).write_bytes(content)
    (found,) = refused(lambda: SweepSpec.load(tmp_path / name))
    assert found.nearest == nearest


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp x", "!!int ''", "!!float ''"])
def test_a_yaml_value_that_its_tag_does_not_allow(tmp_path: Path, value: str) -> None:
    (tmp_path / "s.yaml").write_text(f"a: {value}\n")
    (found,) = refused(lambda: SweepSpec.load(tmp_path / "s.yaml"))
    Wrong("file", str(tmp_path / "s.yaml")).check(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.json", '{"search": {"trials": 7}, "search": {"sampler": "qmc"}}'),
        ("s.json", '{"a": [{"search": 1, "b": 2, "search": 1}]}'),
        ("s.yaml", "search: {trials: 7}\nmethods: {}\nsearch: {sampler: qmc}\n"),
        ("s.yml", "a:\n  - b: 1\n    search: 1\n    'search': 2\n"),
    ],
)
def test_a_key_that_stands_twice_drops_nothing(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (found,) = refused(lambda: SweepSpec.load(tmp_path / name))
    Wrong("file", str(tmp_path / name), names=("'search'",)).check(found)


def test_a_yaml_merge_may_be_overridden(tmp_path: Path) -> None:
    text = "a: {b: &b {<<: &c {x: 1, y: 1}, x: 2}}\nd: {<<: *b, <<: *c, y: 3}\n"
    (tmp_path / "s.yaml").write_text(text)
    assert read_tree(tmp_path / "s.yaml")["d"]["y"] == 3


@pytest.mark.parametrize("number", [10**21, -(2**63) - 1, 10**400])
@pytest.mark.parametrize("key", ["train.epochs", "search.trials", "methods.lora.alpha", "confirm.hold.data_seed"])
def test_whole_numbers_beyond_64_bits(tmp_path: Path, key: str, number: int) -> None:
    found = problems(tmp_path, GOOD, (f"{key}={number}",))
    assert [problem.field for problem in found] == [key]
    assert str(-(2**63)) in found[0].rule and str(2**63 - 1) in found[0].rule


@pytest.mark.parametrize(
    ("override", "wrong"),
    [
        ("confirm.seeds=20240101", Wrong("confirm.seeds", 20240101, names=("1", "10,000"))),
        ("search.trials=1000000000", Wrong("search.trials", 10**9, names=("100000",))),
        ("methods.lora.lr=1e-320", Wrong("methods.lora.lr.centre", 1e-320, names=("1e-30",))),
        ("methods.lora.lr=1e307", Wrong("methods.lora.lr.centre", 1e307, names=("1000000",))),
        ("methods.lora.lr={low=1e-200, high=1e-18}", Wrong("methods.lora.lr.low", 1e-200, names=("1e-30",))),
        (
            "data.train_size='1\u0663-shot'",
            Wrong("data.train_size", "1\u0663-shot", names=("(0, 1]", "'16-shot'", "1\u0663-shot")),
        ),
        ("resources.gpus_per_worker=-1", Wrong("resources.gpus_per_worker", -1, names=("'auto'", "0"))),
        ('methods.lora.method=["lora"]', Wrong("methods.lora.method", ["lora"])),
        ("methods.lora.method={lora=1}", Wrong("methods.lora.method")),
        ("name=" + "[" * 100_000, Wrong("name", "[" * 100_000)),
        ("search.trials=7\nx=3", Wrong("search.trials", "7\nx=3")),
        ("budgets={percent=[12.345671, 12.345672]}", Wrong("budgets", names=("'percent-12.3457'",))),
    ],
)
def test_values_that_no_sweep_has(tmp_path: Path, override: str, wrong: Wrong) -> None:
    wrong.check(problems(tmp_path, GOOD, (override,))[0])


def test_a_budget_below_one_parameter(tmp_path: Path) -> None:
    spec = SweepSpec.load(write(tmp_path, GOOD.replace("lora_rank = [1, 4]", "percent = [1e-5, 1]")))
    found, *_ = refused(lambda: Plan.from_spec(spec))
    assert (found.field, found.value) == ("budgets.percent", 1e-5)
    assert found.nearest is not None and float(found.nearest.split()[0]) > 1e-5


def test_a_rule_for_alpha_where_a_budget_is_out_of_reach(tmp_path: Path) -> None:
    text = GOOD.replace("lora_rank = [1, 4]", "params = [1, 11648]")
    given = ("methods.lora={alpha='2r', space={alpha={low=1, high=8}}}",)
    cells = Plan.from_spec(SweepSpec.load(write(tmp_path, text), given)).cells
    assert [(c.feasible, c.published) for c in cells if c.method == "lora"] == [(False, ()), (True, (("alpha", 2.0),))]


def test_a_message_has_paths_whole_and_lists_short() -> None:
    path = "/data/" + "a-folder-with-a-long-name/" * 8 + "sweep.toml"
    assert path in str(Problem("file", path, "no such sweep file"))
    assert len(str(Problem("x", list(range(10**6)), "is long"))) < 80
    assert len(str(Problem("x", 10**4000, "is large"))) < 120
    shown = str(Problem("x", "a" * 10**6 + "z", "is long"))
    assert 200 < len(shown) < 300 and "z'" in shown and "..." in shown


def test_an_output_on_the_command_line_may_have_any_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Path, overrides: list[str], *__: object, **___: object) -> None:
        raise SpecError([Problem("output", read_value(overrides[0].partition("=")[2]), "was read")])

    monkeypatch.setattr("sweeps.cli.run.load", load)
    assert "output = 'results/😀': was read" in sweeps("run", str(ROOT / "README.md"), "--output", "results/😀").output
