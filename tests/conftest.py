"""One Ray session for all engine tests: its lanes stay warm from sweep to sweep, as they do from trial to trial.

Where tests run in several processes (`make test`), those of one file run in one of them, since they share fixtures.
Those that start Ray sessions of their own begin in one process, those on the shared session in another: both wait more
than they compute, and they are the longest.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweeps.cluster.support import OwnRay

os.environ.setdefault("OMP_NUM_THREADS", "1")
if "SWEEPS_CACHE" not in os.environ:  # decoded images of the tests are not the user's
    os.environ["SWEEPS_CACHE"] = tempfile.mkdtemp(prefix="sweeps-cache-")
    atexit.register(shutil.rmtree, os.environ["SWEEPS_CACHE"], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def group(item: pytest.Item) -> str:
        needs = set(getattr(item, "fixturenames", ()))
        if {"own_ray", "start_driver"} & needs:
            return "own sessions"
        return "the shared session" if "pool" in needs else item.nodeid.partition("::")[0]

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    first = ["own sessions", "the shared session"]
    items.sort(key=lambda item: [*first, group(item)].index(group(item)))


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Two independent workers on a local Ray session (`sweeps.lanes.pool.Pool`)."""
    from sweeps.lanes.pool import Pool
    from tests.fakes import FakeResources

    with Pool(FakeResources(concurrent=2), tmp_path_factory.mktemp("ray")) as started:
        yield started


@pytest.fixture
def own_ray() -> Iterator[OwnRay]:
    """A place for another Ray session beside `pool`'s; whatever runs there ends with the test."""
    ray = OwnRay(Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")))
    try:
        yield ray
    finally:
        ray.end()
        shutil.rmtree(ray.folder, ignore_errors=True)
