"""One Ray session for all engine tests: its lanes stay warm from sweep to sweep, as they do from trial to trial.

Where tests run in several processes (`make test`), those of one file run in one of them, since they share fixtures, and
the files with Ray all in the same one, first.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import ROOT, needs_ray
from tests.sweeps.cluster.support import OwnRay

os.environ.setdefault("OMP_NUM_THREADS", "1")
if "SWEEPS_CACHE" not in os.environ:  # decoded images of the tests are not the user's
    os.environ["SWEEPS_CACHE"] = tempfile.mkdtemp(prefix="sweeps-cache-")
    atexit.register(shutil.rmtree, os.environ["SWEEPS_CACHE"], ignore_errors=True)

# a busy machine makes an example slow, which is no fault of the code
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # as under `nohup`, or in the background of a script
        signal.signal(number, usual)  # what tests start would inherit that nothing ends it


def pytest_configure(config: pytest.Config) -> None:
    """Hide a machine's GPUs unless `tests/gpu` was asked for: there alone numbers of one are expected."""
    asked = [Path(arg.partition("::")[0]).resolve() for arg in config.args]
    if not any(path.is_relative_to(ROOT / "tests" / "gpu") for path in asked):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By file, those with Ray as one (xdist 3.8 loses the groups of its own `loadgroup` under pytest 9.2)."""
    from xdist.scheduler import LoadFileScheduling

    class RayTogether(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "ray" if needs_ray(ROOT / file) else file

    return RayTogether(config, log)


@pytest.fixture(autouse=True)
def draw_the_same_numbers_in_each_run() -> None:
    """Seed PyTorch's generator, so that a test of weights drawn at random passes always or never."""
    import torch  # not above: PyTorch reads OMP_NUM_THREADS when it is imported

    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def freeze_what_a_module_leaves() -> Iterator[None]:
    """Keep Python's garbage collector from scanning what earlier modules left: that takes longer with every module."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Two independent workers on a local Ray session (`sweeps.backends.ray.pool.Pool`)."""
    from sweeps.backends.ray.pool import Pool
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
