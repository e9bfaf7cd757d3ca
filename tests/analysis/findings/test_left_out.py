"""Cells that no setting reaches stand beneath the results table, each with where it would have been."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import open_store, print_results_table
from analysis.store.tables import write_part
from tests.analysis.synthetic import make_results


def test_of_several_models_each_line_names_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_results(tmp_path / "made", plan={"vera": ["lora-1"]}, trials=False)
    [infeasible] = [r for r in open_store(folder).table("cells").to_pylist() if not r["feasible"]]
    print_results_table(open_store(folder))
    assert "Left out: VeRA at lora-16 on fashion, infeasible" in " ".join(capsys.readouterr().out.split())
    write_part(folder, "cells", [infeasible | {"model": "other", "cell_id": "other"}])
    print_results_table(open_store(folder))
    said = " ".join(capsys.readouterr().out.split())
    for model in ("embedded:tiny-clip", "other"):
        assert f"Left out: VeRA at lora-16 on fashion of {model}, infeasible" in said


def test_data_sets_that_share_the_reason_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_results(tmp_path / "made", plan={"vera": ["lora-1"]}, trials=False)
    [infeasible] = [r for r in open_store(folder).table("cells").to_pylist() if not r["feasible"]]
    more = [infeasible | {"dataset": f"embedded:{name}", "cell_id": name} for name in ("b", "c")]
    write_part(folder, "cells", [*more, infeasible | {"reason": "another", "cell_id": "d", "dataset": "embedded:d"}])
    print_results_table(open_store(folder))
    said = " ".join(capsys.readouterr().out.split())
    assert "Left out: VeRA at lora-16 on 3 data sets or sizes, infeasible" in said
    assert "Left out: VeRA at lora-16 on d, infeasible: another" in said and said.count("Left out") == 2
