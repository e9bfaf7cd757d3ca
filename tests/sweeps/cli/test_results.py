"""`sweeps query`: every output format, several sweeps at once, and the views by name."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from sweeps.cli.main import app
from tests.analysis.synthetic import make_results
from tests.support import ROOT, sweeps

SQL = "select sweep, method, count(*) as n, avg(test_score) as score from confirmed group by all order by all"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("query")
    return make_results(place / "one"), make_results(place / "two", seed=9)


def query(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["query", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def test_all_formats_hold_the_same_rows(folders: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = json.loads(query(folders[0], SQL, "--json").stdout)
    assert [r["n"] for r in wanted if r["method"] == "lora"] == [15]
    assert json.loads(query(folders[0], SQL, "--format", "json").stdout) == wanted
    rows = list(csv.DictReader(io.StringIO(query(folders[0], SQL, "--csv").stdout)))
    assert [(r["method"], int(r["n"]), float(r["score"])) for r in rows] == [
        (r["method"], r["n"], r["score"]) for r in wanted
    ]
    piped = query(folders[0], SQL, "--format", "parquet").stdout_bytes
    assert pq.read_table(pa.BufferReader(piped)).to_pylist() == wanted
    piped = query(folders[0], SQL, "--format", "arrow").stdout_bytes
    assert pa.ipc.open_file(pa.BufferReader(piped)).read_all().to_pylist() == wanted
    for name in ("a.parquet", "a.arrow", "a.json", "a.csv"):
        assert "6 row(s)" in query(folders[0], SQL, "--to", tmp_path / name).stdout
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == wanted
    with pa.memory_map(str(tmp_path / "a.arrow")) as file:
        assert pa.ipc.open_file(file).read_all().to_pylist() == wanted
    assert json.loads((tmp_path / "a.json").read_text()) == wanted
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "sweep,method,n,score"
    assert len(query(folders[0], SQL).stdout.splitlines()) == 2 + len(wanted)


@pytest.mark.parametrize("view", ["best", "scaling", "coverage", "parity", "failures", "cost", "trials"])
def test_a_view_is_asked_for_by_its_name(folders: tuple[Path, Path], view: str) -> None:
    by_name = json.loads(query(folders[0], view, "--json").stdout)
    assert by_name == json.loads(query(folders[0], f"select * from {view}", "--json").stdout) != []


@pytest.mark.parametrize("words", [("best",), ("compare",), ("tables", "results"), ("query", "best")], ids=" ".join)
def test_a_sweep_file_or_a_uri_stands_for_the_folder(tmp_path: Path, words: tuple[str, ...]) -> None:
    file, folder = tmp_path / "one.toml", ROOT / "docs/results/quickstart"
    file.write_text(f'output = "{folder}"\n' + (ROOT / "examples/quickstart.toml").read_text())
    said = [sweeps(words[0], source, *words[1:]).stdout for source in (folder, file, folder.as_uri())]
    assert said[0] == said[1] == said[2] and "randlora" in said[0].lower()


def test_several_sweeps_in_one_query(folders: tuple[Path, Path]) -> None:
    rows = json.loads(query(folders[0], SQL, "--also", folders[1], "--json").stdout)
    assert {r["sweep"] for r in rows} == {"one", "two"} and len(rows) == 12
    joined = """select a.reference, a.mean - b.mean as apart from scaling a join scaling b using (method, reference)
                where a.sweep = 'one' and b.sweep = 'two' and method = 'lora' order by all"""
    assert len(json.loads(query(folders[0], joined, "--also", folders[1], "--json").stdout)) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "xlsx"), "parquet"),
        (("--csv", "--json"), "different formats"),
        (("--to", "answer.xlsx"), ".parquet"),
        (("--also", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_asked_is_named(folders: tuple[Path, Path], arguments: tuple[str, ...], said: str) -> None:
    done = query(folders[0], SQL, *arguments, code=2)
    assert said in done.output + done.stderr


def test_an_unknown_name_is_answered_with_the_known_ones(folders: tuple[Path, Path]) -> None:
    done = query(folders[0], "scalin", code=2)
    assert "scaling" in done.output + done.stderr


def test_two_columns_of_one_name_are_both_shown(folders: tuple[Path, Path]) -> None:
    assert query(folders[0], "select method, reference, method from scaling limit 1").output.count("method") == 2


def test_query_names_the_known_columns(folders: tuple[Path, Path]) -> None:
    result = sweeps("query", folders[0], "select test_scor from trials")
    assert result.exit_code == 2
    assert "test_score" in result.output


def test_results_that_are_not_there(tmp_path: Path) -> None:
    result = sweeps("status", tmp_path)
    assert result.exit_code == 2
    assert "no sweep yet" in result.output
    assert sweeps("best", str(tmp_path / "nothing.toml")).exit_code == 2
