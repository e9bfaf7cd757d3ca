"""What tables are made of: Arrow's types, a table's definition, and the columns that several tables share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

TEXT, INT, REAL, FLAG, BITS = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.binary()
TIME = pa.timestamp("us", tz="UTC")

Column = tuple[str, pa.DataType, str]
"""Name, type, meaning."""


@dataclass(frozen=True)
class Table:
    """A results table.

    Attributes:
        doc: one sentence on its rows.
        key: columns that identify a row; of two rows with one key the later written counts.
        columns: in order.
    """

    doc: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]


PLACE = ("sweep", "model", "dataset", "train_size")
"""The columns that say where a comparison is made."""

SWEEP: Column = ("sweep", TEXT, "Name of the sweep.")
MODEL: Column = ("model", TEXT, "Base model id, 'open_clip:ViT-B-32/openai'.")
DATASET: Column = ("dataset", TEXT, "Data set name.")
SIZE: Column = ("train_size", TEXT, "'16-shot', or a fraction of the training set as text, '1.0'.")
REFERENCE: Column = (
    "reference",
    TEXT,
    "The budget: 'lora-8' is LoRA's count at rank 8, 'dof-lora-8' its degrees of freedom; null for none.",
)
BUDGET: Column = ("budget", INT, "Trainable parameters, or degrees of freedom, aimed at; null without a budget.")


def of_dof(reference: str | None) -> bool:
    """Whether a budget limits degrees of freedom in place of trainable parameters."""
    return reference is not None and reference.startswith("dof-")


def limited(references: Iterable[str | None]) -> str:
    """What budgets limit, in words; both where they differ."""
    kinds = sorted({of_dof(reference) for reference in references if reference is not None})
    said = ["degrees of freedom" if dof else "trainable parameters" for dof in kinds]
    return " or ".join(said) or "trainable parameters"


def typed(kind: pa.DataType, *names: str) -> list[tuple[str, pa.DataType]]:
    """Columns of one type, for the schema of a computed table."""
    return [(name, kind) for name in names]
