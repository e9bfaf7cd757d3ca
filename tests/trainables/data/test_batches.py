"""Batches and augmentation: complete, seeded, and of the stated law."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from trainables.config import TrainSettings, TrialConfig
from trainables.data.images.batches import Normalise, apply_plan, crop_flip_plan, epoch_batches, samples_per_epoch
from trainables.data.text.batches import bucketed_batches, length_batches


def text_trial(train: TrainSettings) -> TrialConfig:
    return TrialConfig(
        stage="TUNE", cell_id="c", model="m", adapt="all", targets=("w",), dataset="d", train_size=1.0, method="lora",
        lr=1e-3, data_seed=3, init_seed=0, basis_seed=0, train=train,
    )  # fmt: skip


def test_an_epoch_has_every_row_once() -> None:
    rows = torch.arange(100, 150)
    batches = epoch_batches(rows, 16, 0, data_seed=3, epoch=1)
    assert [len(b) for b in batches] == [16, 16, 16, 2]
    assert sorted(torch.cat(batches).tolist()) == rows.tolist()


def test_order_follows_seed_and_epoch_alone() -> None:
    rows = torch.arange(50)
    order = {(s, e): torch.cat(epoch_batches(rows, 16, 0, s, e)) for s in (1, 2) for e in (1, 2)}
    torch.manual_seed(99)
    assert torch.equal(order[1, 2], torch.cat(epoch_batches(rows, 16, 0, 1, 2)))
    assert len({tuple(o.tolist()) for o in order.values()}) == 4


def test_small_sets_are_repeated() -> None:
    batches = epoch_batches(torch.arange(5), 4, 10, data_seed=0, epoch=1)
    assert [len(b) for b in batches] == [4] * 10
    counts = torch.bincount(torch.cat(batches))
    assert counts.tolist() == [8] * 5
    assert samples_per_epoch(5, 4, 10) == 40 and samples_per_epoch(5, 4, 2) == 5
    assert samples_per_epoch(100, 4, 10) == 100


def test_crops_have_the_stated_law() -> None:
    plan = crop_flip_plan(4000, torch.Generator().manual_seed(0))
    width, height = plan[:, 0, 0].abs(), plan[:, 1, 1]
    assert (width <= 1).all()
    assert (height <= 1).all()
    area, aspect = width * height, width / height
    assert area.min() >= 0.5 - 1e-6
    assert area.max() <= 1 + 1e-6
    assert aspect.min() >= 3 / 4 - 1e-6
    assert aspect.max() <= 4 / 3 + 1e-6
    assert (plan[:, 0, 2].abs() <= 1 - width + 1e-6).all()
    assert abs(float((plan[:, 0, 0] < 0).float().mean()) - 0.5) < 0.05
    torch.manual_seed(0)  # torchvision draws from the global generator
    theirs = [v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(100, (0.5, 1.0)), [torch.zeros(3, 100, 100)])
              for _ in range(1500)]  # fmt: skip
    their_area = torch.tensor([p["height"] * p["width"] / 1e4 for p in theirs]).mean()
    assert abs(float(area.mean() - their_area)) < 0.02


@pytest.mark.parametrize("aspect", [0.6, 1.5, 3.0, 5.0])
def test_crops_of_the_original_have_torchvisions_law(aspect: float) -> None:
    """Of images that are no squares: aspect in pixels, and the middle where no try fits (nearly always at 5)."""
    plan = crop_flip_plan(4000, torch.Generator().manual_seed(0), torch.full((4000,), aspect))
    torch.manual_seed(0)  # torchvision draws from the global generator
    side, image = 400, torch.zeros(3, 400, round(400 * aspect))
    crop = v2.RandomResizedCrop(100, (0.5, 1.0))
    theirs = [v2.RandomResizedCrop.make_params(crop, [image]) for _ in range(1500)]
    for mine, key, whole in ((plan[:, 0, 0].abs(), "width", side * aspect), (plan[:, 1, 1], "height", side)):
        shares = torch.tensor([p[key] / whole for p in theirs])
        assert abs(float(mine.mean() - shares.mean())) < 0.02
        assert abs(float(mine.std() - shares.std())) < 0.02
    centres = torch.tensor([(p["left"] + p["width"] / 2) / (side * aspect) for p in theirs])
    assert abs(float(plan[:, 0, 2].std() - 2 * centres.std())) < 0.03


def test_whole_image_and_mirror() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    plan = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]], [[-1.0, 0, 0], [0, 1.0, 0]]])
    out = apply_plan(images, plan)
    assert torch.allclose(out[0], images[0].float(), atol=1e-3)
    assert torch.allclose(out[1], images[1].flip(-1).float(), atol=1e-3)


def test_normalise_is_torchvisions() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    ours = Normalise(mean, std, torch.device("cpu"))(images)
    torch.testing.assert_close(ours, v2.functional.normalize(images.float() / 255, list(mean), list(std)))


@pytest.mark.parametrize("epoch", [1, 2])
def test_plan_is_a_function_of_its_generator(epoch: int) -> None:
    a, b = (crop_flip_plan(3, torch.Generator().manual_seed(epoch)) for _ in range(2))
    assert torch.equal(a, b)


def test_sampling_with_replacement() -> None:
    rows = torch.arange(100, 164)
    batches = epoch_batches(rows, 16, 10, data_seed=0, epoch=1, replacement=True)
    assert [len(b) for b in batches] == [16] * 10
    drawn = torch.cat(epoch_batches(rows, 16, 0, data_seed=0, epoch=1, replacement=True))
    assert len(drawn) == 64
    assert 30 < len(drawn.unique()) < 55  # 64 (1 - 1/e) = 40 of 64 are expected
    assert ((drawn >= 100) & (drawn < 164)).all()
    assert not torch.equal(drawn, torch.cat(epoch_batches(rows, 16, 0, data_seed=0, epoch=2, replacement=True)))


@pytest.mark.parametrize(
    "most_rows, enough, sizes",
    [
        (100, 1, [1, 2, 6, 1]),  # none is padded by more than a quarter
        (100, 70, [1, 2, 7]),  # 10 tokens times seven rows are just enough
        (100, 1000, [2, 3, 5]),
        (2, 1, [1, 2, 2, 2, 2, 1]),
    ],
)
def test_texts_of_an_evaluation_are_padded_little(most_rows: int, enough: int, sizes: list[int]) -> None:
    lengths = [8, 30, 50, 7, 8, 30, 8, 10, 10, 10]
    batches = length_batches(lengths, most_rows, most_tokens=100, enough=enough)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert [lengths[batch[0]] for batch in batches] == [max(lengths[i] for i in batch) for batch in batches]


class Conversions(TorchDispatchMode):
    """Where and what tensors are made by `to`, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ == "_to_copy":
            self.found.append((made.device.type, made.dtype))
        return made


def test_images_travel_to_a_device_as_they_are() -> None:
    normalise = Normalise((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), torch.device("meta"))
    with Conversions() as conversions:
        assert normalise(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).dtype == torch.float32
    assert conversions.found == [("meta", torch.uint8), ("meta", torch.float32)]


@pytest.mark.parametrize("replacement", [False, True])
def test_a_seed_gives_one_sequence_of_rows_at_every_batch_size(replacement: bool) -> None:
    rows = torch.arange(100, 150)
    for epoch in (1, 2):
        found = [
            torch.cat(epoch_batches(rows, size, 0, data_seed=3, epoch=epoch, replacement=replacement)).tolist()
            for size in (1, 7, 16, 50)
        ]
        assert len(found[0]) == 50 and all(each == found[0] for each in found)


def test_a_seed_gives_one_sequence_of_texts_at_every_batch_size() -> None:
    rows = torch.arange(300)
    lengths = torch.randint(5, 90, (300,), generator=torch.Generator().manual_seed(0)).tolist()

    def batches(size: int, group: int | None) -> list[list[int]]:
        trial = text_trial(TrainSettings(global_batch_size=size, length_group=group))
        return [batch.tolist() for batch in bucketed_batches(rows, lengths.__getitem__, trial, epoch=1)]

    alike = {size: batches(size, 32) for size in (4, 16, 24, 32)}
    sequences = [[row for batch in found for row in batch] for found in alike.values()]
    assert all(sequence == sequences[0] for sequence in sequences)
    assert sorted(sequences[0]) == rows.tolist()
    assert [len(batch) for batch in alike[16]] == [16] * 18 + [12]
    assert alike[32] == batches(32, None)  # a group is a batch unless it is given
    padding = {
        group: sum(max(lengths[row] for row in batch) * len(batch) for batch in batches(8, group)) for group in (1, 32)
    }
    assert padding[32] < 0.8 * padding[1]  # batches are still of texts of like length
