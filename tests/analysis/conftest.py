"""Synthetic results folders, made once: tests only read them (those that write make their own)."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import Store, open_store
from tests.analysis.synthetic import make_results


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("results") / "made")


@pytest.fixture(scope="session")
def store(folder: Path) -> Store:
    return open_store(folder)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two data sets."""
    place = tmp_path_factory.mktemp("results") / "wide"
    return open_store(make_results(place, datasets=("embedded:fashion", "embedded:digits"), seed=3))


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Planned, nothing run."""
    return open_store(make_results(tmp_path_factory.mktemp("results") / "empty", trials=False))
