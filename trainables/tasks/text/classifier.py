"""Classification and regression of sentences with a text encoder (RoBERTa, BERT) and a new head: GLUE.

The head is the one that transformers puts on RoBERTa: a layer of the encoder's width with tanh between dropouts, and a
linear layer. A linear probe has the linear layer alone. The loss of a class is its cross-entropy, that of a number the
squared error. A batch has sentences of similar length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from trainables.config import LINEAR_PROBE, NO_TRAINING
from trainables.data.text.batches import length_batches
from trainables.errors import TrialError
from trainables.metrics.classification import LABEL_METRICS, NUMBER_METRICS, label_scores, number_scores
from trainables.models.encoders import ClassifierHead, hidden_size, new_classifier_head, new_head
from trainables.tasks.task import Alone, Parts, Scores, Which, summed
from trainables.tasks.text.rows import TextTask, TokenRows, refuse_images
from trainables.tasks.text.sentences import Sentence, SentenceEncoder, SentenceReader, SentenceRows, labels_of

EVAL_TOKENS = 32768
"""Padded tokens of one forward pass in evaluation. It shrinks if memory runs out."""


class SentenceTask(TextTask[Sentence]):
    """One trial's labelled sentences, and the encoder with a head that learns them.

    Raises:
        TrialError: a text encoder does not support the settings or the data.
        DataError: data are missing or malformed.
    """

    def __init__(self, parts: Parts) -> None:
        trial, module, device = parts.trial, parts.loaded.module, parts.lane.device
        refuse_images(trial, "a text encoder")
        if trial.method == NO_TRAINING:
            raise TrialError(f"zero-shot on {trial.model!r}, which has no head to classify with; use {LINEAR_PROBE!r}")
        dataset = parts.lane.text_dataset(trial.dataset, trial.stage)
        if dataset.kind != "sentences":
            raise TrialError(
                f"data set {trial.dataset!r} holds prompts and responses, and {trial.model!r} is a text encoder, which "
                "classifies labelled sentences; use a causal language model, or a glue: data set"
            )
        metric, classes = dataset.metric, len(dataset.class_names)
        possible = [m for m in LABEL_METRICS if m != "matthews" or classes == 2] if classes else NUMBER_METRICS
        if metric not in possible:
            labels = f"{classes} classes" if classes else "numbers"
            raise TrialError(
                f"data set {trial.dataset!r}: metric {metric!r} does not fit its labels, which are {labels}; "
                f"it must be {' or '.join(possible)}"
            )
        encoder = SentenceEncoder(parts.loaded.text_tokenizer, trial.train.max_tokens, module, trial.model)
        super().__init__(parts, dataset, encoder.max_tokens, lambda part: SentenceRows(part, encoder))
        self._read = SentenceReader(module, parts.autocast, encoder.pad)
        self._classes = classes
        self._frozen = trial.method == LINEAR_PROBE
        width, outputs = hidden_size(module, trial.model), self._classes or 1
        self.head: nn.Linear | ClassifierHead = (
            new_head(width, outputs, trial.init_seed, device)
            if self._frozen
            else new_classifier_head(module, width, outputs, trial.init_seed, device)
        )

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        with self._saving():
            outputs = self._outputs(self._train, rows)
        return self._loss(outputs, rows)

    def packed_losses(
        self, tasks: Sequence[SentenceTask], rows: Sequence[Tensor], plans: Sequence[Tensor | None], alone: Alone
    ) -> list[Tensor]:
        with self._saving():
            vectors = self._read([self._train[row] for trial_rows in rows for row in trial_rows.tolist()]).chunk(
                len(rows)
            )
        losses = []
        for place, (task, part, trial_rows) in enumerate(zip(tasks, vectors, rows, strict=True)):
            with alone(place):
                losses.append(task._loss(task._headed(part), trial_rows))
        return losses

    def _loss(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the summed loss of outputs (b, C) of some training rows."""
        labels = labels_of(self._train.part, rows).to(outputs.device)
        if not self._classes:
            return mse_loss(outputs.squeeze(1), labels.float(), reduction="sum")
        return cross_entropy(outputs, labels, reduction="sum", label_smoothing=self._trial.train.label_smoothing)

    def _outputs(self, encoded: TokenRows[Sentence], rows: Tensor) -> Tensor:
        """Return logits (b, C), or numbers (b, 1), of some rows."""
        if self._frozen:
            self._module.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            vectors = self._read([encoded[row] for row in rows.tolist()])
        return self._headed(vectors)

    def _headed(self, vectors: Tensor) -> Tensor:
        """Return the head's outputs for vectors (b, D)."""
        self.head.train(self._module.training)
        outputs: Tensor = self.head(vectors)
        return outputs

    @torch.no_grad()
    def evaluate(self, which: Which, *, batch_size: int, rank: int = 0, world: int = 1) -> Scores | None:
        part, rows = self._evaluated(which)
        if len(rows) == 0:
            return None
        encoded = self._in_tokens(part)
        own_rows = list(range(rank, len(rows), world))
        encoded.prepare(rows[own_rows].tolist())
        outputs = torch.zeros(len(rows), self._classes or 1, dtype=torch.float64)
        lengths = [len(encoded[row]) for row in rows[own_rows].tolist()]
        most = EVAL_TOKENS * batch_size // self._trial.train.eval_batch_size
        for batch in length_batches(lengths, batch_size, most):
            at = torch.tensor([own_rows[i] for i in batch])
            outputs[at] = self._outputs(encoded, rows[at]).double().cpu()
        outputs = summed(outputs, world, self._lane.device)
        labels = labels_of(part, rows)
        if self._classes:
            predicted = outputs.argmax(dim=1)
            values = label_scores(predicted, labels, self._classes)
            values["loss"] = float(cross_entropy(outputs, labels))
            correct = predicted == labels if self.metric == "accuracy" else None
        else:
            values = number_scores(outputs.squeeze(1), labels)
            values["loss"] = float(mse_loss(outputs.squeeze(1), labels.double()))
            correct = None
        return self._scores(part, rows, values.pop(self.metric), correct, values)
