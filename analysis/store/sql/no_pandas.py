"""Keep pandas out of a process that does not need it. Arrow loads it at the first list, which takes long."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NoPandas(Loader):
    """Finds pandas and refuses to load it.

    A finder that raises would break `importlib.util.find_spec`, which torch asks about pandas when it is loaded.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == "pandas" else None

    def exec_module(self, module: ModuleType) -> None:
        raise ModuleNotFoundError("this process has no use for pandas", name=module.__name__)


def spare_pandas() -> None:
    """Make imports of pandas fail in this process. Only our own programs call it, never code that users import."""
    sys.meta_path.insert(0, _NoPandas())
