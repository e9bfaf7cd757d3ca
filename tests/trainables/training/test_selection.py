"""Weights chosen by their loss on validation: which, from where, again after a stop, in a pack, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch import Tensor

import trainables.training.checkpoints
from analysis.store.codec import to_json
from sweeps.records.rows import trial_row
from sweeps.search.slots import Slot
from tests.fakes import FakeCell
from tests.trainables.support import one_tower_trial, outcome, run, save_reports, saved_reports, work
from tests.trainables.tiny_language import save_model, write_rows
from tests.trainables.training.support import check_weights, together
from trainables.config import TrainSettings, TrialConfig
from trainables.data.registry import load_text_dataset
from trainables.data.splits import split, split_of
from trainables.errors import TrialError
from trainables.training.measured import Measured, Result
from trainables.training.selection import Selected
from trainables.training.trainer import Trainer
from trainables.training.worker import run_trial

Offers = list[tuple[int, float, dict[str, Tensor]]]
MakeTrial = Callable[..., TrialConfig]
BEST = {"select": "best", "select_every": 2, "schedule": "constant", "epochs": 2}


@pytest.fixture
def climbing(make_trial: MakeTrial) -> MakeTrial:
    """Makes trials whose rate is so high that their best weights are those of step 4 of 8, where an epoch ends."""
    return lambda method="lora", train=None, **given: make_trial(
        method, **({"lr": 1e-2, "train": BEST | (train or {})} | given)
    )


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Offers:
    """Every (step, loss, weights) that training offers."""
    seen: Offers = []
    plain = Selected.offer

    def offer(self: Selected, step: int, loss: float) -> None:
        seen.append((step, loss, {n: p.detach().clone() for n, p in self._parameters.items()}))
        plain(self, step, loss)

    monkeypatch.setattr(Selected, "offer", offer)
    return seen


def test_the_weights_with_the_lowest_loss_are_scored_and_kept(
    climbing: MakeTrial, tmp_path: Path, offers: Offers
) -> None:
    report = run(climbing(), tmp_path / "best", keep=True)[-1]
    assert [step for step, _, _ in offers] == [2, 4, 6, 8]
    step, loss, _ = min(offers, key=lambda offer: offer[1])
    found = report["result"].measured.further["val"]
    assert step == 4
    assert found.pop("loss") > 0  # of the held-out examples, as without a selection
    assert found == {
        "selected-step": step,
        "selected-loss": pytest.approx(loss),
        "last-loss": pytest.approx(offers[-1][1]),
    }
    plain = {"select": "last", "select_every": None, "epochs": 1}  # a constant rate: the first epoch of the other
    ended = run(climbing(train=plain), tmp_path / "plain", keep=True)[-1]["result"]
    kept = [load_file(str(tmp_path / d / "adapter" / "adapter.safetensors")) for d in ("best", "plain")]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())
    scores = ended.measured.test_score, ended.measured.val_score
    assert (report["result"].measured.test_score, report["val_score"]) == scores


def test_ties_go_to_the_earlier_weights() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    selected, loss = Selected({"w": weight}), 1.00000006  # a float32 would be larger
    for step in (1, 2):
        with torch.no_grad():
            weight.fill_(step)
        selected.offer(step, loss)
        other = Selected({"w": weight})
        other.load_state(selected.state())
        selected = other
    assert selected.settle() == {"selected-step": 1, "selected-loss": loss, "last-loss": loss}
    assert weight.tolist() == [1]


def test_a_last_loss_that_is_not_finite_is_null_in_the_table() -> None:
    trial_id, seeds = "t", (1, 1, 1)
    further = {"val": {"selected-loss": 0.5, "last-loss": math.nan}}
    outcome = {"status": "finished", "result": Result(Measured(further=further))}
    row = trial_row("s", FakeCell("lora"), Slot("c", "CONFIRM", 0, trial_id, {}, 1e-3, seeds), outcome)
    assert row.further == {"val": {"last-loss": None, "selected-loss": 0.5}}
    assert to_json(row)["further"] == '{"val": {"last-loss": null, "selected-loss": 0.5}}'


def test_a_stopped_trial_selects_the_same(climbing: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainables.training.checkpoints, "CHECKPOINT_SHARE", 1e9)  # after every epoch
    whole = run(climbing(), tmp_path / "whole")
    generator = run_trial(climbing(), warm={}, directory=tmp_path / "cut")
    next(generator)
    generator.close()
    again = run(climbing(), tmp_path / "cut")
    assert outcome(again) == outcome(whole)
    assert again[-1]["val_further"] == whole[-1]["val_further"]
    assert whole[-1]["val_further"]["selected-step"] == 4, "the selected weights are to come out of the checkpoint"


def test_trials_of_a_pack_select_as_they_do_alone(climbing: MakeTrial, tmp_path: Path) -> None:
    trials = [climbing(lr=lr) for lr in (1e-2, 1e-3)]
    last = together(trials, tmp_path / "pack", keep=True)[-1]
    steps = []
    for k, trial in enumerate(trials):
        alone, packed = run(trial, tmp_path / f"alone{k}", keep=True)[-1], last[k]
        assert isinstance(packed, dict)
        assert packed["val_further"] == pytest.approx(alone["val_further"], rel=1e-4)
        check_weights(tmp_path / "pack", k, tmp_path / f"alone{k}")
        steps.append(packed["val_further"]["selected-step"])
    assert steps == [4, 8]


@pytest.mark.parametrize(("method", "adapt"), [("linear-probe", "vision"), ("full", "both")])
def test_every_classifier_of_images_selects(
    make_trial: MakeTrial, tmp_path: Path, offers: Offers, method: str, adapt: str
) -> None:
    capacities = {"capacities": ()}
    trial = make_trial(method, adapt=adapt, train={"select": "best", "epochs": 2}, **capacities)
    further = run(trial, tmp_path)[-1]["val_further"]
    assert [step for step, _, _ in offers] == [4, 8]
    assert further["selected-loss"] == pytest.approx(min(loss for _, loss, _ in offers))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrialConfig]:
    """Makes trials of a language model on 60 rows."""
    folder = tmp_path_factory.mktemp("selection")
    save_model(folder / "llama", "llama")
    write_rows(folder / "rows", train=60, test=2)
    return lambda method="lora", **given: one_tower_trial(
        method, model=folder / "llama", dataset=f"json:{folder / 'rows'}", **given
    )


def test_language_models_select_under_checkpointing(language: MakeTrial, tmp_path: Path, offers: Offers) -> None:
    train = {"select": "best", "epochs": 1, "global_batch_size": 40, "gradient_checkpointing": True}
    further = run(language(train=train, evaluate={"validation_rows": 3}), tmp_path)[-1]["val_further"]
    ((step, loss, _),) = offers
    assert step == further["selected-step"] == 2  # 54 of 60 rows train
    assert loss == pytest.approx(further["selected-loss"])


def selecting(rank: int, world: int, trial: TrialConfig, folder: str) -> None:
    """A worker of a trial that also says what the weights which it settled on lose on validation."""
    plain = Trainer.settle
    Trainer.settle = lambda self: plain(self) | {"again": self._validation_loss()}  # type: ignore[method-assign]
    try:
        if world > 1:
            work(rank, world, trial, folder)
        else:
            reports = run(trial, Path(folder) / "trial", keep=True)
            save_reports(reports, Path(folder), rank)
    finally:
        Trainer.settle = plain  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("method", "lr", "epochs", "file"), [("full", 0.05, 2, "weights"), ("lora", 3.0, 3, "adapter")]
)
def test_two_workers_select_as_one_does(
    language: MakeTrial,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    lr: float,
    epochs: int,
    file: str,
) -> None:
    """Full fine-tuning has half of the weights in each (FSDP2), LoRA has them whole: all score the selected weights."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    train = {"global_batch_size": 18, "epochs": epochs, "schedule": "constant", "parallel": "fsdp"}
    train |= {"select": "best", "select_every": 1}
    trial = language(method, lr=lr, train=train, evaluate={"validation_rows": 5})
    found, kept = [], []
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        if world == 1:
            selecting(0, 1, trial, str(folder))
        else:
            torch.multiprocessing.spawn(selecting, args=(2, trial, str(folder)), nprocs=2)
        found += [saved_reports(folder, rank)[-1] for rank in range(world)]
        kept.append(load_file(str(folder / "trial" / "adapter" / f"{file}.safetensors")))
    alone, *both = found
    further = alone["val_further"]
    assert further["selected-step"] < 3 * epochs and further["selected-loss"] < further["last-loss"]
    assert further["again"] == pytest.approx(further["selected-loss"], rel=1e-5)
    for report in both:
        mine = report["val_further"]
        assert mine["again"] == pytest.approx(mine["selected-loss"], rel=1e-5), "the selected weights are scored"
        assert mine["selected-step"] < 3 * epochs and mine["selected-loss"] < mine["last-loss"]
        assert mine == both[0]["val_further"]
        assert report["result"].predicted == both[0]["result"].predicted
        if method == "full":  # at LoRA's rate rounding decides too much
            assert mine == pytest.approx(further, rel=2e-3)
    assert all(kept[0][n].shape == kept[1][n].shape for n in kept[0])


def test_the_papers_protocol_keeps_the_rows_that_it_selects_on(language: MakeTrial) -> None:
    best, last = (
        language(protocol="paper", train={"select": s}, evaluate={"validation_rows": 4}) for s in ("best", "last")
    )
    data = load_text_dataset(best.dataset, stage="CONFIRM")
    rows = split_of(data, best)
    assert (len(rows.train_idx), len(rows.val_idx)) == (56, 4)
    assert not set(rows.train_idx.tolist()) & set(rows.val_idx.tolist())
    assert set(rows.val_idx.tolist()) <= set(split(data, 1.0, 1, "CONFIRM").val_idx.tolist())
    assert len(split_of(data, last).train_idx) == 60


def test_what_it_refuses(climbing: MakeTrial, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match=r"adalora.*ranks settle"):
        run(climbing("adalora"), tmp_path)
    with pytest.raises(ValueError, match="select_every = 5 counts the steps"):
        TrainSettings(select_every=5)
