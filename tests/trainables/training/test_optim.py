"""The learning-rate schedule, and what the optimiser is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.trainables.support import run
from tests.trainables.training.support import MakeTrial
from trainables.config import TrainSettings
from trainables.training import optim
from trainables.training.checkpoints import Pace
from trainables.training.optim import Group, lr_factor, make_adamw


def test_a_cosine_goes_from_the_peak_to_the_least() -> None:
    settings = TrainSettings(schedule="cosine", min_lr_ratio=0.1, warmup_fraction=0.0)
    rates = [lr_factor(step, 1000, settings) for step in (0, 500, 1000)]
    assert rates == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize(("method", "decay"), [("lora", 0.3), ("full", 0.7)])
def test_decay_is_the_methods_own_and_gradients_are_clipped(
    method: str, decay: float, make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decays, norms = list[float](), list[float]()

    def make(groups: Sequence[Group]) -> torch.optim.AdamW:
        decays.extend(group.weight_decay for group in groups)
        made = make_adamw(groups)
        parameters = [p for group in made.param_groups for p in group["params"]]

        def look(*_: object) -> None:
            norms.append(float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))

        made.register_step_pre_hook(look)
        return made

    monkeypatch.setattr(optim, "make_adamw", make)
    settings = {"weight_decay": 0.3, "full_weight_decay": 0.7, "grad_clip": 1e-3, "epochs": 1}
    run(make_trial(method, train=settings), tmp_path)
    assert decays == [decay]
    assert norms and max(norms) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("theirs", [None, 2.0])
def test_what_no_worker_used_has_no_gradient(theirs: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW would let it decay."""
    sent: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: sent.append(flat.clone()))
    other, used, unused = (nn.Parameter(torch.ones(2, 3)) for _ in range(3))
    other.grad, unused.grad = torch.full((2, 3), 5.0), None if theirs is None else torch.full((2, 3), theirs)
    optim.add_over_workers([other, unused])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(sent[0]))
    used.grad, unused.grad = torch.ones(2, 3), None
    optim.add_over_workers([used, unused])
    assert used.grad.tolist() == [[6.0] * 3] * 2
    assert (unused.grad is None) if theirs is None else torch.equal(unused.grad, torch.full((2, 3), theirs))


def test_checkpoints_take_a_set_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("trainables.training.checkpoints.time", SimpleNamespace(perf_counter=lambda: now[0]))
    pace = Pace()
    assert pace.due()
    with pace.saving():
        now[0] += 1.0
    now[0] += 1.0 / 0.02 - 0.5
    assert not pace.due()
    now[0] += 1.0
    assert pace.due()


def test_warm_up_in_steps_is_as_long_whatever_the_length() -> None:
    settings = TrainSettings(warmup_steps=100, schedule="linear", min_lr_ratio=0.0)
    for total in (2_500, 32_000):
        rates = [lr_factor(step, total, settings) for step in range(total)]
        assert rates.index(max(rates)) == 100
        assert rates[:100] == pytest.approx([(step + 1) / 101 for step in range(100)])
        assert rates[-1] == pytest.approx(1 / (total - 100))
    short = [lr_factor(step, 10, settings) for step in range(10)]
    assert short == sorted(short) and short[-1] == 1.0, "a shorter training still reaches the peak"


def test_two_lengths_of_one_warm_up_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"warmup_steps = 5 and warmup_fraction = 0\.1 .*leave one out"):
        TrainSettings(warmup_steps=5, warmup_fraction=0.1)
