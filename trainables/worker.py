"""One trial from its configuration to its result: what a lane runs on each of its workers."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import platform
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables.adapting import Trainables, adapted
from trainables.checkpoints import load_checkpoint, save_checkpoint
from trainables.clip import Autocast, BothTask, Task, VisionTask
from trainables.config import NO_TRAINING, TrialConfig
from trainables.data import Dataset, Splits, split
from trainables.data.batches import Normalise
from trainables.data.pixels import Pixels, Recipe
from trainables.errors import TrialError
from trainables.evaluate import accuracy, correctness, pack
from trainables.memory import PeakMemory
from trainables.models import LoadedModel, Preprocess
from trainables.training import Trainer
from trainables.warm import Warm, pick_device

Report = dict[str, Any]

ADAPTER_FOLDER = "adapter"
"""Where `keep` leaves the trained weights, inside the trial's own folder."""

CHECKPOINT_SHARE = 0.02
"""Checkpoints may take this share of the training time; epochs that are too quick share one."""


def run_trial(
    config: dict[str, Any],
    *,
    warm: dict[str, Any],
    directory: Path,
    keep: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Generator[Report, None, None]:
    """Train and evaluate one trial, reporting after every epoch.

    Closing the generator abandons the trial. However it ends, the base model in `warm` is as it was before.

    Args:
        config: `TrialConfig.model_dump()`.
        warm: the lane's dict, kept from trial to trial; empty at first.
        directory: the trial's own folder. A checkpoint found there is resumed, after its reports are given again.
        keep: leave the trained weights in `directory / "adapter"`.
        rank, world: this worker's number and how many share the trial (data-parallel, in one process group).

    Yields:
        One report per epoch: `epoch` (from 1), `done`, `train_loss` (mean over the epoch's images), `val_score`
        (None in protocol "paper"), `seconds` and `seconds_eval` (of this epoch), `samples` (images trained on so far),
        `samples_per_second` (of this epoch), `peak_memory_bytes`. The last has `done` True and `result`.

    Raises:
        TrialError: the loss is not finite, or the combination is not supported.
        TrainablesError: bad data, or a test split in stage TUNE.
    """
    started = time.perf_counter()
    trial = TrialConfig.model_validate(config)
    device = pick_device()
    memory = PeakMemory(device)
    lane = Warm(warm, device)
    _check(trial, world)
    loaded = lane.model(trial.model)
    preprocess = _check_model(trial, loaded)
    try:
        dataset = lane.dataset(trial.dataset, trial.stage)
        rows = split(dataset, trial.train_size, trial.data_seed, trial.stage, trial.protocol)
        precision, autocast = choose_precision(trial.train.precision, device)
        recipe = Recipe(preprocess.image_size, "bilinear" if preprocess.interpolation == "bilinear" else "bicubic")
        task: Task
        if trial.adapt == "both":
            task = BothTask(loaded.module, lane.class_tokens(loaded, dataset), autocast)
        else:
            classes = lane.class_embeddings(loaded, dataset, autocast, precision)
            task = VisionTask(loaded.module, classes, autocast)
        with adapted(loaded.module, trial) as trainables:
            run = _Run(
                trial=trial,
                lane=lane,
                dataset=dataset,
                rows=rows,
                recipe=recipe,
                normalise=Normalise(preprocess.mean, preprocess.std, device),
                module=loaded.module,
                task=task,
                trainables=trainables,
                directory=Path(directory),
                keep=keep,
                rank=rank,
                world=world,
                facts={"device": device_name(device), "precision": precision, "backend": choose_backend(device)},
            )
            yield from run.go(started, memory)
    finally:
        lane.check_model(trial.model)


@dataclass(kw_only=True, eq=False)
class _Run:
    """The trial's parts, once all are at hand."""

    trial: TrialConfig
    lane: Warm
    dataset: Dataset
    rows: Splits
    recipe: Recipe
    normalise: Normalise
    module: nn.Module
    task: Task
    trainables: Trainables
    directory: Path
    keep: bool
    rank: int
    world: int
    facts: Report

    @functools.cached_property
    def pixels(self) -> Pixels:
        """The pool that training and validation images come from."""
        return self.lane.pixels(self.dataset, "train", self.recipe)

    def go(self, started: float, memory: PeakMemory) -> Generator[Report, None, None]:
        """Resume, train, evaluate, report."""
        if self.trial.method == NO_TRAINING:
            yield self._zero_shot(started, memory)
            return
        trainer = Trainer(
            self.trial,
            module=self.module,
            task=self.task,
            trainables=self.trainables,
            pixels=self.pixels,
            rows=self.rows.train_idx,
            normalise=self.normalise,
            rank=self.rank,
            world=self.world,
        )
        history, finished = self._resume(trainer)
        setup = time.perf_counter() - started
        yield from history
        last_saved = time.perf_counter()
        cost = 0.0
        for epoch in range(finished + 1, self.trial.train.epochs + 1):
            begun = time.perf_counter()
            loss = trainer.epoch(epoch)
            trained = time.perf_counter()
            val = self._score(self.pixels, self.rows.val_idx)
            ended = time.perf_counter()
            count = trainer.samples_per_epoch
            report: Report = {
                "epoch": epoch,
                "done": False,
                "train_loss": loss,
                "val_score": None if val is None else accuracy(val),
                "seconds": trained - begun,
                "seconds_eval": ended - trained,
                "samples": count * epoch,
                "samples_per_second": count / (trained - begun),
                "peak_memory_bytes": memory.bytes(),
            }
            history.append(report)
            if epoch == self.trial.train.epochs:
                yield self._finish(history, setup, memory)
                return
            if self.rank == 0 and (cost == 0.0 or ended - last_saved >= cost / CHECKPOINT_SHARE):
                save_checkpoint(self.directory, self.trial.trial_id, epoch, history, trainer.state())
                last_saved = time.perf_counter()
                cost = last_saved - ended
            yield report

    def _resume(self, trainer: Trainer) -> tuple[list[Report], int]:
        """Reports of the finished epochs and their number; every worker must find the same checkpoint."""
        found = load_checkpoint(self.directory, self.trial.trial_id)
        epoch = 0 if found is None else found.epoch
        if self.world > 1:
            agreed = torch.tensor([epoch, -epoch], device=self.lane.device)
            torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MIN)
            if int(agreed[0]) != -int(agreed[1]):
                return [], 0  # the folder is not shared by all workers: start over together
        if found is None:
            return [], 0
        trainer.load_state(found.tensors)
        return list(found.history), epoch

    def _score(self, pixels: Pixels, rows: Tensor) -> Tensor | None:
        """Correctness per row; None for no rows."""
        if len(rows) == 0:
            return None
        self.module.eval()
        return correctness(
            self.task,
            pixels,
            rows,
            self.normalise,
            batch_size=self.trial.train.eval_batch_size,
            rank=self.rank,
            world=self.world,
        )

    def _zero_shot(self, started: float, memory: PeakMemory) -> Report:
        setup = time.perf_counter() - started
        begun = time.perf_counter()
        val = self._score(self.pixels, self.rows.val_idx)
        report: Report = {
            "epoch": 1,
            "done": False,
            "train_loss": None,
            "val_score": None if val is None else accuracy(val),
            "seconds": 0.0,
            "seconds_eval": time.perf_counter() - begun,
            "samples": 0,
            "samples_per_second": None,
            "peak_memory_bytes": memory.bytes(),
        }
        return self._finish([report], setup, memory)

    def _finish(self, history: list[Report], setup: float, memory: PeakMemory) -> Report:
        """The last report, with the result: in CONFIRM the test split is read, here and nowhere else."""
        last = history[-1]
        seconds_eval = sum(r["seconds_eval"] for r in history)
        tested: Report = {"test_score": None, "correct": None, "n_examples": None, "examples_hash": None}
        if self.trial.stage == "CONFIRM":
            begun = time.perf_counter()
            test = self.lane.pixels(self.dataset, "test", self.recipe)
            rows = self.rows.test_idx
            correct = self._score(test, rows)
            assert correct is not None
            tested = {
                "test_score": accuracy(correct),
                "correct": pack(correct),
                "n_examples": len(correct),
                "examples_hash": test.split.examples_hash(rows),
            }
            seconds_eval += time.perf_counter() - begun
        if self.keep and self.rank == 0:
            self.trainables.save(self.directory / ADAPTER_FOLDER)
        result = {
            "val_score": last["val_score"],
            **tested,
            "adapter_params": self.trainables.adapter_params,
            "head_params": 0,
            "stored_bytes": self.trainables.stored_bytes,
            **self.facts,
            "seconds_train": sum(r["seconds"] for r in history),
            "seconds_eval": seconds_eval,
            "seconds_setup": setup,
            "samples": last["samples"],
            "peak_memory_bytes": max(memory.bytes(), *(r["peak_memory_bytes"] for r in history)),
            "versions": versions(),
        }
        return last | {"done": True, "result": result}


def _check(trial: TrialConfig, world: int) -> None:
    if trial.adapt == "both" and world > 1:
        raise TrialError(
            f"adapt = 'both' on {world} workers: the contrastive loss compares all images of a batch, which are on "
            "different workers; set resources.workers = 1 or adapt = 'vision'"
        )
    if trial.train.global_batch_size < world:
        raise TrialError(f"train.global_batch_size {trial.train.global_batch_size} is less than the {world} workers")


def _check_model(trial: TrialConfig, loaded: LoadedModel) -> Preprocess:
    if loaded.kind != "clip" or loaded.preprocess is None or loaded.tokenizer is None:
        raise TrialError(
            f"model {trial.model!r} is of kind {loaded.kind!r}, and only CLIP models (kind 'clip') can be trained; "
            "choose an open_clip: model or the embedded one"
        )
    if trial.adapt == "all":
        raise TrialError("adapt = 'all' is for models of one tower; a CLIP model takes 'vision' or 'both'")
    return loaded.preprocess


def choose_precision(asked: str, device: torch.device) -> tuple[str, Autocast]:
    """("fp32" or "bf16", its autocast context). Raises TrialError for bf16 on a CUDA device without it."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if asked == "bf16" and device.type == "cuda" and not has_bf16:
        raise TrialError(f"train.precision 'bf16': {torch.cuda.get_device_name(device)} has none; use 'fp32' or 'auto'")
    if asked == "bf16" or (asked == "auto" and has_bf16):

        def bf16() -> AbstractContextManager[Any]:
            return torch.autocast(device.type, dtype=torch.bfloat16)

        return "bf16", bf16
    return "fp32", contextlib.nullcontext


def choose_backend(device: torch.device) -> str:
    """The float32 matrix back end of this worker, the same for every method: torch's default, and nothing is set."""
    del device
    return "default"


def device_name(device: torch.device) -> str:
    """The accelerator's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def _versions() -> str:
    packages = ("torch", "torchvision", "open_clip_torch", "randlora-sweeps", "numpy", "pillow")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return json.dumps(found)


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found: dict[str, str] = json.loads(_versions())
    return found
