"""One trial from its configuration to its result: what a lane runs on each of its workers."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from trainables.config import FULL_METHODS, NO_TRAINING, TrialConfig
from trainables.errors import TrialError
from trainables.metrics.classification import pack
from trainables.models.encoders import HEAD_FILE
from trainables.models.sharded import is_split, shard, whole
from trainables.runtime import PeakMemory, choose_precision, device_name, float32_backend, versions
from trainables.tasks.lane_cache import Warm, pick_device
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts, Scores, Task, Which
from trainables.training.adapting import Trainables, adapted
from trainables.training.checkpoints import load_checkpoint, save_checkpoint
from trainables.training.trainer import Trainer

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
    micro_batch_size: int | None = None,
) -> Generator[Report, None, None]:
    """Train and evaluate one trial, reporting after every epoch.

    Closing the generator abandons the trial. However it ends, the base model in `warm` is as it was before.

    Args:
        config: `TrialConfig.model_dump()`.
        warm: the lane's dict, kept from trial to trial; empty at first.
        directory: the trial's own folder. A checkpoint found there is resumed, after its reports are given again.
        keep: leave the trained weights in `directory / "adapter"`.
        rank, world: this worker's number and how many share the trial (data-parallel, in one process group).
        micro_batch_size: in place of the configured one, after memory ran out; evaluation batches shrink likewise.

    Yields:
        One report per epoch: `epoch` (from 1), `done`, `train_loss` (mean over the epoch, per image or target token),
        `val_score` (None in protocol "paper"), `val_further` (further metrics by name), `skipped` (examples left out as
        unreadable), `seconds` and `seconds_eval` (of this epoch), `samples` (images or texts trained on so far),
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
    if micro_batch_size is not None and trial.adapt == "both" and micro_batch_size < trial.train.global_batch_size:
        raise TrialError(
            f"micro_batch_size {micro_batch_size}: the contrastive loss of adapt = 'both' takes whole batches"
        )
    if trial.train.global_batch_size < world:
        raise TrialError(f"train.global_batch_size {trial.train.global_batch_size} is less than the {world} workers")
    split = world > 1 and trial.train.parallel == "fsdp" and trial.method in FULL_METHODS
    if split:  # no worker's accelerator has to hold the model whole
        lane = Warm(warm.setdefault("split", {}), torch.device("cpu"))
    loaded = lane.model(trial.model)
    if split:
        if loaded.kind != "causal-lm":
            raise TrialError(
                f"train.parallel 'fsdp' is for language models; {trial.model!r} is of kind {loaded.kind!r}"
            )
        loaded = replace(loaded, module=shard(loaded.module, device))
    precision, autocast = choose_precision(trial.train.precision, device)
    try:
        parts = Parts(trial=trial, lane=lane, loaded=loaded, autocast=autocast, precision=precision, world=world)
        task = make_task(parts)
        with float32_backend(trial.train.float32, device) as backend, adapted(loaded.module, trial) as trainables:
            run = Run(
                trial=trial,
                device=device,
                module=loaded.module,
                task=task,
                trainables=trainables,
                directory=Path(directory),
                keep=keep,
                rank=rank,
                world=world,
                micro_batch_size=micro_batch_size,
                facts={"device": device_name(device), "precision": precision, "backend": backend},
            )
            yield from run.go(started, memory)
    finally:
        lane.check_model(trial.model)


@dataclass(kw_only=True, eq=False)
class Run:
    """The trial's parts, once all are at hand."""

    trial: TrialConfig
    device: torch.device
    module: nn.Module
    task: Task
    trainables: Trainables
    directory: Path
    keep: bool
    rank: int
    world: int
    micro_batch_size: int | None
    facts: Report

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
            device=self.device,
            rank=self.rank,
            world=self.world,
            micro_batch_size=self.micro_batch_size,
        )
        history, finished = self._resume(trainer)
        setup = time.perf_counter() - started
        yield from history
        last_saved = time.perf_counter()
        cost = 0.0
        for epoch in range(finished + 1, self.trial.train.epochs + 1):
            begun = time.perf_counter()
            loss = trainer.epoch(epoch)
            report = self.report(epoch, loss, time.perf_counter() - begun, trainer.samples_per_epoch, memory)
            ended = time.perf_counter()
            history.append(report)
            if epoch == self.trial.train.epochs:
                yield self.finish(history, setup, memory)
                return
            if self._agree(cost == 0.0 or ended - last_saved >= cost / CHECKPOINT_SHARE):
                state = trainer.state()
                if self.rank == 0:
                    save_checkpoint(self.directory, self.trial.trial_id, epoch, history, state)
                last_saved = time.perf_counter()
                cost = last_saved - ended
            yield report

    def report(self, epoch: int, loss: float, seconds: float, count: int, memory: PeakMemory) -> Report:
        """Evaluate after an epoch of `count` samples, which trained for `seconds`, and report it."""
        begun = time.perf_counter()
        val = self._evaluate("val")
        return {
            "epoch": epoch,
            "done": False,
            "train_loss": loss,
            **_validation(val),
            "seconds": seconds,
            "seconds_eval": time.perf_counter() - begun,
            "samples": count * epoch,
            "samples_per_second": count / seconds,
            "peak_memory_bytes": memory.bytes(),
        }

    @functools.cached_property
    def _split(self) -> bool:
        return is_split(list(self.trainables.parameters.values()))

    def _agree(self, due: bool) -> bool:
        """Rank 0's word on whether it is time for a checkpoint; where weights are split, all must take part in one."""
        if not self._split:
            return self.rank == 0 and due
        word = torch.tensor([float(due)], device=self.device)
        torch.distributed.broadcast(word, src=0)
        return bool(word)

    def _resume(self, trainer: Trainer) -> tuple[list[Report], int]:
        """Reports of the finished epochs and their number; every worker must find the same checkpoint."""
        found = load_checkpoint(self.directory, self.trial.trial_id)
        epoch = 0 if found is None else found.epoch
        if self.world > 1:
            agreed = torch.tensor([epoch, -epoch], device=self.device)
            torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MIN)
            if int(agreed[0]) != -int(agreed[1]):
                return [], 0  # the folder is not shared by all workers: start over together
        if found is None:
            return [], 0
        trainer.load_state(found.tensors)
        return list(found.history), epoch

    def _evaluate(self, which: Which) -> Scores | None:
        self.module.eval()
        train = self.trial.train
        size = train.eval_batch_size
        if self.micro_batch_size is not None:
            asked = train.micro_batch_size or math.ceil(train.global_batch_size / self.world)
            size = max(1, min(size, size * self.micro_batch_size // asked))
        # with split weights all workers must make the same passes: each evaluates everything
        rank, world = (0, 1) if self._split else (self.rank, self.world)
        return self.task.evaluate(which, batch_size=size, rank=rank, world=world)

    def _zero_shot(self, started: float, memory: PeakMemory) -> Report:
        setup = time.perf_counter() - started
        begun = time.perf_counter()
        val = self._evaluate("val")
        report: Report = {
            "epoch": 1,
            "done": False,
            "train_loss": None,
            **_validation(val),
            "seconds": 0.0,
            "seconds_eval": time.perf_counter() - begun,
            "samples": 0,
            "samples_per_second": None,
            "peak_memory_bytes": memory.bytes(),
        }
        return self.finish([report], setup, memory)

    def finish(self, history: list[Report], setup: float, memory: PeakMemory) -> Report:
        """The last report, with the result: in CONFIRM the test split is read, here and nowhere else."""
        last = history[-1]
        seconds_eval = sum(r["seconds_eval"] for r in history)
        tested: Report = {"test_score": None, "correct": None, "n_examples": None, "examples_hash": None}
        further = {"val": last["val_further"]}
        if self.trial.stage == "CONFIRM":
            begun = time.perf_counter()
            test = self._evaluate("test")
            if test is None:
                raise TrialError(f"the test split of {self.trial.dataset!r} has no rows")
            tested = {
                "test_score": test.score,
                "correct": None if test.correct is None else pack(test.correct),
                "n_examples": test.n_examples,
                "examples_hash": test.examples_hash,
            }
            further["test"] = dict(test.further)
            seconds_eval += time.perf_counter() - begun
            last = last | {"skipped": test.skipped}
        if self.keep and self.rank == 0:
            self._save(self.directory / ADAPTER_FOLDER)
        elif self.keep and self._split:
            for parameter in self.trainables.parameters.values():
                whole(parameter)  # rank 0 gathers them
        result = {
            "metric": self.task.metric,
            "unit": self.task.unit,
            "val_score": last["val_score"],
            **tested,
            "skipped": last.get("skipped"),
            "further": {which: values for which, values in further.items() if values},
            "adapter_params": self.trainables.adapter_params,
            "head_params": sum(p.numel() for p in self._head.values()),
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

    @property
    def _head(self) -> dict[str, nn.Parameter]:
        return {} if self.task.head is None else dict(self.task.head.named_parameters())

    def _save(self, folder: Path) -> None:
        self.trainables.save(folder)
        if self._head:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({n: p.detach().contiguous() for n, p in self._head.items()}, str(folder / HEAD_FILE))


def _validation(scores: Scores | None) -> Report:
    if scores is None:
        return {"val_score": None, "val_further": {}, "skipped": None}
    return {"val_score": scores.score, "val_further": dict(scores.further), "skipped": scores.skipped}
