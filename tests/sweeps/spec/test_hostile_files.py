"""Sweep files that no person wrote: too deep, too large, of other types. Each is one error, and quick."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.errors import Problem, SpecError
from sweeps.plan.plan import Plan
from sweeps.spec.reading import read_tree, read_value
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT, sweeps
from tests.sweeps.spec.support import GOOD, problems, write


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
    with pytest.raises(SpecError, match="has more than 20 levels"):
        SweepSpec.load(tmp_path / name)


def test_aliases_that_multiply_are_counted(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "s.yaml").write_text("\n".join(lines))
    with pytest.raises(SpecError, match="has more than 100,000 values"):
        SweepSpec.load(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("name", "content"), [("s.toml", b"\xff\xfe"), ("s.json", b""), ("s.yaml", b"? [a]\n: 3\n"), ("s.yaml", b"1: 2\n")]
)
def test_a_file_that_is_none(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=r"can't be read|a key must be text. Nearest: \"1\""):
        SweepSpec.load(tmp_path / name)


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp x", "!!int ''", "!!float ''"])
def test_a_yaml_value_that_its_tag_does_not_allow(tmp_path: Path, value: str) -> None:
    (tmp_path / "s.yaml").write_text(f"a: {value}\n")
    with pytest.raises(SpecError, match="can't be read: "):
        SweepSpec.load(tmp_path / "s.yaml")


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
    with pytest.raises(SpecError, match="can't be read: key 'search' stands twice in one table; leave one out"):
        SweepSpec.load(tmp_path / name)


def test_a_yaml_merge_may_be_overridden(tmp_path: Path) -> None:
    text = "a: {b: &b {<<: &c {x: 1, y: 1}, x: 2}}\nd: {<<: *b, <<: *c, y: 3}\n"
    (tmp_path / "s.yaml").write_text(text)
    assert read_tree(tmp_path / "s.yaml")["d"]["y"] == 3


@pytest.mark.parametrize("number", [10**21, -(2**63) - 1, 10**400])
@pytest.mark.parametrize("key", ["train.epochs", "search.trials", "methods.lora.alpha", "confirm.hold.data_seed"])
def test_whole_numbers_beyond_64_bits(tmp_path: Path, key: str, number: int) -> None:
    found = problems(tmp_path, GOOD, (f"{key}={number}",))
    assert len(found) == 1
    assert f"{key} = " in found[0]
    assert "must lie between -9223372036854775808 and 9223372036854775807" in found[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "confirm.seeds=20240101",
            "confirm.seeds = 20240101: a number of seeds, at least 1 and at most 10,000, or a list",
        ),
        ("search.trials=1000000000", "search.trials = 1000000000: must be at most 100000"),
        ("methods.lora.lr=1e-320", "methods.lora.lr.centre = 1e-320: must be at least 1e-30"),
        ("methods.lora.lr=1e307", "methods.lora.lr.centre = 1e+307: must be at most 1000000"),
        ("methods.lora.lr={low=1e-200, high=1e-18}", "methods.lora.lr.low = 1e-200: must be at least 1e-30"),
        ("data.train_size='1\u0663-shot'", "a size is a fraction in (0, 1] or 'K-shot' such as '16-shot'"),
        ("resources.gpus_per_worker=-1", "resources.gpus_per_worker = -1: gpus_per_worker is 'auto' or at least 0"),
        ('methods.lora.method=["lora"]', "methods.lora.method = ['lora']: must be text"),
        ("methods.lora.method={lora=1}", "unknown method that takes a budget"),
        ("name=" + "[" * 100_000, "name = '[[["),
        ("search.trials=7\nx=3", "search.trials = '7\\nx=3'"),
        ("budgets={percent=[12.345671, 12.345672]}", "percent has 'percent-12.3457' twice, in six digits"),
    ],
)
def test_values_that_no_sweep_has(tmp_path: Path, override: str, said: str) -> None:
    assert any(said in problem for problem in problems(tmp_path, GOOD, (override,)))


def test_a_budget_below_one_parameter(tmp_path: Path) -> None:
    spec = SweepSpec.load(write(tmp_path, GOOD.replace("lora_rank = [1, 4]", "percent = [1e-5, 1]")))
    with pytest.raises(SpecError, match=r"budgets\.percent = 1e-05: is less than one of the [\d,]+ .* Nearest: \d"):
        Plan.from_spec(spec)


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
