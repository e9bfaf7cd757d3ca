"""What a data set is: images decoded on demand, labels, words, and a test split that stage TUNE cannot open."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from trainables.config import Stage
from trainables.errors import DataError, SplitError

DEFAULT_TEMPLATES = ("a photo of a {}.", "an image of a {}.", "a picture of a {}.")
DEFAULT_PROMPT = "An image of {}"
"""The single prompt of the contrastive loss (arXiv 2502.00987's released code)."""

# What Pillow raises on bytes that are no image, by format
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """N encoded images with labels.

    Attributes:
        source: where they come from, for messages.
        name: "train" or "test".
        labels: (N,) int64, in [0, number of classes).
        read: opens the image of one row; may raise what Pillow raises.
        stamp: changes whenever the files behind it do; "" where that can't be known, and nothing is cached.
        file: names the file of one row, for messages; None where rows have no files of their own.
    """

    source: str
    name: str
    labels: Tensor
    read: Callable[[int], Image.Image]
    stamp: str = ""
    file: Callable[[int], str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> Image.Image:
        """The RGB image of one row. Raises DataError naming the row when its bytes are no image."""
        try:
            with self.read(row) as image:
                return image.convert("RGB")
        except _UNREADABLE as error:
            file = "" if self.file is None else f" ({self.file(row)})"
            raise DataError(
                f"{self.source}, {self.name} row {row}{file}: not a readable image ({error}); replace or remove it, "
                "or set data.skip_bad = true to leave such images out and count them"
            ) from error

    def examples_hash(self, rows: Tensor) -> str:
        """SHA-256 over the list of example ids (split, row, label): equal lists, equal hashes, on every machine."""
        digest = hashlib.sha256(f"{self.name}\n".encode())
        pairs = torch.stack([rows.to(torch.int64), self.labels[rows]], dim=1)
        digest.update(pairs.contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set with its words.

    Attributes:
        name: the id it was loaded by.
        class_names: one per class.
        templates: prompts with one "{}", for the frozen class embeddings (their mean is taken).
        prompt: the single prompt used where the text tower trains too.
        train: the pool that training and validation images are drawn from.
        open_test: loads the test split; call `test` instead, which knows the stage.
        val_rows: rows of `train` that the data set's authors set apart for validation; None when they did not.
        stage: TUNE closes the test split.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    prompt: str
    train: ImageSplit
    open_test: Callable[[], ImageSplit] = field(repr=False)
    val_rows: Tensor | None = None
    stage: Stage = "TUNE"

    @property
    def test(self) -> ImageSplit:
        """The test split. Raises SplitError in stage TUNE."""
        if self.stage != "CONFIRM":
            raise SplitError(closed(self.name, self.stage))
        return self.open_test()

    def at(self, stage: Stage) -> Dataset:
        """The same data as `stage` may see it."""
        return dataclasses.replace(self, stage=stage)


def closed(name: str, stage: str) -> str:
    """The message of a refused test split."""
    return (
        f"the test split of {name!r} is closed in stage {stage}: validation picks, test reports; "
        "open it in stage CONFIRM (dataset.at('CONFIRM'))"
    )


def check_labels(labels: Tensor, n_classes: int, where: str) -> Tensor:
    """`labels` when all lie in [0, n_classes). Raises DataError naming the first row that does not."""
    bad = ((labels < 0) | (labels >= n_classes)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{where}, row {row}: label {int(labels[row])} is not in 0..{n_classes - 1}; "
            "unlabelled rows cannot be used, remove them or name a labelled split"
        )
    if len(labels) == 0:
        raise DataError(f"{where}: no rows")
    return labels


def check_templates(templates: tuple[str, ...], where: str) -> tuple[str, ...]:
    """`templates` when there is one at least and each holds "{}" once. Raises DataError otherwise."""
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(f"{where}: prompt template {template!r} must hold '{{}}' exactly once, for the class name")
    if not templates:
        raise DataError(f"{where}: no prompt template; give at least one such as 'a photo of a {{}}.'")
    return templates
