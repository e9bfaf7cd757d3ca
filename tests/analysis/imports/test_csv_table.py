"""A CSV table of published numbers becomes a folder to query beside a sweep; what is wrong is said at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis import StoreError, conclusion, open_store
from analysis.findings.all import pictures
from analysis.findings.comparisons.numbers import difference_curves
from analysis.findings.scaling.numbers import curve
from analysis.imports.csv_table import import_csv
from analysis.report.page import render
from analysis.styles import places
from sweeps.cli.main import app

TABLE = """method,reference,parameters,percent,dataset,source
lora,lora-32,6881280,83.7,22 data sets,"Figure 1, read off"
my-method,lora-32,6900000,84.25,22 data sets,

full,,,85.0,22 data sets,Figure 1
"""


def test_the_table_is_queried_like_a_sweep(tmp_path: Path) -> None:
    file = tmp_path / "published.csv"
    file.write_text("\ufeff" + TABLE.replace("\n", "\r\n"), encoding="utf-8")  # as a spreadsheet leaves it
    to = tmp_path / "results"
    done = CliRunner().invoke(app, ["import", "csv", str(file), "--to", str(to)])
    assert done.exit_code == 0, done.output
    store = open_store(to)
    rows = store.sql(
        "select sweep, method, reference, adapter_params, mean, low from scaling order by method"
    ).to_pylist()
    assert [(r["method"], r["reference"], r["adapter_params"]) for r in rows] == [
        ("full", None, None),
        ("lora", "lora-32", 6_881_280),
        ("my-method", "lora-32", 6_900_000),
    ]
    assert [r["mean"] for r in rows] == pytest.approx([0.85, 0.837, 0.8425])
    assert all(r["low"] is None and r["sweep"] == "published" for r in rows)
    assert "No conclusion" in conclusion(store)
    reported = CliRunner().invoke(app, ["report", str(to), "--json"])
    assert reported.exit_code == 0, reported.output
    assert "Imported numbers" in Path(json.loads(reported.stdout)["report"]).read_text(encoding="utf-8")


def test_all_problems_of_a_table_at_once(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("method,score,lr\nlora,83.7,1e-3\n,0.5,\nvera,,x\nnola,0.5\ndora,0.5,\ndora,0.6,\n")
    with pytest.raises(StoreError) as caught:
        import_csv(tmp_path / "to", [file, tmp_path / "none.csv"])
    said = str(caught.value)
    for expected in (
        "line 2: score = '83.7': must be a fraction in [0, 1]; for percent call the column percent",
        "line 3: no method",
        "line 4: no score",
        "line 4: lr = 'x'",
        "line 5: not 3 values",
        "line 7: the same cell as line 6",
        "none.csv: can't be read",
    ):
        assert expected in said
    assert not (tmp_path / "to").exists()


def test_sizes_without_a_reference_are_no_seeds(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("method,percent,parameters\nlora,80,1000\nlora,82,2000\n")
    with pytest.raises(StoreError, match=r"line 3: the same cell as line 2.*rows of several sizes need a reference"):
        import_csv(tmp_path / "to", [file])


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("methd,score", "unknown column 'methd'.*nearest: method"),
        ("method,score,percent", "one of score and percent"),
        ("method", "it has method"),
        ("method,score,lr,score", "several columns are called 'score'"),
    ],
)
def test_wrong_headers(tmp_path: Path, header: str, says: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(f"{header}\n")
    with pytest.raises(StoreError, match=says):
        import_csv(tmp_path / "to", [file])


def test_files_of_one_name_would_be_one_sweep(tmp_path: Path) -> None:
    files = [tmp_path / name / "t.csv" for name in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text("method,score\nlora,0.5\n")
    with pytest.raises(StoreError, match="2 files are called 't'"):
        import_csv(tmp_path / "to", files)


@pytest.mark.parametrize("more", [0, 400])
def test_numbers_at_no_parameters_are_tables_only(tmp_path: Path, more: int) -> None:
    """A budget of none has no place on the log axis of the differences; the rest of the report stands."""
    file = tmp_path / "t.csv"
    rows = ("lora,lora-1,70,0", f"lora,lora-4,72,{more}", "randlora,lora-1,75,0", f"randlora,lora-4,76,{more}")
    file.write_text("\n".join(("method,reference,percent,parameters", *rows)))
    store = open_store(import_csv(tmp_path / "to", [file]))
    drawn = {p.stem: p for p in pictures(store)}
    assert ("differences" in drawn) == (more > 0) and "scaling_curve" in drawn
    assert difference_curves(store).num_rows == 2 and "75.0" in render(store)


def test_a_training_size_in_words_comes_last(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("method,score,train_size\nlora,0.5,few-shot\nlora,0.6,1.0\nlora,0.6,16-shot\n")
    import_csv(tmp_path / "to", [file])
    assert [place[3] for place in places(curve(open_store(tmp_path / "to")))] == ["16-shot", "1.0", "few-shot"]


def test_one_size_is_one_place_however_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("method,score,train_size\nlora,0.5,1\nvera,0.6,\nnola,0.7,1.00\ndora,0.8,.1\n")
    sizes = open_store(import_csv(tmp_path / "to", [file])).table("scaling")["train_size"].to_pylist()
    assert sorted(sizes) == ["0.1", "1.0", "1.0", "1.0"]
    file.write_text("method,score,train_size\nlora,0.5,1\nlora,0.6,1.0\n")
    with pytest.raises(StoreError, match="line 3: the same cell as line 2"):
        import_csv(tmp_path / "twins", [file])


def test_tables_imported_together_are_named_once(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.csv" for name in "ab"]
    for file in files:
        file.write_text("method,score\nlora,0.5\n")
    assert open_store(import_csv(tmp_path / "to", files)).names == ("a", "b")
