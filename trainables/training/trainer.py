"""Train epochs of optimiser steps, with accumulation and data-parallel shares that give the gradient of the whole
batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn

from randlora.adapted.accumulate import accumulating
from randlora.adapted.adapted import Adapted
from randlora.adapted.uses import Uses, check_uses, recording, unreached_words
from randlora.errors import AdapterError
from randlora.methods.bridge.installed import PREFIX
from randlora.methods.scheduled.bilevel import held_out_gradient, set_aside
from randlora.methods.scheduled.hooks import Hooks
from randlora.model.sharded import reshard, whole
from trainables.config import FULL_METHODS, LINEAR_PROBE, TrialConfig
from trainables.errors import TrialError
from trainables.models.sharded import is_split
from trainables.seeds import derive_seed, generator
from trainables.tasks.task import Task, summed
from trainables.training import optim
from trainables.training.adapting import Trainables, of_worker, reseed_dropout, start_training
from trainables.training.selection import Selected


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """A trial that is ready to train, and one worker's part in it.

    Attributes:
        module: the base model, with `trainables` in it.
        rank, world: this worker's number, and the number of workers that share the trial.
        micro_batch_size: used instead of the configured one after memory ran out; else None.
        tell: called with a text for each step that begins.
    """

    trial: TrialConfig
    module: nn.Module
    task: Task
    trainables: Trainables
    device: torch.device
    rank: int = 0
    world: int = 1
    micro_batch_size: int | None = None
    tell: Callable[[str], None] = lambda _: None

    @property
    def adapters(self) -> Adapted:
        """Return the trial's adapters, for a method that has some."""
        assert self.trainables.added is not None
        return self.trainables.added


class Trainer:
    """The optimiser of one trial, and the steps that it takes on the task's batches."""

    def __init__(self, work: Work) -> None:
        trial, task, trainables = work.trial, work.task, work.trainables
        assert trial.lr is not None
        self._micro = work.micro_batch_size if work.micro_batch_size is not None else trial.train.micro_batch_size
        head = {} if task.head is None else {f"head.{n}": p for n, p in task.head.named_parameters()}
        if not trainables.parameters and not head:
            raise TrialError(f"method {trial.method!r} has nothing to train on these targets")
        settings = trial.train
        self._trial, self._module, self._task = trial, work.module, task
        self._device, self._rank, self._world, self._tell = work.device, work.rank, work.world, work.tell
        decay = settings.full_weight_decay if trial.method in FULL_METHODS else settings.weight_decay
        head_lr = trial.lr if trial.method == LINEAR_PROBE or settings.head_lr == "lr" else settings.head_lr
        self._hooks = Hooks(()) if trainables.added is None else trainables.added.hooks
        self._named = trainables.parameters | head
        self._added = trainables.added
        self._adapters_checked = False
        apart = {id(p) for p in self._hooks.apart()}
        optimised = {n: p for n, p in trainables.parameters.items() if id(p) not in apart}
        ratios = {} if trainables.added is None else trainables.added.rate_ratios()
        adapting = [
            optim.Group({n: p for n, p in optimised.items() if ratios.get(n, 1.0) == ratio}, trial.lr * ratio, decay)
            for ratio in sorted({1.0, *ratios.values()})
        ]
        groups = (*adapting, optim.Group(head, head_lr, settings.weight_decay))
        self._parameters = [p for group in groups for p in group.parameters.values()]
        self._split = is_split(self._parameters)
        if settings.select == "best" and self._hooks.schedules:
            raise TrialError(
                f"train.select 'best' of method {trial.method!r}, whose ranks settle, or which averages, while it "
                "trains: earlier weights are not what it ends with; leave one of them out"
            )
        if self._world > 1 and not self._split:
            optim.take_first_workers([*self._named.values(), *self._derived().values()])
        self._selected = Selected(self._named)
        self._optimizer = optim.make_adamw([group for group in groups if group.parameters])
        self._norm = torch.zeros(())  # the norm of the last gradient
        self._aside = torch.zeros(0, dtype=torch.bool)  # the rows that a search of ranks holds out
        first = task.batches(1)
        self._steps = len(first)
        self.samples_per_epoch = sum(len(b) for b in first)

    def epoch(self, epoch: int) -> float:
        """Train one epoch (counted from 1) and return its loss per unit of weight, from the forward passes in training.

        It depends on the state, the seeds and the epoch's number alone, so a resumed trial is exact.

        Raises:
            TrialError: a loss, or the last gradient, is not finite; the message names the step. Or an adapter took no
                part in the first epoch that this process trains.
        """
        if self._added is None or self._adapters_checked:
            return self._epoch(epoch)
        with recording(self._added.adapters) as uses:
            loss = self._epoch(epoch)
        self.check_adapters(uses)
        return loss

    def _epoch(self, epoch: int) -> float:
        """Train one epoch, and return its loss."""
        start_training(self._module, self._trial.train)
        reseed_dropout(self._module, self._trial.init_seed, epoch, rank=self._rank)
        draw, batches, device = self.draws(epoch), self._task.batches(epoch), self._device
        sums = torch.zeros(len(batches), device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # a base model may hold dropout of its own, which draws from the global generator
            seed_end = (
                () if self._split else of_worker(self._rank)
            )  # workers that share weights must leave out the same layers
            torch.manual_seed(derive_seed(self._trial.init_seed, "base dropout", epoch, *seed_end))
            for index, batch in enumerate(batches):
                self._tell(f"epoch {epoch}, step {index + 1} of {len(batches)}")
                sums[index] = self._step(batch, draw, epoch, index)
                self.look(epoch, index)
                # several workers check only the sum of all losses, after the epoch, so that all stop together
                if self._world == 1 and should_check_losses(device, index):
                    self.check(sums[: index + 1], epoch)
        if self._world > 1:
            torch.distributed.all_reduce(sums)
        self.check(sums, epoch)
        return self.mean_loss(sums, batches)

    def check_adapters(self, uses: Uses) -> None:
        """Raise TrialError if an adapter took no part in an epoch, because it could learn nothing.

        A whole epoch decides, because layers may be left out at random, and steps may take different ways through the
        model. An adapter whose siblings took part, such as that of an expert that no token reached, is a warning.

        Args:
            uses: what the epoch did with the adapters.
        """
        assert self._added is not None
        self._adapters_checked = True
        for names in (uses.called, uses.read) if self._world > 1 else ():  # with those of the other workers
            flags = torch.tensor([float(name in names) for name in uses.names], device=self._device)
            torch.distributed.all_reduce(flags)
            names.update(name for name, count in zip(uses.names, flags.tolist(), strict=True) if count)
        if unreached := uses.unreached:
            warnings.warn(unreached_words(unreached), stacklevel=2)
        try:
            check_uses(self._added, uses, [name for name in uses.idle if name not in unreached])
        except AdapterError as error:
            raise TrialError(f"method {self._trial.method!r}: {error}") from error

    def draws(self, epoch: int) -> torch.Generator:
        """Return the random stream of an epoch's augmentation."""
        return generator(self._trial.data_seed, "augment", epoch)

    def mean_loss(self, sums: Tensor, batches: Sequence[Tensor]) -> float:
        """Return an epoch's loss per unit of weight, from the summed loss of every step."""
        return float(sums.double().sum()) / sum(self._task.weight(batch) for batch in batches)

    def _step(self, batch: Tensor, draw: torch.Generator, epoch: int, index: int) -> Tensor:
        """Take optimiser step `index` of an epoch on the rows `batch`. Return the summed loss of this worker's share, a
        scalar."""
        plan = self._task.draw(batch, draw)  # for all workers
        held_out = self._hooks.held_out((epoch - 1) * self._steps + index, self._steps * self._trial.train.epochs)
        if held_out:
            return self._search_step(batch, plan, epoch, index, held_out)
        loss_sum = self._backward(batch, plan)
        self.update(epoch, index)
        return loss_sum

    def _search_step(self, batch: Tensor, plan: Tensor | None, epoch: int, index: int, held_out: float) -> Tensor:
        """Take a step in which the share `held_out` of all rows, the same ones in every epoch, trains what the schedule
        trains itself."""
        if (rows := int(batch.max()) + 1) > len(self._aside):
            self._aside = set_aside(rows, held_out, derive_seed(self._trial.data_seed, "held out"))
        aside = self._aside[batch]
        train, test = torch.nonzero(~aside).flatten(), torch.nonzero(aside).flatten()
        loss_sum = torch.zeros((), device=self._device)
        apart = self._hooks.apart()

        def gradients(places: Tensor) -> Tensor:
            held_out_loss = self._backward(batch[places], part_of(plan, places))
            if self._world > 1:
                optim.add_over_workers([*self._parameters, *apart])
            return held_out_loss

        second = self._hooks.order == 2 and len(train) > 0 and len(test) > 0
        before = [p.detach().clone() for p in self._parameters] if second else []
        if len(train):
            loss_sum += self._backward(batch[train], part_of(plan, train))
            self.update(epoch, index)
        if len(test):
            held_out_gradient(
                lambda: loss_sum.add_(gradients(test)),
                (lambda: gradients(train)) if second else None,
                weights=self._parameters,
                before=before,
                selections=apart,
                lr=self._optimizer.param_groups[0]["lr"],
            )
            self._hooks.on_held_out()
        return loss_sum

    def _backward(self, batch: Tensor, plan: Tensor | None) -> Tensor:
        """Add the gradient of the mean loss on these rows (this worker's part of it). Return the summed loss, a
        scalar."""
        weight = self._task.weight(batch)
        share = torch.arange(self._rank, len(batch), self._world)
        micro = self._micro or len(batch)
        loss_sum = torch.zeros((), device=self._device)
        parts = list(torch.split(share, micro)) if len(share) else []
        # with split weights all workers pass as often as the one with the largest share; what is added counts nothing
        most = math.ceil(math.ceil(len(batch) / self._world) / micro) if self._split else len(parts)
        scales = [1.0] * len(parts) + [0.0] * (most - len(parts))
        parts += [torch.zeros(1, dtype=torch.long)] * (most - len(parts))
        with accumulating(self._module, max(1, len(parts)) if self._trial.train.hold_weights else 1):
            for part, scale in zip(parts, scales, strict=True):
                loss = self._task.loss_sum(batch[part], part_of(plan, part))
                if scale != 1.0:
                    loss = loss * scale
                (loss / weight).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.detach()
        return loss_sum

    def update(self, epoch: int, index: int) -> None:
        """Make the optimiser step `index` of an epoch from its gradients.

        A method's penalty is added once, after the gradients are summed. It is not part of the reported loss.
        """
        settings = self._trial.train
        step, total = (epoch - 1) * self._steps + index, self._steps * settings.epochs
        if self._world > 1 and not self._split:
            optim.add_over_workers(self._parameters)
        if (penalty := self._hooks.regulariser()) is not None:
            penalty.backward()  # type: ignore[no-untyped-call]
        self._norm = nn.utils.clip_grad_norm_(self._parameters, settings.grad_clip)
        start, length = self._hooks.phase(step, total)
        factor = optim.lr_factor(step - start, length, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self._optimizer.step()
        self._hooks.on_step(step + 1, total)
        if self._hooks.restarts(step + 1, total):
            self._optimizer.state.clear()
        self._optimizer.zero_grad(set_to_none=True)

    def look(self, epoch: int, index: int) -> None:
        """Compute the validation loss after step `index` of an epoch, if `train.select` is "best" and it is due."""
        settings = self._trial.train
        if settings.select == "last":
            return
        step, last = (epoch - 1) * self._steps + index + 1, self._steps * settings.epochs
        if step % (settings.select_every or self._steps) and step < last:
            return
        self._module.eval()
        self._selected.offer(step, self._validation_loss())
        start_training(self._module, self._trial.train)

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Return the loss on the validation rows per unit of weight, in batches as large as in training."""
        rows, settings = self._task.validated(), self._trial.train
        if not len(rows):
            raise TrialError("train.select 'best': there are no validation rows to select on; use 'last'")
        parts = torch.split(rows, self._micro or max(1, settings.global_batch_size // self._world))
        own_parts = parts if self._split else parts[self._rank :: self._world]  # split weights need all in every pass
        summed_loss = sum(float(self._task.loss_sum(part, None)) for part in own_parts)
        total = float(
            summed(torch.tensor(summed_loss).double(), self._world, self._device)
        )  # all workers get the same number
        return total / (self._world if self._split else 1) / self._task.weight(rows)

    def settle(self) -> dict[str, float]:
        """Replace the last weights by the selected ones at the end of the training. Return what was measured,
        by name."""
        selected = self._selected.settle()
        reshard(self._module)  # the last look at validation left the outermost weights gathered, as they were
        return selected

    def check(self, sums: Tensor, epoch: int) -> None:
        """Raise `TrialError` if a summed loss of an epoch's steps so far is not finite. The message names the step.

        After the epoch's last step it also checks the gradient, which otherwise would show in the next loss.
        """
        if not math.isfinite(float(sums.sum())):
            index = int((~torch.isfinite(sums)).int().argmax())
            what, value = "loss", float(sums[index])
        elif len(sums) == self._steps and not math.isfinite(norm := float(whole(self._norm))):
            index, what, value = len(sums) - 1, "the gradient's norm", norm
        else:
            return
        step = (epoch - 1) * self._steps + index + 1
        raise TrialError(
            f"{what} became {value} at step {step} of {self._steps * self._trial.train.epochs} (epoch {epoch}) with "
            f"lr {self._trial.lr:g}; a lower rate may train"
        )

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next epoch depends on besides its number."""
        tensors = optim.state_tensors(self._optimizer, self._named) | self._derived()
        return tensors | self._hooks.state() | self._selected.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        optim.load_state_tensors(self._optimizer, self._named, tensors)
        for name, tensor in self._derived().items():
            if name in tensors:  # checkpoints of older versions have none
                tensor.copy_(tensors[name])
        self._hooks.load_state(tensors)
        self._selected.load_state(tensors)

    def _derived(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep of the tensors that adapters made from the base weights.

        PEFT's singular vectors may point the other way on another machine. Our singular vectors have fixed signs and
        differ in the last bits alone, so a checkpoint leaves them out and stays small. A start made from a gradient
        differs by more, and is kept.
        """
        if self._added is None or not (self._trial.method.startswith(PREFIX) or self._added.method.needs_gradients):
            return {}
        return {f"d.{n}": t for n, t in self._added.derived().items()}


def should_check_losses(device: torch.device, index: int) -> bool:
    """Return whether the losses are checked after a step: after each step on a CPU, after every 25th on other devices.

    Reading a number from a device stops it.
    """
    return device.type == "cpu" or index % 25 == 24


def part_of(plan: Tensor | None, places: Tensor) -> Tensor | None:
    """Return a batch's augmentation at some places of the batch; None if there is none."""
    return None if plan is None else plan[places]
