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


def of_model(reference: str | None) -> bool:
    """Whether a budget limits what training takes on a model: memory, operations, or saved bytes."""
    return reference is not None and reference.startswith(("memory-", "flops-", "bytes-"))


TAKEN_OUT = "taken out of the sweep file"
"""`cells.reason` of a cell that the sweep file had and has no longer, if it has no confirmed score."""


_PARAMETERS = "trainable parameters"
_LIMITED = {
    "dof": "degrees of freedom",
    "memory": "memory of a training step",
    "flops": "operations of a training step",
    "bytes": "bytes of the saved adapter",
}
"""What a budget limits, by the first word of its name. A name that begins otherwise limits trainable parameters."""
NOT_PARAMETERS = "|".join(_LIMITED)
"""A pattern of the first words of budgets that do not limit trainable parameters."""


def limited(references: Iterable[str | None]) -> str:
    """Say what budgets limit, such as 'trainable parameters'. If they differ, all are named."""
    kinds = {_LIMITED.get(name.partition("-")[0], _PARAMETERS) for name in references if name is not None}
    return " or ".join(kind for kind in (_PARAMETERS, *_LIMITED.values()) if kind in kinds) or _PARAMETERS


def typed(kind: pa.DataType, *names: str) -> list[tuple[str, pa.DataType]]:
    """Return columns of one type, for the schema of a computed table."""
    return [(name, kind) for name in names]
