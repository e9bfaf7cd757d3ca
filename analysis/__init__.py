"""From results tables to conclusions: the store, read-only SQL, statistics, scaling curves, figures and a report.

    store = open_store("results/quickstart")
    store.table("trials")                       # a pyarrow.Table; docs/tables.md describes every column
    store.sql("select * from scaling")

Names load on first use, so that reading a schema does not import the statistics or the plots. Neither torch nor Ray is
needed by anything here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.errors import DamagedPart, QueryError, StoreError
    from analysis.report.page import write_report
    from analysis.statistics.scaling import comparisons, curve
    from analysis.store.store import Store, open_store
    from analysis.tables.console import conclusion, print_results_table, results_table

__all__ = [
    "DamagedPart",
    "QueryError",
    "Store",
    "StoreError",
    "comparisons",
    "conclusion",
    "curve",
    "open_store",
    "print_results_table",
    "results_table",
    "write_report",
]

_HOMES = {
    "DamagedPart": "analysis.errors",
    "QueryError": "analysis.errors",
    "Store": "analysis.store.store",
    "StoreError": "analysis.errors",
    "comparisons": "analysis.statistics.scaling",
    "conclusion": "analysis.tables.console",
    "curve": "analysis.statistics.scaling",
    "open_store": "analysis.store.store",
    "print_results_table": "analysis.tables.console",
    "results_table": "analysis.tables.console",
    "write_report": "analysis.report.page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
