"""A trial's model, data and loss, made again to look at trained weights: any family that `trainables` can train.

Examples come from the trial's own training and validation rows, and nothing is scored on the test split (`protocol =
"paper"` opens it, as training did). Everything runs in float32, without dropout and without augmentation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import randlora
from analysis.diagnostics.units import sweep_facts
from analysis.diagnostics.weights import ADAPTERS, Kept, confirmed_as_trained, trained_state
from analysis.errors import StoreError
from analysis.format import Row
from analysis.store.store import Store
from randlora.files.tensors import read_tensors
from trainables.config import EvaluateSettings, TrainSettings, TrialConfig
from trainables.models.blocks import block_lists
from trainables.models.encoders import HEAD_FILE
from trainables.runtime import choose_precision, pick_device
from trainables.tasks.images.images import ImageTask
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts, Split, Task

State = dict[str, Tensor]

_PARTS = ("attn", "attention", "self_attn", "mlp", "output")
"""Attention and MLP of a block as models name them; "output" is where BERT's MLP ends."""

TEXTS_AT_ONCE = 8
"""Texts of one forward pass: their logits are the largest tensors."""
IMAGES_AT_ONCE = 64


class Bench:
    """A trial's base model and task, to be run under other weights.

    Args:
        facts: of the sweep, as `units.sweep_facts` has them.
        row: the trial, as `Kept.brief` has it.
        warm: keeps the model and its data from bench to bench of one process; empty at first.

    Raises:
        TrialError, TrainablesError: the data or the model can't be had any more.
    """

    def __init__(self, facts: Row, row: Row, warm: dict[str, Any]) -> None:
        self._lane, trial = LaneCache(warm, pick_device()), trial_config(facts, row)
        self.loaded = self._lane.model(trial.model, trial.train.base_weights)
        self.module = self.loaded.module.eval()
        precision, autocast = choose_precision("fp32", self._lane.device)
        parts = Parts(trial=trial, lane=self._lane, loaded=self.loaded, autocast=autocast, precision=precision)
        self.task: Task = make_task(parts)
        if self.task.head is not None:
            self.task.head.eval()
        self._states: dict[Any, State] = warm.setdefault("states", {})

    @property
    def at_once(self) -> int:
        """Examples of one forward pass."""
        return IMAGES_AT_ONCE if isinstance(self.task, ImageTask) else TEXTS_AT_ONCE

    def state(self, kept: Kept) -> State:
        """Weights as a trial left them, those that training changed, for `under`."""
        if kept.folder not in self._states:
            while len(self._states) > 3:  # the corners of a plane, and one
                self._states.pop(next(iter(self._states)))
            found = {f"model.{n}": t for n, t in trained_state(self.module, kept).items()}
            self._states[kept.folder] = self._head(kept) | {n: t.to(self._lane.device) for n, t in found.items()}
        return self._states[kept.folder]

    @contextlib.contextmanager
    def trained(self, kept: Kept | None) -> Iterator[State]:
        """The model as a trial left it, its adapter on it and not merged; gives the weights that are for `under`.

        None: the base model.
        """
        if kept is None or kept.full:
            yield {} if kept is None else self.state(kept)
            return
        adapted = randlora.load(self.module, kept.folder)
        try:
            yield self._head(kept)
        finally:
            adapted.detach()

    def _head(self, kept: Kept) -> State:
        file = kept.folder / HEAD_FILE
        if self.task.head is None or not file.is_file():
            return {}
        return {f"head.{n}": t.to(self._lane.device) for n, t in read_tensors(file).items()}

    def base(self) -> dict[str, Tensor]:
        """Weights of the base model, and of the head as it was before training."""
        found = {f"model.{n}": p.detach() for n, p in self.module.named_parameters()}
        head = self.task.head
        return found | ({} if head is None else {f"head.{n}": p.detach() for n, p in head.named_parameters()})

    @torch.no_grad()
    def under(self, state: State, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the task or the model with the weights of `state` in place; none is written to."""
        return functional_call(_Holding(self.module, self.task.head, function), dict(state), arguments)

    def examples(self, which: Sequence[Split], most: float) -> Tensor:
        """Up to `most` of the trial's rows (n,), drawn without regard to the method: the same for all of a place.

        Below 1 it is a share of them.
        """
        rows = torch.cat([self.task.rows(w) for w in which])
        most = math.ceil(most * len(rows)) if most < 1 else int(most)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        return rows[order[:most]]

    def loss(self, state: State, rows: Tensor) -> float:
        """The task's training loss, mean per image or target token, over rows (n,), n > 0."""
        total = weight = 0.0
        for part in torch.split(rows, self.at_once):
            total += float(self.under(state, self.task.loss_sum, part, None))
            weight += self.task.weight(part)
        return total / weight

    def blocks(self) -> dict[str, nn.Module]:
        """The model's repeated blocks by name, from the input on; of CLIP those of the image tower.

        Raises:
            StoreError: a model without any.
        """
        found = repeated_blocks(self.module, "visual." if self.loaded.kind == "clip" else "")
        if not found:
            raise StoreError(
                f"model {self.loaded.model_id!r} has no list of like blocks whose outputs could be compared"
            )
        return found

    def layers(self) -> dict[str, nn.Module]:
        """The attention and the MLP of every block, in order; a block without parts of these names is one itself."""
        found: dict[str, nn.Module] = {}
        for name, block in self.blocks().items():
            parts = {f"{name}.{child}": m for child, m in block.named_children() if child in _PARTS}
            found |= parts or {name: block}
        return found

    def activations(self, state: State, rows: Tensor, of: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
        """Outputs of the blocks: name -> (n, features), each example's mean over its tokens or places.

        Texts pass one by one, so that no padding enters the mean; images in one batch. `of`: other modules, by name.
        """
        blocks = self.blocks() | dict(of or {})  # a block that nobody watches may leave out tokens that nobody reads
        if isinstance(self.task, ImageTask):
            images, _ = self.task.inputs(rows, None)
            features: Any = self.task.classifier
            whole = self._watched(blocks, lambda: self.under(state, features.features, images), len(rows))
            return {name: whole[name] for name in of or blocks}
        parts = [
            self._watched(blocks, lambda row=row: self.under(state, self.task.loss_sum, row, None), 1)  # type: ignore[misc]
            for row in torch.split(rows, 1)
        ]
        return {name: torch.cat([p[name] for p in parts]) for name in of or blocks}

    @staticmethod
    def _watched(blocks: Mapping[str, nn.Module], forward: Callable[[], Any], batch: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def hook(name: str) -> Any:
            def keep(_: nn.Module, __: Any, output: Any) -> None:
                value = output if isinstance(output, Tensor) else output[0]
                found[name] = mean_vector(value.detach(), batch).float().cpu()

            return keep

        handles = [module.register_forward_hook(hook(name)) for name, module in blocks.items()]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
        return found


def bench_of(store: Store, trial_id: str) -> Bench:
    """The bench of a kept trial of a store, by its id. Raises StoreError: no trial of that id kept its weights."""
    known = {row["trial_id"]: row for row in confirmed_as_trained(store)}
    folder = store.path / ADAPTERS / trial_id
    if trial_id not in known or not folder.is_dir():
        raise StoreError(f"{store.path} keeps no trained weights of trial {trial_id!r}; [keep] says which are kept")
    kept = Kept(known[trial_id], folder)
    return Bench(sweep_facts(store), kept.brief, {})


class _Holding(nn.Module):
    """Model and head in one module, so that weights of both can be replaced around a call."""

    def __init__(self, model: nn.Module, head: nn.Module | None, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.head = model, head
        self._function = function

    def forward(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def trial_config(facts: Row, row: Row) -> TrialConfig:
    """A trial on the same data as a kept one, of a method that has the family's usual task. It is never trained."""
    train = TrainSettings.model_validate(facts["train"]).model_copy(
        update={"augment": "none", "gradient_checkpointing": False}
    )
    size = row["train_size"]
    return TrialConfig(
        stage="CONFIRM" if facts["protocol"] == "paper" else "TUNE",  # which cannot read test
        cell_id="diagnostics",
        model=row["model"],
        adapt=row["adapt"],
        targets=(),
        dataset=row["dataset"],
        train_size=size if size.endswith("-shot") else float(size),
        method="full",
        lr=1.0,
        data_seed=row["data_seed"],
        init_seed=row["init_seed"],
        basis_seed=row["basis_seed"],
        train=train,
        protocol=facts["protocol"],
        skip_bad=facts["skip_bad"],
        image_size=facts["image_size"],
        evaluate=EvaluateSettings.model_validate(facts["evaluate"]),
    )


def repeated_blocks(module: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Return the repeated blocks of a model (such as its transformer layers), keyed by module name.

    `prefix`: the start of the names to return.
    """
    return {
        f"{name}.{number}": block
        for name, blocks in block_lists(module).items()
        if name.startswith(prefix)
        for number, block in blocks.named_children()
    }


def mean_vector(output: Tensor, batch: int) -> Tensor:
    """(B, D) of a block's output: the mean over tokens of (B, T, D) or (T, B, D), over places of (B, C, H, W)."""
    if output.shape[0] != batch:
        output = output.transpose(0, 1)
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    return output if output.ndim == 2 else output.mean(dim=1)
