"""`sweeps versions`, and what `verify`, `again` and `doctor` say if other versions of packages are installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from analysis.store.tables import write_part
from tests.analysis.synthetic import make_results
from tests.support import sweeps
from trainables import runtime


def ran_with(folder: Path, *versions: dict[str, str]) -> Path:
    """Return a results folder whose finished trials ran with these versions, in this order."""
    rows: list[dict[str, Any]] = [
        {"sweep": "s", "trial_id": f"{n}", "cell_id": "c", "attempt": 1, "stage": "TUNE", "slot": n, "method": "lora",
         "status": "finished", "ended_at": f"2026-01-0{n + 1}T00:00:00+00:00", "versions": json.dumps(those)}
        for n, those in enumerate(versions)
    ]  # fmt: skip
    (folder / "tables").mkdir(parents=True)
    write_part(folder, "trials", rows)
    return folder


@pytest.fixture
def newer_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch 99.0 and Optuna 5.0 are installed, as far as their metadata says."""
    for name, number in (("torch", "99.0"), ("optuna", "5.0.0")):
        metadata = tmp_path / "installed" / f"{name}-{number}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    runtime.installed.cache_clear()
    yield
    runtime.installed.cache_clear()


def test_the_versions_of_a_sweep_are_constraints_for_pip(tmp_path: Path) -> None:
    first = {"python": "3.11.7", "randlora-sweeps": "0.1.0", "torch": "2.9.0+cu128", "numpy": "2.1.0"}
    folder = ran_with(tmp_path, first, first | {"torch": "2.12.0+cpu"})
    sweep = {"ev": "sweep", "name": "s", "versions": {"ray": "2.58.1", "torch": "2.8.0"}}
    (folder / "journal.jsonl").write_text(json.dumps(sweep) + "\n", encoding="utf-8")
    assert sweeps("versions", folder).output.splitlines() == [
        "# python 3.11.7",
        "# randlora-sweeps 0.1.0",
        "numpy==2.1.0",
        "ray==2.58.1",
        "torch==2.12.0  # before: 2.9.0+cu128",
    ]
    answer = json.loads(sweeps("versions", folder, "--json").output)
    assert answer["versions"]["torch"] == ["2.9.0+cu128", "2.12.0+cpu"]
    assert {"package": "torch", "known": "2.12.0+cpu", "here": version("torch")} in answer["differences"]


def test_a_folder_without_versions_is_refused(tmp_path: Path) -> None:
    refused = sweeps("versions", ran_with(tmp_path, {}))
    assert refused.exit_code == 2 and "has no versions of packages" in refused.output


def test_verify_names_the_packages_that_have_other_versions_here(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "r")
    torch = {"package": "torch", "known": "2.9.0", "here": version("torch")}
    assert torch in json.loads(sweeps("verify", folder, "--json").output)["versions"]
    assert f"torch 2.9.0, here {version('torch')}" in sweeps("verify", folder).output


def test_doctor_says_which_libraries_are_newer_or_older_than_those_that_were_tested(newer_torch: None) -> None:
    (check,) = [c for c in json.loads(sweeps("doctor", "--json").output) if c["name"] == "tested versions"]
    assert check["ok"] and check["warns"]
    assert "torch 99.0 is newer than 2." in check["found"] and "optuna 5.0.0 is older than 5." in check["found"]
    assert "torch==2." in check["mend"] and "optuna==5." in check["mend"]
