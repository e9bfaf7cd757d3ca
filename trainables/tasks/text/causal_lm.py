"""Supervised fine-tuning of causal language models, and their two evaluation protocols, which are never mixed.

The loss is the cross-entropy of the response's tokens and its EOS (`train.loss_on_prompt` adds the prompt's, as
LLM-Adapters trains by default), divided by the number of such tokens in the whole global batch. Texts are padded
behind, which the loss and, attention being causal, the model do not see.

"log-likelihood": the choice whose continuation of the prompt is most likely. Choices that are labels in one sentence
("the correct answer is answer2") compare by their sum; choices that are texts of their own compare per byte, since
longer ones would lose otherwise. The other of the two is a further metric.
"generation": LLM-Adapters' beam search, and its rules for reading an answer from the text; for rows with references
(E2E) the score is BLEU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainables.config import LINEAR_PROBE, TrialConfig
from trainables.data.splits import split
from trainables.data.text.batches import bucketed_batches, padded, share_of
from trainables.data.text.dataset import Exchange, TextDataset, TextSplit
from trainables.errors import TrialError
from trainables.metrics.texts import check_installed, score_texts
from trainables.models.language import LanguageModel
from trainables.models.recompute import recomputing
from trainables.tasks.task import Alone, Parts, Scores, Split, Which
from trainables.tasks.text.encoding import DEFAULT_MAX_TOKENS, EncodedRows, Encoder, exchange
from trainables.tasks.text.generation import generate
from trainables.tasks.text.lm_rows import (
    CUT,
    answer_in,
    choices_of,
    gathered,
    limited,
    mean_of_groups,
    positions,
    summed,
)
from trainables.tasks.text.scoring import Question, choice_scores

LOG_LIKELIHOOD, GENERATION = "log-likelihood", "generation"


class CausalLMTask:
    """One trial's texts and the language model that learns them."""

    unit = "texts"
    head = None

    def __init__(self, parts: Parts, dataset: TextDataset) -> None:
        trial = parts.trial
        if dataset.kind == "sentences":
            raise TrialError(
                f"data set {trial.dataset!r} is labelled sentences, and {trial.model!r} is a language model, which "
                "learns prompts and responses; use a text encoder such as hf:roberta-base, or a json: data set"
            )
        self._trial, self._dataset, self._lane = trial, dataset, parts.lane
        self._model = LanguageModel(parts.loaded.module, parts.autocast)
        self._autocast = parts.autocast
        self._encoder = _encoder(parts)
        self._rows = split(dataset, trial.train_size, trial.data_seed, trial.stage, trial.protocol)
        self.protocol = _protocol(trial, dataset)
        if dataset.kind == "meanings":
            check_installed()
        self._train = parts.lane.words(
            ("encoded", trial.dataset, self._encoder.max_tokens), lambda: EncodedRows(dataset.train, self._encoder)
        )
        self._cut = self._train.cut_share(self._rows.train_idx.tolist())

    @property
    def metric(self) -> str:
        if self._dataset.kind == "meanings":
            return "bleu"
        per_byte = self.protocol == LOG_LIKELIHOOD and self._dataset.kind == "questions"
        return f"accuracy ({self.protocol}{' per byte' if per_byte else ''})"

    def batches(self, epoch: int) -> list[Tensor]:
        return bucketed_batches(self._rows.train_idx, lambda row: len(self._train[row]), self._trial, epoch)

    def rows(self, which: Split) -> Tensor:
        return self._rows.train_idx if which == "train" else self._rows.val_idx

    def weight(self, batch: Tensor) -> float:
        return float(sum(self._targets(row) for row in batch.tolist()))

    def _targets(self, row: int) -> int:
        found = self._train[row]
        return len(found) - 1 if self._trial.train.loss_on_prompt else len(found.response)

    def draw(self, batch: Tensor, generator: torch.Generator) -> None:
        return None

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        return self._loss_sums([rows])[0]

    def width(self, rows: Tensor) -> int:
        return max(len(self._train[row]) for row in rows.tolist()) - 1

    def packed_losses(
        self, tasks: Sequence[CausalLMTask], rows: Sequence[Tensor], plans: Sequence[Tensor | None], alone: Alone
    ) -> list[Tensor]:
        return self._loss_sums(rows)  # the trials' texts are the same ones, whichever of them each trains on

    def _loss_sums(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """The summed loss of each group of rows, by one forward pass of all."""
        texts = [self._train[row] for rows in groups for row in rows.tolist()]
        whole = [torch.cat([t.prompt, t.response]) for t in texts]
        starts = [0 if self._trial.train.loss_on_prompt else len(t.prompt) - 1 for t in texts]
        at_rows, at_columns, targets = positions(whole, starts)
        ids = padded([w[:-1] for w in whole], self._encoder.pad)  # nothing follows the last token
        saving = self._trial.train.gradient_checkpointing
        with recomputing(self._model.module) if saving else contextlib.nullcontext():
            logits, _ = self._model.logits(ids, at_rows, at_columns)
        smoothing = self._trial.train.label_smoothing
        counts = [sum(self._targets(row) for row in rows.tolist()) for rows in groups]
        pairs = zip(torch.split(logits, counts), torch.split(targets.to(logits.device), counts), strict=True)
        return [cross_entropy(own, to, reduction="sum", label_smoothing=smoothing) for own, to in pairs]

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, which: Which, *, batch_size: int, rank: int = 0, world: int = 1) -> Scores | None:
        part = self._dataset.train if which == "val" else self._dataset.at(self._trial.stage).test
        rows = self._rows.val_idx if which == "val" else self._rows.test_idx
        most = self._trial.evaluate.validation_rows if which == "val" else self._trial.evaluate.test_rows
        rows = limited(part, rows, most, which)
        if len(rows) == 0:
            return None
        mine = share_of(len(rows), rank, world)
        texts = [exchange(part, int(rows[i])) for i in mine]
        places = [part.place(int(rows[i])) for i in mine]
        found = torch.zeros(len(rows), 4, dtype=torch.float64)
        if self.protocol == LOG_LIKELIHOOD:
            found[mine] = self._by_likelihood(texts, places, batch_size)
            found = summed(found, world, self._lane.device)
            return self._by_choice(part, rows, found)
        written = generate(
            self._model.module,
            self._encoder.prompts(texts),
            self._encoder,
            self._trial.evaluate,
            batch_size=batch_size,
            autocast=self._autocast,
        )
        losses = self._losses(texts, batch_size)
        found[mine, 2:] = losses
        if self._dataset.kind == "meanings":
            found = summed(found, world, self._lane.device)
            return self._by_reference(part, rows, gathered(written, len(rows), world), found)
        answers = [answer_in(text, row, place) for text, row, place in zip(written, texts, places, strict=True)]
        found[mine, 0] = torch.tensor([a == r.answer for a, r in zip(answers, texts, strict=True)], dtype=torch.float64)
        found[mine, 1] = torch.tensor([a is None for a in answers], dtype=torch.float64)
        found = summed(found, world, self._lane.device)
        unread = float(found[:, 1].mean())
        return self._scores(part, rows, found[:, 0], found, {"without-answer": unread})

    def _by_likelihood(self, texts: Sequence[Exchange], places: Sequence[str], batch_size: int) -> Tensor:
        """Per row: right by sum, right per byte, loss of the right choice, its tokens. (rows, 4)"""
        choices = [choices_of(row, place) for row, place in zip(texts, places, strict=True)]
        flat = self._encoder.continuations([c for each in choices for c in each])
        tokens = list(torch.split(torch.arange(len(flat)), [len(each) for each in choices]))
        questions = []
        for prompt, at, place in zip(self._encoder.prompts(texts), tokens, places, strict=True):
            of = [flat[i] for i in at.tolist()]
            if not all(map(len, of)):
                raise TrialError(f"{place}: a choice has no tokens")
            longest = max(map(len, of)) + 1  # as in training, where an EOS follows
            if longest >= self._encoder.max_tokens:
                raise TrialError(
                    f"{place}: a choice of {longest - 1} tokens leaves no room for a prompt within train.max_tokens "
                    f"{self._encoder.max_tokens}; the least that works is {longest + 1}"
                )
            questions.append(Question(self._encoder.shortened(prompt, self._encoder.max_tokens - longest), tuple(of)))
        scores = choice_scores(self._model, questions, batch_size=batch_size, pad=self._encoder.pad)
        out = torch.zeros(len(texts), 4, dtype=torch.float64)
        for i, (row, each, score, question) in enumerate(zip(texts, choices, scores, questions, strict=True)):
            size = torch.tensor([len(c.strip().encode()) for c in each], dtype=torch.float64)
            right = each.index(row.response)
            out[i, 0] = each[int(score.argmax())] == row.response
            out[i, 1] = each[int((score / size).argmax())] == row.response
            out[i, 2], out[i, 3] = -score[right], len(question.choices[right])
        return out

    def _by_choice(self, part: TextSplit, rows: Tensor, found: Tensor) -> Scores:
        per_byte = self._dataset.kind == "questions"
        name = "accuracy-by-sum" if per_byte else "accuracy-per-byte"
        other = mean_of_groups(part, rows, found[:, 0 if per_byte else 1])
        return self._scores(part, rows, found[:, 1 if per_byte else 0], found, {name: other})

    def _by_reference(self, part: TextSplit, rows: Tensor, written: list[str], found: Tensor) -> Scores:
        references = [exchange(part, row).references for row in rows.tolist()]
        values = score_texts(written, references)
        loss = float(found[:, 2].sum() / found[:, 3].sum())
        return Scores(
            score=values["bleu"],
            metric=self.metric,
            n_examples=len(rows),
            examples_hash=part.examples_hash(rows),
            correct=None,
            further={**{k: v for k, v in values.items() if k != "bleu"}, "loss": loss, CUT: self._cut},
        )

    def _scores(self, part: TextSplit, rows: Tensor, right: Tensor, found: Tensor, further: dict[str, float]) -> Scores:
        """Accuracy: the mean over tasks of a union, over rows otherwise."""
        by_task = {
            f"accuracy: {part.groups[group]}": float(right[part.group_of[rows] == group].mean())
            for group in torch.unique(part.group_of[rows]).tolist()
        }
        loss = float(found[:, 2].sum() / found[:, 3].sum())
        return Scores(
            score=mean_of_groups(part, rows, right),
            metric=self.metric,
            n_examples=len(rows),
            examples_hash=part.examples_hash(rows),
            correct=right.bool(),
            further={**further, "loss": loss, CUT: self._cut, **(by_task if len(by_task) > 1 else {})},
        )

    @torch.no_grad()
    def _losses(self, texts: Sequence[Exchange], batch_size: int) -> Tensor:
        """Loss of the response (without EOS, as in the other protocol) and its tokens, per row: (rows, 2)."""
        encoded = self._encoder.exchanges(texts)
        closed = [len(e.response) > 1 and int(e.response[-1]) == self._encoder.eos for e in encoded]
        bodies = [e.response[:-1] if end else e.response for e, end in zip(encoded, closed, strict=True)]
        questions = [Question(e.prompt, (body,)) for e, body in zip(encoded, bodies, strict=True)]
        scores = choice_scores(self._model, questions, batch_size=batch_size, pad=self._encoder.pad)
        pairs = [[-float(s[0]), float(len(b))] for s, b in zip(scores, bodies, strict=True)]
        return torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)


def _protocol(trial: TrialConfig, dataset: TextDataset) -> str:
    """The protocol asked for; by default log-likelihood, and generation for texts with references.

    Raises:
        TrialError: a protocol that the data set's rows cannot be judged by.
    """
    asked = trial.evaluate.protocol
    if dataset.kind == "meanings":
        if asked == LOG_LIKELIHOOD:
            raise TrialError(
                f"evaluate.protocol 'log-likelihood': the rows of {trial.dataset!r} have reference texts instead of "
                "choices; use 'generation'"
            )
        return GENERATION
    return asked or LOG_LIKELIHOOD


def _encoder(parts: Parts) -> Encoder:
    """The tokenizer with `train.max_tokens`, or LLM-Adapters' 256 where the model's window holds them."""
    window = getattr(parts.loaded.module.config, "max_position_embeddings", None)
    asked = parts.trial.train.max_tokens
    most = asked if asked is not None else min(DEFAULT_MAX_TOKENS, window or DEFAULT_MAX_TOKENS)
    return Encoder(parts.loaded.text_tokenizer, most, window, parts.trial.model)


def causal_lm_task(parts: Parts) -> CausalLMTask:
    """A language model on prompts and responses.

    Raises:
        TrialError: settings or data that a language model does not take.
        DataError: missing or malformed data, naming file and row.
    """
    trial = parts.trial
    if trial.adapt == "vision":
        raise TrialError("adapt = 'vision': a language model has no vision tower; use 'all'")
    if trial.method == LINEAR_PROBE:
        raise TrialError("linear-probe trains a classifier's head, and a language model has none; leave the method out")
    if trial.train.augment != "none":
        raise TrialError(f"train.augment {trial.train.augment!r} is for images; leave it out for a language model")
    return CausalLMTask(parts, parts.lane.text_dataset(trial.dataset, trial.stage))
