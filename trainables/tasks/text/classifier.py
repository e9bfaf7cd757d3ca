"""Classification and regression of sentences with a text encoder (RoBERTa, BERT) and a new head: GLUE.

The head is the one that transformers puts on RoBERTa: a layer of the encoder's width with tanh between dropouts, and a
linear layer; a linear probe has the linear layer alone. The loss of a class is its cross-entropy, of a number the
squared error. Batches hold sentences of like length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from trainables.config import LINEAR_PROBE, NO_TRAINING
from trainables.data.splits import split
from trainables.data.text.batches import bucketed_batches, length_batches, share_of
from trainables.data.text.dataset import TextDataset, TextSplit
from trainables.errors import TrialError
from trainables.metrics.labels import LABEL_METRICS, NUMBER_METRICS, label_scores, number_scores
from trainables.models.encoders import ClassifierHead, hidden_size, new_classifier_head, new_head
from trainables.models.recompute import recomputing
from trainables.tasks.task import Alone, Parts, Scores, Split, Which
from trainables.tasks.text.lm_rows import CUT, limited, summed
from trainables.tasks.text.sentences import SentenceEncoder, SentenceReader, SentenceRows

EVAL_TOKENS = 32768
"""Padded tokens of one forward pass in evaluation."""


class TextTask:
    """One trial's labelled sentences, and the encoder with a head that learns them."""

    unit = "texts"

    def __init__(self, parts: Parts, dataset: TextDataset) -> None:
        trial = parts.trial
        self._trial, self._dataset, self._lane = trial, dataset, parts.lane
        self._module = parts.loaded.module
        self._encoder = SentenceEncoder(parts.loaded.text_tokenizer, trial.train.max_tokens, self._module, trial.model)
        self._read = SentenceReader(self._module, parts.autocast, self._encoder.pad)
        self._rows = split(dataset, trial.train_size, trial.data_seed, trial.stage, trial.protocol)
        self._classes = len(dataset.class_names)
        self._frozen = trial.method == LINEAR_PROBE
        width, outputs = hidden_size(self._module, trial.model), self._classes or 1
        self.head: nn.Linear | ClassifierHead = (
            new_head(width, outputs, trial.init_seed, parts.lane.device)
            if self._frozen
            else new_classifier_head(self._module, width, outputs, trial.init_seed, parts.lane.device)
        )
        self._train = self._encoded(dataset.train)
        self._cut = self._train.cut_share(self._rows.train_idx.tolist())

    def _encoded(self, part: TextSplit) -> SentenceRows:
        key = ("sentences", self._dataset.name, part.name, self._encoder.max_tokens)
        return self._lane.words(key, lambda: SentenceRows(part, self._encoder))

    @property
    def metric(self) -> str:
        return self._dataset.metric

    def batches(self, epoch: int) -> list[Tensor]:
        return bucketed_batches(self._rows.train_idx, lambda row: len(self._train[row]), self._trial, epoch)

    def rows(self, which: Split) -> Tensor:
        return self._rows.train_idx if which == "train" else self._rows.val_idx

    def weight(self, batch: Tensor) -> float:
        return float(len(batch))

    def draw(self, batch: Tensor, generator: torch.Generator) -> None:
        return None

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        with self._saving():
            outputs = self._outputs(self._train, rows)
        return self._loss(outputs, rows)

    def _saving(self) -> contextlib.AbstractContextManager[None]:
        saving = self._trial.train.gradient_checkpointing and not self._frozen
        return recomputing(self._module) if saving else contextlib.nullcontext()

    def width(self, rows: Tensor) -> int:
        return max(len(self._train[row]) for row in rows.tolist())

    def packed_losses(
        self, tasks: Sequence[TextTask], rows: Sequence[Tensor], plans: Sequence[Tensor | None], alone: Alone
    ) -> list[Tensor]:
        with self._saving():
            vectors = self._read([self._train[row] for own in rows for row in own.tolist()]).chunk(len(rows))
        losses = []
        for place, (task, part, own) in enumerate(zip(tasks, vectors, rows, strict=True)):
            with alone(place):
                losses.append(task._loss(task._headed(part), own))
        return losses

    def _loss(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """The summed loss of outputs (b, C) of some training rows."""
        labels = self._train.labels(rows).to(outputs.device)
        if not self._classes:
            return mse_loss(outputs.squeeze(1), labels.float(), reduction="sum")
        return cross_entropy(outputs, labels, reduction="sum", label_smoothing=self._trial.train.label_smoothing)

    def _outputs(self, encoded: SentenceRows, rows: Tensor) -> Tensor:
        """Logits (b, C) of some rows, or (b, 1) numbers."""
        if self._frozen:
            self._module.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            vectors = self._read([encoded[row] for row in rows.tolist()])
        return self._headed(vectors)

    def _headed(self, vectors: Tensor) -> Tensor:
        self.head.train(self._module.training)
        outputs: Tensor = self.head(vectors)
        return outputs

    @torch.no_grad()
    def evaluate(self, which: Which, *, batch_size: int, rank: int = 0, world: int = 1) -> Scores | None:
        part = self._dataset.train if which == "val" else self._dataset.at(self._trial.stage).test
        rows = self._rows.val_idx if which == "val" else self._rows.test_idx
        settings = self._trial.evaluate
        rows = limited(part, rows, settings.validation_rows if which == "val" else settings.test_rows, which)
        if len(rows) == 0:
            return None
        encoded = self._train if which == "val" else self._encoded(part)
        mine = share_of(len(rows), rank, world)
        encoded.prepare(rows[mine].tolist())
        outputs = torch.zeros(len(rows), self._classes or 1, dtype=torch.float64)
        lengths = [len(encoded[row]) for row in rows[mine].tolist()]
        for batch in length_batches(lengths, batch_size, EVAL_TOKENS):
            at = torch.tensor([mine[i] for i in batch])
            outputs[at] = self._outputs(encoded, rows[at]).double().cpu()
        outputs = summed(outputs, world, self._lane.device)
        return self._scores(part, rows, outputs, encoded.labels(rows))

    def _scores(self, part: TextSplit, rows: Tensor, outputs: Tensor, labels: Tensor) -> Scores:
        if self._classes:
            predicted = outputs.argmax(dim=1)
            values = label_scores(predicted, labels, self._classes)
            values["loss"] = float(cross_entropy(outputs, labels))
            correct = predicted == labels if self.metric == "accuracy" else None
        else:
            values = number_scores(outputs.squeeze(1), labels)
            values["loss"] = float(mse_loss(outputs.squeeze(1), labels.double()))
            correct = None
        return Scores(
            score=values.pop(self.metric),
            metric=self.metric,
            n_examples=len(rows),
            examples_hash=part.examples_hash(rows),
            correct=correct,
            further={**values, CUT: self._cut},
        )


def text_task(parts: Parts) -> TextTask:
    """A text encoder with a head on labelled sentences.

    Raises:
        TrialError: settings or data that a text encoder does not take.
        DataError: missing or malformed data, naming file and row.
    """
    trial = parts.trial
    if trial.adapt == "vision":
        raise TrialError("adapt = 'vision': a text encoder has no vision tower; use 'all'")
    if trial.method == NO_TRAINING:
        raise TrialError(f"zero-shot on {trial.model!r}, which has no head to classify with; use {LINEAR_PROBE!r}")
    if trial.train.augment != "none":
        raise TrialError(f"train.augment {trial.train.augment!r} is for images; leave it out for a text encoder")
    dataset = parts.lane.text_dataset(trial.dataset, trial.stage)
    if dataset.kind != "sentences":
        raise TrialError(
            f"data set {trial.dataset!r} holds prompts and responses, and {trial.model!r} is a text encoder, which "
            "classifies labelled sentences; use a causal language model, or a glue: data set"
        )
    if dataset.metric not in (LABEL_METRICS if dataset.class_names else NUMBER_METRICS) or (
        dataset.metric == "matthews" and len(dataset.class_names) != 2
    ):
        raise TrialError(f"data set {trial.dataset!r}: no metric {dataset.metric!r} for its labels")
    return TextTask(parts, dataset)
