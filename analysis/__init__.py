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
    from analysis.findings.answer.answer import conclusion
    from analysis.findings.results.numbers import results_table
    from analysis.findings.results.terminal import print_results_table
    from analysis.findings.scaling.numbers import curve
    from analysis.report.page import write_report
    from analysis.store.store import Store, open_store
    from analysis.verdict.comparisons import comparisons

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
    "comparisons": "analysis.verdict.comparisons",
    "conclusion": "analysis.findings.answer.answer",
    "curve": "analysis.findings.scaling.numbers",
    "open_store": "analysis.store.store",
    "print_results_table": "analysis.findings.results.terminal",
    "results_table": "analysis.findings.results.numbers",
    "write_report": "analysis.report.page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
