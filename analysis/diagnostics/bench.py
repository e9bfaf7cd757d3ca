"""A trial's model, data and loss, made again so that trained weights can be examined.

It works for every family that `trainables` can train. Examples come from the trial's own training and validation rows,
and nothing is scored on the test split (`protocol = "paper"` opens it, as training did). Everything runs in float32,
without dropout and without augmentation.
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
from trainables.data.images.dataset import Dataset
from trainables.models.blocks import block_lists
from trainables.models.encoders import HEAD_FILE
from trainables.runtime import choose_precision, pick_device
from trainables.tasks.images.images import ImageTask
from trainables.tasks.lane_cache import LaneCache
from trainables.tasks.make import make_task
from trainables.tasks.task import Parts, Split, Task

State = dict[str, Tensor]

_PARTS = ("attn", "attention", "self_attn", "mlp", "output")
"""Names of the attention and of the MLP in a block. In BERT the module "output" is the end of the MLP."""

TEXTS_AT_ONCE = 8
"""Number of texts in one forward pass. It is small because their logits are large."""
IMAGES_AT_ONCE = 64


class Bench:
    """A trial's base model and task, which can be run with other weights.

    Args:
        facts: settings of the sweep, from `units.sweep_facts`.
        row: the trial, from `Kept.brief`.
        cache: holds the model and its data for all benches of one process; empty at first.
        test: whether the test split may be read. Use it only for data of which no trial has read an image.

    Raises:
        TrialError, TrainablesError: the data or the model is no longer available.
    """

    def __init__(self, facts: Row, row: Row, cache: dict[str, Any], *, test: bool = False) -> None:
        self._lane, trial = LaneCache(cache, pick_device()), trial_config(facts, row, test=test)
        self.loaded = self._lane.model(trial.model, trial.train.base_weights)
        self.module = self.loaded.module.eval()
        precision, autocast = choose_precision("fp32", self._lane.device)
        parts = Parts(trial=trial, lane=self._lane, loaded=self.loaded, autocast=autocast, precision=precision)
        self.task: Task = make_task(parts)
        if self.task.head is not None:
            self.task.head.eval()
        self._states: dict[Any, State] = cache.setdefault("states", {})

    def open_dataset(self, name: str) -> Dataset:
        """Return an image set with its test split open. It is loaded once for all benches of one cache."""
        return self._lane.dataset(name, "CONFIRM")

    @property
    def at_once(self) -> int:
        """Number of examples in one forward pass."""
        return IMAGES_AT_ONCE if isinstance(self.task, ImageTask) else TEXTS_AT_ONCE

    def state(self, kept: Kept) -> State:
        """Return the weights that a trial changed, as it left them, for use with `under`."""
        if kept.folder not in self._states:
            while len(self._states) > 3:  # at most four states are cached: the corners of a plane, and one more
                self._states.pop(next(iter(self._states)))
            model_state = {f"model.{n}": t for n, t in trained_state(self.module, kept).items()}
            self._states[kept.folder] = self._head(kept) | {n: t.to(self._lane.device) for n, t in model_state.items()}
        return self._states[kept.folder]

    @contextlib.contextmanager
    def trained(self, kept: Kept | None) -> Iterator[State]:
        """Attach a trial's adapter (not merged) to the model, and give the other trained weights for `under`.

        Args:
            kept: the trial; None for the base model.
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
        """Return the weights of the base model, and those of the head before training."""
        model_weights = {f"model.{n}": p.detach() for n, p in self.module.named_parameters()}
        head = self.task.head
        return model_weights | ({} if head is None else {f"head.{n}": p.detach() for n, p in head.named_parameters()})

    @torch.no_grad()
    def under(self, state: State, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the task or the model with the weights of `state`. The model's own weights stay."""
        return functional_call(_Holding(self.module, self.task.head, function), dict(state), arguments)

    def examples(self, which: Sequence[Split], most: float) -> Tensor:
        """Return up to `most` of the trial's rows (n,), the same ones for all methods of a place.

        Texts are in the order of their lengths, so that those of one forward pass need little padding.

        Args:
            which: splits from which the rows are drawn.
            most: largest number of rows; below 1 a share of all rows.
        """
        rows = torch.cat([self.task.rows(w) for w in which])
        most = math.ceil(most * len(rows)) if most < 1 else int(most)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        drawn = rows[order[:most]].tolist()
        return torch.tensor(sorted(drawn, key=lambda row: self.task.width(torch.tensor([row])) or 0))

    def loss(self, state: State, rows: Tensor) -> float:
        """Return the task's mean training loss per image or target token over rows (n,), n > 0."""
        total = weight = 0.0
        for part in torch.split(rows, self.at_once):
            total += float(self.under(state, self.task.loss_sum, part, None))
            weight += self.task.weight(part)
        return total / weight

    def blocks(self) -> dict[str, nn.Module]:
        """Return the model's repeated blocks by name, in order from the input (of CLIP those of the image tower).

        Raises:
            StoreError: the model has no repeated blocks.
        """
        blocks = repeated_blocks(self.module, "visual." if self.loaded.kind == "clip" else "")
        if not blocks:
            raise StoreError(
                f"model {self.loaded.model_id!r} has no list of like blocks whose outputs could be compared"
            )
        return blocks

    def layers(self) -> dict[str, nn.Module]:
        """Return the attention and the MLP of each block, in order. A block without such parts is returned itself."""
        modules: dict[str, nn.Module] = {}
        for name, block in self.blocks().items():
            parts = {f"{name}.{child}": m for child, m in block.named_children() if child in _PARTS}
            modules |= parts or {name: block}
        return modules

    def activations(self, state: State, rows: Tensor, of: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
        """Return the outputs of modules as name -> (n, features): each example's mean over its tokens or positions.

        Texts pass one by one, so that the mean includes no padding. Images pass in one batch.

        Args:
            state: the weights to use.
            rows: (n,) the examples.
            of: the modules, by name; default: the blocks.
        """
        blocks = self.blocks() | dict(of or {})  # without a hook, a block may skip tokens that are not needed
        if isinstance(self.task, ImageTask):
            images, _ = self.task.inputs(rows, None)
            features: Any = self.task.classifier
            outputs = self._watched(blocks, lambda: self.under(state, features.features, images), len(rows))
            return {name: outputs[name] for name in of or blocks}
        parts = [
            self._watched(blocks, lambda row=row: self.under(state, self.task.loss_sum, row, None), 1)  # type: ignore[misc]
            for row in torch.split(rows, 1)
        ]
        return {name: torch.cat([p[name] for p in parts]) for name in of or blocks}

    @staticmethod
    def _watched(blocks: Mapping[str, nn.Module], forward: Callable[[], Any], batch: int) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}

        def hook(name: str) -> Any:
            def keep(_: nn.Module, __: Any, output: Any) -> None:
                value = output if isinstance(output, Tensor) else output[0]
                outputs[name] = mean_vector(value.detach(), batch).float().cpu()

            return keep

        handles = [module.register_forward_hook(hook(name)) for name, module in blocks.items()]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
        return outputs


def bench_of(store: Store, trial_id: str) -> Bench:
    """Return the bench of a trial by its id. Raises StoreError if the store has no weights of that trial."""
    row_by_id = {row["trial_id"]: row for row in confirmed_as_trained(store)}
    folder = store.path / ADAPTERS / trial_id
    if trial_id not in row_by_id or not folder.is_dir():
        raise StoreError(f"{store.path} keeps no trained weights of trial {trial_id!r}; [keep] says which are kept")
    kept = Kept(row_by_id[trial_id], folder)
    return Bench(sweep_facts(store), kept.brief, {})


class _Holding(nn.Module):
    """Model and head in one module, so that weights of both can be replaced around a call."""

    def __init__(self, model: nn.Module, head: nn.Module | None, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.head = model, head
        self._function = function

    def forward(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def trial_config(facts: Row, row: Row, *, test: bool = False) -> TrialConfig:
    """Return the configuration of a trial on the same data as a kept one. It only serves to make the task.

    Args:
        facts: settings of the sweep, from `units.sweep_facts`.
        row: the kept trial, from `Kept.brief`.
        test: whether the task may read the test split. Under `protocol = "paper"` it always may.
    """
    train = TrainSettings.model_validate(facts["train"]).model_copy(
        update={"augment": "none", "gradient_checkpointing": False}
    )
    size = row["train_size"]
    return TrialConfig(
        stage="CONFIRM" if test or facts["protocol"] == "paper" else "TUNE",  # TUNE cannot read the test split
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
    """Return (B, D): the mean of a block's output over tokens (B, T, D) or (T, B, D), or positions (B, C, H, W)."""
    if output.shape[0] != batch:
        output = output.transpose(0, 1)
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    return output if output.ndim == 2 else output.mean(dim=1)
