"""Compare the training loop's samples per second with plain PyTorch and PEFT, and measure how long it waits for data.

    python benchmarks/training.py            # 2,048 images and 512 texts an epoch, 9 rounds
    python benchmarks/training.py --quick    # 512 images and 128 texts, 5 rounds

Two models are trained: the embedded CLIP's image tower on the embedded Fashion-MNIST, and a small Llama on made-up
questions. The script makes the Llama with random weights, and its tokenizer. Both sides train the same weights by LoRA
of one rank. They see the same batches in the same order, in float32, with clipped gradients, a cosine schedule and
fused AdamW. The script first checks that both have the same loss on the first batch and the same number of trained
parameters. The plain loop does as little as possible: its images are decoded and in memory, its texts are tokenised.
For the Llama, transformers' Trainer is a third side. It has the same padded batches, and its time is counted from the
start of an epoch to its end.

In each round every side trains one epoch, in shuffled order. The script prints the median of the ratios inside rounds,
in process CPU time on one thread. The share of waiting is in wall time. It counts the task's batches, weights and
draws, and the part of its loss before the model is called.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import RETAIN, restart_with, summary
from hf_trainer import HfTrainer
from small_texts import make_llama
from torch.nn.functional import cross_entropy, normalize

from trainables.config import TrainSettings, TrialConfig
from trainables.data.text.batches import padded
from trainables.models.loading import load_model
from trainables.models.shapes import target_shapes
from trainables.runtime import choose_precision
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts
from trainables.training.adapting import adapted
from trainables.training.trainer import Trainer, Work

RANK, RATE = 8, 1e-3
CPU = torch.device("cpu")
Loss = Callable[[torch.Tensor], torch.Tensor]


def trial_of(model: str, dataset: str, targets: tuple[str, ...], adapt: Any, share: float, batch: int) -> TrialConfig:
    """Return a trial with LoRA of rank RANK on every target.

    It declares more epochs than are run, so that the learning rate does not reach its minimum.
    """
    names = target_shapes(model, targets, adapt)
    return TrialConfig(
        stage="TUNE", cell_id="benchmark", model=model, adapt=adapt, targets=targets, dataset=dataset, train_size=share,
        method="lora", capacities=tuple((name, RANK) for name in names), lr=RATE, data_seed=1, init_seed=2,
        basis_seed=3, train=TrainSettings(epochs=100, global_batch_size=batch, precision="fp32"),
    )  # fmt: skip


def with_peft(model: Any, trial: TrialConfig) -> Any:
    """Attach PEFT's LoRA to the trial's weights, in place. Only LoRA trains."""
    import peft

    modules = [name.removesuffix(".weight") for name, _ in trial.capacities]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules))


class Waiting:
    """Counts the seconds of an epoch that pass in the task's data calls, and in its loss before `tower` is called."""

    def __init__(self, task: Any, tower: Any) -> None:
        self.seconds, self._mark = 0.0, 0.0
        for name in ("batches", "weight", "draw"):
            setattr(task, name, self._timed(getattr(task, name)))
        task.loss_sum = self._marked(task.loss_sum)
        tower.register_forward_pre_hook(self._reached)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            self.seconds += time.perf_counter() - start
            return result

        return timed

    def _marked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*arguments: Any) -> Any:
            self._mark = time.perf_counter()
            return call(*arguments)

        return marked

    def _reached(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._mark


class Ours:
    """Trains a trial's task with the project's trainer."""

    def __init__(self, trial: TrialConfig, stack: contextlib.ExitStack) -> None:
        lane = LaneCache({}, CPU)
        loaded = lane.model(trial.model)
        precision, autocast = choose_precision(trial.train.precision, CPU)
        self.task: Any = make_task(Parts(trial=trial, lane=lane, loaded=loaded, autocast=autocast, precision=precision))
        trainables = stack.enter_context(adapted(loaded.module, trial))
        self.parameters = list(trainables.parameters.values())
        work = Work(trial=trial, module=loaded.module, task=self.task, trainables=trainables, device=CPU)
        self._trainer = Trainer(work)
        self.samples = self._trainer.samples_per_epoch
        self.waiting = Waiting(self.task, loaded.module.visual if loaded.kind == "clip" else loaded.module)

    def first_loss(self) -> float:
        with torch.no_grad():
            return float(self.task.loss_sum(batch := self.task.batches(1)[0], None)) / self.task.weight(batch)

    def epoch(self, number: int) -> float:
        return self._trainer.epoch(number)


class Plain:
    """Trains a model with PEFT's LoRA in a loop of ten lines. `loss` returns the mean loss of a batch of rows."""

    def __init__(self, model: Any, loss: Loss, batches: Callable[[int], list[torch.Tensor]], total: int) -> None:
        self._model, self._loss, self._batches = model, loss, batches
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.0, fused=True)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimiser, total, eta_min=0.01 * RATE)

    def first_loss(self) -> float:
        with torch.no_grad():
            return float(self._loss(self._batches(1)[0]))

    def epoch(self, number: int) -> float:
        self._model.train()
        total = 0.0
        for batch in self._batches(number):
            loss = self._loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self._optimiser.step()
            self._schedule.step()
            self._optimiser.zero_grad(set_to_none=True)
            total += loss.item()
        return total


def clip_loss(trial: TrialConfig, ours: Ours) -> tuple[Any, Loss]:
    """Return the CLIP with PEFT's LoRA, and its image tower's loss against the task's fixed class embeddings."""
    rows = torch.cat(list(ours.task.batches(1)))
    pixels, labels = ours.task._pixels.rows(rows), ours.task.inputs(rows, None)[1]
    how = load_model(trial.model).preprocess
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (how.mean, how.std))
    place = {row: i for i, row in enumerate(rows.tolist())}
    head = ours.task.classifier.classify(torch.eye(128))
    model = with_peft(load_model(trial.model).module, trial)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        at = torch.tensor([place[row] for row in batch.tolist()])
        images = (pixels[at] / 255.0 - mean) / std
        return cross_entropy(normalize(model.base_model.model.encode_image(images), dim=-1) @ head, labels[at])

    return model, loss


def llama_batches(ours: Ours) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """Return a function from rows to the tensors that transformers' models take. Labels of -100 are not learned."""
    texts, fill = ours.task._train, ours.task._encoder.pad
    ids, labels = {}, {}
    for row in torch.cat(list(ours.task.batches(1))).tolist():
        ids[row] = torch.cat([texts[row].prompt, texts[row].response])
        labels[row] = torch.cat([torch.full_like(texts[row].prompt, -100), texts[row].response])

    def made(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = batch.tolist()
        return {
            "input_ids": padded([ids[row] for row in rows], fill),
            "attention_mask": padded([torch.ones_like(ids[row]) for row in rows], 0),
            "labels": padded([labels[row] for row in rows], -100),
        }

    return made


def llama_loss(trial: TrialConfig, ours: Ours) -> tuple[Any, Loss]:
    """Return the Llama with PEFT's LoRA, and the loss that its forward pass computes."""
    model, batch_of = with_peft(load_model(trial.model).module, trial), llama_batches(ours)
    return model, lambda batch: model(**batch_of(batch), use_cache=False).loss


def llama_trainer(trial: TrialConfig, ours: Ours, folder: Path) -> HfTrainer:
    """Return transformers' Trainer on a separate model."""
    model, batch_of = with_peft(load_model(trial.model).module, trial), llama_batches(ours)
    model.config.use_cache = False
    return HfTrainer(model, lambda epoch: [batch_of(b) for b in ours.task.batches(epoch)], RATE, folder)


def compare(
    name: str,
    trial: TrialConfig,
    make: Callable[..., tuple[Any, Loss]],
    rounds: int,
    third: Callable[..., HfTrainer] | None = None,
) -> dict[str, Any]:
    """Time one epoch of all sides in rounds, in shuffled order. The first round warms up and is not counted."""
    order, shares = ["ours", "plain", *(["trainer"] if third else [])], []
    spent: dict[str, list[float]] = {side: [] for side in order}
    with contextlib.ExitStack() as stack:
        ours = Ours(trial, stack)
        batches = ours.task.batches
        plain = Plain(*make(trial, ours), lambda epoch: list(batches(epoch)), 100 * len(batches(1)))
        trainer = third(trial, ours) if third else None
        losses = (ours.first_loss(), plain.first_loss())
        sizes = [sum(p.numel() for p in side.parameters) for side in (ours, plain)]
        if not math.isclose(*losses, rel_tol=1e-3) or sizes[0] != sizes[1]:
            raise SystemExit(f"{name}: the sides differ: first losses {losses}, trained parameters {sizes}")
        shuffle = random.Random(0)
        for number in range(1, rounds + 2):
            shuffle.shuffle(order)
            for side in order:
                if side == "trainer" and trainer is not None:
                    spent[side].append(trainer.epoch(number))
                    continue
                ours.waiting.seconds, wall, start = 0.0, time.perf_counter(), time.process_time()
                (ours if side == "ours" else plain).epoch(number)
                spent[side].append(time.process_time() - start)
                if side == "ours":
                    shares.append(ours.waiting.seconds / (time.perf_counter() - wall))
    spent = {side: seconds[1:] for side, seconds in spent.items()}
    ratios = {
        side: summary([a / b for a, b in zip(seconds, spent["ours"], strict=True)])
        for side, seconds in spent.items()
        if side != "ours"
    }
    rates = {side: ours.samples / statistics.median(seconds) for side, seconds in spent.items()}
    results = {"samples": ours.samples, "trained": sizes[0], "ratio": ratios["plain"], "waiting": summary(shares[1:]),
               "per_second": rates}  # fmt: skip
    ratio, wait, rate = results["ratio"], results["waiting"], results["per_second"]
    print(f"{name}: {ours.samples} samples an epoch, {sizes[0]:,} trained parameters, kept rounds: {rounds}")
    print(f"  samples/s, ours / plain PEFT   {ratio['median']:.2f}  [{ratio['low']:.2f}, {ratio['high']:.2f}]")
    if "trainer" in ratios:
        other = results["trainer_ratio"] = ratios["trainer"]
        print(f"  samples/s, ours / Trainer      {other['median']:.2f}  [{other['low']:.2f}, {other['high']:.2f}]")
    print(f"  samples/s                      {rate['ours']:.0f} / {rate['plain']:.0f}")
    print(f"  waiting for data               {wait['median']:.2%}  [{wait['low']:.2%}, {wait['high']:.2%}]", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter epochs, 5 rounds")
    parser.add_argument("--rounds", type=int, help="kept rounds (9; 5 with --quick)")
    parser.add_argument("--images", type=int, help="images an epoch (2,048; 512 with --quick)")
    parser.add_argument("--texts", type=int, help="approximate number of texts an epoch (512; 128 with --quick)")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    options = parser.parse_args()
    restart_with({**RETAIN, "TOKENIZERS_PARALLELISM": "false"})
    torch.set_num_threads(1)
    rounds = options.rounds or (5 if options.quick else 9)
    images, texts = options.images or (512 if options.quick else 2048), options.texts or (128 if options.quick else 512)
    targets = ("mlp.c_fc.weight", "mlp.c_proj.weight")
    lane = LaneCache({}, CPU)
    share = images / (0.9 * len(lane.dataset("embedded:fashion-mnist", "TUNE").train))
    clip = trial_of("embedded:tiny-clip", "embedded:fashion-mnist", targets, "vision", min(1.0, share), 64)
    results = {
        "torch": torch.__version__,
        "rank": RANK,
        "clip": compare("CLIP, Fashion-MNIST", clip, clip_loss, rounds),
    }
    with tempfile.TemporaryDirectory() as folder:
        model, rows = make_llama(Path(folder), 128 if options.quick else 256, 4, texts)
        projections = ("q_proj.weight", "v_proj.weight", "up_proj.weight", "down_proj.weight")
        llama = trial_of(model, rows, projections, "all", 1.0, 16)
        third = functools.partial(llama_trainer, folder=Path(folder) / "trainer")
        results["llama"] = compare("Llama, instructions", llama, llama_loss, rounds, third)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
