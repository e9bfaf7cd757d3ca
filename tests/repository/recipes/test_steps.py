"""Every recipe starts: two steps of its first trials, as it stands but for a tiny model, on stubs of the real shape.

Image sets have the paper's classes, images and splits (Table 7); text sets their rows, up to `MOST`. Budgets are those
that a model of 32 columns can have; the rest of a file is used as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sweeps.plan.plan import Plan
from sweeps.spec.cell import Cell
from sweeps.spec.spec import SweepSpec
from tests.support import ROOT
from tests.trainables.tiny_images import save_dinov2
from tests.trainables.tiny_language import save_model, write_e2e, write_rows
from tests.trainables.tiny_sentences import save_encoder, write_sst2, write_stsb
from trainables.config import NO_TRAINING, TrialConfig, shots
from trainables.data import facts
from trainables.data.images import registered
from trainables.data.images.dataset import Dataset, ImageSplit, Words, assemble
from trainables.data.registry import load_text_dataset
from trainables.data.splits import kept_rows
from trainables.data.templates import DEFAULT_PROMPT
from trainables.data.text import registry as text_sets
from trainables.data.text.dataset import TextDataset, TextSplit
from trainables.runtime import choose_precision
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts
from trainables.training.adapting import adapted
from trainables.training.trainer import Trainer, Work

FOLDER = ROOT / "examples" / "paper"
NAMES = sorted(p.stem for p in FOLDER.glob("*.toml"))
WHOLE, QUICK = "fig3-clip-b32", "cost-clip-b32"
"""The file whose 22 sets are all tried at all 6 sizes; the one that is quick."""
MOST = 15_000
"""Rows of a text set's stub: the 170,000 of the largest would be tokenised for nothing else."""
CPU = torch.device("cpu")
CAPACITIES = {"vera": 32, "nola": 64}
"""In place of the paper's, which weights of 32 columns do not have; of all others the rank 3."""


def image_stub(_: facts.ImageSource, name: str, info: facts.ImageSet) -> Dataset:
    """A data set of the real classes, sizes and splits; every image is grey."""
    sizes, names = info.sizes, [f"class {i}" for i in range(info.classes)]
    grey = Image.new("RGB", (8, 8), (128, 128, 128))

    def part(which: str, n: int) -> ImageSplit:
        return ImageSplit(name, which, torch.arange(n) % len(names), lambda _: grey.copy())

    own = not info.split.endswith("seed 0") or name == "eurosat"
    train, val = (part("train", sizes.train), part("train", sizes.val)) if own else (part("train", sizes.pool), None)
    words = Words(info.templates, DEFAULT_PROMPT)
    return assemble(name, names, train, lambda: part("test", sizes.test), words, val=val)


def tiled(split: TextSplit, n: int) -> TextSplit:
    """The rows of a small split over and over, `n` in all."""
    where = torch.arange(n) % len(split)
    rows = [split.rows[i] for i in where.tolist()]
    return dataclasses.replace(split, rows=rows, labels=split.labels[where], group_of=split.group_of[where], starts=())


def text_stub(source: facts.TextSource, name: str, place: Path, known: dict[str, int | None]) -> TextDataset:
    """The small set of its kind, as large as the real one, whose number of training rows is in `known`."""
    small = {"meanings": "e2e:restaurants", "sentences": "glue:STS-B" if name == "glue-stsb" else "glue:SST-2"}
    form, _, folder = small.get(source.kind, "json:rows").partition(":")
    found = load_text_dataset(f"{form}:{place / folder}")
    train = tiled(found.train, min(known[name] or MOST, MOST))
    return dataclasses.replace(
        found, name=name, train=train, val_rows=None, open_test=lambda: tiled(found.at("CONFIRM").test, 500)
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tiny models and texts, and stubs of all registered sets in place of the real ones."""
    folder = tmp_path_factory.mktemp("steps")
    save_dinov2(folder / "dinov2")
    save_encoder(folder / "roberta")
    for family in ("llama", "phi3", "qwen2", "gpt2"):
        save_model(folder / family, family)
    write_rows(folder / "rows")
    write_sst2(folder / "SST-2")
    write_stsb(folder / "STS-B")
    write_e2e(folder / "restaurants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registered, "load_from", image_stub)
        known = {name: info.train for name, info in facts.TEXT_SETS.items()}
        patch.setattr(text_sets, "load_from", functools.partial(text_stub, place=folder, known=known))
        for name, info in list(facts.TEXT_SETS.items()):
            patch.setitem(facts.TEXT_SETS, name, info.model_copy(update={"train": None, "test": None}))
        yield folder


@pytest.fixture(scope="module")
def lanes() -> Callable[[str], LaneCache]:
    """A lane for each model, which keeps model, data and words; no image is decoded before it is asked for."""
    return functools.cache(lambda _: LaneCache({}, CPU, keep_bytes=0))


def planned(name: str, place: Path, form: str) -> Plan:
    """The recipe with a tiny model, and budgets that this can have."""
    plain = SweepSpec.load(FOLDER / f"{name}.toml")
    given, rank = [], 2
    for word, model in (("llama", "llama"), ("phi", "phi3"), ("qwen", "qwen2"), ("gpt2", "gpt2"), ("roberta", "")):
        if word in plain.model.id.lower():
            given.append(f'model.id="local:{place / (model or word)}"')
    if "dinov2" in plain.model.id:
        given += [f'model.id="local:{place / "dinov2"}"', "model.image_size=16"]
    if not given:
        given, rank = ['model.id="embedded:tiny-clip"'], 4
    given += [f"budgets.lora_rank=[{rank}]"]
    given += ["train.global_batch_size=8"] if name == WHOLE else []  # 132 trials
    given += ["train.max_tokens=64"] if "roberta" in plain.model.id else []
    for method, section in plain.methods.items():
        if section.budgets is not None:
            given.append(f'methods.{method}.budgets=["lora-{rank}"]')
        if section.capacity is not None or plain.base(method) in CAPACITIES:
            given.append(f"methods.{method}.capacity={CAPACITIES.get(plain.base(method), 3)}")
    return Plan.from_spec(SweepSpec.load(FOLDER / f"{name}.toml", [*given, *([form] if form else [])]))


def chosen(plan: Plan, *, whole: bool) -> list[Cell]:
    """Cells with every method, every data set and every size; all pairs of the latter where `whole`."""
    spec = plan.spec
    assert all(cell.feasible for cell in plan.cells)
    cells = {(c.method, c.dataset, c.train_size): c for c in plan.cells}
    sizes = spec.data.train_size
    pairs = list(itertools.product(spec.data.datasets, sizes))
    if not whole:
        most = max(len(spec.data.datasets), len(sizes))
        pairs = [(spec.data.datasets[i % len(spec.data.datasets)], sizes[i % len(sizes)]) for i in range(most)]
    methods = list(spec.methods)
    return [cells[methods[i % len(methods)], *pairs[i % len(pairs)]] for i in range(max(len(pairs), len(methods)))]


def two_steps(trial: TrialConfig, lane: LaneCache) -> tuple[int, int]:
    """Train two steps of a trial, which change what trains; the rows that it trains and validates on."""
    short = trial.train.model_copy(update={"epochs": 1})  # at whose end selected weights are settled on
    trial = trial.model_copy(update={"train": short})
    loaded = lane.model(trial.model, trial.train.base_weights)
    precision, autocast = choose_precision(trial.train.precision, CPU)
    task: Any = make_task(Parts(trial=trial, lane=lane, loaded=loaded, autocast=autocast, precision=precision))
    rows = len(task.rows("train")), len(task.rows("val"))
    if trial.method == NO_TRAINING:
        return rows
    first = task.batches(1)[:2]
    task.batches = lambda _: first
    with adapted(loaded.module, trial) as trainables:
        trainer = Trainer(Work(trial=trial, module=loaded.module, task=task, trainables=trainables, device=CPU))
        head = {} if task.head is None else dict(task.head.named_parameters())
        before: dict[str, Tensor] = {n: p.detach().clone() for n, p in (trainables.parameters | head).items()}
        assert torch.isfinite(torch.tensor(trainer.epoch(1)))
        assert any(not torch.equal(p, before[n]) for n, p in (trainables.parameters | head).items())
        if trial.train.select == "best":
            assert trainer.settle()
    return rows


def expected(cell: Cell) -> tuple[int, int]:
    """Rows that a cell trains and validates on, by Table 7 and the rules of `trainables.data.splits`."""
    info, k = facts.IMAGE_SETS[cell.dataset], shots(cell.train_size)
    own = not info.split.endswith("seed 0") or cell.dataset == "eurosat"
    paper = cell.protocol == "paper"
    if k is not None:
        return info.classes * min(k, 10 if cell.dataset == "flowers102" else k), 0 if paper else info.classes * min(
            k, 4
        )
    n = info.sizes.pool if paper and not own else info.sizes.train
    return round(float(cell.train_size) * n), 0 if paper else info.sizes.val


CASES = [
    pytest.param(name, form, id=f"{name}-{form or 'as it is'}", marks=() if name == QUICK else pytest.mark.slow)
    for name in NAMES
    for form in (("",) if name.startswith("cost") else ("", "protocol=paper"))
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_recipe_starts(name: str, form: str, place: Path, lanes: Callable[[str], LaneCache]) -> None:
    plan = planned(name, place, form)
    paper = plan.spec.protocol == "paper"
    for cell in chosen(plan, whole=name == WHOLE):
        stage = "CONFIRM" if paper or cell.lr_centre is None else "TUNE"
        trial = cell.trial(stage, cell.lr_centre, (0, 0, 0), plan.spec.train, () if paper else cell.published)
        train, val = two_steps(trial, lanes(trial.model))
        if cell.dataset in facts.IMAGE_SETS:
            assert (train, val) == expected(cell), cell.label
        else:
            assert train > 0 and bool(val) is (not paper or bool(kept_rows(trial.train, trial.evaluate))), cell.label
