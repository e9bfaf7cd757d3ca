"""What a text set is: rows with the prompts and responses of a task, and a test split that stage TUNE cannot open."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from trainables.config import Stage
from trainables.data.dataset import closed
from trainables.errors import SplitError

TextKind = Literal["instructions", "questions", "meanings", "sentences"]
"""instructions: LLM-Adapters rows, answered by a label. questions: answered by the text of a choice. meanings: E2E.
sentences: one or two sentences with a class or a number (GLUE)."""


@dataclass(frozen=True)
class Exchange:
    """A prompt and its response, for a causal language model.

    Attributes:
        prompt, response: what stands before the loss, and what the loss is over.
        choices: the response for every choice, `response` among them; () where the row has none.
        labels: the answer words of the choices, in the same order; what is looked for in generated text.
        answer: the right label; None where the row has none.
        references: texts that a generated one is compared with; () where there is an answer instead.
        bos_between: put the tokenizer's BOS between prompt and response (LoRA's E2E data).
    """

    prompt: str
    response: str
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    answer: str | None = None
    references: tuple[str, ...] = ()
    bos_between: bool = False


@dataclass(frozen=True)
class Labelled:
    """One or two sentences with a class index, or with a number in a regression set."""

    sentences: tuple[str, ...]
    label: int | float


Row = Exchange | Labelled


@dataclass(frozen=True, eq=False)
class TextSplit:
    """N rows of one split.

    Attributes:
        source: where they come from, for messages.
        name: "train" or "test".
        rows: Exchange in all, or Labelled in all.
        labels: (N,) int64, the class of every row: a GLUE label, or the task of a row in a union of tasks.
        groups: names of the tasks of a union, or one name; scores are means over them.
        group_of: (N,) int64, the task of every row.
        starts: first rows of the files that the rows were read from, with the files; for messages.
    """

    source: str
    name: str
    rows: Sequence[Row]
    labels: Tensor
    groups: tuple[str, ...]
    group_of: Tensor
    starts: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, row: int) -> str:
        """File and row (from 0) of a row, for messages."""
        at = bisect.bisect_right([start for start, _ in self.starts], row) - 1
        if at < 0:
            return f"{self.source}, {self.name} row {row}"
        start, file = self.starts[at]
        return f"{file}, row {row - start}"

    def examples_hash(self, rows: Tensor) -> str:
        """SHA-256 over the list of examples (split, row, text): equal lists, equal hashes, on every machine."""
        digest = hashlib.sha256(f"{self.name}\n".encode())
        for row in rows.tolist():
            content = "\x1f".join(map(repr, dataclasses.astuple(self.rows[row])))
            digest.update(f"{row}\x1e{content}\x1d".encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class TextDataset:
    """A text set with its splits.

    Attributes:
        name: the id it was loaded by.
        kind: what its rows are.
        class_names: the classes that K-shot subsets are drawn from: labels of a classification set, or the tasks of a
            union; () where the rows have no classes, and then there is no K-shot subset.
        metric: name of the score: "accuracy", "matthews", "pearson", "bleu".
        train: the pool that training and validation rows are drawn from.
        open_test: loads the test split; call `test` instead, which knows the stage.
        val_rows: rows of `train` that the data set's authors set apart for validation; None when they did not.
        stage: TUNE closes the test split.
    """

    name: str
    kind: TextKind
    class_names: tuple[str, ...]
    metric: str
    train: TextSplit
    open_test: Callable[[], TextSplit] = field(repr=False)
    val_rows: Tensor | None = None
    stage: Stage = "TUNE"

    @property
    def test(self) -> TextSplit:
        """The test split. Raises SplitError in stage TUNE."""
        if self.stage != "CONFIRM":
            raise SplitError(closed(self.name, self.stage))
        return self.open_test()

    def at(self, stage: Stage) -> TextDataset:
        """The same data as `stage` may see it."""
        return dataclasses.replace(self, stage=stage)


def text_split(
    source: str,
    name: str,
    parts: Sequence[tuple[str, str, Sequence[Row]]],
    *,
    labels: Sequence[int] | None = None,
    groups: Sequence[str] = (),
) -> TextSplit:
    """A split from (group, file, rows) parts. `groups` fixes the order of the groups; `labels` default to them."""
    names = tuple(groups) or tuple(dict.fromkeys(group for group, _, _ in parts))
    rows: list[Row] = []
    starts, group_of = [], []
    for group, file, more in parts:
        starts.append((len(rows), file))
        group_of += [names.index(group)] * len(more)
        rows += more
    of = torch.tensor(group_of, dtype=torch.int64)
    given = of if labels is None else torch.tensor(labels, dtype=torch.int64)
    return TextSplit(source, name, rows, given, names, of, tuple(starts))
