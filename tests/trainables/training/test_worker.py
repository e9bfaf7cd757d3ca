"""Whole trials on a tiny CLIP: what is reported, what is restored, what is refused, and exact resuming."""

from __future__ import annotations

import functools
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import trainables.training.checkpoints
from tests.trainables.support import outcome, run, weights
from tests.trainables.tiny_images import write_colours
from trainables.config import TrainSettings, TrialConfig
from trainables.data.images.pixels import Recipe
from trainables.data.registry import embedded_datasets
from trainables.errors import DataError, SplitError, TrialError
from trainables.models.loading import load_model
from trainables.models.shapes import default_targets, target_shapes
from trainables.tasks.images.clip import ClipClassifier
from trainables.tasks.lane_cache import LaneCache
from trainables.training.measured import Predicted
from trainables.training.worker import run_trial

MakeTrial = Callable[..., TrialConfig]
METHODS = [
    "lora", "randlora", "vera", "nola", "pissa", "lora-ga", "lora-plus", "adalora", "autolora", "full", "full-targets",
    "zero-shot",
]  # fmt: skip
REPORT = {
    "epoch", "done", "train_loss", "val_score", "val_further", "seconds", "seconds_eval", "samples",
    "samples_per_second", "peak_memory_bytes", "skipped",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adapt", ["vision", "both"])
def test_reports_and_the_base_model_afterwards(make_trial: MakeTrial, tmp_path: Path, method: str, adapt: str) -> None:
    trial = make_trial(method, adapt=adapt)
    warm: dict[str, Any] = {}
    reports = run(trial, tmp_path, warm)
    epochs = 1 if method == "zero-shot" else 3
    assert [r["epoch"] for r in reports] == list(range(1, epochs + 1))
    assert [r["done"] for r in reports] == [False] * (epochs - 1) + [True]
    assert all(set(r) - {"result"} == REPORT for r in reports)
    result = reports[-1]["result"]
    json.dumps([{k: v for k, v in r.items() if k != "result"} for r in reports], allow_nan=False)

    assert 0 <= result.measured.val_score <= 1
    bits = np.frombuffer(result.predicted.correct, np.uint8)
    correct = np.unpackbits(bits, count=result.predicted.n_examples)
    assert result.predicted.n_examples == 32
    assert result.measured.test_score == pytest.approx(float(correct.mean()))
    assert result.measured.peak_memory_bytes > 0
    assert (result.measured.device, result.measured.precision, result.measured.backend) == ("cpu", "fp32", "default")
    if method == "zero-shot":
        assert (result.measured.samples, result.measured.adapter_params) == (0, 0)
    else:
        assert result.measured.samples == 3 * 58  # 64 training images, 6 of them for validation
        # AdaLoRA's triplets start near zero: 12 steps barely move the model; AutoLoRA starts anew half-way
        if method not in ("adalora", "autolora"):
            assert reports[-1]["train_loss"] < reports[0]["train_loss"]

    fresh = load_model(trial.model).module
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in weights(warm).items())
    assert trial.model in warm["models"]
    module = warm["models"][trial.model].module
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_warm_trials_equal_cold_ones_in_any_order(make_trial: MakeTrial, tmp_path: Path) -> None:
    trials = [make_trial(m) for m in ("lora", "full", "randlora", "lora")]
    warm: dict[str, Any] = {}
    together = [outcome(run(t, tmp_path / f"warm{i}", warm)) for i, t in enumerate(trials)]
    apart = [outcome(run(t, tmp_path / f"cold{i}")) for i, t in enumerate(trials)]
    assert together == apart
    assert together[0] == together[3]


def test_seeds_matter_one_by_one(make_trial: MakeTrial, tmp_path: Path) -> None:
    warm: dict[str, Any] = {}
    seeds = [{}, {"data_seed": 9}, {"init_seed": 9}, {"basis_seed": 9}]
    found = [outcome(run(make_trial("randlora", **s), tmp_path / str(i), warm)) for i, s in enumerate(seeds)]
    assert found[1] != found[0]
    assert found[3] != found[0]
    lora = [outcome(run(make_trial("lora", **s), tmp_path / f"l{i}", warm)) for i, s in enumerate(seeds)]
    assert lora[2] != lora[0]
    assert lora[3] == lora[0]  # LoRA has no frozen bases


def test_results_do_not_depend_on_the_global_generator(make_trial: MakeTrial, tmp_path: Path) -> None:
    trial = make_trial(options=(("dropout", 0.1),), targets=("mlp.c_fc",), train={"augment": "crop-flip"})
    trial = trial.model_copy(update={"capacities": tuple(c for c in trial.capacities if "c_fc" in c[0])})
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(outcome(run(trial, tmp_path / str(seed))))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["lora", "randlora", "lora-ga", "lora-plus", "adalora", "autolora", "full"])
@pytest.mark.parametrize("stop", [1, 2])
def test_resuming_is_exact(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stop: int
) -> None:
    monkeypatch.setattr(trainables.training.checkpoints, "CHECKPOINT_SHARE", 1e9)  # after every epoch
    trial = make_trial(method, train={"epochs": 4, "augment": "crop-flip"})
    whole = run(trial, tmp_path / "whole", keep=True)

    generator = run_trial(trial, warm={}, directory=tmp_path / "cut", keep=True)
    seen = [next(generator) for _ in range(stop)]
    generator.close()
    again = run(trial, tmp_path / "cut", keep=True)
    assert again[:stop] == seen  # finished epochs are told again, not trained again
    assert outcome(again) == outcome(whole)
    kept = [
        {p.name: load_file(str(p)) for p in sorted((tmp_path / d / "adapter").glob("*.safetensors"))}
        for d in ("whole", "cut")
    ]
    assert kept[0].keys() == kept[1].keys() != set()
    for file, tensors in kept[0].items():
        assert all(torch.equal(v, kept[1][file][k]) for k, v in tensors.items())


def test_resuming_with_dropout_is_exact(make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainables.training.checkpoints, "CHECKPOINT_SHARE", 1e9)
    trial = make_trial(options=(("dropout", 0.2),))
    trial = trial.model_copy(update={"capacities": tuple(c for c in trial.capacities if "mlp" in c[0])})
    generator = run_trial(trial, warm={}, directory=tmp_path / "cut")
    next(generator)
    generator.close()
    assert outcome(run(trial, tmp_path / "cut")) == outcome(run(trial, tmp_path / "whole"))


@pytest.mark.parametrize("method", ["linear-probe", "zero-shot"])
def test_a_frozen_tower_takes_fewer_images_where_memory_ran_out(
    make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    seen: list[int] = []
    plain = ClipClassifier.features

    def features(self: ClipClassifier, images: Tensor) -> Tensor:
        seen.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(ClipClassifier, "features", features)
    trial = make_trial(method, capacities=(), train={"eval_batch_size": 32})
    for micro, most in ((None, 32), (4, 8)):  # 4 of 16
        seen.clear()
        run(trial, tmp_path / str(micro), micro_batch_size=micro)
        assert max(seen) == most


def test_sparse_checkpoints_resume_from_an_earlier_epoch(make_trial: MakeTrial, tmp_path: Path) -> None:
    trial = make_trial(train={"epochs": 5})  # the default: quick epochs share a checkpoint
    generator = run_trial(trial, warm={}, directory=tmp_path / "cut")
    for _ in range(4):
        next(generator)
    generator.close()
    assert outcome(run(trial, tmp_path / "cut")) == outcome(run(trial, tmp_path / "whole"))


def test_damaged_or_foreign_checkpoints_start_over(make_trial: MakeTrial, tmp_path: Path) -> None:
    trial = make_trial()
    expected = outcome(run(trial, tmp_path / "whole"))
    run(make_trial(lr=1e-4), tmp_path / "other")
    assert outcome(run(trial, tmp_path / "other")) == expected
    for i, damage in enumerate((b"", b"{", b'{"sha256": "0", "index": "{}"}')):
        folder = tmp_path / f"damaged{i}"
        generator = run_trial(trial, warm={}, directory=folder)
        next(generator)
        generator.close()
        (folder / "checkpoint.json").write_bytes(damage)
        assert outcome(run(trial, folder)) == expected


@pytest.mark.parametrize("method", ["lora", "nola", "full"])
def test_abandoning_gives_the_model_back(make_trial: MakeTrial, tmp_path: Path, method: str) -> None:
    trial = make_trial(method)
    warm: dict[str, Any] = {}
    generator = run_trial(trial, warm=warm, directory=tmp_path)
    next(generator)
    generator.close()
    fresh = load_model(trial.model).module.state_dict()
    after = weights(warm)
    assert after.keys() == fresh.keys()
    assert all(torch.equal(v, fresh[k]) for k, v in after.items())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_diverged_trial_fails_and_the_next_is_unharmed(make_trial: MakeTrial, tmp_path: Path, method: str) -> None:
    warm: dict[str, Any] = {}
    with pytest.raises(TrialError, match=r"loss became (nan|inf) at step \d+ of 12 \(epoch \d\) with lr 1e\+30"):
        run(make_trial(method, lr=1e30), tmp_path / "a", warm)
    trial = make_trial(method)
    assert outcome(run(trial, tmp_path / "b", warm)) == outcome(run(trial, tmp_path / "c"))


def test_tune_reads_no_test_data(make_trial: MakeTrial, tmp_path: Path, colours: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes((colours / "train.parquet").read_bytes())
    (tmp_path / "data" / "test.parquet").write_bytes(b"not to be opened")
    trial = make_trial(stage="TUNE", dataset=f"parquet:{tmp_path / 'data'}")
    result = run(trial, tmp_path)[-1]["result"]
    assert result.measured.test_score is None and result.predicted == Predicted()
    with pytest.raises(DataError, match="damaged"):
        run(trial.model_copy(update={"stage": "CONFIRM"}), tmp_path / "confirm")


def test_the_lane_cannot_hand_out_test_images_in_tune(colours: Path) -> None:
    lane = LaneCache({}, torch.device("cpu"))
    name = f"parquet:{colours}"
    lane.pixels(lane.dataset(name, "CONFIRM"), "test", Recipe(16))  # kept warm by a CONFIRM trial
    with pytest.raises(SplitError, match="closed in stage TUNE"):
        lane.pixels(lane.dataset(name, "TUNE"), "test", Recipe(16))


def test_the_lane_keeps_the_newest_data_sets(tmp_path: Path) -> None:
    lane = LaneCache({}, torch.device("cpu"))
    names = [f"parquet:{write_colours(tmp_path / name)}" for name in "abc"]
    parts = []
    for name in names:
        data = lane.dataset(name, "TUNE")
        parts.append(weakref.ref(data.train))
        lane.pixels(data, "train", Recipe(16))
        lane.words(("tokens", name), functools.partial(list, [data.train]))
    gc.collect()
    assert parts[0]() is None
    assert lane.dataset(names[1], "TUNE").train is parts[1]() is not None


def test_accumulation_gives_the_gradient_of_the_whole_batch(make_trial: MakeTrial, tmp_path: Path) -> None:
    whole = run(make_trial("full", train={"global_batch_size": 20}), tmp_path / "a", keep=True)
    parts = run(make_trial("full", train={"global_batch_size": 20, "micro_batch_size": 6}), tmp_path / "b", keep=True)
    assert parts[-1]["train_loss"] == pytest.approx(whole[-1]["train_loss"], rel=1e-4)
    a, b = (load_file(str(tmp_path / d / "adapter" / "weights.safetensors")) for d in "ab")
    # Adam divides by the gradient's own size, which turns rounding in near-zero gradients into visible steps
    assert all((a[k] - b[k]).abs().mean() < 2e-4 for k in a)


def test_keep_writes_an_adapter_that_loads(make_trial: MakeTrial, tmp_path: Path) -> None:
    from randlora import load

    run(make_trial("randlora"), tmp_path, keep=True)
    model = load_model(make_trial().model).module
    expected = make_count("randlora", model)
    adapted = load(model, tmp_path / "adapter")
    assert adapted.count() == expected
    assert not list(tmp_path.glob("adapter/*.tmp"))
    run(make_trial("lora"), tmp_path / "none", keep=False)
    assert not (tmp_path / "none" / "adapter").exists()


def make_count(method: str, model: torch.nn.Module) -> int:
    from randlora.methods.registry import get_method
    from randlora.model.targets import resolve_targets

    shapes = resolve_targets(model, ["visual.*in_proj_weight", "visual.*c_fc.weight", "visual.*c_proj.weight"])
    return sum(get_method(method).count(s, 4) for s in shapes.values())


def test_paper_protocol_has_no_validation_score(make_trial: MakeTrial, tmp_path: Path) -> None:
    reports = run(make_trial(protocol="paper"), tmp_path)
    assert [r["val_score"] for r in reports] == [None] * 3
    assert reports[-1]["result"].measured.samples == 3 * 64


def test_unsupported_combinations(make_trial: MakeTrial, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="contrastive loss compares all images"):
        run(make_trial(adapt="both"), tmp_path, world=2)
    with pytest.raises(TrialError, match="takes 'vision' or 'both'"):
        run(make_trial(adapt="all"), tmp_path)
    with pytest.raises(TrialError, match="capacities is empty"):
        run(make_trial("lora", capacities=()), tmp_path)
    with pytest.raises(DataError, match="is no example at all"):
        run(make_trial(train_size=0.001), tmp_path)


def test_bf16_on_a_cpu(make_trial: MakeTrial, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        last = run(make_trial(train={"precision": precision, "epochs": 1}), tmp_path / precision)[-1]
        assert last["result"].measured.precision == precision
        losses[precision] = last["train_loss"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_data_is_read_and_decoded_once(make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm: dict[str, Any] = {}
    run(make_trial(), tmp_path / "a", warm)

    def refuse(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("trainables.tasks.lane_cache.load_dataset", refuse)
    monkeypatch.setattr("trainables.tasks.lane_cache.shared_model", refuse)
    monkeypatch.setattr("trainables.tasks.images.clip.class_embeddings", refuse)
    monkeypatch.setattr("trainables.data.images.pixels.Pixels._decode", refuse)
    run(make_trial(data_seed=5), tmp_path / "b", warm)


@pytest.mark.parametrize(
    ("adapt", "method", "losses"),
    [
        ("vision", "lora", (5.1225943, 3.9821193)),
        ("both", "randlora", (5.8367447, 3.8365296)),
    ],
)
def test_losses_of_fixed_seeds_stay_what_they_were(
    tmp_path: Path, adapt: str, method: str, losses: tuple[float, float]
) -> None:
    names = target_shapes("embedded:tiny-clip", None, adapt)
    trial = TrialConfig(
        stage="CONFIRM",
        cell_id="c",
        model="embedded:tiny-clip",
        adapt=adapt,
        targets=tuple(default_targets("embedded:tiny-clip")),
        dataset="embedded:fashion-mnist",
        train_size="4-shot",
        method=method,
        capacities=tuple((n, 4) for n in names),
        lr=5e-3,
        data_seed=1,
        init_seed=2,
        basis_seed=3,
        train=TrainSettings(
            epochs=2,
            global_batch_size=16,
            micro_batch_size=10 if adapt == "vision" else None,
            augment="crop-flip" if adapt == "both" else "none",
        ),
    )
    reports = run(trial, tmp_path)
    assert [r["train_loss"] for r in reports] == pytest.approx(losses, rel=1e-3)  # processors round differently


def test_embedded_model_learns_the_embedded_images(tmp_path: Path) -> None:
    module = load_model("embedded:tiny-clip").module
    names = [n for n, _ in module.named_parameters() if n.startswith("visual.") and n.endswith("in_proj_weight")]
    trial = TrialConfig(
        stage="CONFIRM",
        cell_id="c",
        model="embedded:tiny-clip",
        adapt="vision",
        targets=("attn.in_proj_weight",),
        dataset=embedded_datasets()[0],
        train_size="16-shot",
        method="lora",
        capacities=tuple((n, 8) for n in names),
        lr=1e-2,
        data_seed=0,
        init_seed=0,
        basis_seed=0,
        train=TrainSettings(epochs=8, global_batch_size=32),
    )
    reports = run(trial, tmp_path)
    assert reports[-1]["result"].measured.test_score > 0.3  # chance is 0.1, zero-shot about 0.15


def test_a_smaller_micro_batch_after_the_fact_changes_neither_the_trial_nor_its_gradient(
    make_trial: MakeTrial, tmp_path: Path
) -> None:
    trial = make_trial("randlora", train={"global_batch_size": 20})
    whole = run(trial, tmp_path / "a", keep=True)
    parts = run(trial, tmp_path / "b", keep=True, micro_batch_size=6)
    assert [r["train_loss"] for r in parts] == pytest.approx([r["train_loss"] for r in whole], rel=1e-4)
    one, other = (load_file(tmp_path / name / "adapter" / "adapter.safetensors") for name in "ab")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)


def test_whole_batches_are_not_split_behind_the_back_of_a_contrastive_loss(
    make_trial: MakeTrial, tmp_path: Path
) -> None:
    with pytest.raises(TrialError, match="contrastive loss"):
        run(make_trial("lora", adapt="both", train={"global_batch_size": 20}), tmp_path, micro_batch_size=6)
