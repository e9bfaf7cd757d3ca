"""Arrow's types, the columns that say where a comparison is made, and what a budget limits."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

TEXT = pa.string()
INT = pa.int64()
REAL = pa.float64()
FLAG = pa.bool_()
BITS = pa.binary()
TIME = pa.timestamp("us", tz="UTC")

PLACE = ("sweep", "model", "dataset", "train_size")
"""The columns that say where a comparison is made."""


def of_dof(reference: str | None) -> bool:
    """Whether a budget limits degrees of freedom in place of trainable parameters."""
    return reference is not None and reference.startswith("dof-")


TAKEN_OUT = "taken out of the sweep file"
"""`cells.reason` of a cell that the sweep file had and has no longer, if it has no confirmed score."""


def limited(references: Iterable[str | None]) -> str:
    """What budgets limit, in words; both where they differ."""
    kinds = sorted({of_dof(reference) for reference in references if reference is not None})
    said = ["degrees of freedom" if dof else "trainable parameters" for dof in kinds]
    return " or ".join(said) or "trainable parameters"


def typed(kind: pa.DataType, *names: str) -> list[tuple[str, pa.DataType]]:
    """Columns of one type, for the schema of a computed table."""
    return [(name, kind) for name in names]
