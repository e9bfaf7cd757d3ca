"""What a text set is: rows with the prompts and responses of a task, and a test split that stage TUNE cannot open."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.facts import TextKind
from trainables.data.splits import SplitSet
from trainables.errors import DataError


@dataclass(frozen=True)
class Exchange:
    """A prompt and its response, for a causal language model.

    Attributes:
        prompt, response: the text before the loss, and the text that the loss is over.
        choices: the response for every choice, `response` among them; () if the row has none.
        labels: the answer words of the choices, in the same order. They are searched in generated text.
        answer: the right label; None if the row has none.
        references: texts with which a generated one is compared; () if there is an answer instead.
        bos_between: whether the tokenizer's BOS stands between prompt and response (LoRA's E2E data).
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


@dataclass(frozen=True)
class Completion:
    """A text and its continuation. A model learns the continuation alone."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Chat:
    """A conversation, which the model's chat template writes as one text.

    Attributes:
        messages: (role, content) of each message.
        learned_from: number of the first message that is learned, with all that follow; None if every message of the
            assistant is learned.
    """

    messages: tuple[tuple[str, str], ...]
    learned_from: int | None = None


Row = Exchange | Completion | Chat | Labelled


@dataclass(frozen=True, eq=False)
class TextSplit:
    """N rows of one split.

    Attributes:
        source: where they come from, for messages.
        name: "train" or "test".
        rows: all of them Exchange, all Labelled, or each a Completion or a Chat.
        labels: (N,) int64, the class of every row: a GLUE label, or the task of a row in a union of tasks.
        groups: names of the tasks of a union, or one name. Scores are means over them.
        group_of: (N,) int64, the task of every row.
        starts: for messages: the first row of each file, with the file's name and the row's number in it.
    """

    source: str
    name: str
    rows: Sequence[Row]
    labels: Tensor
    groups: tuple[str, ...]
    group_of: Tensor
    starts: tuple[tuple[int, str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, row: int) -> str:
        """Return the file and the number (from 0) of a row, for messages."""
        at = bisect.bisect_right([start for start, *_ in self.starts], row) - 1
        if at < 0:
            return f"{self.source}, {self.name} row {row}"
        start, file, first = self.starts[at]
        return f"{file}, row {first + row - start}"

    def digest(self, row: int) -> bytes:
        """Return 16 bytes of BLAKE2b over all texts of a row."""
        return hashlib.blake2b(repr(self.rows[row]).encode(errors="surrogatepass"), digest_size=16).digest()

    def examples_hash(self, rows: Tensor) -> str:
        """Return the SHA-256 of the list of examples (split, row, text). Equal lists have equal hashes on every
        machine."""
        digest = hashlib.sha256(f"{self.name}\n".encode())
        for row in rows.tolist():
            content = "\x1f".join(map(repr, dataclasses.astuple(self.rows[row])))
            digest.update(f"{row}\x1e{content}\x1d".encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class TextDataset(SplitSet[TextSplit]):
    """A text set with its splits. Its classes are the labels of a classification set, or the tasks of a union.

    Attributes:
        kind: the kind of its rows.
        metric: the name of the score: "accuracy", "matthews", "pearson", "bleu", "likelihood".
    """

    kind: TextKind
    metric: str


Part = tuple[str, str, Sequence[Row | None]]
"""Rows of one file: (task, the file's name for messages, rows). None stands for a row that is left out."""


def text_dataset(
    name: str,
    kind: TextKind,
    metric: str,
    train: Sequence[Part],
    open_test: Callable[[], Sequence[Part]],
    *,
    held: Sequence[Part] = (),
    class_names: tuple[str, ...] | None = None,
) -> TextDataset:
    """Return a text set made of its parts. The authors' validation rows join `train`. The test split is opened once at
    most.

    If `class_names` is None, the classes are the tasks of a union.
    """
    pool = text_split(name, "train", [*train, *held])
    count = sum(row is not None for _, _, rows in train for row in rows)
    tasks = tuple(dict.fromkeys(task for task, _, _ in train))
    return TextDataset(
        name=name,
        kind=kind,
        class_names=class_names if class_names is not None else tasks if len(tasks) > 1 else (),
        metric=metric,
        train=pool,
        open_test=functools.cache(lambda: text_split(name, "test", open_test())),
        val_rows=torch.arange(count, len(pool)) if held else None,
    )


def text_split(source: str, name: str, parts: Sequence[Part]) -> TextSplit:
    """Return a split made of the rows of files. A row's label is its class, or else its task; rows of a regression have
    0."""
    groups = tuple(dict.fromkeys(group for group, _, _ in parts))
    rows: list[Row] = []
    starts, group_of, labels = [], [], []
    for group, file, more in parts:
        number, follows = groups.index(group), False
        for at, row in enumerate(more):
            if row is None:
                follows = False
                continue
            if not follows:
                starts.append((len(rows), file, at))
                follows = True
            if (half := _lone_surrogate(row)) is not None:
                raise DataError(f"{file}, row {at}: holds half of a character ({half!r}); write it whole, or remove it")
            rows.append(row)
            group_of.append(number)
            label = row.label if isinstance(row, Labelled) else number
            labels.append(label if isinstance(label, int) else 0)
    of = torch.tensor(group_of, dtype=torch.int64)
    return TextSplit(source, name, rows, torch.tensor(labels, dtype=torch.int64), groups, of, tuple(starts))


def _lone_surrogate(row: Row) -> str | None:
    r"""Return a lone surrogate in a row's texts (JSON's "\ud83d"), which no tokenizer takes; None if there is none."""
    try:
        "".join(_texts_of(row)).encode()
    except UnicodeEncodeError as error:
        return error.object[error.start]
    return None


def _texts_of(row: Row) -> Sequence[str]:
    if isinstance(row, Labelled):
        return row.sentences
    if isinstance(row, Chat):
        return [text for message in row.messages for text in message]
    if isinstance(row, Completion):
        return row.prompt, row.completion
    return row.prompt, row.response, *row.choices
