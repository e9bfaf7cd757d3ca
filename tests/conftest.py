"""One Ray session for all engine tests: its lanes stay warm from sweep to sweep, as they do from trial to trial."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Two independent workers on a local Ray session (`sweeps.cluster.Pool`)."""
    from sweeps.cluster import Pool
    from tests.fakes import FakeResources

    with Pool(FakeResources(concurrent=2), tmp_path_factory.mktemp("ray")) as started:
        yield started
