"""`sweeps compare` and `sweeps tables`: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from analysis import comparisons, open_store
from analysis.findings.comparisons.numbers import changes
from analysis.findings.seeds import seeds_table
from analysis.verdict.groups import groups
from sweeps.cli.main import app
from sweeps.cli.printing import print_files
from tests.analysis.odd import Cells, odd_results
from tests.analysis.synthetic import make_results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compare") / "two"
    return make_results(place, datasets=("embedded:fashion", "embedded:digits"), seed=3)


def sweeps(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == code, done.output
    return done


def test_compare_has_all_that_is_asked_of_statistics(folder: Path) -> None:
    store, text = open_store(folder), sweeps("compare", folder).stdout
    for said in ("not distinguishable", "Mean test score over data sets", "effect [95 %]"):
        assert said in text
    assert "for 0.5 points" in text and "Of 10 budgets and data sets" in text
    answer = json.loads(sweeps("compare", folder, "--json").stdout)
    assert answer["comparisons"] == comparisons(store).to_pylist()
    assert answer["groups"] == groups(store).to_pylist()
    assert answer["changes"] == changes(store).to_pylist() and answer["changes"]
    assert {r["dataset"] for r in answer["averages"]} == {None} and len(answer["says"]) == 2


def test_seeds_for_a_difference_of_ones_choice(folder: Path) -> None:
    answer = json.loads(sweeps("compare", folder, "--points", 1.5, "--baseline", "full", "--json").stdout)
    rows = answer["seeds_needed"]
    assert {r["difference"] for r in rows} == {0.015} and {r["baseline"] for r in rows} == {"full"}
    found = {(r["dataset"], r["method"], r["reference"]): r for r in answer["comparisons"]}
    for r in rows:
        assert r["alpha"] == pytest.approx(found[r["dataset"], r["method"], r["reference"]]["alpha"])
        assert 0.0 < r["power"] <= 1.0
        assert r["seeds_needed"] is None or r["seeds_needed"] >= r["seeds_needed_given_rates"]


def test_more_seeds_for_less(folder: Path) -> None:
    by: dict[tuple[str, ...], list[int]] = {}
    for r in seeds_table(open_store(folder)).to_pylist():
        by.setdefault((r["dataset"], r["method"], r["reference"]), []).append(r["seeds_needed"] or 1001)
    assert by and all(seeds == sorted(seeds, reverse=True) for seeds in by.values())


def test_tables_of_the_report(folder: Path, tmp_path: Path) -> None:
    listed = sweeps("tables", folder).stdout
    assert "results" in listed and "groups" in listed
    text = sweeps("tables", folder, "groups", "areas").stdout
    assert "| data | budget | method |" in text and "| mean score, % [95 %, given the rates] |" in text
    tex = sweeps("tables", folder, "averages", "--format", "latex").stdout
    assert tex.startswith("% Mean test score over data sets\n\\begin{tabular}")
    whole = json.loads(sweeps("tables", folder, "averages", "--json").stdout)
    assert whole[0]["name"] == "averages" and len(whole[0]["rows"][0]) == len(whole[0]["header"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tables", "result"), "results"),
        (("tables", "--format", "html"), "markdown"),
        (("tables", "groups", "--x", "second"), "seconds_train"),
        (("compare", "--points", "0"), "above 0"),
        (("compare", "--points", "200"), "below 100"),
        (("compare", "--baseline", "loar"), "lora"),
    ],
)
def test_what_cannot_be_asked_is_named(folder: Path, words: tuple[str, ...], said: str) -> None:
    done = sweeps(words[0], folder, *words[1:], code=2)
    assert said in done.output


def test_while_seeds_are_to_come_sentences_are_preliminary(tmp_path: Path) -> None:
    starts = (("lora", 0.5), ("randlora", 0.7))
    cells: Cells = {(m, "lora-1", "d"): {0: s, 1: s + 0.01, 2: 1.1 * s} for m, s in starts}
    early, whole = (odd_results(tmp_path / str(n), cells, seeds=n) for n in (5, 3))
    for verb in ("best", "compare"):
        assert "Preliminary, 3 of 5 seeds: " in sweeps(verb, early).stdout
        assert "Preliminary" not in sweeps(verb, whole).stdout


def test_a_budget_that_has_not_begun_makes_the_answer_preliminary(tmp_path: Path) -> None:
    runs = {s: 0.5 + d for s, d in enumerate((0.01, 0.03, 0.02))}
    cells: Cells = {("lora", "lora-1", "d"): runs, ("randlora", "lora-1", "d"): {s: v + 0.2 for s, v in runs.items()}}
    cells |= {(m, "lora-4", "d"): {} for m in ("lora", "randlora")}
    folder = odd_results(tmp_path / "begun", cells)
    for verb in ("best", "compare"):
        assert "Preliminary, 0 of 3 seeds: " in sweeps(verb, folder).stdout


def test_failed_runs_are_named_and_counted(tmp_path: Path) -> None:
    runs = {s: 0.5 + d for s, d in enumerate((0.01, 0.03, 0.02, 0.0))}
    failed = {s: v + 0.2 if s < 2 else None for s, v in runs.items()}
    folder = odd_results(tmp_path / "f", {("lora", "lora-1", "d"): runs, ("randlora", "lora-1", "d"): failed}, seeds=4)
    text = " ".join(sweeps("compare", folder).stdout.split())
    assert "Confirming runs that failed: 2 of 4 of RandLoRA at lora-1" in text
    assert "2 of 4" in sweeps("tables", folder, "groups").stdout


def test_the_correction_that_is_described_was_made(folder: Path) -> None:
    alone = " ".join(sweeps("compare", folder).stdout.split())
    assert "The rows of RandLoRA are corrected together" in alone and "The rows of all other methods" in alone
    against = " ".join(sweeps("compare", folder, "--baseline", "full").stdout.split())
    assert "The rows of all methods are corrected together by Holm." in against


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    empty = make_results(tmp_path / "empty", trials=False)
    assert "nothing to compare yet" in sweeps("compare", empty).stdout


def test_where_everything_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The last lines of a run: folders by name, the files of a folder on one line."""
    place = Path("results/one")
    files = [place / "figures" / f"fits.{suffix}" for suffix in ("png", "svg")]
    print_files({"tables": place / "tables", "report": place / "report.html", **{f.name: f for f in files}})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["tables", "results/one/tables"],
        ["figures", "results/one/figures", "(fits:", "png,", "svg)"],
        ["report", "results/one/report.html"],
    ]


def test_best_begins_with_the_answer_and_ends_with_what_is_weak(tmp_path: Path) -> None:
    """Few lines of it; a flag prints all."""
    starts = (("lora", 0.5), ("randlora", 0.7), ("vera", 0.6))
    cells: Cells = {(m, f"lora-{r}", "d"): {0: s, 1: s + 0.01} for m, s in starts for r in (1, 4)}
    folder = odd_results(tmp_path / "weak", cells, seeds=2, tune=(0.5, 0.6, 0.6, None))
    shown = sweeps("best", folder).stdout
    parts = [shown.index(text) for text in ("RandLoRA", "test accuracy on", "What to take", "Weak evidence")]
    assert parts == sorted(parts) and shown.index("RandLoRA") < shown.index("test accuracy on")
    assert "--all-notes" in shown and " more" in shown.partition("Weak evidence")[2]
    whole = sweeps("best", folder, "--all-notes").stdout.partition("Weak evidence")[2]
    assert "--all-notes" not in whole and " more:" not in whole
    assert all(f"{m} at lora-{r}" in whole for m in ("LoRA", "RandLoRA", "VeRA") for r in (1, 4))
