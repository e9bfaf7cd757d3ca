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

from analysis import open_store
from analysis.store.tables import part_paths, write_part
from sweeps.cli.main import app
from sweeps.cli.options import uri_of
from tests.analysis.odd import odd_results
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
        assert "6 rows" in query(folders[0], SQL, "--to", tmp_path / name).stdout
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


def test_overrides_are_a_sweep_files(folders: tuple[Path, Path]) -> None:
    """Beside a folder, or its URI, they would do nothing."""
    for source in (folders[0], folders[0].as_uri()):
        done = sweeps("best", source, "--set", "budgets.lora_rank=[1]")
        assert done.exit_code == 2
        assert "--set" in done.output and "results folder" in done.output


@pytest.mark.parametrize(
    "words", [("status",), ("report",), ("compare",), ("watch",), ("analyze", "cka"), ("estimate", "--compare")]
)
def test_no_verb_ignores_overrides_of_a_results_folder(folders: tuple[Path, Path], words: tuple[str, ...]) -> None:
    done = sweeps(*words, folders[0], "--set", "search.trials=9")
    assert done.exit_code == 2 and "error: --set = 'search.trials=9'" in done.output


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
        (("--format", "table", "--to", "answer.csv"), "Nearest: csv, json, parquet, arrow"),
        (("--json", "--to", "answer.csv"), "its suffix says csv, and --json json"),
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
    assert query(folders[0], "select 1 as a, 2 as a, 3 as b", "--csv").stdout == "a,a,b\n1,2,3\n"
    refused = query(folders[0], "select 1 as a, 2 as a, 3 as b", "--json", code=2)
    (error,) = json.loads(refused.stdout)["errors"]
    assert error.startswith("column = 'a': ") and error.endswith("Nearest: --format csv.")


def test_a_file_beside_json_is_told_as_json(folders: tuple[Path, Path], tmp_path: Path) -> None:
    to = tmp_path / "a.json"
    said = json.loads(query(folders[0], SQL, "--json", "--to", to).stdout)
    assert said == {"path": str(to), "rows": 6} and len(json.loads(to.read_text())) == 6


def test_a_span_of_time_is_seconds_in_every_format(folders: tuple[Path, Path], tmp_path: Path) -> None:
    took = "select ended_at - started_at as took, epoch(ended_at) - epoch(started_at) as seconds from trials"
    rows = json.loads(query(folders[0], took, "--json").stdout)
    assert rows and all(r["took"] == pytest.approx(r["seconds"], abs=1e-3) for r in rows)
    query(folders[0], took, "--to", tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == rows
    assert json.loads(query(folders[0], "select interval 1 day as d, null::interval as n", "--json").stdout) == [
        {"d": 86400.0, "n": None}
    ]
    assert "cast it to varchar" in query(folders[0], "select interval 1 month as d", code=2).output
    union = "select union_value(k := 1) as u"
    refused = query(folders[0], union, "--to", tmp_path / "u.parquet", code=2).output
    assert "can't hold these columns" in refused and "Nearest: csv" in refused and not (tmp_path / "u.parquet").exists()


def empty(folder: Path) -> Path:
    """A sweep that has written nothing but that it began."""
    folder.mkdir()
    (folder / "journal.jsonl").write_text('{"ev": "sweep", "name": "e"}\n')
    return folder


def test_a_budget_is_found_in_the_model_that_has_it(tmp_path: Path) -> None:
    """One label is another number of parameters in each model."""
    folder = odd_results(tmp_path / "r", {("lora", "lora-1", "a"): {0: 0.5}, ("lora", "lora-2", "a"): {0: 0.5}})
    cells = open_store(folder).table("cells").to_pylist()
    other = [r | {"cell_id": f"other{i}", "model": "other", "budget": 1000 * r["budget"]} for i, r in enumerate(cells)]
    write_part(folder, "cells", other)
    for row in (*cells, *other):
        done = sweeps("best", folder, "--at", f"{row['budget']:,}", "--json")
        assert json.loads(done.stdout)["budgets"] == [row["reference"]] and "no budget within" not in done.stderr
    assert "known: none" in sweeps("best", empty(tmp_path / "e"), "--at", "x").output


def test_tables_of_nothing_say_so(tmp_path: Path) -> None:
    folder = empty(tmp_path / "e")
    assert sweeps("tables", folder).output == "no table yet: there are no results to show\n"
    assert json.loads(sweeps("tables", folder, "--json").stdout) == []


def test_query_names_the_known_columns(folders: tuple[Path, Path]) -> None:
    result = sweeps("query", folders[0], "select test_scor from trials")
    assert result.exit_code == 2
    assert "test_score" in result.output


def test_results_that_are_not_there(tmp_path: Path) -> None:
    result = sweeps("status", tmp_path)
    assert result.exit_code == 2
    assert "no sweep yet" in result.output
    assert sweeps("best", str(tmp_path / "nothing.toml")).exit_code == 2
    make_results(tmp_path / "v1.2", trials=False)
    assert f"Nearest: {tmp_path / 'v1.2'}." in sweeps("best", tmp_path).output.replace("\n", "")
    answer = sweeps("best", tmp_path / "v1.3").output.replace("\n", "")
    assert "no such results folder or sweep file" in answer and f"Nearest: {tmp_path / 'v1.2'}." in answer


def test_a_uri_keeps_the_slashes_of_its_options() -> None:
    for uri in ("s3://b/x?endpoint_override=http://localhost:9000&scheme=https", "s3://b/x", "file:///tmp/x"):
        assert uri_of(Path(uri)) == uri


@pytest.mark.parametrize("verb", [("best",), ("query", "select 1")])
def test_a_part_that_cannot_be_read_is_named(tmp_path: Path, verb: tuple[str, ...]) -> None:
    folder = make_results(tmp_path / "made")
    (part,) = part_paths(folder, "cells")
    pq.write_table(pa.table({"x": [1]}), part.with_name("part-0.parquet"))
    result = sweeps(verb[0], folder, *verb[1:])
    assert result.exit_code == 0
    assert "left out: " in result.stderr and "part-0.parquet" in result.stderr and "cell_id" in result.stderr
