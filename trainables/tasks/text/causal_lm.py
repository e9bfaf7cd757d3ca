"""Supervised fine-tuning of causal language models, and their two evaluation protocols, which are never mixed.

The loss is the cross-entropy of the response's tokens and its EOS, divided by the number of such tokens in the whole
global batch. (`train.loss_on_prompt` adds the prompt's tokens, as LLM-Adapters trains by default.) Texts are padded at
the end. Neither the loss nor the model sees the padding, because attention is causal.

"log-likelihood": the answer is the choice whose continuation of the prompt is most likely. Choices that are labels in
one sentence ("the correct answer is answer2") are compared by their summed log-likelihood. Choices that are separate
texts are compared per byte, because longer ones would lose otherwise. The other of the two scores is a further metric.

"generation": LLM-Adapters' beam search, and its rules for reading an answer from the text. For rows with references
(E2E) the score is BLEU. For problems (GSM8K) the answer is the number with which the text ends.

Completions and conversations have neither choices nor answers. Their score is the likelihood exp(-loss), with the mean
loss over the tokens that are learned. It is the geometric mean of the probabilities that the model gives these tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainables.config import LINEAR_PROBE, QUANTISED, EvaluateSettings
from trainables.data.text.batches import length_batches, padded
from trainables.data.text.dataset import Exchange, TextDataset, TextSplit
from trainables.data.text.problems import final_answer
from trainables.data.text.prompts import extract_answer
from trainables.errors import TrialError
from trainables.metrics.texts import caption_scores, check_installed, score_texts
from trainables.models.language import LanguageModel, log_likelihood
from trainables.runtime import broadcast
from trainables.tasks.task import Alone, Parts, Scores, Which, summed
from trainables.tasks.text.encoding import Encoded, EncodedRows, encoder_of, exchange, targets_of
from trainables.tasks.text.generation import generate
from trainables.tasks.text.rows import TextTask, limited, refuse_images
from trainables.tasks.text.scoring import BATCH_TOKENS, Question, choice_scores

LOG_LIKELIHOOD, GENERATION, LOSS_ALONE = "log-likelihood", "generation", "loss"


class CausalLMTask(TextTask[Encoded]):
    """One trial's texts, and the language model that learns them.

    Raises:
        TrialError: a language model does not support the settings or the data.
        DataError: data are missing or malformed.
    """

    head = None

    def __init__(self, parts: Parts) -> None:
        trial, settings, module = parts.trial, parts.trial.train, parts.loaded.module
        refuse_images(trial, "a language model")
        if trial.method == LINEAR_PROBE:
            raise TrialError(
                "linear-probe trains a classifier's head, and a language model has none; leave the method out"
            )
        dataset = parts.lane.text_dataset(trial.dataset, trial.stage)
        if dataset.kind == "sentences":
            raise TrialError(
                f"data set {trial.dataset!r} is labelled sentences, and {trial.model!r} is a language model, which "
                "learns prompts and responses; use a text encoder such as hf:roberta-base, or a json: data set"
            )
        self._model, self._autocast = LanguageModel(module, parts.autocast), parts.autocast
        if settings.base_weights not in QUANTISED:  # int8 takes outliers of all tokens out of each product
            self._refuse_bidirectional(trial.model)
        self._encoder = encoder = encoder_of(parts.loaded, settings.max_tokens)
        super().__init__(parts, dataset, encoder.max_tokens, lambda part: EncodedRows(part, encoder))
        self.protocol = choose_protocol(dataset, trial.evaluate, self._rows.val_idx)
        self._references = dataset.kind == "meanings"
        if self.protocol != LOSS_ALONE and not self._references:
            per_byte = self.protocol == LOG_LIKELIHOOD and dataset.kind == "questions"
            self.metric = f"accuracy ({self.protocol}{' per byte' if per_byte else ''})"

    @torch.no_grad()
    def _refuse_bidirectional(self, model_id: str) -> None:
        """Check that the logits at a token do not depend on the tokens after it.

        Raises:
            TrialError: they do. The loss would see the tokens that it asks for.
        """
        ids, where = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]), torch.tensor([0, 1])
        (one, other), _ = self._model.logits(ids, where, torch.zeros(2, dtype=torch.long))
        if float((one - other).abs().max()) > 1e-3 * float(one.std()):
            raise TrialError(
                f"{model_id!r} is no causal language model: what it predicts for a token depends on later tokens, so "
                "its loss would see the answers. Take a causal model such as Llama. For BERT and its relatives, write "
                "is_decoder = true into config.json"
            )

    def weight(self, batch: Tensor) -> float:
        return float(sum(self._targets(row) for row in batch.tolist()))

    def _targets(self, row: int) -> int:
        """Return the number of tokens that the loss of a training row is over."""
        encoded = self._train[row]
        return len(encoded) - 1 if self._trial.train.loss_on_prompt else encoded.targets

    def loss_sum(self, rows: Tensor, plan: Tensor | None) -> Tensor:
        return self._loss_sums([rows])[0]

    def width(self, rows: Tensor) -> int:
        return super().width(rows) - 1

    def packed_losses(
        self, tasks: Sequence[CausalLMTask], rows: Sequence[Tensor], plans: Sequence[Tensor | None], alone: Alone
    ) -> list[Tensor]:
        return self._loss_sums(rows)  # all trials have the same texts, whichever rows each one trains on

    def _loss_sums(self, groups: Sequence[Tensor]) -> list[Tensor]:
        """Return the summed loss of each group of rows, from one forward pass of all."""
        texts = [self._train[row] for rows in groups for row in rows.tolist()]
        ids_of_texts, at_rows, at_columns, targets = targets_of(texts, prompts=self._trial.train.loss_on_prompt)
        ids = padded([w[:-1] for w in ids_of_texts], self._encoder.pad)  # the last token predicts nothing
        with self._saving():
            logits, _ = self._model.logits(ids, at_rows, at_columns)
        smoothing = self._trial.train.label_smoothing
        counts = [sum(self._targets(row) for row in rows.tolist()) for rows in groups]
        pairs = zip(torch.split(logits, counts), torch.split(targets.to(logits.device), counts), strict=True)
        return [
            cross_entropy(group_logits, to, reduction="sum", label_smoothing=smoothing) for group_logits, to in pairs
        ]

    def evaluate(self, which: Which, *, batch_size: int, rank: int = 0, world: int = 1) -> Scores | None:
        part, rows = self._evaluated(which)
        if len(rows) == 0:
            return None
        own_rows = list(range(rank, len(rows), world))
        if self.protocol == LOSS_ALONE:
            results = torch.zeros(len(rows), 4, dtype=torch.float64)
            results[own_rows, 2:] = self._learned_losses(part, [int(rows[i]) for i in own_rows], batch_size)
            loss = _mean_loss(summed(results, world, self._lane.device))
            return self._scores(part, rows, math.exp(-loss), None, {"loss": loss})
        texts = [exchange(part, int(rows[i])) for i in own_rows]
        results = torch.zeros(len(rows), 4, dtype=torch.float64)
        if self.protocol == LOG_LIKELIHOOD:
            places = [part.place(int(rows[i])) for i in own_rows]
            results[own_rows] = self._by_likelihood(texts, places, batch_size)
            results = summed(results, world, self._lane.device)
            at, name = (1, "accuracy-by-sum") if self._dataset.kind == "questions" else (0, "accuracy-per-byte")
            return self._accuracies(
                part, rows, results[:, at], results, {name: mean_of_groups(part, rows, results[:, 1 - at])}
            )
        written = generate(
            self._module,
            self._encoder.prompts(texts),
            self._encoder,
            self._trial.evaluate,
            batch_size=batch_size,
            autocast=self._autocast,
            configured=self._trial.train.eval_batch_size,
        )
        results[own_rows, 2:] = self._losses(texts, batch_size)
        if self._references:
            results = summed(results, world, self._lane.device)
            references = [exchange(part, row).references for row in rows.tolist()]
            all_texts = gathered(written, len(rows), world)
            values = score_texts(all_texts, references)
            if part is not self._dataset.train:  # METEOR takes seconds, and no choice depends on it
                values |= caption_scores(all_texts, references)
            return self._scores(part, rows, values.pop("bleu"), None, {**values, "loss": _mean_loss(results)})
        answers = [answer_in(text, row) for text, row in zip(written, texts, strict=True)]
        results[own_rows, 0] = torch.tensor(
            [a == r.answer for a, r in zip(answers, texts, strict=True)], dtype=torch.float64
        )
        results[own_rows, 1] = torch.tensor([a is None for a in answers], dtype=torch.float64)
        results = summed(results, world, self._lane.device)
        return self._accuracies(part, rows, results[:, 0], results, {"without-answer": float(results[:, 1].mean())})

    def _by_likelihood(self, texts: Sequence[Exchange], places: Sequence[str], batch_size: int) -> Tensor:
        """Return (rows, 4): right by summed likelihood, right per byte, loss of the right choice, and its number of
        tokens."""
        choices = [row.choices for row in texts]
        flat = self._encoder.continuations([c for each in choices for c in each])
        tokens = list(torch.split(torch.arange(len(flat)), [len(each) for each in choices]))
        questions = []
        for prompt, at, place in zip(self._encoder.prompts(texts), tokens, places, strict=True):
            values = [flat[i] for i in at.tolist()]
            if not all(map(len, values)):
                raise TrialError(f"{place}: a choice has no tokens")
            longest = max(map(len, values)) + 1  # as in training, where an EOS follows
            if longest >= self._encoder.max_tokens:
                raise TrialError(
                    f"{place}: a choice of {longest - 1} tokens leaves no room for a prompt within train.max_tokens "
                    f"{self._encoder.max_tokens}; the least that works is {longest + 1}"
                )
            questions.append(
                Question(self._encoder.shortened(prompt, self._encoder.max_tokens - longest), tuple(values))
            )
        scores = self._choice_scores(questions, batch_size)
        out = torch.zeros(len(texts), 4, dtype=torch.float64)
        for i, (row, each, score, question) in enumerate(zip(texts, choices, scores, questions, strict=True)):
            size = torch.tensor([len(c.strip().encode()) for c in each], dtype=torch.float64)
            right = each.index(row.response)
            out[i, 0] = each[int(score.argmax())] == row.response
            out[i, 1] = each[int((score / size).argmax())] == row.response
            out[i, 2], out[i, 3] = -score[right], len(question.choices[right])
        return out

    def _choice_scores(self, questions: Sequence[Question], batch_size: int) -> list[Tensor]:
        """Return the log-likelihood of every choice of every question."""
        configured = self._trial.train.eval_batch_size
        return choice_scores(
            self._model, questions, batch_size=batch_size, pad=self._encoder.pad, configured=configured
        )

    def _accuracies(
        self, part: TextSplit, rows: Tensor, right: Tensor, found: Tensor, further: dict[str, float]
    ) -> Scores:
        """Return the accuracy: the mean over tasks of a union, else over rows."""
        group = part.group_of[rows]
        by_task = {f"accuracy: {part.groups[g]}": float(right[group == g].mean()) for g in torch.unique(group).tolist()}
        further = {**further, "loss": _mean_loss(found), **(by_task if len(by_task) > 1 else {})}
        return self._scores(part, rows, mean_of_groups(part, rows, right), right.bool(), further)

    @torch.no_grad()
    def _losses(self, texts: Sequence[Exchange], batch_size: int) -> Tensor:
        """Return (rows, 2): the loss of each response (without EOS, as in the other protocol), and its number of
        tokens."""
        encoded = self._encoder.exchanges(texts)
        closed = [len(e.response) > 1 and int(e.response[-1]) == self._encoder.eos for e in encoded]
        bodies = [e.response[:-1] if end else e.response for e, end in zip(encoded, closed, strict=True)]
        questions = [Question(e.prompt, (body,)) for e, body in zip(encoded, bodies, strict=True)]
        scores = self._choice_scores(questions, batch_size)
        pairs = [[-float(s[0]), float(len(b))] for s, b in zip(scores, bodies, strict=True)]
        return torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)

    @torch.no_grad()
    def _learned_losses(self, part: TextSplit, rows: Sequence[int], batch_size: int) -> Tensor:
        """Return (rows, 2): for each row the summed loss of the tokens that are learned, and their number."""
        tokens = self._in_tokens(part)
        tokens.prepare(rows)
        texts = [tokens[row] for row in rows]
        most = BATCH_TOKENS * batch_size // self._trial.train.eval_batch_size
        sums = torch.zeros(len(rows), 2, dtype=torch.float64)
        for batch in length_batches([len(text) - 1 for text in texts], batch_size, most):
            ids_of_texts, at_rows, at_columns, targets = targets_of([texts[i] for i in batch], prompts=False)
            ids = padded([each[:-1] for each in ids_of_texts], self._encoder.pad)
            logits, _ = self._model.logits(ids, at_rows, at_columns)
            losses = -log_likelihood(logits, targets).double().cpu()
            row_of_target = torch.tensor(batch)[at_rows]
            sums.index_add_(0, row_of_target, torch.stack([losses, torch.ones_like(losses)], dim=1))
        return sums


def _mean_loss(results: Tensor) -> float:
    """Return the loss per token of rows whose summed losses and numbers of tokens are columns 2 and 3."""
    return float(results[:, 2].sum() / results[:, 3].sum())


def mean_of_groups(part: TextSplit, rows: Tensor, values: Tensor) -> float:
    """Return the mean over tasks of their means, as the paper's tables average; of one task, its mean."""
    group_numbers = part.group_of[rows]
    means = [float(values[group_numbers == group].mean()) for group in torch.unique(group_numbers).tolist()]
    return sum(means) / len(means)


def choose_protocol(dataset: TextDataset, settings: EvaluateSettings, validated: Tensor) -> str:
    """Return the protocol that evaluates a data set: the one in the settings, or else the one that its kind of rows
    needs.

    Raises:
        TrialError: a row cannot be evaluated by it (the message names the row), or a package is missing. Checked are
            the rows `validated` (V,), and the test split in stage CONFIRM.
    """
    if dataset.kind == "completions":
        if settings.protocol is not None:
            raise TrialError(
                f"evaluate.protocol {settings.protocol!r}: the rows of {dataset.name!r} have neither choices nor "
                "answers; leave it out, and the score is the likelihood of what is learned"
            )
        return LOSS_ALONE
    generated = {"meanings": "reference texts", "problems": "numbers as answers"}.get(dataset.kind)
    if generated and settings.protocol == LOG_LIKELIHOOD:
        raise TrialError(
            f"evaluate.protocol 'log-likelihood': the rows of {dataset.name!r} have {generated} instead of choices; "
            "use 'generation'"
        )
    protocol = settings.protocol or (GENERATION if generated else LOG_LIKELIHOOD)
    if dataset.kind == "meanings":
        check_installed()
        return protocol
    parts = [(dataset.train, limited(dataset.train, validated, settings, "val"))]
    if dataset.stage == "CONFIRM":
        rows = torch.arange(len(dataset.test))
        parts.append((dataset.test, limited(dataset.test, rows, settings, "test")))
    for part, rows in parts:
        for row in rows.tolist():
            _check_row(part, row, protocol)
    return protocol


def _check_row(part: TextSplit, number: int, protocol: str) -> None:
    """Raise TrialError if the protocol cannot evaluate a row."""
    row = exchange(part, number)
    if protocol == GENERATION and row.answer is None:
        raise TrialError(
            f"{part.place(number)}: the row has no answer, so generated text cannot be judged; give one to every row "
            "that validates or tests"
        )
    if protocol == LOG_LIKELIHOOD and len(row.choices) < 2:
        raise TrialError(
            f"{part.place(number)}: no choices to compare; let the instruction end with 'Answer format: a/b/...', and "
            "the row have an 'answer', or a list 'choices'; otherwise set evaluate.protocol = 'generation'"
        )


def answer_in(text: str, row: Exchange) -> str | None:
    """Return the answer that is read from generated text, a label or a problem's number; None if it has none."""
    return extract_answer(text, row.labels) if row.labels else final_answer(text)


def gathered(texts: Sequence[str], n: int, world: int) -> list[str]:
    """Return all workers' texts in the order of the rows. A worker has every `world`-th."""
    if world == 1:
        return list(texts)
    out = [""] * n
    for rank in range(world):
        out[rank::world] = broadcast(list(texts), rank)
    return out
