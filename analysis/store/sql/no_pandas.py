"""Keeps pandas out of a process that needs none: Arrow loads it at the first list, which takes longer than a query."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType


class _NoPandas:
    """Says that pandas is not installed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("this process has no use for pandas", name=name)


def spare_pandas() -> None:
    """Let this process run as if pandas were not installed; for programs of ours alone, never for a library's user."""
    sys.meta_path.insert(0, _NoPandas())
