"""Train several trials of one cell on one copy of the base model, instead of one trial after another.

The trials differ only in learning rate, weight decay and seeds. Each has its own data order, start, optimiser, gradient
clip, checkpoints and reports. They share the frozen model's forward and backward passes (`randlora.packing`), so a step
costs one pass over K batches instead of K passes over one. Results are those of separate trials up to the order of
sums. A trial whose loss is not finite fails alone. A trial that is told to stop leaves the others running.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from randlora.adapted.uses import recording
from randlora.packing.packing import Pack, PackingError, drops_activations
from trainables.config import TrialConfig
from trainables.errors import TrainablesError, TrialError
from trainables.models.language import output_layer
from trainables.packing.alike import NotPackableError, UnevenTrialsError, check_alike
from trainables.predicting.facts import facts_of
from trainables.runtime import PeakMemory, choose_precision, device_name, float32_backend, pick_device
from trainables.seeds import derive_seed
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts, Task
from trainables.training.adapting import adapted, reseed_dropout, start_training
from trainables.training.checkpoints import Pace, load_checkpoint, save_checkpoint
from trainables.training.measured import Measured
from trainables.training.trainer import Trainer, Work, part_of, should_check_losses
from trainables.training.worker import Report, Run

Reports = dict[int, Report | TrialError | TrainablesError]
"""Place of a trial in the pack -> an epoch's report, or the error with which the trial failed."""


def run_pack(
    trials: Sequence[TrialConfig], *, warm: dict[str, Any], directories: Sequence[Path], keep: Sequence[bool]
) -> Generator[Reports, set[int] | None, None]:
    """Train and evaluate trials together, and yield reports after every epoch (see
    `trainables.training.worker.run_trial`).

    Sending a set of places stops those trials. Closing the generator abandons all of them. However it ends, the base
    model in `warm` is then as it was before.

    Args:
        trials: their configurations, in which `alike` must agree.
        warm: the lane's cache, a dict that is kept from trial to trial.
        directories: the trials' own folders. Checkpoints there are resumed if all trials are at the same epoch.
        keep: for each trial, whether to leave the trained weights in its folder.

    Yields:
        By place, the reports of `run_trial`. A trial's `seconds` are its share of the time that the pack trained. So
            its `samples_per_second` counts the samples of all trials.

    Raises:
        NotPackableError: before an epoch was reported. The trials may run one by one.
        TrainablesError: data are bad.
    """
    started = time.perf_counter()
    check_alike(trials)
    device = pick_device()
    memory = PeakMemory(device)
    lane, first = LaneCache(warm, device), trials[0]
    loaded = lane.model(first.model, first.train.base_weights)
    precision, autocast = choose_precision(first.train.precision, device)
    try:
        with contextlib.ExitStack() as stack:
            backend = stack.enter_context(float32_backend(first.train.float32, device))
            surroundings = Measured(device=device_name(device), precision=precision, backend=backend)
            loaded.module.eval()
            tasks = [
                make_task(Parts(trial=trial, lane=lane, loaded=loaded, autocast=autocast, precision=precision))
                for trial in trials
            ]
            runs = []
            for trial, task, directory, keeps_weights in zip(trials, tasks, directories, keep, strict=True):
                trainables = stack.enter_context(
                    adapted(loaded.module, trial, loaded.tokenizer, lane.decompositions(), task)
                )
                work = Work(trial=trial, module=loaded.module, task=task, trainables=trainables, device=device)
                work.adapters.disable()
                about = facts_of(trial, loaded, lane) if keeps_weights else None
                runs.append(Run(work, Path(directory), about, surroundings, memory, started))
            drawing = _drawing(runs[0].work, tasks)
            pack = Pack([run.work.adapters for run in runs])
            stack.callback(pack.remove)
            yield from _Together(pack, runs, [Trainer(run.work) for run in runs], tasks, drawing).go()
    except PackingError as error:
        raise NotPackableError(str(error)) from error
    finally:
        lane.check_model(first.model, first.train.base_weights)


def _drawing(first: Work, tasks: Sequence[Task]) -> bool:
    """Return whether the base model or the heads drop activations at random. Raises if that cannot be separated by
    trial."""
    drawing = any(
        [drops_activations(first.module), *(drops_activations(task.head) for task in tasks if task.head is not None)]
    )
    if drawing and first.trial.train.gradient_checkpointing:
        raise NotPackableError(
            "train.gradient_checkpointing would repeat the base model's dropout with random numbers of another trial"
        )
    head = output_layer(first.module)
    for name, site in first.adapters.sites.items():
        if head is not None and site.owner is head:
            raise NotPackableError(f"{name} is the output layer, which reads other numbers of tokens in every trial")
    dropping = drawing or any(adapter.draws for adapter in first.adapters.adapters.values())
    if first.trial.adapt == "both" and dropping:
        raise NotPackableError("the text tower reads other numbers of classes in every trial, and dropout sees it")
    return drawing


@dataclass(eq=False)
class _Together:
    """The parts of a pack in training. Lists are by place; `active` are the places of trials that still train.

    `checked` says whether an epoch has shown that every adapter takes part.
    """

    pack: Pack
    runs: list[Run]
    trainers: list[Trainer]
    tasks: list[Task]
    drawing: bool
    active: list[int] = field(default_factory=list)
    failed: Reports = field(default_factory=dict)
    checked: bool = False

    def go(self) -> Generator[Reports, set[int] | None, None]:
        """Resume, train, evaluate, and yield the reports."""
        self.active = list(range(len(self.runs)))
        histories, finished = self._resume()
        setup = (time.perf_counter() - self.runs[0].started) / len(self.runs)
        for epoch in range(finished):
            yield from self._heard({k: histories[k][epoch] for k in self.active})
        pace, epochs = Pace(), self.runs[0].work.trial.train.epochs
        for epoch in range(finished + 1, epochs + 1):
            if not self.active:
                return
            count = len(self.active)
            begun = time.perf_counter()
            losses = self._epoch(epoch)
            seconds = (time.perf_counter() - begun) / count
            reports: Reports = {}
            for k in list(self.active):
                self.pack.select(k)
                run = self.runs[k]
                try:
                    report = run.report(epoch, losses[k], seconds, self.trainers[k])
                    histories[k].append(report)
                    reports[k] = run.finish(histories[k], setup) if epoch == epochs else report
                except (TrialError, TrainablesError) as error:
                    self._fail(k, error)
            if epoch < epochs and pace.due():
                with pace.saving():
                    for k in self.active:
                        run, state = self.runs[k], self.trainers[k].state()
                        save_checkpoint(run.directory, run.work.trial.trial_id, epoch, histories[k], state)
            reports |= self.failed
            self.failed = {}
            yield from self._heard(reports)

    def _heard(self, reports: Reports) -> Generator[Reports, set[int] | None, None]:
        stopped = (yield reports) or set()
        self.active = [k for k in self.active if k not in stopped]

    def _fail(self, place: int, error: TrialError | TrainablesError) -> None:
        self.active.remove(place)
        self.failed[place] = error

    def _resume(self) -> tuple[list[list[Report]], int]:
        """Return the trials' reports of finished epochs, and the number of these epochs."""
        checkpoints = [load_checkpoint(run.directory, run.work.trial.trial_id) for run in self.runs]
        epochs = {0 if checkpoint is None else checkpoint.epoch for checkpoint in checkpoints}
        if len(epochs) > 1:
            raise UnevenTrialsError(f"the trials' checkpoints stand at different epochs: {sorted(epochs)}")
        for trainer, checkpoint in zip(self.trainers, checkpoints, strict=True):
            if checkpoint is not None:
                trainer.load_state(checkpoint.tensors)
        return [[] if c is None else list(c.history) for c in checkpoints], epochs.pop()

    def _epoch(self, epoch: int) -> dict[int, float]:
        """Train one epoch, and return the loss of every trial that did not fail."""
        if self.checked:
            return self._train(epoch)
        with recording(self.pack.adapters) as uses:
            losses = self._train(epoch)
        self.checked = True
        for k in list(self.active):
            try:
                self.trainers[k].check_adapters(uses)
            except TrialError as error:
                self._fail(k, error)
        return losses

    def _train(self, epoch: int) -> dict[int, float]:
        """Train one epoch. Return the loss of every trial that did not fail."""
        first = self.runs[0].work
        start_training(first.module, first.trial.train)
        for name, layer in self.pack.layers:
            for run, member in zip(self.runs, layer.members, strict=True):
                reseed_dropout(member, run.work.trial.init_seed, epoch, prefix=name)
        device = first.device
        draws = {k: self.trainers[k].draws(epoch) for k in self.active}
        batches = {k: list(self.tasks[k].batches(epoch)) for k in self.active}
        if len({tuple(len(batch) for batch in batches_of_trial) for batches_of_trial in batches.values()}) > 1:
            raise UnevenTrialsError(
                "the trials' batches differ in number or size, for example because unreadable images are left out"
            )
        steps = len(batches[self.active[0]])
        sums = {k: torch.zeros(steps, device=device) for k in self.active}
        seeds = {k: derive_seed(self.runs[k].work.trial.init_seed, "base dropout", epoch) for k in self.active}
        with (  # what an adapter draws from the global generator labels its masks, and is no mask (`randlora.dropout`)
            torch.random.fork_rng(devices=[device] if device.type == "cuda" and self.drawing else []),
            self.pack.drawing(seeds if self.drawing else None, device),
        ):
            for index in range(steps):
                self._step({k: batches[k][index] for k in self.active}, draws, {k: sums[k][index] for k in self.active})
                for k in list(self.active):
                    self.trainers[k].update(epoch, index)
                    if should_check_losses(device, index) or index == steps - 1:
                        try:
                            self.trainers[k].check(sums[k][: index + 1], epoch)
                        except TrialError as error:
                            self._fail(k, error)
                for k in self.active if self.runs[0].work.trial.train.select == "best" else ():
                    self.pack.select(k)
                    self.trainers[k].look(epoch, index)
                if not self.active:
                    break
        return {k: self.trainers[k].mean_loss(sums[k], batches[k]) for k in self.active}

    def _step(self, rows: dict[int, Tensor], draws: dict[int, torch.Generator], sums: dict[int, Tensor]) -> None:
        """Leave every trial's gradient of its batch in its trainables, and its summed loss in `sums`."""
        places = list(rows)
        plans = {k: self.tasks[k].draw(rows[k], draws[k]) for k in places}
        size = len(rows[places[0]])
        first = self.tasks[places[0]]
        for part in torch.split(torch.arange(size), self.runs[0].work.trial.train.micro_batch_size or size):
            rows_of_part = [rows[k][part] for k in places]
            own_widths = [self.tasks[k].width(r) for k, r in zip(places, rows_of_part, strict=True)]
            widths = [width for width in own_widths if width is not None]
            self.pack.together(places, rows=len(part) if widths else None, widths=widths or None)
            tasks, parts = [self.tasks[k] for k in places], [part_of(plans[k], part) for k in places]
            losses = first.packed_losses(tasks, rows_of_part, parts, self.pack.alone)
            total = torch.stack(
                [loss / self.tasks[k].weight(rows[k]) for k, loss in zip(places, losses, strict=True)]
            ).sum()
            total.backward()  # type: ignore[no-untyped-call]
            for k, loss in zip(places, losses, strict=True):
                sums[k].add_(loss.detach())
