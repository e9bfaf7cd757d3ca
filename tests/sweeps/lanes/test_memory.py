"""The micro-batch of a trial that ran out of memory, without Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps.backends.backend import BackendError, Order
from sweeps.backends.inline import InlineBackend
from sweeps.backends.memory import MicroBatch, end_if_lost, out_of_memory
from sweeps.backends.ray.lanes.leases import KILLED_FOR_MEMORY
from sweeps.backends.trials import Attempt
from tests.fakes import FakeResources
from tests.sweeps.lanes.support import W0, lease, outcome_in_a_lane, refuse_more_than, run, started, tiny_trial
from trainables.errors import TrialError


def config(adapt: str = "vision", **train: Any) -> dict[str, Any]:
    return {"adapt": adapt, "train": {"global_batch_size": 10, "micro_batch_size": None, **train}}


def test_it_halves_down_to_one_and_a_new_process_goes_on_with_what_fitted(tmp_path: Path) -> None:
    micro = MicroBatch(tmp_path, config(), world=2)
    assert (micro.asked, micro.size, micro.smaller) == (5, 5, None)
    micro.shrink("first")
    micro.shrink("second")
    assert (micro.asked, micro.size, micro.smaller) == (5, 1, 1)
    assert MicroBatch(tmp_path, config(), world=2).events == [
        {"micro_batch_size": 2, "reason": "first"},
        {"micro_batch_size": 1, "reason": "second"},
    ]
    with pytest.raises(TrialError, match=r"single example at once.*third"):
        micro.shrink("third")


def test_a_configured_micro_batch_is_where_it_starts(tmp_path: Path) -> None:
    assert MicroBatch(tmp_path, config(micro_batch_size=4), world=1).size == 4
    assert MicroBatch(tmp_path, config(micro_batch_size=64), world=1).size == 10


def test_a_contrastive_batch_is_never_split(tmp_path: Path) -> None:
    micro = MicroBatch(tmp_path, config("both"), world=1)
    with pytest.raises(TrialError, match=r"out of memory with 10 images.*adapt = 'both'.*global_batch_size.*no room"):
        micro.shrink("no room")
    assert micro.smaller is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"), True),
        (RuntimeError("Last error:\nCuda failure 217 'peer access is not supported between these two devices'"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("DefaultCPUAllocator"), False),
        (ImportError("libscipy_openblas.so: failed to map segment from shared object"), True),
        (ImportError("lib.so: failed to map segment from shared object: Operation not permitted"), False),
        (ImportError("No module named 'peft'"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, answer: bool) -> None:
    assert out_of_memory(error) is answer


class Ended(BaseException):
    """In the place of the process's end."""


def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)


def test_a_process_whose_cuda_context_is_lost_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later trial of it would fail in moments, and it would draw all that are queued."""
    ending(monkeypatch)
    monkeypatch.setattr("sweeps.backends.memory._ACCELERATOR", (ZeroDivisionError,))
    for lost in (ZeroDivisionError("device-side assert triggered"), RuntimeError("CUDA error: unknown error")):
        with pytest.raises(Ended, match="1"):
            end_if_lost(lost)
    end_if_lost(RuntimeError("CUDA error: out of memory"))
    end_if_lost(IndexError("no such class"))


def test_a_pack_that_loses_the_accelerator_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller decides: a lane's worker ends, the backend `inline` ends the run with a message."""

    def run(_: object) -> Iterator[None]:
        raise RuntimeError("CUDA error: unknown error")

    monkeypatch.setattr("sweeps.backends.trials.Attempt._follow", run)
    nobody: Any = None
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(Attempt(nobody, [{"key": key, "directory": "."} for key in "ab"]).steps())
    backend = InlineBackend(FakeResources(), 2, None)
    backend.start([Order(key, "", "", {}, Path(), None, judged=False) for key in "ab"])
    with pytest.raises(BackendError, match=r"can't use its accelerator any more: RuntimeError: CUDA error"):
        backend.events(0.0)
    backend.close()


def test_the_real_worker_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending(monkeypatch)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("trainables.training.worker.pick_device", fails)
    with pytest.raises(Ended):
        outcome_in_a_lane(tiny_trial("vision"), tmp_path / "t", monkeypatch)


def test_torch_says_so_when_the_cpu_has_no_room() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert out_of_memory(caught.value)


def test_the_real_worker_trains_on_when_the_allocator_refuses_large_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = refuse_more_than(10, monkeypatch)
    last, outcome = outcome_in_a_lane(tiny_trial("vision"), tmp_path / "t", monkeypatch)
    assert (outcome["status"], last["done"], outcome["micro_batch_size"]) == ("finished", True, 8)
    assert [e["micro_batch_size"] for e in outcome["memory"]] == [16, 8]
    assert outcome["memory"][0]["reason"].startswith("OutOfMemoryError: CUDA out of memory")
    assert {n for n in seen if n <= 10} == {8}


def test_the_real_worker_gives_a_batch_up_that_it_may_not_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_more_than(10, monkeypatch)
    _, outcome = outcome_in_a_lane(tiny_trial("both"), tmp_path / "t", monkeypatch)
    assert outcome["status"] == "failed"
    assert "can't be split" in outcome["reason"]


def test_a_group_out_of_memory_starts_again_with_less_and_the_attempt_does_not_count() -> None:
    async def scenario() -> None:
        broker = await started("a")
        await lease(broker, W0)
        await broker.again(W0, "t", "a", "OutOfMemoryError: 3 GiB")
        assert await broker.next(W0, "t", 0.05) == []
        await broker.hello(W0, "new")
        order = await lease(broker, W0, "new")
        assert (order["attempt"], order["shrink"]) == (1, "OutOfMemoryError: 3 GiB")
        await broker.died("lane0", {W0: "killed"}, memory=True)
        await broker.hello(W0, "newer")
        order = await lease(broker, W0, "newer")
        assert (order["attempt"], order["shrink"]) == (2, KILLED_FOR_MEMORY)

    run(scenario())
