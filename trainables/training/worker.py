"""One trial from its configuration to its result: what a lane runs on each of its workers."""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from randlora.files.tensors import write_tensors
from trainables.config import FULL_METHODS, NO_TRAINING, TrialConfig
from trainables.errors import TrialError
from trainables.metrics.classification import pack
from trainables.models.encoders import HEAD_FILE
from trainables.models.loading import LoadedModel
from trainables.models.sharded import gathered, is_split, shard
from trainables.predicting.facts import Facts, facts_of
from trainables.runtime import PeakMemory, choose_precision, device_name, float32_backend, pick_device, versions
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts, Scores, Which, by_loss, eval_batch_size, named_by_loss
from trainables.training.adapting import adapted
from trainables.training.checkpoints import Pace, load_checkpoint, save_checkpoint
from trainables.training.measured import Epoch, Measured, Predicted, Result
from trainables.training.trainer import Trainer, Work

Report = dict[str, Any]

ADAPTER_FOLDER = "adapter"
"""Where `keep` leaves the trained weights, inside the trial's own folder."""


def run_trial(
    trial: TrialConfig,
    *,
    warm: dict[str, Any],
    directory: Path,
    keep: bool = False,
    rank: int = 0,
    world: int = 1,
    micro_batch_size: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Generator[Report, None, None]:
    """Train and evaluate one trial, and yield a report after every epoch.

    Closing the generator abandons the trial. However it ends, the base model in `warm` is then as it was before.

    Args:
        trial: everything that decides the result.
        warm: the lane's cache, a dict that is kept from trial to trial; empty at first.
        directory: the trial's own folder. A checkpoint that is there is resumed, after its reports are given again.
        keep: leave the trained weights in `directory / "adapter"`.
        rank, world: this worker's number, and the number of workers that share the trial (data-parallel, in one process
            group).
        micro_batch_size: used instead of the configured one after memory ran out. Evaluation batches shrink in the same
            ratio.
        tell: called with a text when a part of the work begins: loading, each step, each evaluation.

    Yields:
        One report per epoch: `epoch` (from 1), `done`, `train_loss` (mean over the epoch, per image or target token),
            `val_score` (None in protocol "paper"), `val_further` (further metrics by name), `skipped` (examples left
            out as unreadable), `seconds` and `seconds_eval` (of this epoch), `samples` (images or texts trained on so
            far), `samples_per_second` (of this epoch), `peak_memory_bytes`. The last report has `done` True and
            `result`, a `Result`.

    Raises:
        TrialError: the loss is not finite, or the combination is not supported.
        TrainablesError: data are bad, or the test split is asked for in stage TUNE.
    """
    started = time.perf_counter()
    configured = trial.train.micro_batch_size or trial.train.global_batch_size
    if micro_batch_size is not None and trial.contrastive and micro_batch_size < configured:
        raise TrialError(
            f"micro_batch_size {micro_batch_size}: the contrastive loss of adapt = 'both' takes whole batches"
        )
    if trial.train.global_batch_size < world:
        raise TrialError(f"train.global_batch_size {trial.train.global_batch_size} is less than the {world} workers")
    device = pick_device()
    memory = PeakMemory(device)
    tell("loading the model")
    lane, loaded = _base_model(trial, warm, device, world)
    precision, autocast = choose_precision(trial.train.precision, device)
    try:
        parts = Parts(
            trial=trial,
            lane=lane,
            loaded=loaded,
            autocast=autocast,
            precision=precision,
            world=world,
            micro_batch_size=micro_batch_size,
        )
        loaded.module.eval()  # a trial that ended in an epoch left it training, and a task may embed its classes
        with contextlib.ExitStack() as stack:
            backend = stack.enter_context(float32_backend(trial.train.float32, device))
            tell("reading the data")
            task = make_task(parts)
            tell("attaching the adapter")
            trainables = stack.enter_context(
                adapted(loaded.module, trial, loaded.tokenizer, lane.decompositions(), task)
            )
            work = Work(
                trial=trial,
                module=loaded.module,
                task=task,
                trainables=trainables,
                device=device,
                rank=rank,
                world=world,
                micro_batch_size=micro_batch_size,
                tell=tell,
            )
            surroundings = Measured(device=device_name(device), precision=precision, backend=backend)
            about = facts_of(trial, loaded, lane) if keep else None
            yield from Run(work, Path(directory), about, surroundings, memory, started).go()
    finally:
        lane.check_model(trial.model, trial.train.base_weights)


def _base_model(
    trial: TrialConfig, warm: dict[str, Any], device: torch.device, world: int
) -> tuple[LaneCache, LoadedModel]:
    """Return the lane's cache and the base model. For `train.parallel = "fsdp"` it is a copy split over the workers."""
    if world == 1 or trial.train.parallel != "fsdp" or trial.method not in FULL_METHODS:
        if "split" in warm:
            _free(device)
        lane = LaneCache(warm, device)
        return lane, lane.model(trial.model, trial.train.base_weights)
    if device.type == "cuda":  # on CPUs, the copy that other trials share would be split
        LaneCache(warm, device).drop_model()
    _free(device)
    lane = LaneCache(warm.setdefault("split", {}), torch.device("cpu"))  # no accelerator has to hold the model whole
    loaded = lane.model(trial.model)
    if loaded.kind != "causal-lm":
        raise TrialError(f"train.parallel 'fsdp' is for language models; {trial.model!r} is of kind {loaded.kind!r}")
    return lane, replace(loaded, module=shard(loaded.module, device))


def _free(device: torch.device) -> None:
    """Free an earlier trial's shards, because FSDP's modules and their hooks refer to each other."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(eq=False)
class Run:
    """A trial from its parts to its result.

    Attributes:
        about: what is kept beside the trained weights; None if they are not kept.
        surroundings: the device, precision and back end that it computes with.
        started: the clock when the trial began.
    """

    work: Work
    directory: Path
    about: Facts | None
    surroundings: Measured
    memory: PeakMemory
    started: float

    def go(self) -> Generator[Report, None, None]:
        """Resume, train, evaluate, and yield the reports."""
        work, trial = self.work, self.work.trial
        if trial.method == NO_TRAINING:
            setup = time.perf_counter() - self.started
            yield self.finish([self.report(1, None, 0.0)], setup)
            return
        trainer = Trainer(work)
        history, finished = self._resume(trainer)
        setup = time.perf_counter() - self.started
        yield from history
        pace = Pace()
        for epoch in range(finished + 1, trial.train.epochs + 1):
            begun = time.perf_counter()
            loss = trainer.epoch(epoch)
            seconds = time.perf_counter() - begun
            report = self.report(epoch, loss, seconds, trainer)
            history.append(report)
            if epoch == trial.train.epochs:
                yield self.finish(history, setup)
                return
            if self._agree(pace.due()):
                with pace.saving():
                    state = trainer.state()
                    if work.rank == 0:
                        save_checkpoint(self.directory, trial.trial_id, epoch, history, state)
            yield report

    def report(self, epoch: int, loss: float | None, seconds: float, trainer: Trainer | None = None) -> Report:
        """Evaluate after an epoch, which trained for `seconds`, and return its report. After the last epoch, evaluate
        the selected weights."""
        begun = time.perf_counter()
        count = 0 if trainer is None else trainer.samples_per_epoch
        selected = trainer.settle() if trainer is not None and epoch == self.work.trial.train.epochs else {}
        val = self._evaluate("val")
        measured = Epoch(
            epoch=epoch,
            train_loss=loss,
            val_score=None if val is None else val.score,
            seconds=seconds,
            samples=count * epoch,
            samples_per_second=count / seconds if count else None,
        )
        return {
            **vars(measured),
            "done": False,
            "val_further": selected if val is None else {**val.further, **selected},
            "skipped": None if val is None else val.skipped,
            "seconds_eval": time.perf_counter() - begun,
            "peak_memory_bytes": self.memory.bytes(),
        }

    @functools.cached_property
    def _split(self) -> bool:
        return is_split(list(self.work.trainables.parameters.values()))

    def _agree(self, due: bool) -> bool:
        """Return rank 0's decision whether it is time for a checkpoint. If weights are split, all workers must take
        part in one."""
        if not self._split:
            return self.work.rank == 0 and due
        word = torch.tensor([float(due)], device=self.work.device)
        torch.distributed.broadcast(word, src=0)
        return bool(word)

    def _resume(self, trainer: Trainer) -> tuple[list[Report], int]:
        """Return the reports of the finished epochs, and their number. Every worker must find the same checkpoint."""
        checkpoint = load_checkpoint(self.directory, self.work.trial.trial_id)
        epoch = 0 if checkpoint is None else checkpoint.epoch
        if self.work.world > 1:
            agreed = torch.tensor([epoch, -epoch], device=self.work.device)
            torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MIN)
            if int(agreed[0]) != -int(agreed[1]):
                return [], 0  # the folder is not shared by all workers: start over together
        if checkpoint is None:
            return [], 0
        trainer.load_state(checkpoint.tensors)
        return list(checkpoint.history), epoch

    def _evaluate(self, which: Which) -> Scores | None:
        work = self.work
        work.tell(f"evaluating ({which})")
        work.module.eval()
        size = eval_batch_size(work.trial, work.micro_batch_size, work.world)
        # with split weights all workers must make the same passes: each evaluates everything
        rank, world = (0, 1) if self._split else (work.rank, work.world)
        scores = work.task.evaluate(which, batch_size=size, rank=rank, world=world)
        if scores is None or work.trial.evaluate.metric is None:
            return scores
        return by_loss(scores, work.task.metric)

    def finish(self, history: list[Report], setup: float) -> Report:
        """Return the last report, with the trial's `Result`. In CONFIRM, this alone reads the test split."""
        work, last = self.work, history[-1]
        seconds_eval = sum(r["seconds_eval"] for r in history)
        test, predicted, skipped = None, Predicted(), last.get("skipped")
        further = {"val": last["val_further"]}
        if work.trial.stage == "CONFIRM":
            begun = time.perf_counter()
            test = self._evaluate("test")
            if test is None:
                raise TrialError(f"the test split of {work.trial.dataset!r} has no rows")
            predicted = Predicted(
                n_examples=test.n_examples,
                correct=None if test.correct is None else pack(test.correct),
                examples_hash=test.examples_hash,
            )
            further["test"] = dict(test.further)
            seconds_eval += time.perf_counter() - begun
            skipped = test.skipped
        head = {} if work.task.head is None else dict(work.task.head.named_parameters())
        if self.about is not None:
            self._keep(head, self.about)
        measured = Measured(
            metric=work.task.metric if work.trial.evaluate.metric is None else named_by_loss(work.task.metric),
            val_score=last["val_score"],
            test_score=None if test is None else test.score,
            further={which: values for which, values in further.items() if values} or None,
            train_loss=last["train_loss"],
            epochs=last["epoch"],
            adapter_params=work.trainables.adapter_params,
            head_params=sum(p.numel() for p in head.values()),
            stored_bytes=work.trainables.stored_bytes,
            train_examples=len(work.task.rows("train")),
            samples=last["samples"],
            skipped=skipped,
            unit=work.task.unit,
            seconds_setup=setup,
            seconds_train=sum(r["seconds"] for r in history),
            seconds_eval=seconds_eval,
            peak_memory_bytes=max(self.memory.bytes(), *(r["peak_memory_bytes"] for r in history)),
            device=self.surroundings.device,
            precision=self.surroundings.precision,
            backend=self.surroundings.backend,
            versions=versions(),
        )
        return last | {"done": True, "skipped": skipped, "result": Result(measured, predicted)}

    def _keep(self, head: dict[str, nn.Parameter], about: Facts) -> None:
        """Write the trained weights to the trial's folder, with what is needed to use them. Rank 0 writes them."""
        if self.work.rank > 0:
            gathered(self.work.trainables.parameters)  # with rank 0
            return
        folder = self.directory / ADAPTER_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self.work.trainables.save(folder)
        about.write(folder)
        if head:
            write_tensors(folder / HEAD_FILE, head)
