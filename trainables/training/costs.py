"""Compute what training a method costs, from shapes alone: operations, memory, and the bytes of what is saved.

A step runs on fake tensors (`fake_steps`) through the same classifiers and language models that trials train. It needs
no weights, no data and no device.

It assumes full micro-batches on one worker, texts of `max_tokens` tokens with a loss at every token, and the operations
of a CPU at the precision that this machine would take. So the memory is that of the largest step. It does not
count the copies of weights that `train.hold_weights` makes.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from randlora.adapted.adapted import Adapted
from randlora.adapted.attach import attach
from randlora.adapted.uses import Uses, recording
from randlora.errors import AdapterError
from randlora.files.sizes import file_bytes, saved_bytes
from randlora.methods.prompts.entry import name_of
from randlora.methods.prompts.kinds import PREFIX
from randlora.methods.registry import get_method
from randlora.model.prompted import place_of
from trainables.config import FULL_METHODS, LINEAR_PROBE, NO_TRAINING, TrainSettings, TrialConfig
from trainables.errors import TrainablesError, first_line
from trainables.models.base_weights import planned
from trainables.models.encoders import ClassifierHead, TransferHead, hidden_size
from trainables.models.families import Kind
from trainables.models.forward import recomputing
from trainables.models.language import LanguageModel
from trainables.runtime import Autocast, choose_precision, pick_device
from trainables.tasks.images.clip import BothTask, encode_images
from trainables.tasks.images.images import HeadClassifier
from trainables.tasks.images.prompts import RegularisedClassifier, TransferClassifier, prompt_classifier
from trainables.tasks.text.encoding import DEFAULT_MAX_TOKENS
from trainables.tasks.text.rows import positions_of
from trainables.tasks.text.sentences import DEFAULT_MAX_TOKENS as SENTENCE_TOKENS
from trainables.tasks.text.sentences import Sentence, SentenceReader
from trainables.training.adapting import base_weight_names
from trainables.training.fake_steps import FakeModel

T = TypeVar("T")


class UncountableError(TrainablesError):
    """The costs of a method depend on the values of weights or data, or its step cannot run without them."""


@dataclass(frozen=True)
class StepCosts:
    """What a training step takes.

    Attributes:
        flops: floating-point operations of a forward and a backward pass, for one image or one token.
        forward_flops: those of the base model's forward pass without an adapter.
        memory_bytes: the most that weights, gradients, AdamW's moments and activations take at once.
    """

    flops: int
    forward_flops: int
    memory_bytes: int


@dataclass(frozen=True, eq=False)
class _Loss:
    """Makes the loss of a micro-batch.

    Attributes:
        units: images, or tokens, of the micro-batch.
        head: a module that is trained together with the model.
    """

    make: Callable[[], Tensor]
    units: int
    head: nn.Module | None = None


class CostModel:
    """The costs of methods on one base model. Trials that cost the same are measured once.

    Args:
        module: the base model on the meta device; it stays as it is.
        kind: the task family that trains it.
        side: pixels on each side of its square input; None for a model of texts.
        classes: number of classes of a new head. A contrastive loss has at most this many in a batch.
    """

    def __init__(self, module: nn.Module, kind: Kind, *, side: int | None, classes: int) -> None:
        self._module, self._kind, self._side, self._classes = module, kind, side, classes
        self._steps: dict[TrialConfig, StepCosts | UncountableError] = {}
        self._saved: dict[TrialConfig, int | UncountableError] = {}
        self._forward: dict[tuple[str | None, TrainSettings], int] = {}

    def step(self, trial: TrialConfig) -> StepCosts:
        """Return what a training step of this trial costs. Raises UncountableError, and AdapterError as `attach`."""
        return _once(self._steps, trial, self._find_step)

    def saved_bytes(self, trial: TrialConfig) -> int:
        """Return the bytes of the tensors that this trial saves: its adapter, or the weights that it trains.

        Raises UncountableError, and AdapterError as `attach`.
        """
        return _once(self._saved, trial, self._find_saved)

    def uses(self, trial: TrialConfig) -> Uses:
        """Return which adapters of this trial take part in a forward pass.

        A forward pass that runs on fake tensors does not depend on data, so they take the same part in every one.

        Raises:
            UncountableError: the forward pass needs values.
        """
        module = copy.deepcopy(self._module).train()
        added = _attach(module, trial)
        try:
            fake = FakeModel(module)
            loss = self._loss(fake, trial)
            with recording(added.adapters) as uses:
                fake.run(loss.make)
        except Exception as error:  # any layer may ask a fake tensor for its values
            raise UncountableError(
                f"{trial.model} can't run without its weights' values: {first_line(error)}"
            ) from error
        return uses

    def _find_saved(self, trial: TrialConfig) -> int:
        if trial.method in (NO_TRAINING, LINEAR_PROBE):
            raise UncountableError(f"{trial.method} saves nothing of the model")
        if trial.method in FULL_METHODS:
            names = base_weight_names(self._module, trial)
            return file_bytes({name: self._module.get_parameter(name) for name in names})
        added = _attach(self._module, trial)
        try:
            _check_built(added)
            return saved_bytes(added)
        finally:
            added.detach()

    def _find_step(self, trial: TrialConfig) -> StepCosts:
        if trial.method in (NO_TRAINING, LINEAR_PROBE):
            raise UncountableError(
                f"{trial.method} makes the vectors of all examples once, and trains nothing in steps"
            )
        module = planned(self._module, trial.train.base_weights).train()
        if trial.method in FULL_METHODS:
            module.requires_grad_(False)
            for name in base_weight_names(module, trial):
                module.get_parameter(name).requires_grad_(True)
        else:
            added = _attach(module, trial)
            _check_built(added)
            if added.method.holds_out:
                raise UncountableError(f"{trial.method} trains on parts of its batches, and the data decide which")
        fake = FakeModel(module, _types(self._module, module, trial))
        loss = self._loss(fake, trial)
        costs = fake.step(loss.make, head=loss.head, accumulates=_rows(trial) < trial.train.global_batch_size)
        memory = costs.memory
        if trial.method in FULL_METHODS:  # the lane keeps the base's own values, for the trials after it
            memory += sum(p.nbytes for p in module.parameters() if p.requires_grad)
        return StepCosts(costs.flops // loss.units, self._forward_flops(trial), memory)

    def _forward_flops(self, trial: TrialConfig) -> int:
        key = trial.adapt, trial.train
        if key not in self._forward:
            fake = FakeModel(copy.deepcopy(self._module).train())
            loss = self._loss(fake, trial.model_copy(update={"method": "full"}))  # the base model's own
            self._forward[key] = fake.forward_flops(loss.make) // loss.units
        return self._forward[key]

    def _loss(self, fake: FakeModel, trial: TrialConfig) -> _Loss:
        autocast = _autocast(trial)
        if self._kind == "clip":
            return self._of_clip(fake, trial, autocast)
        if self._kind == "hf-vision":
            return self._of_images(fake, trial, autocast)
        return self._of_texts(fake, trial, autocast)

    def _images(self, rows: int) -> tuple[Tensor, Tensor]:
        assert self._side is not None  # a model of images has one
        return torch.empty(rows, 3, self._side, self._side), torch.zeros(rows, dtype=torch.int64)

    def _of_images(self, fake: FakeModel, trial: TrialConfig, autocast: Autocast) -> _Loss:
        rows = _rows(trial)
        width = hidden_size(fake.module, trial.model)
        head = fake.made(lambda: nn.Linear(width, self._classes, bias=False))
        classifier = HeadClassifier(fake.module, head, autocast)
        return _Loss(lambda: classifier.loss_sum(*self._images(rows)), rows, head)

    def _of_clip(self, fake: FakeModel, trial: TrialConfig, autocast: Autocast) -> _Loss:
        rows, module = _rows(trial), fake.module
        context: Any = module.get_parameter("positional_embedding")
        length = context.shape[0]
        if trial.method.startswith(PREFIX):
            return self._of_prompts(fake, trial, autocast, length)
        if trial.contrastive:
            present = min(rows, self._classes)

            def contrast() -> Tensor:
                images, labels = self._images(rows)
                tokens = torch.zeros(present, length, dtype=torch.int64)
                return BothTask(module, tokens, autocast).contrast(images, tokens, labels, torch.ones(present))

            return _Loss(contrast, rows)

        def loss() -> Tensor:
            images, labels = self._images(rows)
            features = encode_images(module, images, autocast)
            return cross_entropy(features @ torch.empty(features.shape[1], self._classes), labels, reduction="sum")

        return _Loss(loss, rows)

    def _of_prompts(self, fake: FakeModel, trial: TrialConfig, autocast: Autocast, length: int) -> _Loss:
        rows, module, name = _rows(trial), fake.module, name_of(trial.method)
        joint = place_of(self._module).joint
        head = fake.made(lambda: TransferHead(joint, self._classes)) if name.transfer else None

        def loss() -> Tensor:
            texts = torch.zeros(self._classes, length, dtype=torch.int64)
            images, labels = self._images(rows)
            if head is not None:
                return TransferClassifier(module, texts, autocast, head).loss_sum(images, labels)
            if name.kind.teacher:
                teacher = torch.empty(self._classes, joint)
                return RegularisedClassifier(module, texts, autocast, teacher).loss_sum(images, labels)
            classifier = prompt_classifier(trial.method, module, texts, autocast, None)
            if name.adapter is not None or name.kind.deep:
                return classifier.loss_sum(images, labels)
            return classifier.loss_of(torch.empty(rows, joint), labels)  # features of images are cached

        return _Loss(loss, rows, head)

    def _of_texts(self, fake: FakeModel, trial: TrialConfig, autocast: Autocast) -> _Loss:
        rows, module, train = _rows(trial), fake.module, trial.train
        most = train.max_tokens or (DEFAULT_MAX_TOKENS if self._kind == "causal-lm" else SENTENCE_TOKENS)
        tokens = min(most, positions_of(getattr(module, "config", None)) or most)
        if self._kind == "causal-lm":
            read = tokens - 1  # nothing follows the last one

            def predict() -> Tensor:
                at_rows = torch.arange(rows).repeat_interleave(read)
                at_columns = torch.arange(read).repeat(rows)
                ids = torch.zeros(rows, read, dtype=torch.int64)
                with recomputing(module) if train.gradient_checkpointing else nullcontext():
                    logits, _ = LanguageModel(module, autocast).logits(ids, at_rows, at_columns)
                targets = torch.zeros(rows * read, dtype=torch.int64)
                return cross_entropy(logits, targets, reduction="sum", label_smoothing=train.label_smoothing)

            return _Loss(predict, rows * tokens)
        width = hidden_size(module, trial.model)
        head = fake.made(lambda: ClassifierHead(width, self._classes))

        def classify() -> Tensor:
            sentences = [Sentence(torch.zeros(tokens, dtype=torch.int64), None, cut=False) for _ in range(rows)]
            with recomputing(module) if train.gradient_checkpointing else nullcontext():
                vectors = SentenceReader(module, autocast, 0)(sentences)
            return cross_entropy(head(vectors), torch.zeros(rows, dtype=torch.int64), reduction="sum")

        return _Loss(classify, rows * tokens, head)


def _attach(module: nn.Module, trial: TrialConfig) -> Adapted:
    capacities = dict(trial.capacities)
    config = get_method(trial.method).config_for(capacities, dict(trial.options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # planning the cell shows them already
        return attach(module, config, list(capacities), capacities=capacities)


def _check_built(added: Adapted) -> None:
    if any(adapter.stand_in for adapter in added.adapters.values()):
        raise UncountableError(f"{added.method.name} is built from the values of the weights")


def _once(known: dict[TrialConfig, T | UncountableError], trial: TrialConfig, find: Callable[[TrialConfig], T]) -> T:
    """Return the costs that `known` has of an equal trial, or those that `find` measures now.

    Trials that differ only in data, seeds, budget or learning rate cost the same.
    """
    key = trial.model_copy(
        update={"stage": "CONFIRM", "cell_id": "", "dataset": "", "train_size": 1.0, "budget": None, "lr": 1.0}
        | dict.fromkeys(("data_seed", "init_seed", "basis_seed"), 0)
    )
    if key not in known:
        try:
            known[key] = find(trial)
        except UncountableError as error:
            known[key] = error
        except AdapterError:
            raise
        except Exception as error:  # noqa: BLE001  # any layer may ask a fake tensor for its values
            known[key] = UncountableError(f"{trial.method} can't run without its weights' values: {first_line(error)}")
    costs = known[key]
    if isinstance(costs, UncountableError):
        raise costs
    return costs


def _rows(trial: TrialConfig) -> int:
    train = trial.train
    return min(train.micro_batch_size or train.global_batch_size, train.global_batch_size)


def _autocast(trial: TrialConfig) -> Autocast:
    precision, _ = choose_precision(trial.train.precision, pick_device())
    if precision == "fp32":
        return nullcontext
    return functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def _types(base: nn.Module, module: nn.Module, trial: TrialConfig) -> dict[nn.Parameter, torch.dtype]:
    """Return the types that parameters of `module`, a copy of `base`, have in training if these are not float32."""
    if trial.train.base_weights == "fp32":
        return {}
    names = {name for name, _ in base.named_parameters()}
    return {p: torch.bfloat16 for name, p in module.named_parameters() if name in names and p.is_floating_point()}
