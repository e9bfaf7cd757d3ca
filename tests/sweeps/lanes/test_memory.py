"""The micro-batch of a trial that ran out of memory, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps.lanes.memory import MicroBatch, out_of_memory
from sweeps.lanes.worker import _Worker
from tests.trainables.support import one_tower_trial
from trainables.config import TrialConfig
from trainables.errors import TrialError
from trainables.models.shapes import target_shapes
from trainables.tasks.images.clip import BothTask, VisionTask


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
        (RuntimeError("shapes do not match"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, answer: bool) -> None:
    assert out_of_memory(error) is answer


def test_torch_says_so_when_the_cpu_has_no_room() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert out_of_memory(caught.value)


class Answers:
    """A broker whose methods all say "go", and keep what they were given."""

    def __init__(self) -> None:
        self.given: dict[str, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*arguments: Any) -> str:
                self.given.setdefault(name, []).append(arguments)
                return "go"

        return Method


def refuse_more_than(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let no loss be taken of more rows; returns how many each was asked for."""
    seen: list[int] = []

    def limited(real: Any) -> Any:
        def loss_sum(self: Any, rows: torch.Tensor, plan: Any) -> Any:
            seen.append(len(rows))
            if len(rows) > rows_at_once:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
            return real(self, rows, plan)

        return loss_sum

    for task in (VisionTask, BothTask):
        monkeypatch.setattr(task, "loss_sum", limited(task.loss_sum))
    return seen


def tiny_trial(adapt: str) -> TrialConfig:
    model, targets = "embedded:tiny-clip", ["attn.in_proj_weight"]
    return one_tower_trial(
        "lora",
        model=model,
        adapt=adapt,
        targets=tuple(targets),
        dataset="embedded:fashion-mnist-turned",
        train_size="4-shot",
        capacities=tuple((name, 1) for name in target_shapes(model, targets, adapt)),
        stage="TUNE",
        lr=1e-3,
        train={"epochs": 1, "global_batch_size": 32},
    )


def outcome_in_a_lane(trial: TrialConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """The last report of a trial that the real worker runs, and its outcome."""
    monkeypatch.setattr("sweeps.lanes.worker.ray.get", lambda answer: answer)
    broker = Answers()
    where = {"trial": "trainables.training.worker:run_trial", "directory": str(folder), "keep": None}
    order = {"key": "k", "config": trial.model_dump(mode="json"), "ahead": True, "shrink": None}
    _Worker(broker, "lane0/0", 0, 1).run({**order, **where})
    ((_, _, _, last, outcome),) = broker.given["finish"]
    return last, outcome


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
